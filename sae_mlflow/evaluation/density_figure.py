"""How often an SAE's latents fire, as a picture: the histogram of log10 density."""

import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from sae_mlflow.evaluation.density import DENSE, VERY_DENSE, DensityTable
from sae_mlflow.plots.style import Style, load_style

_WIDTH, _PANEL_HEIGHT = 8.0, 3.4  # inches
_LEFT, _RIGHT, _BOTTOM = 0.85, 0.3, 0.65
_TITLE_LINE, _NOTE_LINE = 0.24, 0.2


def density_figure(table: DensityTable, model: str, layer: str, note: str = "") -> Figure:
    """Latents by how often they fire; those that never did are said in words.

    Args:
        note: a line under the title.
    """
    style = load_style()
    with style.theme():
        model = "".join(c if c.isprintable() else " " for c in model)
        titles = textwrap.wrap(f"{model} · {layer}", 68, max_lines=3, placeholder="…")
        notes = [*textwrap.wrap(note, 105, max_lines=2, placeholder="…"), _in_words(table)]
        head = 0.25 + _TITLE_LINE * len(titles) + _NOTE_LINE * len(notes) + 0.3
        height = _BOTTOM + _PANEL_HEIGHT + head
        figure = Figure(figsize=(_WIDTH, height), dpi=style.dpi)
        FigureCanvasAgg(figure)
        top, left = 1 - 0.2 / height, 0.28 / _WIDTH
        figure.text(left, top, "\n".join(titles), fontsize=14, fontweight="bold", va="top")
        below = top - (_TITLE_LINE * len(titles) + 0.07) / height
        faint = style.colours.faint
        figure.text(left, below, "\n".join(notes), fontsize=9.5, va="top", color=faint)
        inner = (_WIDTH - _LEFT - _RIGHT) / _WIDTH
        box = (_LEFT / _WIDTH, _BOTTOM / height, inner, _PANEL_HEIGHT / height)
        _draw(figure.add_axes(box), style, table)
    return figure


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
    blue, faint = str(style.metric("fvu").colour), style.colours.faint
    axes.bar(edges[:-1], latents, np.diff(edges), align="edge", color=blue, edgecolor="white")
    tallest = max(int(latents.max(initial=0)), 1)
    axes.set_xlim(edges[0] - 0.08, 0.08)
    axes.set_ylim(0, 1.14 * tallest)
    for share, words in ((DENSE, "over 1%"), (VERY_DENSE, "over 10%")):
        at = float(np.log10(share))
        if at > edges[0]:
            axes.axvline(at, color=faint, linewidth=1, linestyle=(0, (4, 2)))
            axes.text(at + 0.04, 1.12 * tallest, words, va="top", fontsize=9, color=faint)
    axes.xaxis.set_major_locator(FixedLocator(range(int(np.ceil(edges[0])), 1)))
    axes.xaxis.set_major_formatter(FuncFormatter(_tick))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,.0f}"))
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("log10 of the share of tokens on which a latent fires")
    axes.set_ylabel("latents")


def _tick(log10: float, _position: int) -> str:
    """`-2 (1%)`."""
    return f"{log10:.0f} ({100 * 10.0**log10:g}%)"
