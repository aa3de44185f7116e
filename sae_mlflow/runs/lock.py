"""Which training a process is at: a lock beside the checkpoints that ends with the process."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from sae_mlflow.errors import UserError
from sae_mlflow.naming import run_folder

LOOK_SECONDS = 1.0
"""Whoever looks at a lock holds it for a moment: one that is held for longer is a training's."""

_AGAIN_SECONDS = 0.02


def hold(root: Path, run_id: str) -> FileLock:
    """Make a training this process's own.

    Args:
        root: the folder of all checkpoints.
        run_id: its parent's; a pending one while the store hasn't made it.

    Raises:
        UserError: another process has it, or the folder can't be written.
    """
    lock = _lock(root, run_id)
    if not _acquired(lock, LOOK_SECONDS):
        raise UserError(f"Run {run_id} is being trained by another process.")
    return lock


def let_go(lock: FileLock) -> None:
    with suppress(OSError):
        Path(lock.lock_file).unlink()
    lock.release()


def is_held(root: Path, run_id: str, patience: float = 0.0) -> bool:
    """Whether a process on this machine is at it.

    Args:
        patience: so many seconds it may be another one that looks.
    """
    lock = _lock(root, run_id)
    if not Path(lock.lock_file).exists():
        return False
    held = not _acquired(lock, patience)
    lock.release()
    return held


def held_by_some(root: Path) -> list[str]:
    """The trainings that processes on this machine are at."""
    return [file.stem for file in root.glob("*.lock") if is_held(root, file.stem)]


@contextmanager
def idle(root: Path, run_ids: Iterable[str]) -> Iterator[bool]:
    """Whether no process is at any of these; none begins to be until the block is left."""
    locks: list[FileLock] = []
    try:
        for run_id in run_ids:
            lock = _lock(root, run_id)
            if not _acquired(lock, LOOK_SECONDS):
                yield False
                return
            locks.append(lock)
        yield True
    finally:
        for lock in locks:
            let_go(lock)


def _lock(root: Path, run_id: str) -> FileLock:
    return FileLock(root / f"{run_folder(run_id)}.lock")


def _acquired(lock: FileLock, seconds: float) -> bool:
    try:
        lock.acquire(timeout=seconds, poll_interval=_AGAIN_SECONDS)
    except Timeout:
        return False
    except OSError as error:
        raise UserError(
            f"{lock.lock_file} can't be written: {error.strerror}. Make room, or point "
            "checkpoint.dir at a folder that can be written."
        ) from None
    return True
