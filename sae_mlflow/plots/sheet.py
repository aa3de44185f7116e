"""A sheet of panels, laid out in inches by hand, in rooms that grow with the letters.

A layout engine draws every text twice, and takes 0.9 s for a sheet of four panels where this takes
0.4 s.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sae_mlflow.plots.style import Style
from sae_mlflow.plots.style_parts import Panel, fill
from sae_mlflow.plots.text_size import broken, inches, without_middle

_LEAST_PANEL = 0.3  # of a sheet of fixed width


class Rooms:
    """Inches around panels, for letters of a style's sizes."""

    def __init__(self, style: Style, label_lines: int = 1) -> None:
        """
        Args:
            label_lines: of the longest y label.
        """
        tick, label = style.points("tick") / 9, style.points("label") / 9.5
        fixed = style.sizes.page_width is not None
        self.ticks = 0.78 * tick + style.tick_length
        """Left of the axes, for the tick labels."""
        self.left = self.ticks + (0.17 * label_lines + (0.1 if fixed else 0)) * label
        self.bottom = 0.29 * tick + 0.33 * label + style.tick_length
        self.right = (0.12 if fixed else 0.3) * tick
        self.gap_x = self.left + 0.1 * tick
        self.panel_title = 0.42 * style.points("panel") / 11
        self.gap_y = self.bottom + 0.9 * self.panel_title
        self.title_line = 0.24 * style.points("title") / 14
        self.note_line = 0.185 * style.points("note") / 9.5
        self.margin = 0.28 * label
        self.final = 0.2 * tick
        """Beyond the axes, before a final value."""

    def head(self, titles: int, notes: int) -> float:
        """Above the panels, for so many lines."""
        words = self.title_line * titles + self.note_line * notes + (0.07 if titles else 0)
        return self.panel_title + (words + 0.26 if titles or notes else 0.06)


@dataclass(frozen=True)
class Sheet:
    """A figure with its title and notes, and its panels."""

    style: Style
    figure: Figure
    panels: list[Axes]

    def make_room(self, inches: float) -> None:
        """Room at the right of its only panel, for what was drawn there.

        The sheet grows; one of fixed width keeps it, and its panel shrinks.
        """
        width, height = self.figure.get_size_inches()
        fixed = self.style.sizes.page_width is not None
        panel, *others = self.figure.axes
        most = (panel.get_position().width - _LEAST_PANEL) * width
        taken = max(0.0, min(inches, most)) if fixed else 0.0
        grown = width if fixed else width + inches
        for axes in self.figure.axes:
            box, lost = axes.get_position(), taken / width
            x0 = box.x0 - lost if axes in others else box.x0
            across = box.width - lost if axes is panel else box.width
            axes.set_position((x0 * width / grown, box.y0, across * width / grown, box.height))
        for text in self.figure.texts:
            text.set_x(text.get_position()[0] * width / grown)
        self.figure.set_size_inches(grown, height)


def new_sheet(
    style: Style,
    rows: int,
    columns: int,
    panel: Panel,
    title: tuple[str, Mapping[str, str]],
    notes: Sequence[str],
    *,
    label_lines: int = 1,
    right: float | None = None,
    shared_label: bool = False,
) -> Sheet:
    """A page with its title and notes, and `rows` times `columns` panels.

    Args:
        panel: the inches of one.
        title: its template, and what its placeholders stand for.
        label_lines: of the longest y label.
        right: inches right of the panels, if more than usual.
        shared_label: the y label stands at the first column alone.
    """
    rooms = Rooms(style, label_lines)
    if shared_label:
        rooms.gap_x -= rooms.left - rooms.ticks
    right = right or rooms.right
    beside = rooms.left + (columns - 1) * rooms.gap_x + right
    width = style.sizes.page_width or beside + columns * panel[0]
    panel = ((width - beside) / columns, panel[1])
    titles = title_lines(*title, width - rooms.margin * 2, style)
    size = style.points("note")
    lines = [
        part for note in notes for part in broken(note, width - rooms.margin * 2, size, most=3)
    ]
    panels = rows * panel[1] + (rows - 1) * rooms.gap_y
    height = rooms.bottom + panels + rooms.head(len(titles), len(lines))
    figure = Figure(figsize=(width, height), dpi=style.dpi)
    FigureCanvasAgg(figure)
    _write_head(figure, style, rooms, titles, lines)
    box = (rooms.left / width, rooms.bottom / height, right / width, panels / height)
    return Sheet(style, figure, _grid(figure, rows, columns, box, rooms, panel))


def _grid(
    figure: Figure,
    rows: int,
    columns: int,
    box: tuple[float, float, float, float],
    rooms: Rooms,
    panel: Panel,
) -> list[Axes]:
    """The panels, row by row.

    Args:
        box: left, bottom and right margin, and the height of all, as shares of the sheet.
    """
    left, bottom, right, height = box
    places = {
        "left": left,
        "right": 1 - right,
        "bottom": bottom,
        "top": bottom + height,
        "wspace": rooms.gap_x / panel[0],
        "hspace": rooms.gap_y / panel[1],
    }
    return list(figure.subplots(rows, columns, squeeze=False, gridspec_kw=places).ravel())


def comparison_title(style: Style, title: tuple[str, str]) -> tuple[str, Mapping[str, str]]:
    """For `new_sheet`: what stands for the model, and what is compared."""
    model, subject = title
    values = {"model": model, "metric": subject, "layer": "", "setting": ""}
    return style.titles.comparison, values


def title_lines(template: str, values: Mapping[str, str], room: float, style: Style) -> list[str]:
    """A title in four lines at most; of a long model name the middle is left out."""
    size = style.points("title")
    model = "".join(c if c.isprintable() else " " for c in values["model"])
    title = fill(template, **{**values, "model": model})
    if not title:
        return []
    fitting = int(3 * room / (inches(title, size, bold=True) / len(title)))
    most = max(20, fitting - (len(title) - len(model)) - 12)
    if len(model) > most:
        short = without_middle(model, most // 2, most // 2)
        title = fill(template, **{**values, "model": short})
    return broken(title, room, size, bold=True)


def _write_head(
    figure: Figure, style: Style, rooms: Rooms, titles: Sequence[str], notes: Sequence[str]
) -> None:
    width, height = figure.get_size_inches()
    left, top = rooms.margin / width, 1 - 0.2 / height
    below = top - (rooms.title_line * len(titles) + (0.07 if titles else 0)) / height
    figure.text(
        left,
        top,
        "\n".join(titles),
        fontsize=style.points("title"),
        fontweight="bold",
        va="top",
        linespacing=1.15,
    )
    figure.text(
        left,
        below,
        "\n".join(notes),
        fontsize=style.points("note"),
        va="top",
        color=style.colours.faint,
    )


def size_of(axes: Axes) -> tuple[float, float]:
    """Inches across and high."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    width, height = figure.get_size_inches() * axes.get_position().size
    return float(width), float(height)
