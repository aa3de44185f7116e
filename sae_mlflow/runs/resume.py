"""A training that goes on in the runs it has: which parent that is, and what its layers came to."""

from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path

import torch

from sae_mlflow.activations.layer import LayerActivations
from sae_mlflow.config import Settings
from sae_mlflow.errors import UserError
from sae_mlflow.health.stored import judge_run
from sae_mlflow.history import restored
from sae_mlflow.reporting.layer_table import TrainedLayer
from sae_mlflow.runs.checkpoints import checkpoints_folder, remove_finished
from sae_mlflow.runs.guards import recorded
from sae_mlflow.runs.health import STOPPED
from sae_mlflow.runs.heartbeat import STALE_SECONDS
from sae_mlflow.runs.later import when_reachable
from sae_mlflow.runs.lock import LOOK_SECONDS, hold, is_held, let_go
from sae_mlflow.runs.numbers import are_of, differing
from sae_mlflow.runs.parent import open_parent
from sae_mlflow.runs.training import Training
from sae_mlflow.sae import build_sae
from sae_mlflow.tracking.contents import (
    BEST_METRICS,
    EVALUATED,
    EVALUATION_METRICS,
    FAILED,
    FAILURE_TAG,
    FINISHED,
    RUNNING,
    WITHIN_EPOCH,
    RunRow,
)
from sae_mlflow.tracking.open_run import OpenRun
from sae_mlflow.tracking.operations import is_pending
from sae_mlflow.tracking.process import is_recorded, why_dead
from sae_mlflow.tracking.store import Store
from sae_mlflow.tracking.trainings import parent_of

AUTO = "auto"


def finished_parents(store: Store, experiment_id: str) -> set[str]:
    """The runs of trainings that have finished, as far as the store knows."""
    rows = store.parent_runs(experiment_id, running=False)
    return {row.run_id for row in rows if row.status == FINISHED}


def find_parent(training: Training, resume: str | None, finished: Set[str]) -> RunRow | None:
    """The parent run of the training that is to go on; None where one starts afresh.

    Args:
        resume: `auto`, the id of a parent's run or of one of its layers', or nothing.
        finished: runs that there is nothing to go on with. One that was killed when the store
            hadn't been told yet that it was done is none of them: what it lacks is made up for.

    Raises:
        UserError: the run that was named can't go on, or not with these settings.
    """
    if not resume:
        return None
    if resume != AUTO:
        return _named(training, resume, finished)
    for row in training.store.parent_runs(training.experiment.id, running=False):
        if row.run_id in finished or not are_of(training.settings, row.params):
            continue
        if _is_trained(training.settings, row):
            training.display.say(f"Run {row.run_id} is being trained by another process")
            continue
        training.display.say(f"Going on with run {row.run_id}")
        return row
    training.display.say("No unfinished training has these settings: this one starts afresh")
    return None


def _named(training: Training, run_id: str, finished: Set[str]) -> RunRow:
    row = parent_of(training.store, training.store.find_run(run_id))
    elsewhere = row.experiment_id != training.experiment.id
    if row.status == FINISHED and (elsewhere or row.run_id in finished):
        raise UserError(
            f"Run {row.run_id} ({row.name}) has finished: there is nothing to go on with."
        )
    _check_settings(training.settings, row)
    if _is_trained(training.settings, row):
        raise UserError(
            f"Run {row.run_id} ({row.name}) is being trained by another process. Wait for it, or "
            "end that one first."
        )
    return row


def _check_settings(settings: Settings, row: RunRow) -> None:
    if found := differing(settings, row.params):
        raise UserError(
            f"Run {row.run_id} can't go on with other settings: {'; '.join(found)}. Give it "
            "those that it was started with, or train afresh, without --resume."
        )


@contextmanager
def parent_run(training: Training, command: str) -> Iterator[OpenRun]:
    """The parent's run, new or gone on with, closed as what it came to; no other process of this
    machine takes it up meanwhile.

    Args:
        command: what starts the training, for the hint how it goes on.
    """
    root, old = checkpoints_folder(training.settings), training.old
    lock = hold(root, old.run_id) if old is not None else None
    try:
        with (
            recorded(lambda: open_parent(training), training.stopping) as parent,
            _hint_to_resume(training, parent, command),
        ):
            training.stopping.check()
            lock = lock or hold(root, parent.run_id)
            training.lock = Path(lock.lock_file).stem
            if old is not None:
                training.earlier = _earlier(training.store, old)
            yield parent
    finally:
        if lock is not None:
            let_go(lock)


@contextmanager
def _hint_to_resume(training: Training, parent: OpenRun, command: str) -> Iterator[None]:
    """Where a training ends before its time, say how it goes on; what a user has to mend before
    any layer was trained begins afresh."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, UserError) and not (training.begun or training.earlier):
            raise
        run = AUTO if is_pending(parent.run_id) else parent.run_id
        training.display.say(f"To go on from here: {command} --resume {run}")
        raise


def _is_trained(settings: Settings, row: RunRow) -> bool:
    """Whether another process is at it, here or, by its sign of life, on another host."""
    running = row.status == RUNNING and is_recorded(row.tags)
    alive = running and why_dead(row.tags, STALE_SECONDS) is None
    return alive or is_held(checkpoints_folder(settings), row.run_id, LOOK_SECONDS)


def _earlier(store: Store, parent: RunRow) -> dict[str, RunRow]:
    newest_first = store.layer_runs(parent.experiment_id, parent_id=parent.run_id, finished=False)
    return {row.layer: row for row in reversed(newest_first)}


def finished_layer(training: Training, acts: LayerActivations) -> TrainedLayer | None:
    """What a layer came to that needs no more training, out of the store; None of any other."""
    row = training.earlier.get(acts.site.label)
    if row is None:
        return None
    stopped = row.status == FAILED and row.tags.get(FAILURE_TAG, "").startswith(STOPPED)
    if row.status != FINISHED and not stopped:
        return None
    training.display.say(f"{row.layer} has been trained: run {row.run_id}")
    remove_finished(training, row)
    return when_reachable(training, lambda: _row_of(training, acts, row, stopped))


def _row_of(training: Training, acts: LayerActivations, row: RunRow, stopped: bool) -> TrainedLayer:
    with torch.device("meta"):  # without memory
        sae = build_sae(training.settings.sae, acts.widths_in, acts.d_out)
    return TrainedLayer(
        row.layer,
        row.experiment_id,
        row.run_id,
        stored_history(training.store, row),
        sum(p.numel() * p.element_size() for p in sae.parameters()),
        evaluation=stored_evaluation(row),
        verdict=judge_run(training.store, row),
        stopped=stopped,
    )


def stored_history(store: Store, row: RunRow) -> dict[str, list[float]]:
    """The metrics of each epoch, as a training collects them."""
    others = {*BEST_METRICS, *EVALUATION_METRICS}
    keys = [k for k in row.metrics if k not in others and not k.startswith(f"{WITHIN_EPOCH}/")]
    history: dict[str, list[float]] = {}
    for key, _, value in store.history(row.run_id, keys):
        history.setdefault(key, []).append(restored(value))
    return history


def stored_evaluation(row: RunRow) -> dict[str, float]:
    """What a run's evaluation found; empty where it has none yet."""
    if EVALUATED not in row.metrics:
        return {}
    return {key: row.metrics[key] for key in EVALUATION_METRICS if key in row.metrics}
