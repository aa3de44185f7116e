"""Which line is which, where many layers share one picture: colours, dashes, legend, colour bar."""

import re
import textwrap
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap, to_hex
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator

from sae_mlflow import naming
from sae_mlflow.plots.looks import DASHES, FAINT_INK, LAYER_COLOURS, Dash
from sae_mlflow.plots.panels import Curve, whole_ticks

MOST_LEGEND_ENTRIES = 12
_MOST_KEY_LINES = 20  # that fit beside the axes
_LABEL_WIDTH = 42  # characters, after which a label goes on in the next line
_BAR_GAP, _BAR_WIDTH, _BAR_ROOM = 0.22, 0.17, 0.95  # inches right of the axes


class LayerKey:
    """Colours by layer number, dashes by what else differs (hookpoint, settings)."""

    def __init__(self, table: pd.DataFrame) -> None:
        """
        Args:
            table: `frames.COLUMNS`, of one model.
        """
        found = set(table[["layer", "setting"]].itertuples(index=False, name=None))
        self.lines: list[tuple[str, str]] = sorted(found, key=_line_order)
        self._layers = list(dict.fromkeys(layer for layer, _ in self.lines))
        self._styles = list(dict.fromkeys(map(_style_of, self.lines)))
        self._by_setting = len(self._layers) == 1  # then colours are free to tell settings apart

    def curve(self, line: tuple[str, str], values: pd.DataFrame) -> Curve:
        """The curve of a line, with its label: `layer10`, `layer10 · sae.k=32`."""
        label = " · ".join(filter(None, line))
        return Curve(values, self._colour(line), label, self._dash(line))

    def draw(self, axes: Axes, curves: Sequence[Curve]) -> float:
        """Draw the legend or the colour bar right of the axes; the inches that it takes there."""
        if len(self._layers) > MOST_LEGEND_ENTRIES:
            self._colour_bar(axes)
            styles = self._style_handles() if len(self._styles) > 1 else []
            return _BAR_ROOM + (_legend(axes, styles, _BAR_ROOM) if styles else 0)
        if len(curves) <= MOST_LEGEND_ENTRIES or self._by_setting:
            return _legend(axes, [_handle(c.label, c.colour, c.dash) for c in curves])
        layers = [_handle(layer, self._colour((layer, ""))) for layer in self._layers]
        return _legend(axes, layers + self._style_handles())

    def _colour(self, line: tuple[str, str]) -> str:
        order: Sequence[object] = self.lines if self._by_setting else self._layers
        rank = order.index(line if self._by_setting else line[0])
        if not self._by_setting and len(self._layers) > MOST_LEGEND_ENTRIES:
            values = self._bar_values()
            return to_hex(LAYER_COLOURS((values[rank] - values[0]) / (values[-1] - values[0])))
        return to_hex(LAYER_COLOURS(rank / max(1, len(order) - 1)))

    def _dash(self, line: tuple[str, str]) -> Dash:
        rank = 0 if self._by_setting else self._styles.index(_style_of(line))
        return DASHES[rank % len(DASHES)]

    def _style_handles(self) -> list[Line2D]:
        return [
            _handle(style or "residual stream", FAINT_INK, DASHES[i % len(DASHES)])
            for i, style in enumerate(self._styles)
        ]

    def _bar_values(self) -> list[int]:
        """Each layer's place on the colour bar: its number, or its rank where one has none."""
        numbers = [naming.layer_order(layer)[0] for layer in self._layers]
        if len(set(numbers)) > 1 and all(_number_and_rest(layer) for layer in self._layers):
            return numbers
        return list(range(len(self._layers)))

    def _colour_bar(self, axes: Axes) -> None:
        figure, box, values = axes.get_figure(root=True), axes.get_position(), self._bar_values()
        assert figure is not None
        inch = 1 / figure.get_size_inches()[0]
        bar = figure.add_axes((box.x1 + _BAR_GAP * inch, box.y0, _BAR_WIDTH * inch, box.height))
        shades = range(values[0], values[-1] + 1)
        span = values[-1] - values[0]
        colours = ListedColormap([LAYER_COLOURS((n - values[0]) / span) for n in shades])
        edges = [n - 0.5 for n in (*shades, shades.stop)]
        drawn = figure.colorbar(ScalarMappable(BoundaryNorm(edges, len(shades)), colours), cax=bar)
        numbered = values[-1] == naming.layer_order(self._layers[-1])[0]
        drawn.set_label("layer" if numbered else "layers, in their order")
        drawn.outline.set_visible(False)
        drawn.ax.yaxis.set_major_locator(FixedLocator(whole_ticks(values[0], values[-1])))
        drawn.ax.minorticks_off()
        drawn.ax.tick_params(length=0)
        drawn.ax.grid(False)


def _legend(axes: Axes, handles: list[Line2D], shift: float = 0.0) -> float:
    """A legend right of the axes, `shift` inches further out; its width in inches."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    kept = handles[:_MOST_KEY_LINES]
    if len(handles) > len(kept):
        kept.append(_handle(f"and {len(handles) - len(kept)} more", "none"))
    axes_inches = figure.get_size_inches()[0] * axes.get_position().width
    legend = axes.legend(
        handles=kept,
        loc="upper left",
        bbox_to_anchor=(1 + (0.15 + shift) / axes_inches, 1),
        borderaxespad=0,
        frameon=False,
        handlelength=2.4,
    )
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    return 0.15 + float(legend.get_window_extent(renderer).width) / figure.dpi


def _handle(label: str, colour: str, dash: Dash = "solid") -> Line2D:
    wrapped = "\n".join(textwrap.wrap(label, _LABEL_WIDTH, subsequent_indent="  "))
    return Line2D([], [], color=colour, linestyle=dash, label=wrapped)


def _line_order(line: tuple[str, str]) -> tuple[object, ...]:
    layer, setting = line
    parts = re.split(r"(\d+(?:\.\d+)?)", setting)
    natural = [(float(part), "") if i % 2 else (0.0, part) for i, part in enumerate(parts)]
    return (naming.layer_order(layer), natural)


def _style_of(line: tuple[str, str]) -> str:
    numbered = _number_and_rest(line[0])
    hookpoint = numbered[1].strip("_") if numbered else ""
    return " · ".join(filter(None, (hookpoint, line[1])))


def _number_and_rest(layer: str) -> tuple[int, str] | None:
    match = re.fullmatch(r"layer(\d+)(.*)", layer)
    return (int(match[1]), match[2]) if match else None
