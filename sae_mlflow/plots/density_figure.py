"""How often an SAE's latents fire, as a picture: the histogram of log10 density."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from sae_mlflow.density import DENSE, VERY_DENSE, DensityTable
from sae_mlflow.plots.panels import place_axis_labels
from sae_mlflow.plots.sheet import Rooms, new_sheet, size_of
from sae_mlflow.plots.style import Style
from sae_mlflow.plots.text_size import inches

AXIS = "log10 of the share of tokens on which a latent fires"
BOUNDS = {math.log10(DENSE): "over 1%", math.log10(VERY_DENSE): "over 10%"}
"""Where the shares of dense latents are counted from, and what they are called."""


def density_figure(
    table: DensityTable, model: str, layer: str, style: Style, note: str = ""
) -> Figure:
    """Latents by how often they fire; those that never did are said in words.

    Args:
        note: a line under the title, where the style has one.
    """
    with style.theme():
        values = {"model": model, "layer": layer, "setting": "", "metric": AXIS}
        sheet = new_sheet(
            style,
            1,
            1,
            style.sizes.single_panel,
            (style.titles.single_metric, values),
            [note if style.titles.note else "", _in_words(table)],
            right=max(Rooms(style).right, inches(_tick(0), style.points("tick")) / 2),
        )
        (axes,) = sheet.panels
        _draw(axes, style, table)
        place_axis_labels(style, sheet.panels)
    return sheet.figure


def density_axis(axes: Axes, style: Style, first: float) -> list[float]:
    """Make the x axis one of log10 densities, from `first` to 0; the bounds that it has room for.

    As many ticks as fit have a word.
    """
    axes.set_xlim(first - 0.05, 0.05)
    decades = range(0, math.ceil(first) - 1, -1)
    size = style.points("tick")
    longest = inches(_tick(decades[-1]), size) + 0.2 * size / 9
    step = math.ceil(longest / _decade(axes))
    axes.xaxis.set_major_locator(FixedLocator(sorted(decades[::step])))
    axes.xaxis.set_major_formatter(lambda log10, _: _tick(log10))
    axes.set_xlabel(AXIS)
    bounds = [at for at in BOUNDS if at > first]
    faint, width, dashes = style.colours.faint, style.factor, (0, (4, 2))
    for at in bounds:
        axes.axvline(at, color=faint, linewidth=width, linestyle=dashes, zorder=1.5)
    return bounds


def _in_words(table: DensityTable) -> str:
    if not table.never_fired:
        return f"each of {table.d_sae:,} latents fired on some of {table.tokens:,} tokens"
    share = table.never_fired / table.d_sae
    return (
        f"{table.never_fired:,} of {table.d_sae:,} latents ({share:.1%}) fired on none of "
        f"{table.tokens:,} tokens and aren't in the bars"
    )


def _draw(axes: Axes, style: Style, table: DensityTable) -> None:
    edges, latents = table.edges, table.latents
    axes.bar(
        edges[:-1],
        latents,
        np.diff(edges),
        align="edge",
        color=style.colour(0),
        edgecolor=style.colours.panel,
    )
    tallest = max(int(latents.max(initial=0)), 1)
    axes.set_ylim(0, 1.14 * tallest)
    bounds, size = density_axis(axes, style, float(edges[0])), style.points("tick")
    room = 0.92 * _decade(axes)  # up to the next bound, or the frame
    for at in bounds:
        if inches(BOUNDS[at], size) < room:
            place = (at + 0.04, 1.12 * tallest)
            axes.text(*place, BOUNDS[at], va="top", fontsize=size, color=style.colours.faint)
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,.0f}"))
    axes.grid(axis="x", visible=False)
    axes.set_ylabel("latents")


def _decade(axes: Axes) -> float:
    """The inches of a factor of 10."""
    low, high = axes.get_xlim()
    return size_of(axes)[0] / (high - low)


def _tick(log10: float) -> str:
    """`-2 (1%)`."""
    return f"{log10:.0f} ({100 * 10.0**log10:g}%)"
