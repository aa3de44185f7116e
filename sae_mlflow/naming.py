"""Names of models and hookpoints, as they stand in tags, file names and figures."""

import math
import re
from collections.abc import Iterable
from hashlib import sha256
from pathlib import PurePosixPath

INPUT = ":input"
"""Ends a hookpoint that is what a module takes in; without it, it is what the module puts out."""

PLOTS_FOLDER = "training_plots"
"""Where pictures lie, among a run's artifacts and in a folder of plain files."""

HASH_LENGTH = len("-76eeb051")
"""Characters that `told_apart` adds."""

_INPUT_FILE = "@input"  # ':' can't stand in every file name, and nothing sanitised has an '@'
_LONGEST_LABEL = 100
_LAYER_DIGITS = 5
_NUMBERS = re.compile(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)")

# Models that are still told apart once their slashes are two hyphens.
_UNMISTAKABLE = re.compile(r"[A-Za-z0-9._]+([-/][A-Za-z0-9._]+)*")

_RUN_FOLDER = re.compile(r"[0-9a-f]{32}(-pending)?")

_DEVICE = re.compile(r"con|prn|aux|nul|com\d|lpt\d", re.IGNORECASE)


def sanitise(name: str, longest: int = 120) -> str:
    """A model's name in a file name: `meta-llama/Llama-2-7b-hf` -> `meta-llama-Llama-2-7b-hf`.

    Only `[A-Za-z0-9._-]` survives and it never starts or ends with a dot, so it can't leave its
    folder; at most 120 characters, so that a file system takes it. What Windows takes for a device
    (`nul`, `COM1.txt`) gets an underscore in front.

    Args:
        longest: at most so many characters instead.
    """
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:longest].rstrip("-.") or "model"
    return f"_{safe}" if _DEVICE.fullmatch(safe.partition(".")[0]) else safe


def told_apart(name: str, whole: str) -> str:
    """A name that others could have too, with a hash of what it stands for: `my-model-76eeb051`."""
    return f"{name}-{sha256(whole.encode(errors='surrogatepass')).hexdigest()[:8]}"


def run_folder(run_id: str) -> str:
    """A run's name among files: its id, or a hash of one that no store of MLflow's own gives."""
    if is_run_folder(run_id):
        return run_id
    return sha256(run_id.encode(errors="surrogatepass")).hexdigest()[:32]


def is_run_folder(name: str) -> bool:
    return _RUN_FOLDER.fullmatch(name) is not None


def registered_name(
    model: str, layer: str, model_setting: str | None = None, *, transcodes: bool = False
) -> str:
    """A layer's SAEs in the model registry: `gpt2`, `layer10` -> `gpt2-layer10`.

    A module's transcoders read other activations than its autoencoders, and have a name of their
    own: `gpt2-layer10_mlp-transcoder`. Different models have different names. A slash, which MLflow
    forbids, becomes two hyphens: `org/model` -> `org--model-layer10`. Where another model could
    have that name too, a hash tells them apart: `my model` -> `my-model-76eeb051-layer10`. So does
    a hash of its path for a local folder: `/a/gpt2` -> `gpt2-49edbaa8-layer10`.

    Args:
        model: its label; of a local folder, the folder's own name.
        model_setting: `model.name` as it was set; unset means the label.
        transcodes: whether they reconstruct a module's output from its input.
    """
    path = model if model_setting is None else str(PurePosixPath(model_setting))
    name = model.replace("/", "--")
    if path != model or not _UNMISTAKABLE.fullmatch(model) or sanitise(name) != name:
        name = told_apart(sanitise(model), path)
    return f"{name}-{sanitise(layer)}" + ("-transcoder" if transcodes else "")


def hookpoint(layer: int | str) -> str:
    """The module path of a layer as it is written in settings: `10` -> `layers.10`.

    So does `layer10`, as a block is called in tables and tags. `layers` stands for the model's list
    of blocks, whatever the architecture calls it.
    """
    text = _bare(str(layer).strip())
    is_number = text.isdecimal() and len(text) < 1000  # Python converts no longer one
    return f"layers.{int(text)}" if is_number else text


def _bare(text: str) -> str:
    """`layer10` as `10`; another text as it is."""
    return re.sub(r"^layer(?=\d+$)", "", text)


def parse_layers(text: str) -> tuple[int | str, ...]:
    """`10,15`, `3-7` or `layers.10.mlp` as the layers that are meant: `(10, 15)`.

    Raises:
        ValueError: there is none, or one that no model can have; says what the text does.
    """
    layers: list[int | str] = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        first, dash, last = part.partition("-")
        if dash and last.isdecimal() and (first.isdecimal() or not first):
            layers += _layers_between(first, last)
        elif dash and first.isdecimal():
            raise ValueError(f"has {part[:20]!r}, which is no range; write both ends, as in 3-7")
        else:
            bare = _bare(part)
            layers.append(_layer_number(bare) if bare.isdecimal() else bare)
    if not layers:
        raise ValueError("names no layer; write 10,15 or 3-7 or layers.10.mlp")
    return tuple(layers)


def _layers_between(first: str, last: str) -> range:
    if not first:
        raise ValueError(f"names layer -{last[:20]}, but they are counted from 0")
    start, end = _layer_number(first), _layer_number(last)
    if start > end:
        raise ValueError(f"runs backwards; write {last}-{first}")
    return range(start, end + 1)


def _layer_number(digits: str) -> int:
    if len(digits) > _LAYER_DIGITS:
        raise ValueError(f"names a layer of over {_LAYER_DIGITS} digits, which no model has")
    return int(digits)


def input_of(path: str) -> str:
    """The hookpoint that is a module's input: `layers.10.mlp` -> `layers.10.mlp:input`."""
    return path + INPUT


def is_input(hookpoint: str) -> bool:
    return hookpoint.endswith(INPUT)


def module_path(hookpoint: str) -> str:
    """The module whose input or output a hookpoint is."""
    return hookpoint.removesuffix(INPUT)


def file_stem(hookpoint: str) -> str:
    """A hookpoint's file in the activation cache: `layers.10.mlp`, `layers.10.mlp@input`.

    One that had to be sanitised ends with a hash, so that no two hookpoints have the same file.
    """
    path = module_path(hookpoint)
    stem = sanitise(path)
    if stem != path:  # another path could come to the same file
        stem = told_apart(stem, path)
    return stem + _INPUT_FILE if is_input(hookpoint) else stem


def stored_hookpoint(stem: str) -> str:
    """The hookpoint that a file in the activation cache holds."""
    path = stem.removesuffix(_INPUT_FILE)
    return path if path == stem else input_of(path)


def layer_label(layer: int | str) -> str:
    """A layer in tags and file names: `10` -> `layer10`, `layers.10.mlp` -> `layer10_mlp`."""
    path = hookpoint(layer)
    label = re.sub(r"^layers\.(\d+)\.?", r"layer\1_", path).rstrip("_")
    return re.sub(r"[^A-Za-z0-9_-]+", "_", label).strip("_").lstrip("_-")


def joint_label(layers: Iterable[int | str]) -> str:
    """Several layers as one label, by number: `15, 10, layers.20.mlp` -> `layer10-15-20_mlp`.

    What would be over 100 characters is cut and told apart by a hash.
    """
    first, *rest = sorted(map(layer_label, layers), key=layer_order)
    label = "-".join([first, *(re.sub(r"^layer(?=\d)", "", other) for other in rest)])
    if len(label) <= _LONGEST_LABEL:
        return label
    return told_apart(label[: _LONGEST_LABEL - HASH_LENGTH], label)


def natural_order(text: str) -> tuple[tuple[float, str], ...]:
    """A sort key by which `sae.k=8` comes before `sae.k=32`."""
    parts = _NUMBERS.split(text)  # text and numbers in turn
    return tuple(
        (float(part), "") if i % 2 else (math.inf, part) for i, part in enumerate(parts) if part
    )


def layer_order(label: str) -> tuple[int, str]:
    """Sort key that puts layer9 before layer10; labels without a number come last."""
    match = re.match(r"layer(\d+)(.*)", label)
    return (int(match[1]), match[2]) if match else (10**9, label)


def is_block(hookpoint: str) -> bool:
    """Whether a hookpoint is a block's own output or input."""
    return re.fullmatch(rf"layers\.\d+({INPUT})?", hookpoint) is not None


def block_number(layer: int | str) -> int | None:
    """The block that a hookpoint lies in, counted from 0; None outside the blocks."""
    match = re.match(r"layers\.(\d+)([.:]|$)", hookpoint(layer))
    return int(match[1]) if match else None


def depth(layer: int | str) -> tuple[int, bool]:
    """Sort key by how far down the model a hookpoint is: a block's output comes after what is in
    the block, and what is outside the blocks first."""
    block = block_number(layer)
    return (-1 if block is None else block, is_block(hookpoint(layer)))
