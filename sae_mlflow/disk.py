"""Room on a disk: how much there is, how it is said, which errors mean that there is none, and what
is deleted to make some."""

import errno
import math
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DAY = 86_400


@dataclass(frozen=True)
class Pruning:
    """What is to be deleted.

    Attributes:
        names: these.
        older_than_days: also what wasn't used for so many days.
        everything: all there is.
    """

    names: Collection[str] = ()
    older_than_days: float | None = None
    everything: bool = False

    def __bool__(self) -> bool:
        return bool(self.names) or self.older_than_days is not None or self.everything

    def takes(self, name: str, last_used: float) -> bool:
        """Whether this goes; `last_used` is a Unix time in seconds."""
        old = self.older_than_days is not None and (
            last_used < time.time() - self.older_than_days * _DAY
        )
        return self.everything or old or name in self.names


@dataclass(frozen=True)
class Pruned:
    """What a deletion came to.

    Attributes:
        freed: bytes.
        left: why what was chosen stays, by its name.
    """

    freed: int
    left: Mapping[str, str]

    def lines(self) -> Iterator[str]:
        for name, reason in self.left.items():
            yield f"left    {name}: {reason}"
        yield f"freed {in_units(self.freed)}"


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
