"""One legend for a sheet of panels, in a room at its right that is known before it is drawn."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.lines import Line2D

from sae_mlflow.plots.sheet import Sheet
from sae_mlflow.plots.style import Style
from sae_mlflow.plots.style_values import Dash
from sae_mlflow.plots.text_size import broken, inches

_GAP = 0.2  # inches between panels and legend
_HANDLE = 3.0  # font sizes
_MOST_WIDE = 2.6  # inches that a label may take before it goes on in the next line
_SHEET_SHARE = 0.25  # of a sheet of fixed width
_LINE = 1.35  # font sizes


def category_looks(style: Style, names: Sequence[str]) -> dict[str, tuple[str, Dash]]:
    """A colour of the palette and a dash for each name; no two alike among the first few dozen."""
    dashes: tuple[Dash, ...] = style.layers.dashes
    return {
        name: (style.colour(rank), dashes[rank % len(dashes)]) for rank, name in enumerate(names)
    }


def handle(label: str, colour: str, dash: Dash = "solid", **line: Any) -> Line2D:
    return Line2D([], [], color=colour, linestyle=dash, label=label, **line)


def handles(looks: Mapping[str, tuple[str, Dash]]) -> list[Line2D]:
    return [handle(name, colour, dash) for name, (colour, dash) in looks.items()]


def legend_room(style: Style, labels: Sequence[str]) -> float:
    """Inches that a legend takes right of the panels; 0 without entries."""
    if not labels:
        return 0.0
    size = style.points("legend")
    widest = max(inches(line, size) for label in labels for line in _lines(style, label))
    return _GAP + (_HANDLE + 1.2) * size / 72 + widest + 0.1


def draw_legend(sheet: Sheet, entries: Sequence[Line2D], room: float) -> None:
    """As many entries as fit, beside the panels, whose right edge is `room` inches off the sheet's.

    Args:
        room: of `legend_room`, and what is kept free beyond the panels.
    """
    if not entries:
        return
    style, figure = sheet.style, sheet.figure
    width, height = figure.get_size_inches()
    top = max(axes.get_position().y1 for axes in sheet.panels)
    for entry in entries:
        entry.set_label("\n".join(_lines(style, str(entry.get_label()))))
    figure.legend(
        handles=_fitting(style, entries, top * height - 0.1),
        loc="upper left",
        bbox_to_anchor=(1 - (room - _GAP) / width, top),
        borderaxespad=0,
        frameon=False,
        handlelength=_HANDLE,
        fontsize=style.points("legend"),
    )


def _fitting(style: Style, entries: Sequence[Line2D], height: float) -> list[Line2D]:
    line = style.points("legend") / 72 * _LINE
    taken, fit = 0.0, 0
    for entry in entries:
        taken += line * (1 + str(entry.get_label()).count("\n"))
        fit += taken <= height
    if fit == len(entries):
        return list(entries)
    more = handle(f"and {len(entries) - fit + 1} more", "none")
    return [*entries[: max(fit - 1, 0)], more]


def _lines(style: Style, label: str) -> list[str]:
    width = style.sizes.page_width
    room = _MOST_WIDE * style.factor if width is None else _SHEET_SHARE * width
    return broken(label, room, style.points("legend"), most=3) or [""]
