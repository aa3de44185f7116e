"""A metric of many layers at once: a row a layer, a column an epoch."""

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from sae_mlflow.plots.compare.tables import layers_of
from sae_mlflow.plots.frames import over_seeds
from sae_mlflow.plots.numbers import whole_ticks
from sae_mlflow.plots.panels import comparison_label
from sae_mlflow.plots.sheet import Rooms, comparison_title, new_sheet
from sae_mlflow.plots.style import Style
from sae_mlflow.plots.text_size import inches
from sae_mlflow.plots.value_axis import ValueTicks, value_locator

_BAR_GAP, _BAR_WIDTH = 0.22, 0.17  # inches
_LOG_FROM = 3.0  # largest over smallest value, from which on the colours are of its logarithm


def heat_map(
    table: pd.DataFrame, metric: str, title: tuple[str, str], note: str, style: Style
) -> Figure:
    """Layers from top to bottom, epochs from left to right; what is no number has the sheet's grid
    colour, and is said.

    Args:
        table: `frames.COLUMNS`, of one model and setting, whose values differ.
    """
    means = means_of(table, metric)
    layers, first, last = list(means.index), int(means.columns[0]), int(means.columns[-1])
    grid = means.to_numpy()
    gaps = "empty: no number" if np.isnan(grid).any() else ""
    with style.theme():
        size = style.points("tick")
        width = style.sizes.overlay_panel[0]
        height = max(2.2, min(0.19 * len(layers) * size / 9, 9.0))
        words = comparison_label(style, metric, height)
        beside = _BAR_GAP + _BAR_WIDTH + inches("0.0000", size) + 0.45 * size / 9
        beside += 0.17 * (len(words) - 1) * style.points("label") / 9.5
        sheet = new_sheet(
            style,
            1,
            1,
            (width, height),
            comparison_title(style, title),
            [" · ".join(filter(None, (note, gaps)))],
            right=Rooms(style).right + beside,
        )
        (axes,) = sheet.panels
        axes.set_facecolor(style.colours.grid)
        extent = (first - 0.5, last + 0.5, len(layers) - 0.5, -0.5)
        image = axes.imshow(
            grid,
            aspect="auto",
            interpolation="nearest",
            cmap="viridis",
            norm=_norm(grid),
            extent=extent,
        )
        axes.grid(visible=False)
        axes.xaxis.set_major_locator(FixedLocator(whole_ticks(first, last)))
        axes.set_xlabel("epoch")
        _name_layers(axes, style, layers)
        figure, box = sheet.figure, axes.get_position()
        inch = 1 / figure.get_size_inches()[0]
        bar = figure.add_axes((box.x1 + _BAR_GAP * inch, box.y0, _BAR_WIDTH * inch, box.height))
        drawn = figure.colorbar(image, cax=bar)
        drawn.set_label("\n".join(words))
        drawn.outline.set_visible(False)
        drawn.ax.yaxis.set_major_formatter(ValueTicks())
        log = isinstance(image.norm, LogNorm)
        drawn.ax.yaxis.set_major_locator(value_locator(drawn.ax, style, log))
        drawn.ax.yaxis.set_minor_locator(NullLocator())
        drawn.ax.grid(False)
    return sheet.figure


def means_of(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """A row a layer, a column an epoch; NaN is no number."""
    rows = table[table["metric"] == metric]
    means = over_seeds(rows).pivot(index="layer", columns="epoch", values="mean")
    epochs = range(int(means.columns.min()), int(means.columns.max()) + 1)
    whole = means.reindex(index=layers_of(rows), columns=epochs).astype(float)
    return whole.where(np.isfinite(whole))


def differs(table: pd.DataFrame, metric: str) -> bool:
    """Whether there are two values at least: one alone needs no map."""
    return np.unique(_numbers(means_of(table, metric).to_numpy())).size > 1


def is_wide(values: np.ndarray) -> bool:
    """Whether colours are of the values' logarithm."""
    return bool(values.size and values.min() > 0 and values.max() / values.min() >= _LOG_FROM)


def _numbers(grid: np.ndarray) -> np.ndarray:
    return grid[np.isfinite(grid)]


def _norm(grid: np.ndarray) -> Normalize:
    values = _numbers(grid)
    low, high = float(values.min()), float(values.max())
    if is_wide(values):
        return LogNorm(low, high)
    return Normalize(low, high)


def _name_layers(axes, style: Style, layers: list[str]) -> None:  # type: ignore[no-untyped-def]
    figure = axes.get_figure(root=True)
    height = figure.get_size_inches()[1] * axes.get_position().height
    most = max(2, int(height / (1.3 * style.points("tick") / 72)))
    step = -(-len(layers) // most)
    places = list(range(0, len(layers), step))
    axes.yaxis.set_major_locator(FixedLocator(places))
    axes.set_yticklabels([layers[place].removeprefix("layer") for place in places])
    axes.set_ylabel("layer")
