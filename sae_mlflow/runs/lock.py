"""Which training a process is at: a lock beside the checkpoints that ends with the process."""

from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from sae_mlflow.errors import UserError
from sae_mlflow.naming import run_folder


def hold(root: Path, run_id: str) -> FileLock:
    """Make a training this process's own.

    Args:
        root: the folder of all checkpoints.
        run_id: its parent's; a pending one while the store hasn't made it.

    Raises:
        UserError: another process has it, or the folder can't be written.
    """
    lock = _lock(root, run_id)
    if not _acquired(lock):
        raise UserError(f"Run {run_id} is being trained by another process.")
    return lock


def let_go(lock: FileLock) -> None:
    with suppress(OSError):
        Path(lock.lock_file).unlink()
    lock.release()


def is_held(root: Path, run_id: str) -> bool:
    """Whether a process on this machine is at it."""
    if not Path(_lock(root, run_id).lock_file).exists():
        return False
    lock = _lock(root, run_id)
    held = not _acquired(lock)
    lock.release()
    return held


def _lock(root: Path, run_id: str) -> FileLock:
    return FileLock(root / f"{run_folder(run_id)}.lock")


def _acquired(lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    except OSError as error:
        raise UserError(
            f"{lock.lock_file} can't be written: {error.strerror}. Make room, or point "
            "checkpoint.dir at a folder that can be written."
        ) from None
    return True
