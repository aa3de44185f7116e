"""Inputs that are wrong on purpose, each given to the command that meets it, and what it says.

Everything that a user, a disk or somebody else may spoil: settings, options, the LM's files, texts,
cached activations, checkpoints, journals, SAEs, histories, the store itself. The same ones each
time, by a seed.
"""

import json
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from faults.spoiled import BadInput, Spoiled
from sae_mlflow.config_load import setting_docs

NONSENSE = ({"a": [1]}, "nonsense?", -7, [[]])
OPTIONS = (
    "plot --experiment nowhere",
    "plot --experiment tiny --layers 3-",
    "plot --experiment tiny --metric nothing",
    "plot --experiment tiny --format bmp",
    "plot --experiment tiny --style nowhere.yaml",
    "plot --experiment tiny --model-name ../../etc",
    "plot --experiment tiny --filter params.`",
    "plot --experiment tiny --filter metrics.val_fvu<'0'OR'1'='1'",
    "plot --history-file nowhere.json",
    "plot --history-file tiny.yaml",
    "plot --sae-dir nowhere",
    "plot --experiment tiny --tracking-uri nonsense://x",
    "plot --experiment tiny --tracking-uri sqlite:////nowhere/x.db",
    "plot --experiment tiny --tracking-uri http://127.0.0.1:9",
    "health --experiment nowhere",
    "health --run ../../etc/passwd",
    "health",
    "report --experiment nowhere",
    "report --run 0123456789abcdef0123456789abcdef",
    "report --experiment tiny --output /proc/nowhere/x.html",
    "watch --run nothing",
    "watch --experiment nowhere",
    "watch --experiment tiny --every 0",
    "evaluate --run nothing",
    "evaluate --experiment tiny --tokens 0",
    "evaluate --experiment nowhere --latent x",
    "export --run nothing --format sae_lens --output out",
    "export --run nothing --format nonsense --output out",
    "export --model models:/nothing@best --format pt --output out",
    "export --model runs:/x --format pt --output out",
    "export-tensorboard --experiment nowhere --output out",
    "register --run nothing",
    "promote --experiment tiny --max-l0 nonsense",
    "promote --experiment nowhere --max-l0 nan",
    "reap --experiment nowhere",
    "reap --experiment tiny --stale-minutes 0",
    "sync --tracking-uri nonsense://x",
    "cache verify nothing",
    "train --config nowhere.yaml",
    "train --config ../../etc/passwd",
    "train --config tiny.yaml --layers 99",
    "train --config tiny.yaml --layers layers.1.nothing",
    "train --config tiny.yaml --model-name nowhere/at-all",
    "train --config tiny.yaml --resume 0123456789abcdef0123456789abcdef",
    "train --config tiny.yaml --set sae.k=999999",
    "train --config tiny.yaml --set sae.q=1",
    "train --config tiny.yaml --set sae.k",
    "train --config tiny.yaml --tracking-uri http://127.0.0.1:9",
    "nonsense",
)


_WORDS = {
    "activations": ("train --config tiny.yaml", "cache verify"),
    "checkpoint": ("train --config tiny.yaml --set train.epochs=20 --resume auto",),
    "journal": ("sync",),
    "SAE": (
        "export --run RUN_ID --format sae_lens --output out",
        "evaluate --run RUN_ID",
        "register --run RUN_ID",
    ),
    "history": ("plot --sae-dir results",),
    "language model": ("train --config tiny.yaml", "evaluate --run RUN_ID"),
    "text": ("train --config tiny.yaml",),
    "store": (
        "plot --experiment tiny",
        "health --experiment tiny",
        "report --experiment tiny",
        "watch --experiment tiny",
        "train --config tiny.yaml",
    ),
}
_CHECKED = {"activations", "checkpoint", "SAE"}
_CONFIGS = {"language model": "config.json", "SAE": "cfg.json"}
_JSON_VALUES = (None, 0, -3, 2.5, True, "three", [], ["a"], {}, {"a": 5})


def bad_inputs(spoiled: Spoiled, a_kind: int) -> Iterator[BadInput]:
    """So many of each kind, except where there are no more."""
    rng = random.Random(6)
    options = [BadInput("option", words, words.split()) for words in OPTIONS]
    yield from rng.sample(options, min(a_kind, len(options)))
    configs = [*_wrong_settings(), *(_garbage(rng, n) for n in range(a_kind))]
    yield from rng.sample(configs, min(a_kind * 2, len(configs)))
    for kind, words in _WORDS.items():
        files = spoiled.files(kind)
        assert files, f"a home has no file of kind {kind}"
        for n in range(a_kind):
            yield _damaged(rng, kind, files[n % len(files)], words[n % len(words)])
    rng = random.Random(7)  # its own, so that the others are as they were
    for kind, name in _CONFIGS.items():
        (path,) = (file for file in spoiled.files(kind) if file.name == name)
        keys = sorted(json.loads(spoiled.whole(kind, path)).keys() - {"sha256"})
        for n in range(a_kind):
            words = _WORDS[kind][n % len(_WORDS[kind])]
            yield _wrong_value(kind, path, rng.choice(keys), rng.choice(_JSON_VALUES), words)


def _wrong_settings() -> Iterator[BadInput]:
    """Each setting there is, with each value that it can't have."""
    for key, _, _ in setting_docs():
        for value in NONSENSE:
            section, _, name = key.rpartition(".")
            tree = {section: {name: value}} if section else {name: value}
            text = yaml.safe_dump({"extends": "tiny.yaml"} | tree)
            yield _config(f"{key} = {value}", text)


def _garbage(rng: random.Random, n: int) -> BadInput:
    pieces = [*"abx01.-:,[]{}&*!?|>'\"#% \n\t", "sae", "model", "!!", "&a", "*a", ": ", "\n- "]
    return _config(f"text {n}", "".join(rng.choices(pieces, k=rng.randint(1, 60))))


def _config(what: str, text: str) -> BadInput:
    return BadInput(
        "config",
        what,
        ["train", "--config", "bad.yaml"],
        lambda folder: (folder / "bad.yaml").write_text(text),
    )


def _damaged(rng: random.Random, kind: str, path: Path, words: str) -> BadInput:
    how = rng.choice(["bit", "bit", "cut", "zeros", "insert", "empty", "text", "gone", "pickle"])
    place, bit = rng.random(), rng.randrange(8)

    def spoil(folder: Path) -> None:
        file = folder / path
        if how == "gone":
            file.unlink()
        else:
            file.write_bytes(_changed(file.read_bytes(), how, place, bit, folder / "pwned"))

    # nothing is decided by meta.json; without its newest checkpoint a layer has an older one
    untold = path.name == "meta.json" or (kind == "checkpoint" and how == "gone")
    return BadInput(
        kind, f"{path}: {how} at {place:.3f}", words.split(), spoil, kind in _CHECKED and not untold
    )


def _wrong_value(kind: str, path: Path, key: str, value: Any, words: str) -> BadInput:
    """A config whose key has another value; without a checksum, so that the value itself is met."""

    def spoil(folder: Path) -> None:
        file = folder / path
        config = json.loads(file.read_bytes()) | {key: value}
        config.pop("sha256", None)
        file.write_text(json.dumps(config))

    return BadInput(kind, f"{path}: {key} = {json.dumps(value)}", words.split(), spoil)


def _changed(whole: bytes, how: str, place: float, bit: int, pwned: Path) -> bytes:
    at = int(place * len(whole))
    match how:
        case "bit":
            return whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]
        case "cut":
            return whole[:at]
        case "zeros":
            return whole[:at] + bytes(min(64, len(whole) - at)) + whole[at + 64 :]
        case "insert":
            return whole[:at] + b"\xff{'" + whole[at:]
        case "empty":
            return b""
        case "text":
            return b"nonsense\n" * 40
        case _:
            return pickle.dumps(_Payload(pwned))


class _Payload:
    """Leaves a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self):
        return Path.touch, (self._file,)
