"""One hookpoint's activations on disk: two flat files that are only ever appended to.

`<hookpoint>.acts` holds one row per kept token (training tokens first, then held-out ones, in the
text's order) and `<hookpoint>.norms` each row's norm in float32. A file's size says how far it is,
so an interrupted fill goes on from its last whole batch. Row n of every hookpoint is the same
token.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sae_mlflow import naming

_NORM_BYTES = 4
_CHECKED_ROWS = 64


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
            assert read == width, f"{self._file.name} was cut while it was read"
        return taken


@dataclass(frozen=True)
class Store:
    """One hookpoint's two files."""

    folder: Path
    hookpoint: str
    d_in: int
    dtype: torch.dtype
    rows_before: np.ndarray
    """Kept tokens before each window, and after the last: int64 `[n_windows + 1]`."""

    @property
    def acts_file(self) -> Path:
        return self.folder / f"{naming.file_stem(self.hookpoint)}.acts"

    @property
    def norms_file(self) -> Path:
        return self.folder / f"{naming.file_stem(self.hookpoint)}.norms"

    @property
    def n_windows(self) -> int:
        return len(self.rows_before) - 1

    @property
    def row_bytes(self) -> int:
        return self.d_in * self.dtype.itemsize

    def windows_done(self) -> int:
        """Whole windows in the files; 0 where what is there can't be what was written."""
        n_rows = int(self.rows_before[-1])
        acts, norms = _size(self.acts_file), _size(self.norms_file)
        if acts > n_rows * self.row_bytes or norms > n_rows * _NORM_BYTES:
            return 0
        rows = min(acts // self.row_bytes, norms // _NORM_BYTES)
        if rows and not self._agrees(rows):
            return 0
        return int(np.searchsorted(self.rows_before, rows, side="right")) - 1

    def complete(self) -> bool:
        return self.windows_done() == self.n_windows

    def missing_bytes(self, windows_done: int) -> int:
        rows = int(self.rows_before[-1] - self.rows_before[windows_done])
        return rows * (self.row_bytes + _NORM_BYTES)

    def cut(self, windows: int) -> None:
        """Leave the first `windows` windows alone in the files."""
        rows = int(self.rows_before[windows])
        for file, row_bytes in (self.acts_file, self.row_bytes), (self.norms_file, _NORM_BYTES):
            file.touch()
            with file.open("r+b") as opened:
                opened.truncate(rows * row_bytes)

    def append(self, acts: Tensor) -> None:
        """Write rows `[n, d_in]` behind those that are there."""
        assert acts.shape[1] == self.d_in, (self.hookpoint, acts.shape, self.d_in)
        stored = acts.to("cpu", self.dtype).contiguous()
        norms = torch.linalg.vector_norm(stored.float(), dim=1)
        for file, rows in (self.acts_file, stored), (self.norms_file, norms):
            with file.open("ab", buffering=0) as opened:
                _write_all(opened.fileno(), rows)

    def rows(self) -> RowFile:
        return RowFile(self.acts_file, self.dtype, self.d_in)

    def norms(self) -> Tensor:
        """float32 `[n_rows]`."""
        return torch.from_numpy(np.fromfile(self.norms_file, dtype=np.float32))

    def _agrees(self, n_rows: int) -> bool:
        """Whether norms of a few rows are those on file; a disk's lost pages read as zeros."""
        checked = torch.linspace(0, n_rows - 1, min(n_rows, _CHECKED_ROWS)).long()
        norms = torch.linalg.vector_norm(self.rows()[checked].float(), dim=1)
        return torch.allclose(norms, self.norms()[checked], rtol=1e-3, equal_nan=True)


def _write_all(descriptor: int, rows: Tensor) -> None:
    left = rows.view(torch.uint8).numpy().data.cast("B")
    while left:
        left = left[os.write(descriptor, left) :]


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
