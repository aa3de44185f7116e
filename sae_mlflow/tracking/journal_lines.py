"""JSON lines in a file that is only added to, each behind a checksum."""

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Lines:
    """A line is there whole or not at all: what a kill or a full disk cut off is taken back."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        self.damaged = 0
        """Lines that were whole once and can't be read."""
        self._mend()

    @property
    def size(self) -> int:
        return os.fstat(self._file).st_size

    def add(self, facts: dict[str, Any]) -> None:
        """
        Raises:
            OSError: there is no room; the file is as it was.
        """
        size, rest = self.size, memoryview(_line(facts))
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            os.ftruncate(self._file, size)
            raise

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for line in self._path.read_bytes().splitlines():
            if _is_whole(line):
                yield json.loads(line.partition(b" ")[2])
            else:
                self.damaged += 1

    def to_disk(self) -> None:
        os.fsync(self._file)

    def clear(self) -> None:
        os.ftruncate(self._file, 0)

    def close(self) -> None:
        os.close(self._file)
        self._file = -1  # the number may soon be another file's

    def _mend(self) -> None:
        whole, newline, last = self._path.read_bytes().rpartition(b"\n")
        if last:
            os.ftruncate(self._file, len(whole) + len(newline))
            if _is_whole(last):  # all of it but its end
                os.write(self._file, last + b"\n")


def _line(facts: dict[str, Any]) -> bytes:
    text = json.dumps(facts).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _is_whole(line: bytes) -> bool:
    checksum, _, text = line.partition(b" ")
    return checksum == b"%08x" % zlib.crc32(text)
