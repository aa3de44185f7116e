"""One hookpoint's activations on disk: flat files that are only ever appended to.

`<hookpoint>.acts` holds one row per kept token (training tokens first, then held-out ones, in the
text's order), `<hookpoint>.norms` each row's norm in float32, and `<hookpoint>.sums` what both have
to be (`checksums`). It says how far they are too, so an interrupted fill goes on from its last
whole batch. Row n of every hookpoint is the same token.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sae_mlflow import naming
from sae_mlflow.activations import checksums
from sae_mlflow.activations.checksums import NORM_BYTES, AnotherVersion, Damage, HookpointFiles
from sae_mlflow.errors import UserError


class RowFile:
    """Rows `[n, d_in]` of a file, each read from its place when it's asked for.

    Reads by position instead of a map of the file: pages of a map count as this process's memory
    once they were read, and giving them back after each batch makes a batch of 1,024 random rows
    cost 4 to 8 ms where this costs under 3 (576 float32 a row, file in the system's cache).
    """

    def __init__(self, file: Path, dtype: torch.dtype, d_in: int) -> None:
        self._file = file.open("rb", buffering=0)
        self._dtype = dtype
        self._d_in = d_in

    def __getitem__(self, rows: Tensor) -> Tensor:
        taken = torch.empty(len(rows), self._d_in, dtype=self._dtype)
        width = self._d_in * self._dtype.itemsize
        into = taken.view(torch.uint8).numpy().data.cast("B")
        for place, row in enumerate(rows.tolist()):
            self._file.seek(row * width)
            read = self._file.readinto(into[place * width : (place + 1) * width])
            if read != width:
                raise UserError(
                    f"{self._file.name} was cut while it was read: another training collects it "
                    "anew. Run again."
                )
        return taken


@dataclass(frozen=True)
class Progress:
    """How far a hookpoint's files are."""

    windows: int
    """Whole windows, from the first one on, that are as they were written."""
    damage: Damage | None = None
    """Why what follows is no good; None where it isn't there yet."""


@dataclass(frozen=True)
class ActivationFiles:
    """One hookpoint's files."""

    folder: Path
    hookpoint: str
    d_in: int
    dtype: torch.dtype
    rows_before: np.ndarray
    """Kept tokens before each window, and after the last: int64 `[n_windows + 1]`."""

    @property
    def files(self) -> HookpointFiles:
        return HookpointFiles(self.folder, naming.file_stem(self.hookpoint))

    @property
    def n_windows(self) -> int:
        return len(self.rows_before) - 1

    @property
    def row_bytes(self) -> int:
        return self.d_in * self.dtype.itemsize

    def progress(self) -> Progress:
        """What is in the files; every byte is read and checked."""
        files = self.files
        if not any(file.exists() for file in (files.acts, files.norms, files.sums)):
            return Progress(0)
        missing = [file for file in (files.acts, files.norms) if not file.exists()]
        try:
            header = checksums.read_header(files)
            if missing:
                return Progress(0, Damage(missing[0], "it isn't there"))
            if isinstance(header, Damage):
                return Progress(0, header)
            if header != self._header:
                return Progress(0, Damage(files.sums, "it is of other activations"))
            return self._windows()
        except AnotherVersion:
            return Progress(0, Damage(files.acts, "another version of sae-mlflow wrote it"))
        except OSError as error:
            return Progress(0, Damage(files.sums, f"it can't be read: {error.strerror}"))

    def _windows(self) -> Progress:
        n = 0
        for window in checksums.check_windows(self.files, self._header):
            if window.damage:
                return Progress(min(n, self.n_windows - 1), window.damage[0])
            if window.rows != self.rows_before[n + 1] - self.rows_before[n]:
                return Progress(n, Damage(self.files.sums, f"window {n} is another text's"))
            n += 1
        return Progress(n)

    @property
    def _header(self) -> checksums.Header:
        return checksums.Header(self.row_bytes, self.n_windows)

    def complete(self) -> bool:
        """Whether all windows are there, by the files' sizes; `progress` looks into them."""
        return [_size(file) for file in self._sizes(0)] == list(
            self._sizes(self.n_windows).values()
        )

    def bytes_there(self) -> int:
        return sum(max(0, _size(file)) for file in self._sizes(0))

    def missing_bytes(self, windows_done: int) -> int:
        there, whole = self._sizes(windows_done), self._sizes(self.n_windows)
        return sum(whole.values()) - (sum(there.values()) if windows_done else 0)

    def _sizes(self, windows: int) -> dict[Path, int]:
        """Of each file, with so many windows."""
        rows, files = int(self.rows_before[windows]), self.files
        return {
            files.acts: rows * self.row_bytes,
            files.norms: rows * NORM_BYTES,
            files.sums: checksums.size_of_sums(windows),
        }

    def cut(self, windows: int) -> None:
        """Leave the first `windows` windows alone in the files."""
        if not windows:  # the header too may be damaged, or another version's
            self.files.sums.write_bytes(checksums.header_bytes(self.files, self._header))
        for file, size in self._sizes(windows).items():
            file.touch()
            with file.open("r+b") as opened:
                opened.truncate(size)

    def append(self, acts: Tensor, windows: range) -> None:
        """Write rows `[n, d_in]` of some windows behind those that are there."""
        assert acts.shape[1] == self.d_in, (self.hookpoint, acts.shape, self.d_in)
        stored = acts.to("cpu", self.dtype).contiguous()
        norms = _bytes(torch.linalg.vector_norm(stored.float(), dim=1))
        rows = _bytes(stored)
        files, sums = self.files, memoryview(self._records(rows, norms, windows))
        for file, written in (files.acts, rows), (files.norms, norms), (files.sums, sums):
            with file.open("ab", buffering=0) as opened:
                _write_all(opened.fileno(), written)

    def _records(self, rows: memoryview, norms: memoryview, windows: range) -> bytes:
        edges = self.rows_before[windows.start : windows.stop + 1]
        ends = (edges - edges[0]).tolist()
        assert len(norms) == ends[-1] * NORM_BYTES, (self.hookpoint, windows)
        return b"".join(
            checksums.record_bytes(
                self.files,
                window,
                rows[begin * self.row_bytes : end * self.row_bytes],
                norms[begin * NORM_BYTES : end * NORM_BYTES],
            )
            for window, begin, end in zip(windows, ends, ends[1:], strict=False)
        )

    def rows(self) -> RowFile:
        return RowFile(self.files.acts, self.dtype, self.d_in)

    def norms(self) -> Tensor:
        """float32 `[n_rows]`."""
        return torch.from_numpy(np.fromfile(self.files.norms, dtype=np.float32))


def _bytes(rows: Tensor) -> memoryview:
    return rows.view(torch.uint8).numpy().data.cast("B")


def _write_all(descriptor: int, left: memoryview) -> None:
    while left:
        left = left[os.write(descriptor, left) :]


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else -1
