"""Checkpoints that are kept on this machine, listed and pruned: of trainings that go on, or never
will."""

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_mlflow.checkpoint import Damaged, checkpoints, read_facts, remove_checkpoints
from sae_mlflow.disk import Pruned, Pruning
from sae_mlflow.errors import UserError, known
from sae_mlflow.naming import is_run_folder
from sae_mlflow.runs.lock import held_by_some, idle


@dataclass(frozen=True)
class Kept:
    """One layer's checkpoints.

    Attributes:
        about: what the newest says of itself.
        last_saved: Unix time in seconds.
        training: the name of its training's lock; empty where no checkpoint says it.
        in_use: a process on this machine is at its training, or, where nobody can tell which that
            is, at any.
    """

    run_id: str
    folder: Path
    about: str
    bytes: int
    last_saved: float
    training: str
    in_use: bool


def list_kept(root: Path) -> list[Kept]:
    """All in the folder of checkpoints, the newest first; what isn't ours there is left out."""
    folders = [each for each in root.glob("*") if is_run_folder(each.name) and each.is_dir()]
    held = held_by_some(root)  # after the folders, which a training makes once it has its lock
    found = [kept for folder in folders if (kept := _kept(folder, held)) is not None]
    return sorted(found, key=lambda kept: -kept.last_saved)


def prune_kept(root: Path, choice: Pruning) -> Pruned:
    """Delete checkpoints, by the ids of layers' runs; those of what is being trained stay.

    Raises:
        UserError: a given run has none.
    """
    there = list_kept(root)
    if unknown := sorted(set(choice.names) - {kept.run_id for kept in there}):
        raise UserError(
            f"No checkpoints of run {unknown[0]!r} in {root}. There are: "
            f"{known([kept.run_id for kept in there])}."
        )
    freed, left = 0, {}
    for kept in there:
        if not choice.takes(kept.run_id, kept.last_saved):
            continue
        with idle(root, [kept.training] if kept.training else []) as free:
            if free and (kept.training or not held_by_some(root)):
                freed += remove_checkpoints(kept.folder)
            else:
                left[kept.run_id] = "it is being trained"
    return Pruned(freed, left)


def _kept(folder: Path, held: Collection[str]) -> Kept | None:
    """None where its training has finished, and removed it, since the folder was seen."""
    try:
        about, training = _about(folder)
        last_saved, files = folder.stat().st_mtime, [*folder.iterdir()]
    except FileNotFoundError:
        return None
    stats = []
    for file in files:
        with suppress(FileNotFoundError):  # a training saves, and removes what is older
            stats.append(file.stat())
    return Kept(
        run_id=folder.name,
        folder=folder,
        about=about,
        bytes=sum(stat.st_size for stat in stats),
        last_saved=max((stat.st_mtime for stat in stats), default=last_saved),
        training=training,
        in_use=training in held if training else bool(held),
    )


def _about(folder: Path) -> tuple[str, str]:
    """What the newest checkpoint is of, and the name of its training's lock."""
    told, training = "", ""
    for file in checkpoints(folder):
        try:
            facts = read_facts(file)
            about, training = _told(facts), str(facts["lock"])
        except Damaged as error:
            if not file.exists():  # removed since, as there is a newer one
                continue
            about = f"{file.name}: {error}"
        except (KeyError, TypeError, ValueError):
            about = f"{file.name}: it lacks what it is of"
        told = told or about
        if training:
            break
    return told or "no whole checkpoint", training


def _told(facts: dict[str, Any]) -> str:
    trainer = facts["trainer"]
    epoch, step = trainer["epoch"], trainer["steps_done"]
    return f"{facts['model']}  {facts['layer']}  epoch {epoch:,}, step {step:,}"
