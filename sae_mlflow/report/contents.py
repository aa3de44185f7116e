"""What a report says of runs, gathered out of the store."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sae_mlflow import naming
from sae_mlflow.errors import UserError
from sae_mlflow.health.stored import judge_run
from sae_mlflow.history import restored
from sae_mlflow.plots.pages import RunLink, run_links
from sae_mlflow.tracking.contents import FINISHED, ROLE_LAYER, ROLE_SWEEP

if TYPE_CHECKING:  # pandas and mlflow take seconds to import
    import pandas as pd

    from sae_mlflow.health.finding import Verdict
    from sae_mlflow.tracking.contents import RunRow
    from sae_mlflow.tracking.store import Store

FINAL_METRICS: Mapping[str, tuple[str, ...]] = {
    "FVU": ("val_fvu", "fvu"),
    "L0": ("val_l0_norm", "l0_norm"),
    "dead": ("dead_fraction", "val_dead_fraction"),
    "CE recovered": ("ce_loss_recovered",),
}
"""A report's final figures, and of each the metric that it is; the first one that a run has."""


@dataclass(frozen=True)
class Final:
    """A metric's last value."""

    metric: str
    value: float


@dataclass(frozen=True)
class LayerRun:
    """One training, however it ended."""

    row: "RunRow"
    link: RunLink
    label: str
    """Its layer, after its model where there are several."""
    setting: str
    """What tells it from others of its layer and architecture: `sae.k=32`; often nothing."""
    epochs: int
    """That are in the store."""
    verdict: "Verdict"
    settings: Mapping[str, str]
    """Its params over its parent's."""
    repeated: bool = False
    """Whether a later one of the same layer, settings and seed stands in its place in pictures."""

    @property
    def seed(self) -> str:
        return self.row.params.get("seed", "")

    @property
    def finished(self) -> bool:
        return self.row.status == FINISHED

    @property
    def epochs_asked(self) -> str:
        return self.row.params.get("train.epochs", "")

    def final(self, name: str) -> Final | None:
        """One of `FINAL_METRICS`; None where none of its metrics was logged."""
        metrics = self.row.metrics
        found = (Final(m, restored(metrics[m])) for m in FINAL_METRICS[name] if m in metrics)
        return next(found, None)


@dataclass(frozen=True)
class Contents:
    """What a report is about."""

    experiment: str
    runs: tuple[LayerRun, ...]
    """By model, layer number, architecture, setting, seed and age."""
    parents: tuple[RunLink, ...]
    table: "pd.DataFrame"
    """`frames.COLUMNS`, of all runs."""

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(run.row.model for run in self.runs))

    @property
    def settings_differ(self) -> bool:
        return any(run.setting for run in self.runs)

    @property
    def finished(self) -> list[LayerRun]:
        return [run for run in self.runs if run.finished]


def rows_of(store: "Store", experiment: str | None, run_id: str | None) -> list["RunRow"]:
    """The SAE runs of an experiment or of one of its parents, newest first, however they ended.

    Raises:
        UserError: there is no such experiment or run, the run isn't a parent or is another
            experiment's, or there are no SAE runs.
    """
    from sae_mlflow.tracking.trainings import rows_of_experiment, rows_of_parent

    if run_id is not None:
        return rows_of_parent(store, _parent(store, experiment, run_id))
    assert experiment is not None
    return rows_of_experiment(store, experiment)


def gather(store: "Store", experiment: str, rows: Sequence["RunRow"]) -> Contents:
    """The facts of the runs: their health judged anew, their histories read once."""
    from sae_mlflow.history import REQUIRED_KEYS
    from sae_mlflow.plots import frames
    from sae_mlflow.plots.compare.tables import run_labels

    table = frames.run_table(store, [[row] for row in rows], REQUIRED_KEYS)
    epochs = table.groupby("run_id")["epoch"].max().to_dict()
    labels = run_labels(rows)
    parents = _parents(store, rows)
    several = len({row.model for row in rows}) > 1
    shown = {row.run_id for group in pictured(rows) for row in group}
    runs = [
        LayerRun(
            row,
            link,
            f"{row.model} · {row.layer}" if several else row.layer,
            labels[row.run_id].removeprefix(row.architecture).removeprefix(" · "),
            int(epochs.get(row.run_id, 0)),
            judge_run(store, row),
            {**(parents[row.parent_id].params if row.parent_id in parents else {}), **row.params},
            row.run_id not in shown,
        )
        for row, link in zip(rows, run_links(store, rows), strict=True)
    ]
    return Contents(
        experiment, tuple(sorted(runs, key=_order)), run_links(store, parents.values()), table
    )


def pictured(rows: Sequence["RunRow"]) -> list[list["RunRow"]]:
    """Whose histories are drawn: finished ones with their seeds together, others on their own."""
    from sae_mlflow.plots import frames

    grouped = frames.groups((row for row in rows if row.status == FINISHED), "all")
    grouped += [[row] for row in rows if row.status != FINISHED]
    return sorted(grouped, key=lambda g: (g[0].model, naming.layer_order(g[0].layer)))


def _parent(store: "Store", experiment: str | None, run_id: str) -> "RunRow":
    row = store.find_run(run_id)
    role = row.tags.get("sae.role")
    if role == ROLE_LAYER and row.parent_id:
        raise UserError(
            f"Run {run_id} ({row.name}) is one layer's. Give its parent: --run {row.parent_id}."
        )
    if role != ROLE_SWEEP:
        raise UserError(
            f"Run {run_id} ({row.name}) is no training's parent. Give one that is, or leave --run "
            "away for all of --experiment."
        )
    theirs = store.experiment_name(row.experiment_id)
    if experiment and theirs != experiment:
        raise UserError(
            f"Run {run_id} ({row.name}) is in experiment {theirs!r}, not {experiment!r}. "
            "Leave one of --experiment and --run away."
        )
    return row


def _parents(store: "Store", rows: Sequence["RunRow"]) -> dict[str, "RunRow"]:
    """Those that are still there, the oldest first."""
    ids = dict.fromkeys(row.parent_id for row in rows if row.parent_id)
    found = [store.run(run_id) for run_id in ids if store.is_there(run_id)]
    return {row.run_id: row for row in sorted(found, key=lambda row: row.start_time)}


def _order(run: LayerRun) -> tuple[object, ...]:
    row, seed = run.row, run.seed
    number = int(seed) if seed.isdecimal() else -1
    where = (row.model, naming.layer_order(row.layer), row.architecture)
    return (*where, naming.natural_order(run.setting), number, seed, row.start_time)
