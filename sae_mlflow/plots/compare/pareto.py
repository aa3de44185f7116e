"""What sparsity costs: missed variance, and missed CE loss, against L0, over all runs."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from sae_mlflow.errors import known
from sae_mlflow.plots.compare.legends import draw_legend, handle, legend_room
from sae_mlflow.plots.compare.pareto_looks import Looks, looks_of
from sae_mlflow.plots.layer_key import LayerKey
from sae_mlflow.plots.panels import place_axis_labels
from sae_mlflow.plots.sheet import Rooms, comparison_title, new_sheet, size_of
from sae_mlflow.plots.style import Style
from sae_mlflow.plots.text_size import in_two, inches
from sae_mlflow.plots.value_axis import ValueTicks, fit_values

FRONTIER = "not beaten by any"
SEEDS = "point: mean over seeds"
ALIKE = 1.05
"""The largest over the smallest L0, up to which they are taken for one."""

FIGURES = {
    "missed_variance": "FVU, fraction of the variance (lower is better)",
    "missed_ce_loss": "1 - CE loss recovered (lower is better)",
}


def points(ends: pd.DataFrame) -> pd.DataFrame:
    """`model, architecture, layer, label, l0, missed_variance, missed_ce_loss`, `seeds`.

    A row for runs that differ in the seed alone: their mean, and of each of the three the lowest
    and highest as `low_l0, high_l0, ...`. Held-out values where there are some.
    """
    keys = ["model", "architecture", "layer", "label"]
    each = ends[keys].assign(
        l0=_first(ends, "val_l0_norm", "l0_norm"),
        missed_variance=_first(ends, "val_fvu", "fvu"),
        missed_ce_loss=1 - _first(ends, "ce_loss_recovered"),
    )
    names = [name for name in each if name not in keys]
    grouped = each.groupby(keys, sort=False)
    ranges = [
        grouped[names].agg(e).add_prefix(f"{n}_") for n, e in (("low", "min"), ("high", "max"))
    ]
    found = grouped[names].agg(_mean).join([*ranges, grouped.size().rename("seeds")])
    return found.reset_index()


def says_something(table: pd.DataFrame) -> bool:
    """Whether L0 or what was trained differs; else there is nothing that layers don't show better.

    Args:
        table: of `points`.
    """
    if not drawn_of(table):
        return False
    there = table[finite(table)]
    several = there["layer"].duplicated().any() or there["model"].nunique() > 1
    return bool(several or there["l0"].max() > ALIKE * there["l0"].min())


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
    drawn = drawn_of(table)
    looks = looks_of(table, style)
    with style.theme():
        entries = _entries(style, looks, has_frontier(table))
        bar = LayerKey.bar_room(style) if looks.key else 0.0
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
            [" · ".join(filter(None, (note, said_of_seeds(table)))), left_out(table, drawn)],
            label_lines=lines,
            right=Rooms(style).right + bar + room,
        )
        for axes, name in zip(sheet.panels, drawn, strict=True):
            _draw(axes, style, table, name, looks)
            axes.set_ylabel("\n".join(_label(style, name, 1.15 * height)))
        place_axis_labels(style, sheet.panels)
        if looks.key:
            looks.key.colour_bar(sheet.panels[columns - 1])
        draw_legend(sheet, entries, room)
    return sheet.figure


def drawn_of(table: pd.DataFrame) -> list[str]:
    """Of `FIGURES` those of which there is a point."""
    return [name for name in FIGURES if len(there_of(table, name))]


def best_of(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows of the frontier, by rising L0."""
    there = there_of(table, name)
    return there.iloc[frontier(there["l0"].tolist(), there[name].tolist())]


def has_frontier(table: pd.DataFrame) -> bool:
    """Whether it is a line in some panel; of one point nothing is drawn."""
    return any(len(best_of(table, name)) > 1 for name in drawn_of(table))


def there_of(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows that a log axis of L0 can show."""
    return table[finite(table, name) & (table["l0"] > 0)]


def _draw(axes: Axes, style: Style, table: pd.DataFrame, name: str, looks: Looks) -> None:
    there, best = there_of(table, name), best_of(table, name)
    size = 3.2 * style.lines.width * style.factor
    for key, line in there.groupby(["model", "architecture", "layer"], sort=False):
        colour, marker = looks.of(*map(str, key))
        line = line.sort_values("l0")
        axes.plot(
            line["l0"],
            line[name],
            color=colour,
            linewidth=0.6 * style.lines.width * style.factor,
            marker=marker,
            markersize=size,
            markeredgecolor=style.colours.panel,
            markeredgewidth=0.5,
        )
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
    first, last = l0_range(float(values.min()), float(values.max()))
    axes.set_xscale("log")
    axes.set_xlim(first, last)
    ticks = [m * 10.0**e for e in range(-3, 7) for m in (1, 2, 5)]
    ticks = [tick for tick in ticks if first <= tick <= last]
    if len(ticks) < 2:
        size = style.points("tick")
        most = int(size_of(axes)[0] / (inches(f"{last:,.3f}", size) + 0.2 * size / 9))
        round_ones = MaxNLocator(max(1, min(6, most)), steps=[1, 2, 2.5, 5, 10]).tick_values(
            first, last
        )
        ticks = [tick for tick in round_ones if first <= tick <= last]
    axes.xaxis.set_major_locator(FixedLocator(ticks if len(ticks) <= 9 else ticks[::3]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(ValueTicks())
    axes.set_xlabel("L0, active latents per token (log scale)")


def l0_range(low: float, high: float) -> tuple[float, float]:
    """Of a log axis of L0, around its values; what differs by a percent doesn't look far apart."""
    beside = (high / low) ** 0.07 * max(1.0, ALIKE * low / high) ** 0.5
    return low / beside, high * beside


def _entries(style: Style, looks: Looks, with_frontier: bool) -> list[Line2D]:
    faint, size = style.colours.faint, 3.2 * style.lines.width * style.factor

    def markers(labels: Sequence[str], markers: Iterable[str]) -> list[Line2D]:
        return [
            handle(label, "none", marker=marker, markersize=size, markerfacecolor=faint)
            for label, marker in zip(labels, markers, strict=True)
        ]

    if looks.key:
        entries = markers(looks.names, looks.kinds.values())
    else:
        colours = looks.kinds.values()
        entries = [handle(n, c, linewidth=2) for n, c in zip(looks.names, colours, strict=True)]
        if len(looks.layers) > 1:
            entries += markers(list(looks.layers), looks.layers.values())
    best = handle(FRONTIER, faint, linewidth=2.2 * style.lines.width, alpha=0.35)
    return [*entries, *([best] if with_frontier else [])]


def _label(style: Style, name: str, height: float) -> list[str]:
    return in_two(FIGURES[name], height, style.points("label"))


def left_out(table: pd.DataFrame, drawn: Sequence[str]) -> str:
    """What the picture doesn't show."""
    lost = table[~finite(table, *drawn)]
    named = [f"{a} {layer}" for a, layer in lost[["architecture", "layer"]].itertuples(index=False)]
    return f"No number in a panel: {known(dict.fromkeys(named), 4)}" if named else ""


def said_of_seeds(table: pd.DataFrame) -> str:
    return SEEDS if (table["seeds"] > 1).any() else ""


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
