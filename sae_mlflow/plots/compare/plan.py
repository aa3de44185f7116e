"""Which comparisons a set of runs becomes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from sae_mlflow import naming
from sae_mlflow.plots import frames
from sae_mlflow.plots.compare.by_layer import DEAD_METRICS
from sae_mlflow.plots.compare.densities import ridge_table
from sae_mlflow.plots.compare.heat_map import differs
from sae_mlflow.plots.compare.pareto import points, says_something
from sae_mlflow.plots.compare.tables import FINAL_METRICS, ends_table, labelled, run_labels
from sae_mlflow.plots.layer_key import MOST_LEGEND_ENTRIES
from sae_mlflow.plots.pictures import OVERLAY_METRICS, Picture, distinct, stem
from sae_mlflow.tracking.contents import RunRow

if TYPE_CHECKING:
    from sae_mlflow.tracking.store import Store


@dataclass(frozen=True)
class Compared:
    """The runs that are held against each other."""

    store: "Store"
    grouped: Sequence[Sequence[RunRow]]
    """Of `frames.groups`, all seeds."""
    metric: str | None = None
    """Compare this one alone, and draw nothing that has metrics of its own."""

    @cached_property
    def rows(self) -> list[RunRow]:
        return [row for group in self.grouped for row in group]

    @cached_property
    def models(self) -> list[str]:
        return list(dict.fromkeys(row.model for row in self.rows))

    @cached_property
    def subject(self) -> str:
        """What stands for the model in a title."""
        return self.models[0] if len(self.models) == 1 else f"{len(self.models)} models"

    @cached_property
    def metrics(self) -> Sequence[str]:
        return [self.metric] if self.metric else OVERLAY_METRICS

    @cached_property
    def labels(self) -> dict[str, str]:
        return run_labels(self.rows)

    @cached_property
    def table(self) -> pd.DataFrame:
        """`frames.COLUMNS`, with each run's label as its setting."""
        return labelled(frames.run_table(self.store, self.grouped, self.metrics), self.labels)

    @cached_property
    def ends(self) -> pd.DataFrame:
        return ends_table(self.rows)

    @cached_property
    def note(self) -> str:
        return frames.describe(self.rows)


def comparisons(compared: Compared) -> list[Picture]:
    """The pictures of what differs among the runs; none where there is one run alone."""
    if len(compared.rows) < 2:
        return []
    made = [*_models(compared), *_architectures(compared), *_seeds(compared)]
    made += _heat_maps(compared)
    if not compared.metric:
        made += [*_ends(compared), *_densities(compared)]
    return made


def _picture(
    kind: str,
    table: pd.DataFrame,
    name: str,
    title: tuple[str, str],
    note: str,
    metric: str = "",
    page: str = "",
) -> Picture:
    path = Path(name)
    return Picture(kind, table, path, metric, note, title=title, page=page or name)  # type: ignore[arg-type]


def _facets(
    compared: Compared, what: str, words: str, subject: str, table: pd.DataFrame
) -> Iterator[Picture]:
    for metric in compared.metrics:
        if (table["metric"] == metric).any():
            name = f"{what}_{naming.sanitise(metric)}"
            yield _picture("facets", table, name, (subject, words), compared.note, metric, what)


def _models(compared: Compared) -> Iterator[Picture]:
    """Layers that several models have, side by side; by depth where the models' depths differ."""
    if len(compared.models) < 2:
        return
    several = compared.table.groupby("model")["setting"].nunique().max() > 1
    model, setting = compared.table["model"], compared.table["setting"]
    table = compared.table.assign(setting=model + " · " + setting if several else model)
    shared = table.groupby("layer")["model"].transform("nunique") > 1
    yield from _facets(compared, "compare_models", "by model", compared.subject, table[shared])
    depths = {row.model: row.params.get("lm.n_layers", "") for row in compared.rows}
    placed = compared.ends[compared.ends["depth"].notna()]
    if len(set(depths.values())) > 1 and placed["model"].nunique() > 1:
        for metric in compared.metrics:
            if metric in placed:
                page = "compare_models_by_depth"
                name = f"{page}_{naming.sanitise(metric)}"
                title = (compared.subject, "over relative depth")
                yield _picture("by_depth", placed, name, title, compared.note, metric, page)


def _architectures(compared: Compared) -> Iterator[Picture]:
    for model, name in zip(compared.models, _prefixes(compared), strict=True):
        rows = [row for row in compared.rows if row.model == model]
        if len({row.architecture for row in rows}) > 1:
            table = compared.table[compared.table["model"] == model]
            what = f"{name}compare_architectures"
            yield from _facets(compared, what, "by architecture", model, table)


def _seeds(compared: Compared) -> Iterator[Picture]:
    """Runs that differ in the seed alone: their mean and range."""
    for model, name in zip(compared.models, _prefixes(compared), strict=True):
        several = [g for g in compared.grouped if g[0].model == model and len(g) > 1]
        runs = [row.run_id for group in several for row in group]
        if runs:
            table = compared.table[compared.table["run_id"].isin(runs)]
            yield from _facets(compared, f"{name}compare_seeds", "over seeds", model, table)


def _heat_maps(compared: Compared) -> Iterator[Picture]:
    """Of a model with more layers than a legend has room for, where they or epochs differ."""
    names = distinct(stem(model) for model in compared.models)
    for model, name in zip(compared.models, names, strict=True):
        table = compared.table[compared.table["model"] == model]
        for setting in dict.fromkeys(table["setting"]):
            mine = table[table["setting"] == setting]
            if mine["layer"].nunique() <= MOST_LEGEND_ENTRIES:
                continue
            note = frames.describe(
                row for row in compared.rows if row.run_id in set(mine["run_id"])
            )
            for metric in compared.metrics:
                if (mine["metric"] == metric).any() and differs(mine, metric):
                    page = f"{name}_heat_map"
                    parts = [page, naming.sanitise(metric)]
                    if table["setting"].nunique() > 1:
                        parts.append(naming.sanitise(setting))
                    title = (model, " · ".join(["by layer and epoch", setting]))
                    yield _picture("heat_map", mine, "_".join(parts), title, note, metric, page)


def _ends(compared: Compared) -> Iterator[Picture]:
    """What the trainings came to."""
    ends = compared.ends
    if says_something(points(ends)):
        title = (compared.subject, "what sparsity costs")
        yield _picture("pareto", ends, "pareto", title, compared.note)
    for name, words, wanted in (
        ("final_metrics_by_layer", "final values by layer", FINAL_METRICS.values()),
        ("dead_latents", "dead latents by layer", DEAD_METRICS),
    ):
        if any(metric in ends for names in wanted for metric in names):
            yield _picture(name, ends, name, (compared.subject, words), compared.note)


def _densities(compared: Compared) -> Iterator[Picture]:
    names = _ridge_names(compared)
    table, unread = ridge_table(compared.store, compared.rows, names)
    if len(table):
        lost = f"can't be read: {', '.join(unread[:4])}" if unread else ""
        note = " · ".join(filter(None, (compared.note, lost)))
        title = (compared.subject, "how often latents fire")
        yield _picture("ridges", table, "density", title, note)


def _ridge_names(compared: Compared) -> dict[str, str]:
    """`layer10`, with what else tells the runs apart."""
    seeds = any(len(group) > 1 for group in compared.grouped)
    labels = len(set(compared.labels.values())) > 1
    return {
        row.run_id: " · ".join(
            filter(
                None,
                (
                    row.model if len(compared.models) > 1 else "",
                    row.layer,
                    compared.labels[row.run_id] if labels else "",
                    f"seed {row.params.get('seed', '')}" if seeds else "",
                ),
            )
        )
        for row in compared.rows
    }


def _prefixes(compared: Compared) -> list[str]:
    """Before a file's name: nothing where there is one model alone."""
    if len(compared.models) == 1:
        return [""]
    return [f"{name}_" for name in distinct(stem(model) for model in compared.models)]
