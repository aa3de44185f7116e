"""Which line is which, where many layers share one picture: colours, dashes, legend, colour bar."""

import re
import textwrap
from collections.abc import Sequence
from itertools import accumulate

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap, to_hex
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator
from matplotlib.transforms import ScaledTranslation

from sae_mlflow import naming
from sae_mlflow.plots.curve import Curve
from sae_mlflow.plots.numbers import whole_ticks
from sae_mlflow.plots.style import Style
from sae_mlflow.plots.style_values import Dash

MOST_LEGEND_ENTRIES = 12
_LABEL_WIDTH = 42  # characters, after which a label goes on in the next line
_KEY_SHARE = 0.4  # of a sheet of fixed width, at most
_GAP = 0.15  # inches right of the axes
_BAR_GAP, _BAR_WIDTH, _BAR_ROOM = 0.22, 0.17, 0.95  # inches, for ticks of 9 points


class LayerKey:
    """Colours by layer number; dashes by what else differs (settings, hookpoints of many layers).

    Where up to 12 layers have a line each, dashes go through them, so that they are told apart in
    grey as well.
    """

    def __init__(self, table: pd.DataFrame, style: Style) -> None:
        """
        Args:
            table: `frames.COLUMNS`, of one model.
        """
        self._style, self._colours = style, style.layer_colours()
        found = set(table[["layer", "setting"]].itertuples(index=False, name=None))
        self.lines: list[tuple[str, str]] = sorted(found, key=_line_order)
        self._layers = list(dict.fromkeys(layer for layer, _ in self.lines))
        self._styles = list(dict.fromkeys(map(_style_of, self.lines)))
        self._by_setting = len(self._layers) == 1  # then colours are free to tell settings apart
        names_tell = len(found) == len(self._layers) <= MOST_LEGEND_ENTRIES
        # then dashes are free to go through the lines
        self._alike = self._by_setting or len(self._styles) == 1 or names_tell

    def curve(self, line: tuple[str, str], values: pd.DataFrame) -> Curve:
        """The curve of a line, with its label: `layer10`, `layer10 · sae.k=32`."""
        label = " · ".join(filter(None, line))
        return Curve(values, self._colour(line), label, self._dash(line))

    def draw(self, axes: Axes, curves: Sequence[Curve]) -> float:
        """Draw the legend or the colour bar right of the axes; the inches that it takes there."""
        if len(self._layers) > MOST_LEGEND_ENTRIES:
            room = self.colour_bar(axes)
            if len(self._styles) == 1:
                return room
            if self._style.sizes.page_width is not None:  # no room beside the bar as well
                axes.legend(handles=self._style_handles(), handlelength=3)
                return room
            return room + self._legend(axes, self._style_handles(), room)
        each = [self._handle(c.label, c.colour, c.dash) for c in curves]
        few = len(each) <= MOST_LEGEND_ENTRIES and self._fitting(axes, each) == len(each)
        if few or self._by_setting or self._alike:
            return self._legend(axes, each)
        layers = [self._handle(layer, self._colour((layer, ""))) for layer in self._layers]
        return self._legend(axes, layers + self._style_handles())

    def colour_of(self, layer: str) -> str:
        """A layer's, where its lines don't differ in their settings alone."""
        return self._colour((layer, ""))

    def _colour(self, line: tuple[str, str]) -> str:
        order: Sequence[object] = self.lines if self._by_setting else self._layers
        rank = order.index(line if self._by_setting else line[0])
        if not self._by_setting and len(self._layers) > MOST_LEGEND_ENTRIES:
            values = self._bar_values()
            return to_hex(self._colours((values[rank] - values[0]) / (values[-1] - values[0])))
        return to_hex(self._colours(rank / max(1, len(order) - 1)))

    def _dash(self, line: tuple[str, str]) -> Dash:
        rank = self.lines.index(line) if self._alike else self._styles.index(_style_of(line))
        on_bar = self._alike and len(self._layers) > MOST_LEGEND_ENTRIES
        return self._dashes(0 if on_bar else rank)

    def _dashes(self, rank: int) -> Dash:
        dashes: tuple[Dash, ...] = self._style.layers.dashes
        return dashes[rank % len(dashes)]

    def _style_handles(self) -> list[Line2D]:
        return [
            self._handle(style or "residual stream", self._style.colours.faint, self._dashes(i))
            for i, style in enumerate(self._styles)
        ]

    def _bar_values(self) -> list[int]:
        """Each layer's place on the colour bar: its number, or its rank where one has none."""
        numbers = [naming.layer_order(layer)[0] for layer in self._layers]
        if len(set(numbers)) > 1 and all(_number_and_rest(layer) for layer in self._layers):
            return numbers
        return list(range(len(self._layers)))

    @staticmethod
    def bar_room(style: Style) -> float:
        """The inches that a colour bar takes right of the axes."""
        return _BAR_ROOM * style.points("tick") / 9

    def colour_bar(self, axes: Axes) -> float:
        """A colour bar right of the axes; the inches that it takes."""
        figure, box, values = axes.get_figure(root=True), axes.get_position(), self._bar_values()
        assert figure is not None
        scale = self._style.points("tick") / 9
        inch = scale / figure.get_size_inches()[0]
        bar = figure.add_axes((box.x1 + _BAR_GAP * inch, box.y0, _BAR_WIDTH * inch, box.height))
        shades = range(values[0], values[-1] + 1)
        span = values[-1] - values[0]
        colours = ListedColormap([self._colours((n - values[0]) / span) for n in shades])
        edges = [n - 0.5 for n in (*shades, shades.stop)]
        drawn = figure.colorbar(ScalarMappable(BoundaryNorm(edges, len(shades)), colours), cax=bar)
        numbered = values[-1] == naming.layer_order(self._layers[-1])[0]
        drawn.set_label("layer" if numbered else "layers, in their order")
        drawn.outline.set_visible(False)
        drawn.ax.yaxis.set_major_locator(FixedLocator(whole_ticks(values[0], values[-1])))
        drawn.ax.minorticks_off()
        drawn.ax.tick_params(length=0)
        drawn.ax.grid(False)
        return self.bar_room(self._style)

    def _legend(self, axes: Axes, handles: list[Line2D], shift: float = 0.0) -> float:
        """A legend right of the axes, `shift` inches further out; the inches that it takes."""
        figure = axes.get_figure(root=True)
        assert figure is not None
        fitting = self._fitting(axes, handles)
        if fitting < len(handles):
            more = self._handle(f"and {len(handles) - fitting + 1} more", "none")
            handles = [*handles[: fitting - 1], more]
        legend = axes.legend(
            handles=handles,
            loc="upper left",
            bbox_to_anchor=(1, 1),
            # in inches off the axes, whose size may still change
            bbox_transform=axes.transAxes
            + ScaledTranslation(_GAP + shift, 0, figure.dpi_scale_trans),
            borderaxespad=0,
            frameon=False,
            handlelength=3,
        )
        renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
        return _GAP + float(legend.get_window_extent(renderer).width) / figure.dpi

    def _fitting(self, axes: Axes, handles: list[Line2D]) -> int:
        """How many fit beside the axes."""
        figure = axes.get_figure(root=True)
        assert figure is not None
        height = figure.get_size_inches()[1] * axes.get_position().y1 - 0.1
        line = self._style.points("legend") / 72
        heights = [line * (0.5 + 1.25 * (1 + str(h.get_label()).count("\n"))) for h in handles]
        return sum(total <= height for total in accumulate(heights))

    def _handle(self, label: str, colour: str, dash: Dash = "solid") -> Line2D:
        across = self._style.sizes.page_width
        letter = 0.6 * self._style.points("legend") / 72
        width = _LABEL_WIDTH if across is None else max(8, int(_KEY_SHARE * across / letter) - 5)
        wrapped = "\n".join(textwrap.wrap(label, width, subsequent_indent="  "))
        thick = self._style.lines.width * self._style.factor
        return Line2D([], [], color=colour, linestyle=dash, linewidth=thick, label=wrapped)


def _line_order(line: tuple[str, str]) -> tuple[object, ...]:
    layer, setting = line
    return (naming.layer_order(layer), naming.natural_order(setting))


def _style_of(line: tuple[str, str]) -> str:
    numbered = _number_and_rest(line[0])
    hookpoint = numbered[1].strip("_") if numbered else ""
    return " · ".join(filter(None, (hookpoint, line[1])))


def _number_and_rest(layer: str) -> tuple[int, str] | None:
    match = re.fullmatch(r"layer(\d+)(.*)", layer)
    return (int(match[1]), match[2]) if match else None
