"""The runs that a user names: an experiment's, a training's, or one alone; newest first."""

import shlex
from typing import TYPE_CHECKING

from sae_mlflow.errors import UserError, known
from sae_mlflow.tracking.contents import ROLE_LAYER, ROLE_SWEEP, RunRow

if TYPE_CHECKING:  # at run time it would import mlflow
    from sae_mlflow.tracking.reader import StoreReader


def rows_of_experiment(store: "StoreReader", experiment: str) -> list[RunRow]:
    """All SAE trainings of an experiment, however they ended.

    Raises:
        UserError: there is no such experiment, or none in it.
    """
    rows = store.layer_runs(store.find_experiment(experiment), finished=False)
    if not rows:
        raise nothing_in(store, experiment)
    return rows


def finished_rows(
    store: "StoreReader", experiment: str, experiment_id: str, also: str | None = None
) -> list[RunRow]:
    """The finished layer runs of an experiment.

    Args:
        also: a condition in MLflow's filter language.

    Raises:
        UserError: there are none, or MLflow doesn't take the condition.
    """
    if rows := store.layer_runs(experiment_id, also=also):
        return rows
    where = _place(store, experiment)
    if also and store.layer_runs(experiment_id):
        raise UserError(
            f"{where} has no finished SAE run for which {also} holds. Change --filter, or leave it "
            "away."
        )
    unfinished = store.layer_runs(experiment_id, finished=False)
    if not unfinished:
        raise nothing_in(store, experiment)
    states = known(sorted(f"{row.name} is {row.status}" for row in unfinished), 4)
    raise UserError(
        f"{where} has no finished SAE run: {states}. Wait for one to finish, or train again."
    )


def rows_of_run(store: "StoreReader", run_id: str) -> list[RunRow]:
    """A layer's run, or those of a parent, however they ended.

    Raises:
        UserError: there is no such run, or it isn't an SAE training.
    """
    row = store.find_run(run_id)
    if row.role == ROLE_LAYER:
        return [row]
    rows = _of_parent(store, row) if row.role == ROLE_SWEEP else []
    if not rows:
        raise _no_training(row)
    return rows


def rows_of_parent(store: "StoreReader", parent: RunRow) -> list[RunRow]:
    """A parent's layers, however they ended.

    Raises:
        UserError: it has none.
    """
    rows = _of_parent(store, parent)
    if not rows:
        raise UserError(f"Run {parent.run_id} ({parent.name}) {_none('NAME')}")
    return rows


def layer_run(store: "StoreReader", run_id: str) -> RunRow:
    """A run that holds an SAE.

    Raises:
        UserError: there is no such run, or it trained no SAE itself.
    """
    row = store.find_run(run_id)
    if row.role == ROLE_LAYER:
        return row
    children = store.layer_runs(row.experiment_id, parent_id=row.run_id)
    hint = ", ".join(f"{child.run_id} ({child.layer})" for child in children)
    if not hint:
        hint = "none of this training's has finished" if row.role == ROLE_SWEEP else "it has none"
    raise UserError(f"Run {row.run_id} ({row.name}) holds no SAE. Give a layer's run: {hint}.")


def parent_of(store: "StoreReader", row: RunRow) -> RunRow:
    """A training's parent: the run itself, or that of a layer's.

    Raises:
        UserError: it isn't an SAE training.
    """
    if row.role == ROLE_LAYER and row.parent_id:
        row = store.find_run(row.parent_id)
    if row.role != ROLE_SWEEP:
        raise _no_training(row)
    return row


def nothing_in(store: "StoreReader", experiment: str) -> UserError:
    """What is said of an experiment without SAE trainings."""
    return UserError(f"{_place(store, experiment)} {_none(experiment)}")


def _of_parent(store: "StoreReader", parent: RunRow) -> list[RunRow]:
    return store.layer_runs(parent.experiment_id, parent_id=parent.run_id, finished=False)


def _no_training(row: RunRow) -> UserError:
    return UserError(
        f"Run {row.run_id} ({row.name}) is no training of SAEs. Give the parent run of one, or a "
        "layer's."
    )


def _place(store: "StoreReader", experiment: str) -> str:
    return f"Experiment {experiment!r} in {store.shown_uri}"


def _none(experiment: str) -> str:
    train = f"sae-mlflow train --experiment-name {shlex.quote(experiment)}"
    return f"has no SAE runs. Train some with {train}, or name another."
