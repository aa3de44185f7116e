"""The activation cache: one folder per model and text, listed and pruned."""

import json
import shutil
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from sae_mlflow import naming
from sae_mlflow.disk import Pruned, Pruning, free_bytes, in_units
from sae_mlflow.errors import UserError, known, reason_of
from sae_mlflow.folders import CACHE_VARIABLE, cache_folder, is_file, make_folder, why_unwritable

_LOCKS = "locks"


def activations_folder() -> Path:
    return cache_folder() / "activations"


def lock_of(key: str) -> FileLock:
    """Held by the process that writes to, or deletes, an entry."""
    locks = make_folder(activations_folder() / _LOCKS)
    return FileLock(locks / f"{key}.lock")


def take(lock: FileLock, timeout: float = -1) -> None:
    """
    Args:
        timeout: seconds to wait for it; -1 means as long as it takes.

    Raises:
        Timeout: another process has it still.
        UserError: this process may not have it, as where it is another user's.
    """
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        raise
    except OSError as error:
        raise UserError(
            f"The lock {lock.lock_file} can't be taken: {reason_of(error)}. Ask its owner to let "
            f"you write to it, or point {CACHE_VARIABLE} at a folder of your own."
        ) from None


def check_disk(needed_bytes: int) -> None:
    """Raise UserError where the cache can't be written, or, with the numbers, where its disk can't
    hold `needed_bytes` more."""
    folder = make_folder(activations_folder())
    if reason := why_unwritable(folder):
        raise UserError(
            f"{folder} can't be written: {reason}. Point {CACHE_VARIABLE} at a folder of your own."
        )
    free = free_bytes(folder)
    if needed_bytes > free:
        raise UserError(
            f"The activations take {in_units(needed_bytes)}, but {folder} has {in_units(free)} "
            "free. Lower text.tokens, set activations.dtype to bfloat16, name fewer layers, prune "
            "(`sae-mlflow cache prune`), or point SAE_MLFLOW_CACHE at a larger disk."
        )


@dataclass(frozen=True)
class CacheEntry:
    """The activations of one model on one text."""

    key: str
    model: str
    text: str
    hookpoints: tuple[str, ...]
    tokens: int
    """Tokens that the LM read, held-out ones included."""
    bytes: int
    last_used: float
    """Unix time in seconds."""


def write_facts(folder: Path, **facts: str | int) -> None:
    """What a person sees of an entry; nothing is decided by it."""
    part = folder / "meta.json.part"
    part.write_text(json.dumps(facts, indent=1), encoding="utf-8")
    part.replace(folder / "meta.json")


def touch(folder: Path) -> None:
    """Mark an entry as used just now; one that can't be written can be read all the same."""
    with suppress(OSError):
        (folder / "last_used").touch()


def list_cache() -> list[CacheEntry]:
    """What is in the activation cache, the latest used first."""
    everything = activations_folder()
    there = everything.iterdir() if everything.is_dir() else ()
    folders = (folder for folder in there if folder.is_dir() and folder.name != _LOCKS)
    found = [entry for folder in folders if (entry := _entry(folder)) is not None]
    return sorted(found, key=lambda entry: -entry.last_used)


def _entry(folder: Path) -> CacheEntry | None:
    """None where another process has deleted it since it was seen."""
    try:
        return _read_entry(folder)
    except FileNotFoundError:
        return None


def _read_entry(folder: Path) -> CacheEntry:
    try:
        facts = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        facts = None
    facts = facts if isinstance(facts, dict) else {}  # a disk may have changed it
    tokens = facts.get("tokens")
    used = folder / "last_used"
    return CacheEntry(
        key=folder.name,
        model=str(facts.get("model", "?")),
        text=str(facts.get("text", "?")),
        hookpoints=_hookpoints(folder),
        tokens=tokens if isinstance(tokens, int) else 0,
        bytes=_bytes_in(folder),
        last_used=(used if is_file(used) else folder).stat().st_mtime,
    )


def _bytes_in(folder: Path) -> int:
    """Of the files that are there still and that this process may see."""
    total = 0
    with suppress(OSError):
        for file in folder.iterdir():
            with suppress(OSError):
                total += file.stat().st_size
    return total


def _hookpoints(folder: Path) -> tuple[str, ...]:
    names = (naming.stored_hookpoint(file.stem) for file in folder.glob("*.acts"))
    return tuple(sorted(names, key=lambda name: naming.layer_order(naming.layer_label(name))))


def named_entries(keys: Collection[str]) -> list[CacheEntry]:
    """All entries, the latest used first, once it is known that the named ones are among them.

    Raises:
        UserError: there is no entry of a given key.
    """
    entries = list_cache()
    unknown = sorted(set(keys) - {entry.key for entry in entries})
    if unknown:
        raise UserError(
            f"No cached activations {unknown[0]!r}. There are: "
            f"{known([entry.key for entry in entries])}."
        )
    return entries


def prune_cache(choice: Pruning) -> Pruned:
    """Delete entries of the activation cache, by their keys.

    An entry that is being written at the moment stays, and so does another user's.

    Raises:
        UserError: there is no entry of a given key.
    """
    freed, left = 0, {}
    for entry in named_entries(choice.names):
        if choice.takes(entry.key, entry.last_used):
            reason = _delete(entry.key)
            freed += entry.bytes - _bytes_in(activations_folder() / entry.key)
            if reason:
                left[entry.key] = reason
    return Pruned(freed, left)


def _delete(key: str) -> str:
    """Why it stays; empty where it has gone."""
    lock = lock_of(key)
    try:
        take(lock, timeout=0)
    except Timeout:
        return "it is being written"
    except UserError as error:
        return str(error)
    folder = activations_folder() / key
    try:
        shutil.rmtree(folder)
    except OSError as error:
        return f"{folder} can't be removed: {reason_of(error)}"
    finally:
        lock.release()
    return ""
