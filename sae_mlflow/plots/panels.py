"""One pair of axes: curves over epochs, whole-number ticks, and words where nothing is to see."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter

from sae_mlflow.plots.curve import Curve, smoothed, without_number
from sae_mlflow.plots.numbers import ranges, whole_ticks
from sae_mlflow.plots.sheet import Rooms, size_of
from sae_mlflow.plots.style import Style
from sae_mlflow.plots.text_size import broken, in_two, inches
from sae_mlflow.plots.value_axis import TINY, draw_value_axis, not_shown

_ALL_TICKS = 10  # of an axis of epochs, at most
_MARKED_EPOCHS = 30  # with more, the dots would be a thick line
_MARKED_LINES = 12
_RAW_ALPHA = 0.35  # of the line behind a smoothed one


def draw_panel(
    axes: Axes,
    style: Style,
    metric: str,
    curves: Sequence[Curve],
    epochs: Sequence[int],
    title: str,
) -> None:
    """Draw a metric's curves.

    Args:
        epochs: all that the x axis spans; those at which the only curve has no number are named.
        title: the panel's; without one the metric is named at its axis.
    """
    axes.set_title(title, loc="center", x=0, ha="left")  # what get_title() finds
    axes.set_ylabel("\n".join(label_lines(style, metric, bool(title), size_of(axes)[1])))
    log = style.metric(metric).log and any((c.finite["mean"] > 0).any() for c in curves)
    for curve in curves:
        _draw(axes, style, curve, len(curves), len(epochs), log)
    _epoch_axis(axes, style, epochs)
    if len(curves) == 1:
        _name_gaps(axes, style, metric, curves[0], epochs)
    draw_value_axis(axes, style, metric, curves)


def label_lines(style: Style, metric: str, has_title: bool, height: float) -> list[str]:
    """The y label: the unit, under the metric's name where no title gives that."""
    look, size = style.metric(metric), style.points("label")
    room = height + 0.5 * size / 9.5  # it may reach beyond its axes a little
    name = [] if has_title else in_two(look.label, room, size)
    return name + in_two(look.unit, room, size)


def comparison_label(style: Style, metric: str, height: float) -> list[str]:
    """Of a metric that a comparison shows alone: named here where its title doesn't do so."""
    return label_lines(style, metric, "{metric}" in style.titles.comparison, height)


def place_axis_labels(style: Style, panels: Sequence[Axes]) -> None:
    """Put the axes' labels beside the longest of all tick labels, so that they line up.

    Left to itself each looks for its place among the drawn ticks, a quarter of the drawing time.
    """
    size, room = style.points("tick"), Rooms(style).ticks
    longest = max(inches(text, size) for axes in panels for text in _value_texts(axes))
    reach = min(0.16 * size / 9 + style.tick_length + longest, room)
    for axes in panels:
        if style.sizes.page_width is not None:
            _widen_to_the_left(axes, room - reach)
        width, height = size_of(axes)
        axes.yaxis.set_label_coords(-reach / width, 0.5)
        axes.xaxis.set_label_coords(0.5, -(0.29 * size / 9 + style.tick_length) / height)


def _widen_to_the_left(axes: Axes, by: float) -> None:
    """Over room that no tick label needs."""
    figure, box = axes.get_figure(root=True), axes.get_position()
    assert figure is not None
    share = by / figure.get_size_inches()[0]
    axes.set_position((box.x0 - share, box.y0, box.width + share, box.height))


def _width(style: Style, lines: int, epochs: int) -> float:
    widths = style.lines
    chosen = (
        widths.many_layers if lines > 12 else widths.many_epochs if epochs > 300 else widths.width
    )
    return chosen * style.factor


def _draw(axes: Axes, style: Style, curve: Curve, lines: int, epochs: int, log: bool) -> None:
    data, width = curve.values, _width(style, lines, epochs)
    # of 0 and less a log axis would draw a line that falls off it
    means = data["mean"].where(np.isfinite(data["mean"]) & ((not log) | (data["mean"] > 0)))
    marked = _marked(means, lines) if style.lines.marker else []
    smooth = style.smoothing.kind != "none"
    axes.plot(
        data["epoch"].to_numpy(),
        means.to_numpy(),
        color=curve.colour,
        alpha=_RAW_ALPHA if smooth else None,
        linestyle=curve.dash,
        linewidth=0.6 * width if smooth else width,
        marker="o" if marked else None,
        markevery=marked or None,
        markersize=style.lines.marker * width,
        markeredgecolor=style.colours.panel,
        markeredgewidth=0.37 * width,
        label="_raw" if smooth else curve.label or None,
    )
    if smooth:
        axes.plot(
            data["epoch"].to_numpy(),
            smoothed(means, style.smoothing).to_numpy(),
            color=curve.colour,
            linestyle=curve.dash,
            linewidth=width,
            label=curve.label or None,
        )
    if data["seeds"].max() > 1:
        _draw_band(axes, curve, log)


def _draw_band(axes: Axes, curve: Curve, log: bool) -> None:
    """The range over seeds."""
    edges = curve.values[np.isfinite(curve.values[["low", "high"]]).all(axis=1)]
    low, high = edges["low"], edges["high"]
    if log:
        low, high = low.clip(lower=TINY), high.clip(lower=TINY)
    axes.fill_between(edges["epoch"], low, high, color=curve.colour, alpha=0.18, linewidth=0)


def _marked(means: pd.Series, lines: int) -> list[int]:
    """Which points have a dot: all where they are few, else those that no line goes to."""
    there = means.notna().to_numpy()
    beside = np.concatenate(([False], there[:-1])) | np.concatenate((there[1:], [False]))
    few = there.sum() <= _MARKED_EPOCHS and lines <= _MARKED_LINES
    return np.flatnonzero(there if few else there & ~beside).tolist()


def _epoch_axis(axes: Axes, style: Style, epochs: Sequence[int]) -> None:
    first, last = (min(epochs), max(epochs)) if len(epochs) else (1, 1)
    pad = max(0.03 * (last - first), 0.15 if last > first else 0.5)
    axes.set_xlim(first - pad, last + pad)
    size = style.points("tick")
    room = inches(f"{last:,}", size) + 0.2 * size / 9
    most = max(2, min(_ALL_TICKS, int(size_of(axes)[0] / room)))
    axes.xaxis.set_major_locator(FixedLocator(whole_ticks(first, last, most)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda epoch, _: f"{epoch:,.0f}"))
    axes.set_xlabel("epoch")


def _name_gaps(axes: Axes, style: Style, metric: str, curve: Curve, epochs: Sequence[int]) -> None:
    """Name the epochs at which the line has no point, and why."""
    reasons = {"no number": without_number(curve, epochs), **not_shown(curve, style.metric(metric))}
    gaps = [f"{reason} at {ranges(missing)}" for reason, missing in reasons.items() if missing]
    if gaps:
        size, room = style.points("label"), size_of(axes)[0] + 0.5
        lines = broken(f"epoch ({'; '.join(gaps)})", room, size, most=2)
        axes.set_xlabel("\n".join(lines))


def _value_texts(axes: Axes) -> list[str]:
    low, high = axes.get_ylim()
    ticks = [tick for tick in axes.yaxis.get_majorticklocs().tolist() if low <= tick <= high]
    return axes.yaxis.get_major_formatter().format_ticks(ticks) or [""]
