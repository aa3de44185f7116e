"""Checkpoints that are kept on this machine, listed and pruned: of trainings that go on, or never
will."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_mlflow.checkpoint import Damaged, checkpoints, read_facts, remove_checkpoints
from sae_mlflow.errors import UserError, known
from sae_mlflow.runs.lock import is_held


@dataclass(frozen=True)
class Kept:
    """One layer's checkpoints.

    Attributes:
        about: what the newest says of itself.
        last_saved: Unix time in seconds.
        in_use: a process on this machine is at its training.
    """

    run_id: str
    folder: Path
    about: str
    bytes: int
    last_saved: float
    in_use: bool


def list_kept(root: Path) -> list[Kept]:
    """All in the folder of checkpoints, the newest first."""
    folders = [folder for folder in root.glob("*") if folder.is_dir()]
    return sorted(map(_kept, folders), key=lambda kept: -kept.last_saved)


def prune_kept(
    root: Path,
    run_ids: Collection[str] = (),
    *,
    before: float | None = None,
    everything: bool = False,
) -> tuple[list[Kept], list[Kept]]:
    """Delete checkpoints: those deleted, and those that stay since their trainings run.

    Args:
        run_ids: of layers' runs.
        before: also those that were last saved before this Unix time.
        everything: all of them.

    Raises:
        UserError: a run has none.
    """
    there = list_kept(root)
    if unknown := sorted(set(run_ids) - {kept.run_id for kept in there}):
        raise UserError(
            f"No checkpoints of run {unknown[0]!r} in {root}. There are: "
            f"{known([kept.run_id for kept in there])}."
        )
    chosen = [
        kept
        for kept in there
        if everything or kept.run_id in run_ids or (before is not None and kept.last_saved < before)
    ]
    for kept in chosen:
        if not kept.in_use:
            remove_checkpoints(kept.folder)
    return [kept for kept in chosen if not kept.in_use], [kept for kept in chosen if kept.in_use]


def _kept(folder: Path) -> Kept:
    files = [file.stat() for file in folder.iterdir()]
    about, held = _about(folder)
    return Kept(
        run_id=folder.name,
        folder=folder,
        about=about,
        bytes=sum(file.st_size for file in files),
        last_saved=max((file.st_mtime for file in files), default=folder.stat().st_mtime),
        in_use=any(is_held(folder.parent, name) for name in held),
    )


def _about(folder: Path) -> tuple[str, list[str]]:
    """What the newest checkpoint is of, and the name of its training's lock."""
    newest = next(iter(checkpoints(folder)), None)
    if newest is None:
        return "no whole checkpoint", []
    try:
        facts = read_facts(newest)
        return _told(facts), [str(facts["lock"])]
    except Damaged as error:
        return f"{newest.name}: {error}", []
    except (KeyError, TypeError, ValueError):
        return f"{newest.name}: it lacks what it is of", []


def _told(facts: dict[str, Any]) -> str:
    trainer = facts["trainer"]
    epoch, step = trainer["epoch"], trainer["steps_done"]
    return f"{facts['model']}  {facts['layer']}  epoch {epoch:,}, step {step:,}"
