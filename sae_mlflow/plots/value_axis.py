"""The axis of a metric's values: its range, its ticks, its target, and what can't be on it."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, Formatter, Locator, LogLocator, MaxNLocator, NullLocator

from sae_mlflow.plots.curve import Curve
from sae_mlflow.plots.numbers import number_text
from sae_mlflow.plots.style import Style
from sae_mlflow.plots.style_parts import MetricStyle
from sae_mlflow.plots.text_size import broken

_LEAST_SPAN = 0.05  # of the values: what is steadier than that is drawn as steady, not as noise
_LEAST_OF_LACK = 0.15  # beside values near 1, of what the lowest lacks
_LOG_FROM = 1e3  # largest over smallest value: on a linear axis the small ones would all lie on 0
_ZERO_RANGE = (-0.06, 1.0)  # where every value is 0, which is the only tick
TINY = 1e-300  # no log axis goes below it

NOT_ON_LOG, OFF_THE_AXIS = "0 or less, not on a log axis,", "off the axis"


class ValueTicks(Formatter):
    """Ticks with as many decimals as their step needs: `0.50`, `0.75`, `1.00`; never an offset."""

    def __call__(self, value: float, pos: int | None = None) -> str:
        return number_text(value)

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        """All ticks of an axis in one notation: with as many decimals, or all as powers of ten."""
        steps, largest = np.diff(values), max(map(abs, values), default=0)
        if not len(steps) or not largest:
            return [self(value) for value in values]
        even = np.allclose(steps, steps[0])
        least = largest if even else min(abs(value) for value in values if value)
        if largest >= 1e7 or largest < 1e-3 or least < 1e-4:
            return [_in_powers(value if abs(value) > 1e-9 * least else 0) for value in values]
        if not even:
            return [self(value) for value in values]
        decimals = next((d for d in range(7) if np.allclose(steps, np.round(steps, d), 1e-6)), 7)
        return [f"{value:,.{decimals}f}" for value in values]


def _in_powers(value: float) -> str:
    """`0`, `5`, `5e6`, `1.5e7`."""
    mantissa, _, exponent = f"{value:.3e}".partition("e")
    power = f"e{int(exponent)}" if int(exponent) else ""
    return f"{mantissa.rstrip('0').rstrip('.')}{power}"


def is_log(look: MetricStyle, values: pd.Series) -> bool:
    """Whether a metric's axis is logarithmic: as its style says, or else as its values need it."""
    if look.scale is not None:
        return look.log
    there = values[np.isfinite(values)]
    if there.empty or any(edge is not None and edge <= 0 for edge in (*look.limits, look.target)):
        return False
    return bool(there.min() > 0 and there.max() / _LOG_FROM > there.min())


def with_scales(style: Style, table: pd.DataFrame, metrics: Iterable[str]) -> Style:
    """The style in which each of the metrics has its scale, and says so where it is logarithmic.

    Args:
        table: `frames.COLUMNS`, all that is drawn.
    """
    scaled = {}
    for metric in metrics:
        look = style.metric(metric)
        if is_log(look, table.loc[table["metric"] == metric, "value"]):
            words = {"scale": "log", "unit": f"{look.unit}, log scale"}
            scaled[metric] = look.model_copy(update=words)
    return style.model_copy(update={"metrics": {**style.metrics, **scaled}})


def draw_value_axis(axes: Axes, style: Style, metric: str, curves: Sequence[Curve]) -> None:
    """Fit the axis to the curves; say in words what they don't show."""
    look, values = style.metric(metric), _values(curves)
    axes.yaxis.set_major_formatter(ValueTicks())
    if not values.size:
        axes.set_ylim(0, 1)
        _only_words(axes, style, f"no numbers for {metric}", [])
    elif not values.any():
        axes.set_ylim(*_ZERO_RANGE)
        _only_words(axes, style, zero_text(metric), [0])
    elif look.log and not (values > 0).any():
        axes.set_ylim(0, 1)
        _only_words(axes, style, "0 or less at every epoch:\nnot on a log axis", [])
    else:
        _scale(axes, look, values[values > 0] if look.log else values)
        axes.yaxis.set_major_locator(value_locator(axes, style, look.log))
        _draw_target(axes, style, look, curves)


def not_shown(curve: Curve, look: MetricStyle) -> dict[str, list[int]]:
    """The epochs whose number is there but not on the axis, by the reason; often none."""
    finite = curve.finite
    low, high = look.limits
    below = finite["mean"] <= 0 if look.log else finite["mean"].isna()
    off = ((finite["mean"] < low) if low is not None else below) & ~below
    off |= ((finite["mean"] > high) if high is not None else below) & ~below
    found = {NOT_ON_LOG: finite["epoch"][below], OFF_THE_AXIS: finite["epoch"][off]}
    return {reason: sorted(map(int, epochs)) for reason, epochs in found.items() if len(epochs)}


def _values(curves: Sequence[Curve]) -> np.ndarray:
    edges = [c.finite[["mean", "low", "high"]].to_numpy(dtype=float).ravel() for c in curves]
    values = np.concatenate(edges) if edges else np.array([])
    return values[np.isfinite(values)]


def _scale(axes: Axes, look: MetricStyle, values: np.ndarray) -> None:
    low, high = float(values.min()), float(values.max())
    if look.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(ValueTicks())
        axes.yaxis.set_minor_locator(NullLocator())
        decades = math.log10(high) - math.log10(low)
        pad = 0.07 * decades + max(0.0, _LEAST_SPAN - decades) / 2
        low = 10 ** max(math.log10(low) - pad, math.log10(TINY))
        high = 10 ** min(math.log10(high) + pad, -math.log10(TINY))
    else:
        least = _LEAST_SPAN * max(abs(low), abs(high))
        pad = 0.07 * (high - low) + max(0.0, least - (high - low)) / 2
        low, high = low - pad, high + pad
    first, last = look.limits
    low, high = low if first is None else first, high if last is None else last
    if low >= high:  # all of the data lies beyond the one limit that is set
        low, high = (low, low + 1) if last is None else (high / 10 if look.log else high - 1, high)
    axes.set_ylim(low, high)


def value_locator(axes: Axes, style: Style, log: bool) -> Locator:
    """Round ticks, as many as the height of the axes has room for."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    height = figure.get_size_inches()[1] * axes.get_position().height
    most = int(2 * height / (style.points("tick") / 9)) + 2
    low, high = axes.get_ylim()
    decades = math.log10(high) - math.log10(low) if log else 0.0
    if decades < 1:
        return MaxNLocator(most, steps=[1, 2, 2.5, 5, 10])
    subs = (1.0, 2.0, 5.0) if 3 * decades <= most else (1.0,)
    return LogLocator(subs=subs, numticks=most)


def _draw_target(axes: Axes, style: Style, look: MetricStyle, curves: Sequence[Curve]) -> None:
    """A line at the target, where the data's axis has it; its name where the curves are far."""
    target = look.target
    low, high = axes.get_ylim()
    if target is None or not low < target < high:
        return
    pixels = axes.transData.transform([(0, low), (0, low + abs(target))])[:, 1]
    if not look.log and pixels[1] - pixels[0] < 1:  # it would say that the target is 0
        return
    axes.axhline(
        target,
        color=style.colours.faint,
        linewidth=style.factor,
        linestyle=(0, (4, 2)),
        zorder=1.5,
    )
    ends = [(c.finite["mean"].iloc[0], c.finite["mean"].iloc[-1]) for c in curves if len(c.finite)]
    at_left = min(abs(a - target) for a, _ in ends) >= min(abs(b - target) for _, b in ends)
    height = axes.transAxes.inverted().transform(axes.transData.transform((0, target)))[1]
    under = height > 0.9
    axes.annotate(
        f"target {number_text(target)}",
        (0.012 if at_left else 0.988, target),
        xycoords=axes.get_yaxis_transform(),
        xytext=(0, -2 if under else 2),
        textcoords="offset points",
        ha="left" if at_left else "right",
        va="top" if under else "bottom",
        fontsize=style.points("tick"),
        color=style.colours.faint,
        zorder=1.6,
    )


def zero_text(metric: str) -> str:
    """What is said where a metric is 0 at every epoch."""
    if metric == "sparsity_loss":
        return (
            "0 at every epoch: there is no sparsity penalty\n"
            "(none is needed where sparsity is structural, as in TopK)"
        )
    return "0 at every epoch"


def _only_words(axes: Axes, style: Style, text: str, ticks: list[float]) -> None:
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    figure = axes.get_figure(root=True)
    assert figure is not None
    room = 0.92 * figure.get_size_inches()[0] * axes.get_position().width
    size = style.points("note")
    axes.text(
        0.5,
        0.5,
        "\n".join(line for part in text.split("\n") for line in broken(part, room, size)),
        transform=axes.transAxes,
        ha="center",
        va="center",
        color=style.colours.faint,
        fontsize=size,
        linespacing=1.5,
        bbox={"facecolor": style.colours.panel, "edgecolor": "none", "pad": 4},
    )


def fit_values(
    axes: Axes, values: np.ndarray, above_zero: bool = False, fraction: bool = False
) -> None:
    """A linear axis around the finite values; steady ones don't look like noise.

    Args:
        above_zero: values that are never negative don't have the axis go far below 0.
        fraction: of values up to 1 the axis doesn't pass 1, and near it what counts is what they
            lack: of 0.98 and 0.99 one lacks twice as much.
    """
    axes.yaxis.set_major_formatter(ValueTicks())
    finite = values[np.isfinite(values)]
    if not finite.size:
        return
    if not finite.any():
        axes.set_ylim(*_ZERO_RANGE)
        axes.yaxis.set_major_locator(FixedLocator([0]))
        return
    low, high = float(finite.min()), float(finite.max())
    below_1 = fraction and high <= 1
    least = _LEAST_SPAN / 2 * max(abs(low), abs(high))
    if below_1:
        least = max(min(least, _LEAST_OF_LACK * (1 - low)), 1e-6)
    pad = max(0.07 * (high - low), least)
    lowest = max(low - pad, -0.06 * high) if above_zero and low >= 0 else low - pad
    axes.set_ylim(lowest, min(high + pad, 1.0) if below_1 else high + pad)
