"""What trainings came to, layer by layer: final metrics, and how many latents died."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from sae_mlflow.errors import known
from sae_mlflow.plots.compare.legends import category_looks, draw_legend, handles, legend_room
from sae_mlflow.plots.compare.tables import layers_of, over_seeds_of
from sae_mlflow.plots.notes import SEEDS
from sae_mlflow.plots.page_layout import Page, Rooms, comparison_title, new_page, size_of
from sae_mlflow.plots.panels import label_lines, place_axis_labels
from sae_mlflow.plots.style import Style
from sae_mlflow.plots.style_values import Dash
from sae_mlflow.plots.text_size import inches
from sae_mlflow.plots.value_axis import fit_values

FINAL_METRICS = (
    ("val_fvu", "fvu"),
    ("val_l0_norm", "l0_norm"),
    ("ce_loss_recovered",),
    ("val_dead_fraction", "dead_fraction"),
)
"""Of each the first one that any run has."""

DEAD_METRICS = (("dead_fraction",), ("val_dead_fraction",), ("latents_dead_fraction",))


def by_layer(
    ends: pd.DataFrame,
    wanted: Sequence[Sequence[str]],
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
    layers = layers_of(ends)
    several = any((over_seeds_of(ends, metric)["seeds"] > 1).any() for metric in metrics)
    said = " · ".join(filter(None, (note, SEEDS if several else "")))
    with style.theme():
        room = legend_room(style, list(lines)) if len(lines) > 1 else 0.0
        page = _page(style, metrics, title, [said, absent(ends, metrics)], room)
        for axes, metric in zip(page.panels, metrics, strict=False):
            _draw(
                axes,
                style,
                metric,
                layers,
                {n: over_seeds_of(e, metric) for n, e in lines.items()},
                looks,
            )
        for axes in page.panels[len(metrics) :]:
            axes.set_visible(False)
        place_axis_labels(style, page.panels[: len(metrics)])
        if room:
            draw_legend(page, handles(looks), room)
    return page.figure


def metrics_of(ends: pd.DataFrame, wanted: Sequence[Sequence[str]]) -> list[str]:
    """Of each the first one that some run has; none for those that no run has."""
    found = (
        next((m for m in names if m in ends and ends[m].notna().any()), "") for names in wanted
    )
    return [metric for metric in found if metric]


def lines_of(ends: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each model and label, by what its line is called."""
    keys = ["model", "label"] if ends["model"].nunique() > 1 else ["label"]
    return {" · ".join(map(str, names)): line for names, line in ends.groupby(keys, sort=False)}


def _page(
    style: Style, metrics: Sequence[str], title: tuple[str, str], notes: list[str], room: float
) -> Page:
    columns = min(style.sizes.history_columns, 2, len(metrics))
    panel = style.sizes.history_panel
    lines = max(len(label_lines(style, metric, True, panel[1])) for metric in metrics)
    return new_page(
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
    layers: Sequence[str],
    lines: Mapping[str, pd.DataFrame],
    looks: Mapping[str, tuple[str, Dash]],
) -> None:
    width = style.lines.width * style.factor
    axes.set_title(style.metric(metric).label, loc="center", x=0, ha="left")
    axes.set_ylabel("\n".join(label_lines(style, metric, True, size_of(axes)[1])))
    edges: list[float] = []
    for name, ends in lines.items():
        colour, dash = looks[name]
        line = ends[np.isfinite(ends["mean"])]
        at = line["layer"].map(layers.index).to_numpy(dtype=float)
        order = np.argsort(at, kind="stable")
        low, mean, high = (line[c].to_numpy(dtype=float)[order] for c in ("low", "mean", "high"))
        axes.plot(
            at[order],
            mean,
            color=colour,
            linestyle=dash,
            linewidth=width,
            marker="o",
            markersize=2.6 * width,
            markeredgecolor=style.colours.panel,
            markeredgewidth=0.4 * width,
        )
        if (line["seeds"] > 1).any():
            axes.fill_between(at[order], low, high, color=colour, alpha=0.18, linewidth=0)
        edges += [*low, *high]
    _layer_axis(axes, style, layers)
    fit_values(axes, np.array(edges), above_zero=True)


def _layer_axis(axes: Axes, style: Style, layers: Sequence[str]) -> None:
    """Every layer has a place, as many as fit have a name."""
    names = [layer.removeprefix("layer") for layer in layers]
    size = style.points("tick")
    longest = max(inches(name, size) for name in names) + 0.12 * size / 9
    most = max(2, int(size_of(axes)[0] / longest))
    step = -(-len(names) // most)
    places = range(0, len(names), step)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.xaxis.set_major_locator(FixedLocator(list(places)))
    axes.xaxis.set_major_formatter(lambda at, _: names[int(at)] if 0 <= at < len(names) else "")
    axes.set_xlabel("layer")


def absent(ends: pd.DataFrame, metrics: Sequence[str]) -> str:
    """The layers of which a metric isn't known."""
    without = {m: dict.fromkeys(ends.loc[ends[m].isna(), "layer"]) for m in metrics}
    return "; ".join(f"No {m}: {known(layers, 3)}" for m, layers in without.items() if layers)
