"""A metric over epochs, a small panel for each layer, a line for each of what is compared."""

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sae_mlflow.plots.compare.legends import category_looks, draw_legend, handles, legend_room
from sae_mlflow.plots.compare.tables import layers_of
from sae_mlflow.plots.curve import Curve
from sae_mlflow.plots.frames import over_seeds
from sae_mlflow.plots.notes import with_seeds
from sae_mlflow.plots.panels import comparison_label, draw_panel, place_axis_labels
from sae_mlflow.plots.sheet import Rooms, Sheet, comparison_title, new_sheet, size_of
from sae_mlflow.plots.style import Style

MOST_PANELS = 12
_PANEL = 0.62  # of a training history's panel, each way


def facets(
    table: pd.DataFrame, metric: str, title: tuple[str, str], note: str, style: Style
) -> Figure:
    """Lines of the same name have the same look in every panel, and panels share their axes.

    Args:
        table: `frames.COLUMNS`, whose `setting` names the line. With several runs a line is their
            mean, with their range around it.
        title: what stands for the model and for the subject in the style's title.
    """
    rows = table[table["metric"] == metric]
    layers = layers_of(rows)
    shown = spread(layers, MOST_PANELS)
    names = list(dict.fromkeys(rows["setting"]))
    looks = category_looks(style, names)
    epochs = sorted(map(int, rows["epoch"].unique()))
    with style.theme():
        room = legend_room(style, names) if len(names) > 1 else 0.0
        sheet = _sheet(style, metric, len(shown), title, _notes(rows, note, layers, shown), room)
        for axes, layer in zip(sheet.panels, shown, strict=False):
            means = over_seeds(rows[rows["layer"] == layer])
            curves = [
                Curve(line, looks[str(name)][0], str(name), looks[str(name)][1])
                for name, line in means.groupby("setting", sort=False)
            ]
            draw_panel(axes, style, metric, curves, epochs, layer)
            label = "\n".join(comparison_label(style, metric, size_of(axes)[1]))
            axes.set_ylabel(label, linespacing=1.05)
            axes.set_xlabel("epoch")
        _share_values(sheet.panels[: len(shown)])
        _finish(sheet, len(shown))
        if room:
            draw_legend(sheet, handles(looks), room)
    return sheet.figure


def spread(names: Sequence[str], most: int) -> list[str]:
    """At most so many of the names, evenly spread, first and last among them."""
    if len(names) <= most:
        return list(names)
    return [names[round(i * (len(names) - 1) / (most - 1))] for i in range(most)]


def grid_of(panels: int, style: Style) -> tuple[int, int]:
    """Rows and columns of a sheet of so many panels."""
    most = 4 if style.sizes.page_width is None else 3
    columns = min(most, panels if panels <= most else math.ceil(math.sqrt(panels)))
    return math.ceil(panels / columns), columns


def _sheet(
    style: Style, metric: str, panels: int, title: tuple[str, str], notes: list[str], room: float
) -> Sheet:
    rows, columns = grid_of(panels, style)
    scale = 1.0 if panels == 1 or style.sizes.page_width else _PANEL
    width, height = style.sizes.history_panel
    panel = scale * width, scale * height
    lines = len(comparison_label(style, metric, panel[1]))
    return new_sheet(
        style,
        rows,
        columns,
        panel,
        comparison_title(style, title),
        notes,
        label_lines=lines,
        right=Rooms(style, lines).right + room,
        shared_label=True,
    )


def _notes(rows: pd.DataFrame, note: str, layers: Sequence[str], shown: Sequence[str]) -> list[str]:
    left_out = f"{len(shown)} of {len(layers)} layers" if len(shown) < len(layers) else ""
    return [" · ".join(filter(None, (with_seeds(note, rows), left_out)))]


def _share_values(panels: Sequence[Axes]) -> None:
    """The same range in all panels that have one, so that they can be compared by eye."""
    drawn = [axes for axes in panels if axes.lines and axes.get_yticks().size > 1]
    if not drawn:
        return
    low = min(axes.get_ylim()[0] for axes in drawn)
    high = max(axes.get_ylim()[1] for axes in drawn)
    for axes in drawn:
        axes.set_ylim(low, high)


def _finish(sheet: Sheet, used: int) -> None:
    """Labels at the outer panels alone; places without a panel stay empty."""
    for axes in sheet.panels[used:]:
        axes.set_visible(False)
    place_axis_labels(sheet.style, sheet.panels[:used])
    columns = len({round(axes.get_position().x0, 6) for axes in sheet.panels})
    for rank, axes in enumerate(sheet.panels[:used]):
        if rank % columns:
            axes.set_ylabel("")
        if rank + columns < used:
            axes.set_xlabel("")
