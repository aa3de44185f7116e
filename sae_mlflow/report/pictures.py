"""What is drawn for a report, and what is said of each picture."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from sae_mlflow import naming
from sae_mlflow.errors import known
from sae_mlflow.plots import frames
from sae_mlflow.plots.compare.plan import Compared, comparisons
from sae_mlflow.plots.compare.tables import labelled
from sae_mlflow.plots.figures import HISTORY_METRICS
from sae_mlflow.plots.marks import NO_MARKS, marks_of
from sae_mlflow.plots.numbers import number_text
from sae_mlflow.plots.pictures import (
    OVERLAY_METRICS,
    Kind,
    Picture,
    layer_pictures,
    overlay_pictures,
)
from sae_mlflow.plots.style import Style
from sae_mlflow.report.contents import Contents, LayerRun, pictured
from sae_mlflow.tracking.contents import RunRow
from sae_mlflow.tracking.store import Store

DOTS_PER_INCH = 100
_PIXELS = 660  # of a narrow picture's width, so that its small letters stay sharp

_SEEN: dict[Kind, str] = {
    "facets": "Over epochs, a panel for each layer and a line for each of what is compared.",
    "by_depth": "The last value of each layer over its relative depth, a line for each model.",
    "heat_map": "A row for each layer, a column for each epoch, the value as colour.",
    "pareto": "What is lost against the number of latents that fire; the frontier over all runs.",
    "final_metrics_by_layer": "The last values over the layers, held-out ones where there are.",
    "dead_latents": "The share of dead latents over the layers.",
    "ridges": "The distribution of log10 firing frequency over latents, a ridge for each layer.",
}


@dataclass(frozen=True)
class Shown:
    """A picture in a report."""

    picture: Picture
    title: str
    text: str
    """What is to be seen in it, also for who can't see it."""
    runs: tuple[LayerRun, ...] = ()
    """Of a layer's history."""
    short: str = ""
    """Of a layer's history, its name among the others."""


def report_style(style: Style) -> Style:
    """A style with as many dots per inch as a page needs."""
    width = style.sizes.page_width
    dots = DOTS_PER_INCH if width is None else max(DOTS_PER_INCH, round(_PIXELS / width))
    return style.model_copy(update={"dpi": min(style.dpi, dots)})


def overlays(contents: Contents, style: Style) -> list[Shown]:
    """A metric of all finished layers over each other, of each model."""
    rows = [run.row for run in contents.finished]
    table = _with_settings(contents.table, frames.groups(rows, "all"))
    shown = []
    for model in dict.fromkeys(row.model for row in rows):
        mine = table[table["model"] == model]
        note = frames.describe(row for row in rows if row.model == model)
        for picture in overlay_pictures(mine, Path(), "overlay", OVERLAY_METRICS, note):
            label, values = style.metric(picture.metric).label, mine["metric"] == picture.metric
            layers = sorted(mine[values]["layer"].unique(), key=naming.layer_order)
            text = f"{label} over epochs, a line for each of {known(layers)}."
            shown.append(Shown(picture, f"{model}: {label} of all layers", text))
    return shown


def compared(store: Store, contents: Contents, style: Style) -> list[Shown]:
    """Finished runs held against each other."""
    rows = [run.row for run in contents.finished]
    shown = []
    for picture in comparisons(Compared(store, frames.groups(rows, "all"))):
        title = f"{picture.title[0]}: {picture.drawn(style, ()).words}"
        shown.append(Shown(picture, title, _SEEN[picture.kind]))
    return shown


def histories(contents: Contents, style: Style) -> list[Shown]:
    """Each layer's training history, of unfinished runs as far as it has come."""
    by_id = {run.row.run_id: run for run in contents.runs}
    grouped = pictured([run.row for run in contents.runs])
    table = _with_settings(contents.table, grouped)
    return [
        _history(table, tuple(by_id[row.run_id] for row in group), setting, style)
        for group, setting in zip(grouped, frames.setting_labels(grouped), strict=True)
    ]


def _history(table: pd.DataFrame, runs: tuple[LayerRun, ...], setting: str, style: Style) -> Shown:
    first, rows = runs[0].row, [run.row for run in runs]
    mine = table[table["run_id"].isin([row.run_id for row in rows])]
    marks = marks_of(runs[0].verdict.tags) if len(runs) == 1 else NO_MARKS
    picture, *_ = layer_pictures(mine, Path(), "history", None, frames.describe(rows), marks)
    title = " · ".join(filter(None, (first.model, first.layer, setting)))
    short = " · ".join(filter(None, (runs[0].label, setting)))
    return Shown(picture, title, " ".join(_course(mine, style)), runs, short)


def _course(table: pd.DataFrame, style: Style) -> Iterator[str]:
    """`Reconstruction loss: 0.8 at epoch 1, 0.2 at epoch 3.`, of the mean over seeds."""
    means = frames.over_seeds(table)
    for metric in HISTORY_METRICS:
        values = means[means["metric"] == metric]
        if len(values):
            ends = values.iloc[[0, -1]] if len(values) > 1 else values
            said = [
                f"{number_text(mean)} at epoch {epoch}"
                for epoch, mean in zip(ends["epoch"], ends["mean"], strict=True)
            ]
            if values["mean"].nunique(dropna=False) == 1:
                said = [f"{number_text(values['mean'].iloc[0])} at every epoch"]
            yield f"{style.metric(metric).label}: {', '.join(said)}."


def _with_settings(table: pd.DataFrame, grouped: Sequence[Sequence[RunRow]]) -> pd.DataFrame:
    """The rows of the groups' runs, with what sets each group apart as their setting."""
    labels = {
        row.run_id: label
        for group, label in zip(grouped, frames.setting_labels(grouped), strict=True)
        for row in group
    }
    return labelled(table[table["run_id"].isin(list(labels))], labels)


def styled(shown: Sequence[Shown], style: Style) -> list[Shown]:
    """Those that have data, as PNGs in this style."""
    return [
        replace(each, picture=each.picture.drawn(style, ("png",)))
        for each in shown
        if each.picture.has_data
    ]
