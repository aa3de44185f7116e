"""Every byte of the activation cache held against its checksums, without the model or the text."""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from sae_mlflow import naming
from sae_mlflow.activations import cache
from sae_mlflow.activations.checksums import (
    FORMAT,
    AnotherVersion,
    Damage,
    Header,
    HookpointFiles,
    check_windows,
    read_header,
)
from sae_mlflow.errors import known

_FACTS = ("format", "model", "text", "tokens")


@dataclass(frozen=True)
class Checked:
    """One hookpoint of an entry; or, without one, what is wrong with the entry's facts."""

    key: str
    hookpoint: str
    windows: int = 0
    """That are there."""
    n_windows: int = 0
    """That there will be."""
    bytes: int = 0
    """That were read."""
    damage: tuple[Damage, ...] = ()

    @property
    def whole(self) -> bool:
        return not self.damage and self.windows == self.n_windows


def verify_cache(keys: Collection[str] = ()) -> Iterator[Checked]:
    """Check entries of the cache, all of them where none is named.

    What another process is writing meanwhile is checked as far as it was when its turn came.

    Raises:
        UserError: there is no entry of a given key.
    """
    for entry in cache.named_entries(keys):
        if not keys or entry.key in keys:
            yield from _verify(cache.activations_folder() / entry.key)


def _verify(folder: Path) -> Iterator[Checked]:
    endings = (".acts", ".norms", ".sums")
    stems = sorted({file.stem for file in folder.iterdir() if file.suffix in endings})
    facts = _bad_facts(folder / "meta.json")
    if facts:
        yield Checked(folder.name, "", damage=(facts,))
    for stem in stems:
        yield _checked(HookpointFiles(folder, stem))


def _bad_facts(file: Path) -> Damage | None:
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        return Damage(file, f"it can't be read: {error.strerror}")
    except ValueError:
        return Damage(file, "it is not JSON")
    if not isinstance(facts, dict) or any(fact not in facts for fact in _FACTS[1:]):
        return Damage(file, f"it lacks some of {known(_FACTS)}")
    if facts.get("format") != FORMAT:
        return Damage(file, "another version of sae-mlflow wrote this entry")
    return None


def _checked(files: HookpointFiles) -> Checked:
    key, hookpoint = files.folder.name, naming.stored_hookpoint(files.stem)
    try:
        header = read_header(files)
        if isinstance(header, Damage):
            return Checked(key, hookpoint, damage=(header,))
        return _checked_windows(files, header)
    except AnotherVersion:
        what = "it has no checksums that this version reads: another one wrote it"
        return Checked(key, hookpoint, damage=(Damage(files.acts, what),))
    except OSError as error:
        file = Path(error.filename or files.sums)
        damage = Damage(file, f"it can't be read: {error.strerror}")
        return Checked(key, hookpoint, damage=(damage,))


def _checked_windows(files: HookpointFiles, header: Header) -> Checked:
    windows = list(check_windows(files, header))
    return Checked(
        files.folder.name,
        naming.stored_hookpoint(files.stem),
        windows=len(windows),
        n_windows=header.n_windows,
        bytes=sum(file.stat().st_size for file in (files.acts, files.norms, files.sums)),
        damage=tuple(damage for window in windows for damage in window.damage),
    )
