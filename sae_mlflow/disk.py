"""Room on a disk: how much there is, how it is said, and which errors mean that there is none."""

import errno
import math
import shutil
from pathlib import Path

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def is_full(error: OSError) -> bool:
    """Whether a write failed for want of room: a full disk, a quota, a limit on a file's size."""
    return error.errno in _FULL


def free_bytes(folder: Path) -> int:
    """Of the disk that a folder is on, or will be on."""
    there = next(each for each in (folder, *folder.parents) if each.exists())
    return shutil.disk_usage(there).free


def in_units(n_bytes: float) -> str:
    """`1.5 GB`; a GB is 10^9 bytes."""
    power = min(4, int(math.log10(n_bytes) // 3)) if n_bytes >= 1 else 0
    return f"{n_bytes / 1000**power:.{1 if power else 0}f} {['B', 'kB', 'MB', 'GB', 'TB'][power]}"
