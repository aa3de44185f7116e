"""A checkpoint's file: tensors and facts, whole and synced or not there at all, no pickle.

A safetensors file, whose header has the facts as JSON and whose last tensor, `sha256`, is the
checksum of every byte before it. The library would hold the file's content twice while it writes;
this streams.
"""

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

FORMAT = "sae_mlflow checkpoint"
VERSION = 1
KEPT = 2
"""How many a folder has: the newest may turn out to be damaged."""
SUFFIX = ".safetensors"

_CHECKSUM = "sha256"
_DIGEST_BYTES = hashlib.sha256().digest_size
_CHUNK_BYTES = 1 << 20
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Damaged(ValueError):
    """A file that can't be gone on from; the text says why."""


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds."""

    tensors: dict[str, Tensor]
    """On the CPU."""
    facts: dict[str, Any]


def save_checkpoint(
    folder: Path,
    tensors: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    useless: Collection[Path] = (),
) -> Path:
    """Add a checkpoint to a folder, and remove all but the last two.

    Args:
        useless: of the folder's, those that can't be gone on from: they don't count, and go too.

    Raises:
        OSError: it can't be written; what was there is as it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    there = checkpoints(folder)
    number = int(there[0].stem) + 1 if there else 1
    path = folder / f"{number:08d}{SUFFIX}"
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as file:
            _write(file, tensors, facts)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        with suppress(OSError):
            part.unlink()
        raise
    _sync_folder(folder)
    useful = [file for file in checkpoints(folder) if file not in useless]
    _remove([*useful[KEPT:], *useless, *folder.glob("*.part")])
    return path


def checkpoints(folder: Path) -> list[Path]:
    """A folder's checkpoints, the newest first."""
    files = (file for file in folder.glob(f"*{SUFFIX}") if file.stem.isdecimal())
    return sorted(files, key=lambda file: int(file.stem), reverse=True)


def read_checkpoint(path: Path) -> Checkpoint:
    """
    Raises:
        Damaged: it can't be read, its checksum doesn't hold, or it is of another version.
    """
    with _plain_errors():
        _check_sum(path)
        with safe_open(path, framework="pt") as file:
            facts = _facts(file.metadata() or {})
            # clones lie in memory as torch's own allocator has it, as they did when it was trained
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    del tensors[_CHECKSUM]
    return Checkpoint(tensors, facts)


def read_facts(path: Path) -> dict[str, Any]:
    """A checkpoint's facts out of its header alone, without its checksum being asked.

    Raises:
        Damaged: it can't be read, or is of another version.
    """
    with _plain_errors(), safe_open(path, framework="pt") as file:
        return _facts(file.metadata() or {})


def remove_checkpoints(folder: Path) -> int:
    """All of a folder, and the folder; how many bytes that freed."""
    freed = _remove([*checkpoints(folder), *folder.glob("*.part")])
    with suppress(OSError):
        folder.rmdir()
    return freed


def size_of(tensors: Mapping[str, Tensor]) -> int:
    """Bytes that a file of these takes, but for its header."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _write(file: BinaryIO, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    # widest numbers first: each tensor then starts at a multiple of its numbers' width
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    entries: dict[str, Any] = {}
    end = 0
    for name in names:
        tensor = tensors[name]
        begin, end = end, end + tensor.numel() * tensor.element_size()
        shape, dtype = list(tensor.shape), _DTYPES[tensor.dtype]
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    entries[_CHECKSUM] = {
        "dtype": "U8",
        "shape": [_DIGEST_BYTES],
        "data_offsets": [end, end + _DIGEST_BYTES],
    }
    about = {"format": FORMAT, "version": str(VERSION), "facts": json.dumps(facts)}
    header = json.dumps({"__metadata__": about, **entries}).encode()
    header += b" " * (-len(header) % 8)
    digest = hashlib.sha256()
    for part in (len(header).to_bytes(8, "little"), header):
        digest.update(part)
        file.write(part)
    for name in names:
        data = tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        digest.update(data)
        file.write(data)
    file.write(digest.digest())


def _check_sum(path: Path) -> None:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        left = os.fstat(file.fileno()).st_size - _DIGEST_BYTES
        while left > 0:
            chunk = file.read(min(left, _CHUNK_BYTES))
            if not chunk:
                break
            digest.update(chunk)
            left -= len(chunk)
        if left or file.read() != digest.digest():
            raise Damaged("its checksum doesn't hold: it is damaged, cut short or no checkpoint")


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Whatever a damaged file makes a reader raise, as `Damaged`."""
    try:
        yield
    except OSError as error:
        raise Damaged(f"it can't be read: {error.strerror}") from None
    except Damaged:
        raise
    except (SafetensorError, KeyError, ValueError) as error:
        raise Damaged(f"it isn't a checkpoint: {error}") from None


def _facts(about: Mapping[str, str]) -> dict[str, Any]:
    if about.get("format") != FORMAT:
        raise Damaged("it isn't a checkpoint of sae_mlflow")
    if about.get("version") != str(VERSION):
        raise Damaged(f"it is of version {about.get('version')}, and version {VERSION} is read")
    facts = json.loads(about["facts"])
    if not isinstance(facts, dict):
        raise Damaged("it isn't a checkpoint: its facts are no mapping")
    return facts


def _sync_folder(folder: Path) -> None:
    """A rename is on disk once its folder is; not every file system can be asked for that."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove(files: list[Path]) -> int:
    freed = 0
    for file in files:
        with suppress(OSError):
            size = file.stat().st_size
            file.unlink()
            freed += size
    return freed
