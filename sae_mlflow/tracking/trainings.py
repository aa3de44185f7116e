"""The layer runs that a user names: an experiment's, a training's, or one alone; newest first."""

import shlex

from sae_mlflow.errors import UserError
from sae_mlflow.tracking.contents import ROLE_LAYER, ROLE_SWEEP, RunRow
from sae_mlflow.tracking.reader import StoreReader


def rows_of_experiment(store: StoreReader, experiment: str) -> list[RunRow]:
    """All SAE trainings of an experiment, however they ended.

    Raises:
        UserError: there is no such experiment, or none in it.
    """
    rows = store.layer_runs(store.find_experiment(experiment), finished=False)
    if not rows:
        raise UserError(f"Experiment {experiment!r} in {store.shown_uri} {_none(experiment)}")
    return rows


def rows_of_run(store: StoreReader, run_id: str) -> list[RunRow]:
    """A layer's run, or those of a parent, however they ended.

    Raises:
        UserError: there is no such run, or it isn't an SAE training.
    """
    row = store.find_run(run_id)
    if row.tags.get("sae.role") == ROLE_LAYER:
        return [row]
    rows = _of_parent(store, row) if row.tags.get("sae.role") == ROLE_SWEEP else []
    if not rows:
        raise UserError(
            f"Run {run_id} ({row.name}) is no training of an SAE. Give a layer's run or its parent."
        )
    return rows


def rows_of_parent(store: StoreReader, parent: RunRow) -> list[RunRow]:
    """A parent's layers, however they ended.

    Raises:
        UserError: it has none.
    """
    rows = _of_parent(store, parent)
    if not rows:
        raise UserError(f"Run {parent.run_id} ({parent.name}) {_none('NAME')}")
    return rows


def _of_parent(store: StoreReader, parent: RunRow) -> list[RunRow]:
    return store.layer_runs(parent.experiment_id, parent_id=parent.run_id, finished=False)


def _none(experiment: str) -> str:
    train = f"sae-mlflow train --experiment-name {shlex.quote(experiment)}"
    return f"has no SAE runs. Train some with {train}, or name another."
