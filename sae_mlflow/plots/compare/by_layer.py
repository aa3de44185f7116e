"""What trainings came to, layer by layer: final metrics, and how many latents died."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from sae_mlflow.errors import known
from sae_mlflow.plots.compare.legends import category_looks, draw_legend, handles, legend_room
from sae_mlflow.plots.compare.tables import layers_of, over_seeds_of
from sae_mlflow.plots.notes import SEEDS
from sae_mlflow.plots.panels import label_lines, place_axis_labels
from sae_mlflow.plots.sheet import Rooms, Sheet, comparison_title, new_sheet, size_of
from sae_mlflow.plots.style import Style
from sae_mlflow.plots.style_values import Dash
from sae_mlflow.plots.text_size import inches, shortened
from sae_mlflow.plots.value_axis import fit_values

DEAD_METRICS = (("dead_fraction",), ("val_dead_fraction",), ("latents_dead_fraction",))


def by_layer(
    ends: pd.DataFrame,
    wanted: Iterable[Sequence[str]],
    title: tuple[str, str],
    note: str,
    style: Style,
) -> Figure:
    """A panel for each metric that there is: its last value over the layers, in their order.

    Several seeds are their mean, with their range; each model and architecture has a line.

    Args:
        ends: of `tables.ends_table`.
        wanted: of each the first metric that some run has.
    """
    metrics, lines = metrics_of(ends, wanted), lines_of(ends)
    looks = category_looks(style, list(lines))
    places = places_of(layers_of(ends))
    drawn = [{n: values_by_layer(e, metric) for n, e in lines.items()} for metric in metrics]
    several = any((line["seeds"] > 1).any() for each in drawn for line in each.values())
    said = " · ".join(filter(None, (note, SEEDS if several else "")))
    with style.theme():
        room = legend_room(style, list(lines)) if len(lines) > 1 else 0.0
        sheet = _sheet(style, metrics, title, [said, absent(ends, metrics, style)], room)
        for axes, metric, each in zip(sheet.panels, metrics, drawn, strict=False):
            _draw(axes, style, metric, places, each, looks)
        for axes in sheet.panels[len(metrics) :]:
            axes.set_visible(False)
        place_axis_labels(style, sheet.panels[: len(metrics)])
        if room:
            draw_legend(sheet, handles(looks), room)
    return sheet.figure


def metrics_of(ends: pd.DataFrame, wanted: Iterable[Sequence[str]]) -> list[str]:
    """Of each the first one that some run has; none for those that no run has."""
    found = (
        next((m for m in names if m in ends and ends[m].notna().any()), "") for names in wanted
    )
    return [metric for metric in found if metric]


def lines_of(ends: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each model and label, by what its line is called."""
    keys = ["model", "label"] if ends["model"].nunique() > 1 else ["label"]
    return {" · ".join(map(str, names)): line for names, line in ends.groupby(keys, sort=False)}


def _sheet(
    style: Style, metrics: Sequence[str], title: tuple[str, str], notes: list[str], room: float
) -> Sheet:
    columns = min(style.sizes.history_columns, 2, len(metrics))
    panel = style.sizes.history_panel
    lines = max(len(label_lines(style, metric, True, panel[1])) for metric in metrics)
    return new_sheet(
        style,
        -(-len(metrics) // columns),
        columns,
        panel,
        comparison_title(style, title),
        notes,
        label_lines=lines,
        right=Rooms(style, lines).right + room,
    )


def _draw(
    axes: Axes,
    style: Style,
    metric: str,
    places: Mapping[str, int],
    lines: Mapping[str, pd.DataFrame],
    looks: Mapping[str, tuple[str, Dash]],
) -> None:
    width = style.lines.width * style.factor
    axes.set_title(style.metric(metric).label, loc="center", x=0, ha="left")
    axes.set_ylabel("\n".join(label_lines(style, metric, True, size_of(axes)[1])))
    edges: list[float] = []
    for name, ends in lines.items():
        colour, dash = looks[name]
        at = ends["layer"].map(places).to_numpy(dtype=float)
        low, mean, high = (ends[c].to_numpy(dtype=float) for c in ("low", "mean", "high"))
        axes.plot(
            at,
            mean,
            color=colour,
            linestyle=dash,
            linewidth=width,
            marker="o",
            markersize=2.6 * width,
            markeredgecolor=style.colours.panel,
            markeredgewidth=0.4 * width,
        )
        if (ends["seeds"] > 1).any():
            axes.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
        edges += [*low, *high]
    _layer_axis(axes, style, places)
    fraction = style.metric(metric).unit.startswith("fraction")
    fit_values(axes, np.array(edges), above_zero=True, fraction=fraction)


def values_by_layer(line: pd.DataFrame, metric: str) -> pd.DataFrame:
    """`over_seeds_of` a line by layer number; NaN where one of its layers has no number."""
    found = over_seeds_of(line, metric).set_index("layer").reindex(layers_of(line))
    edges = found[["mean", "low", "high"]].astype(float)
    found[edges.columns] = edges.where(np.isfinite(edges["mean"]))
    return found.rename_axis("layer").reset_index()


def places_of(layers: Sequence[str]) -> dict[str, int]:
    """Where each layer stands on the axis: at its number, or in line where one has none."""
    numbers = [re.fullmatch(r"layer(\d+)", layer) for layer in layers]
    found = [int(number[1]) for number in numbers if number]
    return dict(
        zip(layers, found if len(found) == len(layers) else range(len(layers)), strict=True)
    )


def ends_of(places: Collection[int]) -> tuple[float, float]:
    """Of an axis with these places."""
    pad = max(0.5, 0.05 * (max(places) - min(places)))
    return min(places) - pad, max(places) + pad


def _layer_axis(axes: Axes, style: Style, places: Mapping[str, int]) -> None:
    """Every layer has a place, as many as fit have a name; long names are shortened first."""
    first, last = ends_of(places.values())
    size, width = style.points("tick"), size_of(axes)[0]
    gap, inch = 0.12 * size / 9, width / (last - first)
    room = max(width / len(places) - gap, 0.6 * size / 9)
    names = [shortened(layer.removeprefix("layer"), room, size) for layer in places]
    longest = max(inches(name, size) for name in names)
    named: dict[int, str] = {}
    for name, place in zip(names, places.values(), strict=True):
        apart = not named or (place - max(named)) * inch >= longest + gap
        if apart and (last - place) * inch >= (longest - gap) / 2:
            named[place] = name
    axes.set_xlim(first, last)
    axes.xaxis.set_major_locator(FixedLocator(list(named)))
    axes.xaxis.set_major_formatter(lambda at, _: named.get(round(at), ""))
    axes.set_xlabel("layer")


def absent(ends: pd.DataFrame, metrics: Sequence[str], style: Style) -> str:
    """The layers of which a metric is no number, by its label."""
    without = {m: dict.fromkeys(ends.loc[~np.isfinite(ends[m]), "layer"]) for m in metrics}
    named = [f"{style.metric(m).label} of {known(ls, 3)}" for m, ls in without.items() if ls]
    return f"No number: {'; '.join(named)}" if named else ""
