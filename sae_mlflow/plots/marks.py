"""What a run's health found, on its pictures: a mark at its epoch, or a word under the title."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sae_mlflow.health.finding import (
    KINDS,
    REASONS_TAG,
    STATUS_TAG,
    Severity,
    parse_reasons,
    shown,
    words,
)

if TYPE_CHECKING:  # matplotlib and pandas take seconds to import
    from matplotlib.axes import Axes

    from sae_mlflow.plots.curve import Curve
    from sae_mlflow.plots.style import Style

# Apart in shape as well as in colour.
_SHAPES: Mapping[Severity, str] = {"warning": "v", "failed": "X"}

_FIRST_ROW, _ROW = 7, 13  # points under the frame's upper edge, for letters of 8.5 points
_TEXT_SIZE = 8.5
_POINTS_PER_INCH = 72


@dataclass(frozen=True)
class Mark:
    """One finding."""

    code: str
    epoch: int | None

    @property
    def severity(self) -> Severity:
        return KINDS[self.code].severity


@dataclass(frozen=True)
class Marks:
    """The findings about the run that a picture shows; none by default."""

    status: str = ""
    marks: tuple[Mark, ...] = ()

    def on(self, metric: str, curve: "Curve") -> list[Mark]:
        """Those that are seen on a metric's curve."""
        return [mark for mark in self.marks if _belongs(mark, metric, curve)]


NO_MARKS = Marks()


def marks_of(tags: Mapping[str, str]) -> Marks:
    """Out of a run's tags."""
    reasons = parse_reasons(tags.get(REASONS_TAG, ""))
    return Marks(tags.get(STATUS_TAG, ""), tuple(Mark(code, epoch) for code, epoch in reasons))


def health_note(marks: Marks, curves: "Mapping[str, Curve | None]", note: str = "") -> str:
    """`health: warning, not converged`: the status, and what has no mark on these curves.

    Args:
        note: what stands above it.
    """
    if marks.status in ("", "ok"):
        return note
    placed = [mark for metric, curve in curves.items() if curve for mark in marks.on(metric, curve)]
    rest = [(mark.code, mark.epoch) for mark in marks.marks if mark not in placed]
    health = ", ".join(filter(None, (f"health: {marks.status}", shown(rest))))
    return "\n".join(filter(None, (note, health)))


def draw_marks(axes: "Axes", style: "Style", curve: "Curve", marks: Sequence[Mark]) -> None:
    """A line down from the upper edge at each mark's epoch, with its word in a row of its own.

    The word stands on the side that has more room, above all curves; where there is a value, it is
    marked too.
    """
    size = style.points("tick") * _TEXT_SIZE / 9
    scale = size / _TEXT_SIZE
    _make_room(axes, len(marks) * scale)
    left, right = axes.get_xlim()
    values = dict(zip(curve.finite["epoch"], curve.finite["mean"], strict=True))
    for row, mark in enumerate(marks):
        assert mark.epoch is not None
        colour = style.colours.severity(mark.severity)
        axes.axvline(
            mark.epoch, color=colour, linewidth=0.9 * scale, linestyle=(0, (3, 2)), zorder=1.5
        )
        if mark.epoch in values:
            axes.plot(
                mark.epoch,
                values[mark.epoch],
                marker=_SHAPES[mark.severity],
                markersize=7 * scale,
                markeredgecolor=style.colours.panel,
                markeredgewidth=0.7,
                color=colour,
                zorder=4,
                linestyle="none",
                label="_mark",
            )
        on_left = mark.epoch > (left + right) / 2
        axes.annotate(
            words(mark.code),
            (mark.epoch, 1.0),
            xycoords=axes.get_xaxis_transform(),
            xytext=(-4 if on_left else 4, (-_FIRST_ROW - row * _ROW) * scale),
            textcoords="offset points",
            ha="right" if on_left else "left",
            va="center",
            fontsize=size,
            color=colour,
            zorder=5,
            bbox={"facecolor": style.colours.panel, "edgecolor": "none", "pad": 1, "alpha": 0.85},
        )


def _make_room(axes: "Axes", rows: float) -> None:
    """Raise the upper limit by so many rows of words, whatever the axis' scale."""
    if not rows:
        return
    low, _ = axes.get_ylim()
    figure = axes.get_figure(root=True)
    assert figure is not None
    height = axes.get_position().height * figure.get_figheight() * _POINTS_PER_INCH
    room = rows * _ROW / height
    share = 1 / (1 - room)  # of the axes as it is: the curves shrink by the room
    _, high = axes.transData.inverted().transform(axes.transAxes.transform((0, share)))
    axes.set_ylim(low, high)


def _belongs(mark: Mark, metric: str, curve: "Curve") -> bool:
    if mark.epoch is None or mark.epoch not in set(curve.values["epoch"]):
        return False
    if mark.code != "not_finite":
        return metric in KINDS[mark.code].metrics
    there = curve.values[curve.values["epoch"] == mark.epoch]["mean"]
    return not math.isfinite(there.iloc[-1])
