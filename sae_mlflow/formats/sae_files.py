"""SAEs as files, this project's and its peers': `save_sae`, `export_sae`, `load_sae`."""

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Protocol

from safetensors import SafetensorError

from sae_mlflow.activations.layer import LayerActivations
from sae_mlflow.config import Settings
from sae_mlflow.errors import OutOfReach, UserError, did_you_mean, known, reason_of
from sae_mlflow.folders import is_file, is_folder, user_path
from sae_mlflow.formats import dictionary_learning, pt, sae_lens, sparsify, stored_sae
from sae_mlflow.formats.stored_sae import StoredSAE
from sae_mlflow.lm.loading import resolve_device
from sae_mlflow.sae import SAE
from sae_mlflow.tracking.contents import SAE_FOLDER
from sae_mlflow.tracking.trainings import layer_run

if TYPE_CHECKING:
    from sae_mlflow.tracking.store import Store

CONFIG_FILE = sae_lens.CONFIG_FILE

STORE_SCHEMES = ("runs:/", "models:/", "mlflow-artifacts:/")

WRITE_ERRORS = (OSError, SafetensorError, RuntimeError)
"""What a full disk makes of writing: the file system's own error, or that of safetensors, torch."""

# Where a registered model keeps its copy of the SAE's folder.
_IN_MODEL = Path("artifacts") / "sae"


class Format(Protocol):
    """A way to write SAEs to a folder; each is a module."""

    WEIGHTS_FILE: str

    def refusal(self, stored: StoredSAE) -> str | None: ...
    def write(self, stored: StoredSAE, folder: Path) -> None: ...
    def read(self, path: Path) -> StoredSAE: ...


FORMATS: dict[str, Format] = {
    "sae_lens": sae_lens,
    "sparsify": sparsify,
    "dictionary_learning": dictionary_learning,
    "pt": pt,
}


def save_sae(sae: SAE, folder: Path, acts: LayerActivations, settings: Settings) -> None:
    """Write an SAE that was trained on scaled activations so that it works on raw ones.

    Args:
        acts: what it was trained on.
        settings: what it was trained with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sae_lens.write(stored_sae.of_trained(sae, acts, settings), folder)


def save_pt(sae: SAE, file: Path, acts: LayerActivations, settings: Settings) -> None:
    """The same as one `.pt` file."""
    pt.write_file(stored_sae.of_trained(sae, acts, settings), file)


def export_sae(stored: StoredSAE, format_name: str, folder: Path) -> None:
    """Write an SAE in a format of `FORMATS`, to a folder that is new or empty.

    Raises:
        UserError: the format can't express the architecture; the folder can't be written, or
            holds something.
    """
    check_format(format_name)
    reason = FORMATS[format_name].refusal(stored)
    if reason:
        able = [name for name, each in FORMATS.items() if each.refusal(stored) is None]
        raise UserError(f"--format {format_name}: {reason}. This SAE goes into {known(able)}.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"{folder} is not empty. Name a new folder.")
        FORMATS[format_name].write(stored, folder)
    except WRITE_ERRORS as error:
        raise UserError(
            f"{folder} can't be written: {reason_of(error)}. Name a folder that can."
        ) from None


def check_format(name: str) -> None:
    if name not in FORMATS:
        hint = did_you_mean(name, FORMATS)
        raise UserError(f"--format {name!r} is not known. {hint}There are: {known(FORMATS)}.")


def load_sae(source: str | Path, *, device: str = "cpu", tracking_uri: str | None = None) -> SAE:
    """Open a trained SAE: `latents = sae.encode(acts)`, `sae.decode(latents)`, `sae(acts)`.

    Args:
        source: a folder as this package, SAELens, sparsify or dictionary_learning writes it; a
            `.pt` file of this package; or in the tracking store a run's (`runs:/ID/sae`) or a
            registered model (`models:/NAME@ALIAS`, `models:/NAME/VERSION`).
        device: a torch device, or `auto` (cuda, else cpu).
        tracking_uri: the store of a source in one; unset means MLflow's own setting.

    Returns:
        The SAE in float32 and evaluation mode, for raw activations `[..., d_in]`. Its `metadata`
        says where it belongs, as far as its files do: `model_name`, `layer` (the block, counted
        from 0), `hookpoints_in` and `hookpoints_out` (`layers.10`; a peer's `hook_name`).

    Raises:
        UserError: nothing is there, it is not an SAE that this package knows, or the device isn't
            here.
    """
    where = resolve_device(device, "device")
    stored, file = read_stored(source, tracking_uri=tracking_uri)
    return stored_sae.build(stored, file).to(where).eval().requires_grad_(False)


def read_stored(source: str | Path, *, tracking_uri: str | None = None) -> tuple[StoredSAE, Path]:
    """What `load_sae` builds an SAE from, and its place for messages."""
    if not str(source).startswith(STORE_SCHEMES):
        if "://" in str(source):
            raise UserError(f"{source} is on the net. Download it, and give the folder.")
        path = user_path(source)
        return _read(path), path
    from sae_mlflow.tracking.store import existing_store

    if re.fullmatch(r"runs:/+[^/]+/?", str(source)):
        sae = f"{str(source).rstrip('/')}/{SAE_FOLDER}"
        raise UserError(f"{source} is a whole run. Its SAE is {sae}.")
    with TemporaryDirectory() as scratch:
        copy = _download(existing_store(tracking_uri), str(source), Path(scratch))
        try:
            return _read(copy), Path(source)
        except UserError as error:
            raise UserError(str(error).replace(str(copy), str(source))) from None


def _download(store: "Store", source: str, into: Path) -> Path:
    try:
        return store.download(source, into)
    except UserError as error:
        if source.startswith("runs:/") and not isinstance(error, OutOfReach):
            layer_run(store, source)  # says which runs have an SAE, where this one can't
        raise


def _read(path: Path) -> StoredSAE:
    if is_file(path):
        return pt.read(path)
    if not is_folder(path):
        raise UserError(
            f"{path} isn't there. Give the folder of a saved SAE, a .pt file, runs:/RUN_ID/sae or "
            "models:/NAME@ALIAS."
        )
    if (path / "MLmodel").is_file():
        path = path / _IN_MODEL
    for each in FORMATS.values():
        if (path / each.WEIGHTS_FILE).is_file():
            return each.read(path)
    wanted = ", ".join(f"{each.WEIGHTS_FILE} ({name})" for name, each in FORMATS.items())
    held = known(sorted(p.name for p in path.iterdir()) if path.is_dir() else [])
    raise UserError(f"{path} holds no SAE's weights: none of {wanted}. It holds: {held}.")
