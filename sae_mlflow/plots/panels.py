"""One pair of axes: curves over epochs, whole-number ticks, and words where nothing is to see."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, Formatter, FuncFormatter, MaxNLocator

from sae_mlflow.plots.looks import FAINT_INK, Dash, look_of

_ALL_TICKS, _ROUND_TICKS = 10, 7  # of an axis of epochs, at most
_DIGIT_INCHES = 0.08  # of a tick label
_LABEL_ROOM = 0.78  # inches left of the axes
_MARKED_EPOCHS = 30  # with more, the dots would be a thick line
_LEAST_SPAN = 0.05  # of the values: what is steadier than that is drawn as steady, not as noise


@dataclass(frozen=True)
class Curve:
    """One line, and the range over seeds around it."""

    values: pd.DataFrame
    """`epoch, mean, low, high, seeds`, by epoch."""
    colour: str
    label: str = ""
    dash: Dash = "solid"

    @property
    def finite(self) -> pd.DataFrame:
        return self.values[np.isfinite(self.values["mean"])]


class _ValueTicks(Formatter):
    """Ticks with as many decimals as their step needs: `0.50`, `0.75`, `1.00`; never an offset."""

    def __call__(self, value: float, pos: int | None = None) -> str:
        return number_text(value)

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        steps = np.diff(values)
        largest = max(map(abs, values), default=0)
        if not len(steps) or not 1e-3 <= largest < 1e7:
            return [self(value) for value in values]
        decimals = next((d for d in range(7) if np.allclose(steps, np.round(steps, d), 1e-6)), 7)
        return [f"{value:,.{decimals}f}" for value in values]


def draw_panel(axes: Axes, metric: str, curves: Sequence[Curve], epochs: Sequence[int]) -> None:
    """Draw a metric's curves.

    Args:
        epochs: all that the x axis spans; those at which the only curve has no number are named.
    """
    look = look_of(metric)
    axes.set_title(look.title, loc="center", x=0, ha="left")  # what get_title() finds
    axes.set_ylabel(look.axis)
    width = 1.1 if len(curves) > 12 else 1.5 if len(epochs) > 300 else 1.9
    for curve in curves:
        _draw(axes, curve, width)
    _epoch_axis(axes, epochs)
    if len(curves) == 1 and (gaps := without_number(curves[0], epochs)):
        axes.set_xlabel(f"epoch (no number at {ranges(gaps)})")
    _value_axis(axes, metric, curves)


def place_axis_labels(panels: Sequence[Axes]) -> None:
    """Put the axes' labels beside the longest of all tick labels, so that they line up.

    Left to itself each looks for its place among the drawn ticks, a quarter of the drawing time.
    """
    for axes in panels:
        width, height = _inches(axes)
        longest = max(_text_inches(text) for panel in panels for text in _value_texts(panel))
        axes.yaxis.set_label_coords(-min(0.16 + longest, _LABEL_ROOM) / width, 0.5)
        axes.xaxis.set_label_coords(0.5, -0.29 / height)


def without_number(curve: Curve, epochs: Iterable[int]) -> list[int]:
    """The epochs at which a curve has nothing to draw: not logged, NaN or infinite."""
    return sorted(set(epochs) - set(curve.finite["epoch"]))


def ranges(numbers: Sequence[int], limit: int = 4) -> str:
    """`[4, 5, 6, 9]` as `4-6, 9`; no more than `limit` parts."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    shown = [str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts]
    more = [f"and {len(shown) - limit} more"] if len(shown) > limit else []
    return ", ".join(shown[:limit] + more)


def whole_ticks(first: int, last: int) -> list[int]:
    """Whole-number ticks from `first`: all where they are few, else round ones after the first."""
    if last - first < _ALL_TICKS:
        return list(range(first, last + 1))
    rough = (last - first) / _ROUND_TICKS
    power = 10 ** math.floor(math.log10(rough))
    step = next(s for s in (n * power for n in (1, 2, 5, 10)) if s >= rough)
    step = max(step, 1)
    from_second = first + math.ceil(0.6 * step)  # nearer ones would touch the first one's label
    return [first, *range(math.ceil(from_second / step) * step, last + 1, step)]


def number_text(value: float, digits: int = 4) -> str:
    """A number as ticks and labels show it: `0.2534`, `12,500`, `1.2e-5`."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "infinity" if value > 0 else "-infinity"
    if 1e4 <= abs(value) < 1e7:
        return f"{value:,.0f}"
    text = f"{value:.{digits}g}"
    mantissa, e, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if e else text


def _draw(axes: Axes, curve: Curve, width: float) -> None:
    data = curve.values
    few = len(curve.finite) <= _MARKED_EPOCHS
    means = data["mean"].where(np.isfinite(data["mean"]))
    axes.plot(
        data["epoch"].to_numpy(),
        means.to_numpy(),
        color=curve.colour,
        linestyle=curve.dash,
        linewidth=width,
        marker="o" if few else None,
        markersize=2.4 * width,
        markeredgecolor="white",
        markeredgewidth=0.7,
        label=curve.label or None,
    )
    if data["seeds"].max() > 1:
        edges = data[np.isfinite(data[["low", "high"]]).all(axis=1)]
        axes.fill_between(
            edges["epoch"], edges["low"], edges["high"], color=curve.colour, alpha=0.18, linewidth=0
        )


def _epoch_axis(axes: Axes, epochs: Sequence[int]) -> None:
    first, last = (min(epochs), max(epochs)) if len(epochs) else (1, 1)
    pad = max(0.03 * (last - first), 0.15 if last > first else 0.5)
    axes.set_xlim(first - pad, last + pad)
    axes.xaxis.set_major_locator(FixedLocator(whole_ticks(first, last)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda epoch, _: f"{epoch:,.0f}"))
    axes.set_xlabel("epoch")


def _inches(axes: Axes) -> tuple[float, float]:
    figure = axes.get_figure(root=True)
    assert figure is not None
    width, height = figure.get_size_inches() * axes.get_position().size
    return float(width), float(height)


def _value_texts(axes: Axes) -> list[str]:
    ticks = axes.yaxis.get_majorticklocs().tolist()
    return axes.yaxis.get_major_formatter().format_ticks(ticks) or [""]


def _text_inches(text: str) -> float:
    return sum(0.045 if c in ".,-" else _DIGIT_INCHES for c in text)


def _value_axis(axes: Axes, metric: str, curves: Sequence[Curve]) -> None:
    axes.yaxis.set_major_formatter(_ValueTicks())
    edges = [c.finite[["mean", "low", "high"]].to_numpy().ravel() for c in curves]
    values = np.concatenate(edges) if edges else np.array([])
    values = values[np.isfinite(values)]
    if not values.size:
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_locator(FixedLocator([]))
        _say(axes, f"no numbers for {metric}")
    elif not values.any():
        axes.set_ylim(-0.06, 1)
        axes.yaxis.set_major_locator(FixedLocator([0]))
        _say(axes, zero_text(metric))
    else:
        low, high = float(values.min()), float(values.max())
        least = _LEAST_SPAN * max(abs(low), abs(high))
        pad = 0.07 * (high - low) + max(0.0, least - (high - low)) / 2
        axes.set_ylim(low - pad, high + pad)
        axes.yaxis.set_major_locator(
            MaxNLocator(int(2 * _inches(axes)[1]) + 2, steps=[1, 2, 2.5, 5, 10])
        )


def zero_text(metric: str) -> str:
    if metric == "sparsity_loss":
        return (
            "0 at every epoch: there is no sparsity penalty\n"
            "(none is needed where sparsity is structural, as in TopK)"
        )
    return "0 at every epoch"


def _say(axes: Axes, text: str) -> None:
    axes.text(
        0.5,
        0.5,
        text,
        transform=axes.transAxes,
        ha="center",
        va="center",
        color=FAINT_INK,
        fontsize=9.5,
        linespacing=1.5,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 4},
    )
