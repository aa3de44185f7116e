"""Where the user's files are kept: what can be made again in the cache, what can't in the state."""

import os
import tempfile
from pathlib import Path

import platformdirs

from sae_mlflow.errors import UserError, reason_of

CACHE_VARIABLE = "SAE_MLFLOW_CACHE"
STATE_VARIABLE = "SAE_MLFLOW_STATE"


def cache_folder() -> Path:
    """Models, texts and activations; `SAE_MLFLOW_CACHE` says otherwise."""
    return _named_by(CACHE_VARIABLE) or Path(
        platformdirs.user_cache_dir("sae-mlflow", appauthor=False)
    )


def state_folder() -> Path:
    """Checkpoints, and what a store hasn't been told yet; `SAE_MLFLOW_STATE` says otherwise."""
    return _named_by(STATE_VARIABLE) or Path(
        platformdirs.user_state_dir("sae-mlflow", appauthor=False)
    )


def own_checkpoints_folder() -> Path:
    """Of all trainings whose settings name no other."""
    return state_folder() / "checkpoints"


def user_path(text: str | Path) -> Path:
    """A path as a user writes it: `~` is their home; that of nobody stays as it is."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def is_file(path: Path) -> bool:
    """Whether there is such a file; False too where a path can't be one, as it is too long."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_there(path: Path) -> bool:
    """The same of either."""
    return is_file(path) or is_folder(path)


def is_folder(path: Path) -> bool:
    """The same of a folder."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def make_folder(folder: Path, variable: str = CACHE_VARIABLE) -> Path:
    """A folder of ours, made where it isn't there.

    Args:
        variable: what moves it elsewhere, for the message.

    Raises:
        UserError: it can't be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The folder {folder} can't be made: {error.strerror}. "
            f"Point {variable} at a folder that can be written."
        ) from None
    return folder


def why_unwritable(folder: Path) -> str:
    """Why a folder, there or to be made, takes no file; empty where it does."""
    try:
        folder.resolve()  # a ValueError where its name holds a NUL
        there = next(each for each in (folder, *folder.parents) if each.exists())
        if not there.is_dir():
            return f"{there} is a file"
        tempfile.TemporaryFile(dir=there).close()
    except (OSError, ValueError) as error:
        return reason_of(error)
    return ""


def _named_by(variable: str) -> Path | None:
    named = os.environ.get(variable)
    return user_path(named).absolute() if named else None
