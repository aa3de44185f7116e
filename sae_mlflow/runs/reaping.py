"""Runs that say RUNNING though their process is gone: found, and closed as KILLED."""

from collections.abc import Iterator
from dataclasses import dataclass

from sae_mlflow.runs.heartbeat import STALE_SECONDS
from sae_mlflow.tracking.contents import RUNNING, RunRow
from sae_mlflow.tracking.process import is_recorded, last_heartbeat, why_dead
from sae_mlflow.tracking.store import Store


@dataclass(frozen=True)
class DeadRun:
    """A run that nobody keeps up."""

    run: RunRow
    reason: str


def dead_runs(
    store: Store, experiment_id: str, stale_seconds: float = STALE_SECONDS
) -> list[DeadRun]:
    """The runs of an experiment that say RUNNING and aren't; a parent before its layers.

    A layer's run is dead as well where its parent's is.
    """
    found: dict[str, DeadRun] = {}
    for run in _running(store, experiment_id):
        reason = why_dead(run.tags, stale_seconds) or _parents_reason(run, found)
        if reason:
            found[run.run_id] = DeadRun(run, reason)
    return list(found.values())


def unrecorded_runs(store: Store, experiment_id: str) -> list[RunRow]:
    """Runs that say RUNNING, but not who keeps them up: an earlier version's."""
    return [run for run in _running(store, experiment_id) if not is_recorded(run.tags)]


def reap(store: Store, experiment_id: str, stale_seconds: float = STALE_SECONDS) -> list[DeadRun]:
    """Close dead runs as KILLED, with the reason in `sae.failure`; they keep all that they have.

    Returns:
        The runs that were closed. One that its process, or a resumed training, has got hold of
        meanwhile isn't among them.
    """
    reaped = []
    for dead in dead_runs(store, experiment_id, stale_seconds):
        now = store.run(dead.run.run_id)
        if now.status == RUNNING and now.tags == dead.run.tags:
            beat = last_heartbeat(now.tags)
            ended = int(beat.timestamp() * 1000) if beat else None
            store.close_dead(now.run_id, dead.reason, ended)
            reaped.append(dead)
    return reaped


def told(dead: DeadRun) -> str:
    """`org-model_layer10 (3f2a...): process 123 on host is gone`."""
    return f"{dead.run.name} ({dead.run.run_id}): {dead.reason}"


def _running(store: Store, experiment_id: str) -> Iterator[RunRow]:
    yield from store.parent_runs(experiment_id, running=True)
    yield from store.layer_runs(
        experiment_id, finished=False, also=f"attributes.status = '{RUNNING}'"
    )


def _parents_reason(run: RunRow, found: dict[str, DeadRun]) -> str | None:
    """A layer trains within its parent's process, whatever its own tags say."""
    parent = found.get(run.parent_id or "")
    return f"its parent run ended: {parent.reason}" if parent else None
