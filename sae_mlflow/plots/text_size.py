"""How long a text is before it is drawn, and how it is broken so that it fits. Within a theme."""

import textwrap
from bisect import bisect_right

import matplotlib
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path


def inches(text: str, points: float, bold: bool = False) -> float:
    """The width of a line."""
    font = FontProperties(
        family=matplotlib.rcParams["font.family"], size=points, weight="bold" if bold else "normal"
    )
    return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]) / 72


def shortened(name: str, room: float, points: float) -> str:
    """A name's start and end, where all of it is wider than `room` inches."""

    def cut(most: int) -> str:
        return without_middle(name, most // 2, (most - 1) // 2)

    if len(name) <= 3 or inches(name, points) <= room:
        return name
    longer = bisect_right(range(4, len(name)), room, key=lambda most: inches(cut(most), points))
    return cut(3 + longer)


def without_middle(name: str, start: int, end: int) -> str:
    """So many characters of a name's start, and so many of its end."""
    return f"{name[:start]}…{name[len(name) - end :]}"


def broken(text: str, room: float, points: float, bold: bool = False, most: int = 4) -> list[str]:
    """The text in lines no wider than `room` inches; what is over `most` lines is cut with `…`."""
    if not text:
        return []
    whole = inches(text, points, bold)
    width = len(text) if whole <= room else max(1, int(len(text) * room / whole))
    while True:
        lines = textwrap.wrap(text, width, max_lines=most, placeholder="…")
        if width == 1 or all(inches(line, points, bold) <= room for line in lines):
            return lines
        width -= max(1, width // 20)


def in_two(label: str, room: float, points: float) -> list[str]:
    """An axis' label: before its bracket and the bracket, where that is too long for one line."""
    before, bracket, rest = label.partition(" (")
    if not bracket or inches(label, points) <= room:
        return broken(label, room, points, most=3)
    return [*broken(before, room, points, most=2), *broken(f"({rest}", room, points, most=1)]
