"""A file that is written whole or not at all, whenever its writer may end.

That holds for processes that are killed. It isn't synced: what a machine had written last may be
empty or missing after its power was cut.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sae_mlflow.errors import UserError
from sae_mlflow.folders import is_folder, why_unwritable


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes `path`'s place when the block is left.

    The folder is made where it is missing. After an exception `path` is as it was before.

    Raises:
        UserError: the folder or the file can't be written. What the block reads elsewhere raises
            its own errors.
    """
    # the suffix stays the last part: writers choose the format by it
    temporary = path.with_name(f".{os.getpid()}-writing{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if not _is_of(path, temporary, error):
            raise
        raise UserError(_unwritable(path, _reason(path, error))) from None
    finally:
        if temporary.is_file():
            temporary.unlink()


def check_file(path: Path) -> None:
    """Raise a UserError, before the work that a file is to hold, where it can't be written."""
    if is_folder(path):
        raise UserError(f"{path} is a folder. Name a file.")
    if reason := why_unwritable(path.parent):
        raise UserError(_unwritable(path, reason))


def check_folder(folder: Path, setting: str = "") -> None:
    """The same of a folder for several files.

    Args:
        setting: what names it, for the message.
    """
    if reason := why_unwritable(folder):
        raise UserError(_unwritable(folder, reason, setting))


def _unwritable(path: Path, reason: str, setting: str = "") -> str:
    named = f"{setting}: " if setting else ""
    return f"{named}{path} can't be written: {reason}. Choose a folder that can be."


def _is_of(path: Path, temporary: Path, error: OSError) -> bool:
    """Whether an error is the target's: a write to an open file names none, a copy names both."""
    named = [error.filename, error.filename2]
    about = [Path(os.fsdecode(name)) for name in named if isinstance(name, str | bytes)]
    ours = {path, *path.parents}
    return not about or any(each.name == temporary.name or each in ours for each in about)


def _reason(path: Path, error: OSError) -> str:
    for folder in path.parents:
        if folder.exists() and not folder.is_dir():
            return f"{folder} is a file"
    return error.strerror or str(error)
