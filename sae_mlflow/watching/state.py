"""Where trainings stand, read from the store."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sae_mlflow import naming
from sae_mlflow.health.finding import REASONS_TAG, STATUS_TAG
from sae_mlflow.health.stored import judge_run
from sae_mlflow.tracking.contents import FAILURE_TAG, RUNNING, RunRow
from sae_mlflow.tracking.store import Store
from sae_mlflow.tracking.trainings import nothing_in, parent_of

WAITING = "WAITING"
FIGURES = ("total_loss", "val_fvu", "l0_norm", "dead_fraction")


@dataclass(frozen=True)
class LayerState:
    """One layer of a training."""

    layer: str
    status: str
    """MLflow's (`RUNNING`, `FINISHED`, `FAILED`, `KILLED`), or `WAITING` for its turn."""
    epochs: int
    """That it will have had in the end; 0 where the store doesn't say."""
    losses: tuple[float, ...] = ()
    """`total_loss` of each epoch so far."""
    figures: Mapping[str, float] | None = None
    """The last values of `FIGURES`."""
    health: str = ""
    """`ok`, `warning` or `failed`; empty before the first epoch."""
    seconds: float = 0.0
    """From its start to its last epoch's end."""
    seconds_left: float | None = None
    """As the epochs so far suggest; None before the first."""
    run_id: str = ""
    reasons: str = ""
    """What was found, as the run's tag has it."""
    failure: str = ""
    """Why it ended before its time, as the run's tag has it."""

    @property
    def epoch(self) -> int:
        return len(self.losses)


@dataclass(frozen=True)
class TrainingState:
    """A parent run and its layers, in their order."""

    run_id: str
    experiment_id: str
    model: str
    status: str
    layers: tuple[LayerState, ...]
    failure: str = ""
    """Why it ended before its time, as the run's tag has it."""

    @property
    def is_running(self) -> bool:
        return self.status == RUNNING

    @property
    def seconds_left(self) -> float | None:
        """Of all layers; those that wait count as much as the others take on average."""
        if not self.is_running:
            return 0.0
        known = [layer for layer in self.layers if layer.seconds_left is not None]
        if not known:
            return None
        whole = [layer.seconds + (layer.seconds_left or 0.0) for layer in known]
        mean = sum(whole) / len(whole)
        lefts = (x.seconds_left for x in self.layers if x.status in (WAITING, RUNNING))
        return sum(mean if left is None else left for left in lefts)


class Watch:
    """The trainings of an experiment that run, and what has become of those that did."""

    def __init__(self, store: Store, experiment: str | None, run_id: str | None = None) -> None:
        """
        Args:
            run_id: watch this training alone: its parent, or one of its layers.

        Raises:
            UserError: there is no such experiment or run, or it isn't an SAE training.
        """
        self._store = store
        self._only_layer = ""
        self._ended: dict[str, LayerState] = {}
        if run_id is None:
            assert experiment is not None
            self._experiment_id: str | None = store.find_experiment(experiment)
            self._parents = self._first_parents(experiment)
        else:
            self._experiment_id = None
            named = store.find_run(run_id)
            parent = parent_of(store, named).run_id
            self._only_layer = "" if parent == named.run_id else named.run_id
            self._parents = [parent]

    def look(self) -> list[TrainingState]:
        """Where each watched training stands now; those that began meanwhile are among them.

        Raises:
            OutOfReach: the store doesn't answer.
        """
        with self._store.reading():
            if self._experiment_id is not None:
                running = [row.run_id for row in self._store.parent_runs(self._experiment_id, True)]
                self._parents = list(dict.fromkeys([*self._parents, *reversed(running)]))
            there = [run_id for run_id in self._parents if self._store.is_there(run_id)]
            return [self._training(self._store.run(run_id)) for run_id in there]

    def _first_parents(self, experiment: str) -> list[str]:
        """Those that run; where none does, the newest."""
        assert self._experiment_id is not None
        running = self._store.parent_runs(self._experiment_id, True)
        shown = running or self._store.parent_runs(self._experiment_id, False)[:1]
        if not shown:
            raise nothing_in(self._store, experiment)
        return [row.run_id for row in reversed(shown)]

    def _training(self, parent: RunRow) -> TrainingState:
        rows = self._store.layer_runs(parent.experiment_id, parent_id=parent.run_id, finished=False)
        if self._only_layer:
            rows = [row for row in rows if row.run_id == self._only_layer]
        layers = [self._layer(row) for row in rows]
        if parent.status == RUNNING and not self._only_layer:
            there = {layer.layer for layer in layers}
            epochs = _whole(parent.params.get("train.epochs"))
            layers += [
                LayerState(label, WAITING, epochs)
                for label in planned_layers(parent.params)
                if label not in there
            ]
        layers.sort(key=lambda layer: naming.layer_order(layer.layer))
        status = layers[0].status if self._only_layer and layers else parent.status
        return TrainingState(
            parent.run_id,
            parent.experiment_id,
            parent.model,
            status,
            tuple(layers),
            _failure(parent),
        )

    def _layer(self, row: RunRow) -> LayerState:
        if row.run_id in self._ended:
            return self._ended[row.run_id]
        epochs = _whole(row.params.get("train.epochs"))
        timed = self._store.timed_history(row.run_id, "total_loss")
        ends = [milliseconds / 1000 for *_, milliseconds in timed]
        started = row.start_time / 1000
        left = _seconds_left(row.status, started, ends, epochs)
        health, reasons = self._health(row, bool(timed))
        state = LayerState(
            layer=row.layer,
            status=row.status,
            epochs=epochs,
            losses=tuple(value for _, value, _ in timed),
            figures={name: row.metrics[name] for name in FIGURES if name in row.metrics},
            health=health,
            reasons=reasons,
            seconds=ends[-1] - started if ends else 0.0,
            seconds_left=left,
            run_id=row.run_id,
            failure=_failure(row),
        )
        if row.status != RUNNING:
            self._ended[row.run_id] = state  # nothing more will come
        return state

    def _health(self, row: RunRow, has_epochs: bool) -> tuple[str, str]:
        """Status and reasons: the tags', which a training keeps up; else judged here."""
        if STATUS_TAG in row.tags:
            return row.tags[STATUS_TAG], row.tags.get(REASONS_TAG, "")
        if not has_epochs:
            return "", ""
        verdict = judge_run(self._store, row)
        return verdict.status, verdict.reasons


def _failure(row: RunRow) -> str:
    return "" if row.status == RUNNING else row.tags.get(FAILURE_TAG, "")


def planned_layers(params: Mapping[str, str]) -> list[str]:
    """The labels of the layers that a parent's params name; a crosscoder's is one."""
    layers = [part for part in params.get("model.layers", "").split(",") if part]
    if layers and params.get("sae.architecture") == "crosscoder":
        return [naming.joint_label(layers)]
    return [naming.layer_label(layer) for layer in layers]


def _seconds_left(status: str, started: float, ends: Sequence[float], epochs: int) -> float | None:
    if status != RUNNING:
        return 0.0
    if not ends or not epochs:
        return None
    an_epoch = (ends[-1] - started) / len(ends)
    return max(an_epoch * (epochs - len(ends)) - max(time.time() - ends[-1], 0.0), 0.0)


def _whole(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0
