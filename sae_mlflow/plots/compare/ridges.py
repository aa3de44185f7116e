"""How often latents fire, layer under layer: histograms of log10 density, as ridges."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from sae_mlflow.plots.compare.facets import spread
from sae_mlflow.plots.density_figure import density_axis
from sae_mlflow.plots.sheet import Rooms, Sheet, comparison_title, new_sheet
from sae_mlflow.plots.style import Style
from sae_mlflow.plots.text_size import inches

COLUMNS = ["run_id", "ridge", "low", "high", "share", "never_fired"]
"""A row a bin: edges are log10 of a density, shares are of all latents; `ridge` names a run."""

_MOST_RIDGES = 60
OVERLAP = 1.6  # of a ridge's own height, that the tallest one reaches

HEIGHTS = "height: share of the latents; dead: fired on no token that was evaluated"


def ridges(table: pd.DataFrame, title: tuple[str, str], note: str, style: Style) -> Figure:
    """One ridge a run, in the table's order from top to bottom.

    Args:
        table: `COLUMNS`.
    """
    names = list(dict.fromkeys(table["run_id"]))
    shown = spread(names, _MOST_RIDGES)
    labels = {run: str(rows["ridge"].iloc[0]) for run, rows in table.groupby("run_id", sort=False)}
    with style.theme():
        sheet = _sheet(style, [labels[run] for run in shown], title, _notes(note, names, shown))
        (axes,) = sheet.panels
        colours = style.layer_colours()
        tallest = float(table["share"].max()) or 1.0
        for rank, run in enumerate(shown):
            colour = to_hex(colours(rank / max(1, len(shown) - 1)))
            _ridge(
                axes, style, table[table["run_id"] == run], len(shown) - 1 - rank, tallest, colour
            )
        _axes(sheet, table, [labels[run] for run in shown])
        _say_dead(axes, style, table, shown)
    return sheet.figure


def _sheet(style: Style, labels: list[str], title: tuple[str, str], notes: list[str]) -> Sheet:
    size = style.points("tick")
    height = max(2.0, len(labels) * (0.34 if len(labels) <= 20 else 0.2) * size / 9 + 0.5)
    width = style.sizes.overlay_panel[0]
    room = max(inches(label, size) for label in labels)
    extra = max(0.0, room + 0.2 - Rooms(style).ticks)
    beside = inches("dead 100.0%", size) + 0.15
    sheet = new_sheet(
        style,
        1,
        1,
        (width, height),
        comparison_title(style, title),
        notes,
        right=Rooms(style).right + beside,
    )
    _push_right(sheet, extra)
    return sheet


def _push_right(sheet: Sheet, by: float) -> None:
    """Room for labels longer than a number; the sheet grows, or its panel shrinks."""
    (axes,), figure = sheet.panels, sheet.figure
    width, height = figure.get_size_inches()
    box = axes.get_position()
    fixed = sheet.style.sizes.page_width is not None
    grown = width if fixed else width + by
    across = box.width * width - (by if fixed else 0)
    axes.set_position(((box.x0 * width + by) / grown, box.y0, across / grown, box.height))
    for text in figure.texts:
        text.set_x(text.get_position()[0] * width / grown)
    figure.set_size_inches(grown, height)


def _ridge(
    axes: Axes, style: Style, rows: pd.DataFrame, base: int, tallest: float, colour: str
) -> None:
    rows = rows.sort_values("low")
    edges = np.append(rows["low"].to_numpy(dtype=float), float(rows["high"].iloc[-1]))
    heights = np.append(rows["share"].to_numpy(dtype=float), 0.0) / tallest * OVERLAP
    axes.fill_between(
        edges,
        base,
        base + heights,
        step="post",
        facecolor=colour,
        alpha=0.75,
        edgecolor=style.colours.panel,
        linewidth=0.6,
        zorder=2 + (1 - base / 1000),
    )
    axes.plot(edges[[0, -1]], [base, base], color=colour, linewidth=0.8, zorder=2)


def _axes(sheet: Sheet, table: pd.DataFrame, labels: list[str]) -> None:
    (axes,), style = sheet.panels, sheet.style
    density_axis(axes, style, float(table["low"].min()))
    axes.set_ylim(-0.3, len(labels) - 1 + OVERLAP + 0.15)
    axes.yaxis.set_major_locator(FixedLocator(list(range(len(labels)))))
    axes.set_yticklabels(list(reversed(labels)))
    axes.grid(axis="y", visible=False)


def _say_dead(axes: Axes, style: Style, table: pd.DataFrame, shown: list[str]) -> None:
    """Right of each ridge, the share that isn't in it."""
    dead = table.groupby("run_id")["never_fired"].first()
    for rank, run in enumerate(shown):
        axes.text(
            1.01,
            len(shown) - 1 - rank,
            f"dead {dead[run]:.1%}",
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=style.points("tick"),
            color=style.colours.faint,
        )


def _notes(note: str, names: list[str], shown: list[str]) -> list[str]:
    left_out = (
        f"{len(shown)} of {len(names)} runs, evenly spread" if len(shown) < len(names) else ""
    )
    return [" · ".join(filter(None, (note, left_out))), HEIGHTS]
