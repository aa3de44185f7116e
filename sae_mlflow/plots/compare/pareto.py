"""What sparsity costs: missed variance, and missed CE loss, against L0, over all runs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from sae_mlflow.errors import known
from sae_mlflow.plots.compare.legends import draw_legend, handle, legend_room
from sae_mlflow.plots.compare.tables import layers_of
from sae_mlflow.plots.numbers import number_text
from sae_mlflow.plots.panels import place_axis_labels
from sae_mlflow.plots.sheet import Rooms, comparison_title, new_sheet
from sae_mlflow.plots.style import Style
from sae_mlflow.plots.text_size import in_two
from sae_mlflow.plots.value_axis import fit_values

MARKERS = "osD^vP*X<>"
FRONTIER = "not beaten by any"

FIGURES = {
    "missed_variance": "FVU, fraction of the variance (lower is better)",
    "missed_ce_loss": "1 - CE loss recovered (lower is better)",
}


@dataclass(frozen=True)
class Looks:
    """A colour for each of what was trained, a marker for each layer."""

    colours: dict[tuple[str, str], str]
    markers: dict[str, str]


def points(ends: pd.DataFrame) -> pd.DataFrame:
    """`model, architecture, layer, label, l0, missed_variance, missed_ce_loss`.

    A row for runs that differ in the seed alone: their mean. Held-out values where there are some.
    """
    keys = ["model", "architecture", "layer", "label"]
    each = ends[keys].assign(
        l0=_first(ends, "val_l0_norm", "l0_norm"),
        missed_variance=_first(ends, "val_fvu", "fvu"),
        missed_ce_loss=1 - _first(ends, "ce_loss_recovered"),
    )
    return each.groupby(keys, sort=False).agg(_mean).reset_index()


def frontier(x: Sequence[float], y: Sequence[float]) -> list[int]:
    """The points that none beats (with less of both), by rising x."""
    found: list[int] = []
    for i in sorted(range(len(x)), key=lambda i: (x[i], y[i])):
        if not found or y[i] < y[found[-1]]:
            found.append(i)
    return found


def pareto(ends: pd.DataFrame, title: tuple[str, str], note: str, style: Style) -> Figure:
    """One line for each architecture and layer, by L0, and the frontier over all.

    Args:
        ends: of `tables.ends_table`.
    """
    table = points(ends)
    drawn = [name for name in FIGURES if finite(table, name).any()]
    looks = looks_of(table, style)
    with style.theme():
        entries = _entries(style, looks)
        room = legend_room(style, [str(entry.get_label()) for entry in entries])
        width, height = style.sizes.history_panel
        columns = len(drawn) if style.sizes.page_width is None else 1
        lines = max(len(_label(style, name, 1.15 * height)) for name in drawn)
        sheet = new_sheet(
            style,
            len(drawn) // columns,
            columns,
            (width, 1.15 * height),
            comparison_title(style, title),
            [note, left_out(table, drawn, looks)],
            label_lines=lines,
            right=Rooms(style).right + room,
        )
        for axes, name in zip(sheet.panels, drawn, strict=True):
            _draw(axes, style, table, name, looks)
            axes.set_ylabel("\n".join(_label(style, name, 1.15 * height)))
        place_axis_labels(style, sheet.panels)
        draw_legend(sheet, entries, room)
    return sheet.figure


def looks_of(table: pd.DataFrame, style: Style) -> Looks:
    """Of the `points`; layers have markers where there are enough of them."""
    kinds = table[["model", "architecture"]].drop_duplicates().itertuples(index=False)
    layers = layers_of(table)
    told_apart = layers if len(layers) <= len(MARKERS) else []
    return Looks(
        {tuple(kind): style.colour(i) for i, kind in enumerate(kinds)},
        {layer: MARKERS[i] for i, layer in enumerate(told_apart)},
    )


def _draw(axes: Axes, style: Style, table: pd.DataFrame, name: str, looks: Looks) -> None:
    there = table[finite(table, name) & (table["l0"] > 0)]
    size = 3.2 * style.lines.width * style.factor
    for key, line in there.groupby(["model", "architecture", "layer"], sort=False):
        model, architecture, layer = map(str, key)
        line = line.sort_values("l0")
        axes.plot(
            line["l0"],
            line[name],
            color=looks.colours[model, architecture],
            linewidth=0.6 * style.lines.width * style.factor,
            marker=looks.markers.get(layer, "o"),
            markersize=size,
            markeredgecolor=style.colours.panel,
            markeredgewidth=0.5,
        )
    best = there.iloc[frontier(there["l0"].tolist(), there[name].tolist())]
    axes.step(
        best["l0"],
        best[name],
        where="post",
        color=style.colours.faint,
        linewidth=2.2 * style.lines.width * style.factor,
        alpha=0.35,
        zorder=1,
    )
    _l0_axis(axes, style, there["l0"])
    fit_values(axes, there[name].to_numpy(dtype=float))


def _l0_axis(axes: Axes, style: Style, values: pd.Series) -> None:
    low, high = float(values.min()), float(values.max())
    axes.set_xscale("log")
    axes.set_xlim(low / 1.15, high * 1.15)
    ticks = [m * 10.0**e for e in range(-3, 7) for m in (1, 2, 5) if low / 1.15 <= m * 10.0**e]
    ticks = [tick for tick in ticks if tick <= high * 1.15]
    if len(ticks) < 2:
        ticks = sorted({low, high})
    axes.xaxis.set_major_locator(FixedLocator(ticks if len(ticks) <= 9 else ticks[::3]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: number_text(value, 3))
    axes.set_xlabel("L0, active latents per token (log scale)")


def _entries(style: Style, looks: Looks) -> list[Line2D]:
    models = {model for model, _ in looks.colours}
    size = 3.2 * style.lines.width * style.factor
    kinds = [
        handle(" · ".join(kind if len(models) > 1 else kind[1:]), colour, linewidth=2)
        for kind, colour in looks.colours.items()
    ]
    faint = style.colours.faint
    layers = [
        handle(layer, "none", marker=marker, markersize=size, markerfacecolor=faint)
        for layer, marker in looks.markers.items()
    ]
    frontier_line = handle(FRONTIER, faint, linewidth=2.2 * style.lines.width, alpha=0.35)
    return [*kinds, *(layers if len(layers) > 1 else []), frontier_line]


def _label(style: Style, name: str, height: float) -> list[str]:
    return in_two(FIGURES[name], height, style.points("label"))


def left_out(table: pd.DataFrame, drawn: Sequence[str], looks: Looks) -> str:
    """What the picture doesn't show."""
    lost = table[~finite(table, *drawn)]
    named = [f"{a} {layer}" for a, layer in lost[["architecture", "layer"]].itertuples(index=False)]
    numbers = f"No number in a panel: {known(dict.fromkeys(named), 4)}" if named else ""
    alike = "" if looks.markers else f"the {table['layer'].nunique()} layers have one marker"
    return " · ".join(filter(None, (numbers, alike)))


def finite(table: pd.DataFrame, *names: str) -> pd.Series:
    """Whether a row has a number for its L0 and for all of these."""
    return pd.Series(np.isfinite(table[["l0", *names]].to_numpy(dtype=float)).all(axis=1))


def _mean(values: pd.Series) -> float:
    """No number where one of the values is none."""
    return float(values.mean(skipna=False))


def _first(ends: pd.DataFrame, *metrics: str) -> pd.Series:
    """The first of the metrics that a run has."""
    found = pd.Series(np.nan, index=ends.index)
    for metric in metrics:
        if metric in ends:
            found = found.fillna(ends[metric])
    return found
