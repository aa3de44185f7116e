"""Tables to figures: nothing here queries, saves or touches pyplot's global state.

Pages are laid out in inches, by hand: a layout engine draws every text twice, and takes 0.9 s for
a page of four panels where this takes 0.4 s.
"""

import math
import textwrap
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sae_mlflow.errors import known
from sae_mlflow.plots.frames import over_seeds
from sae_mlflow.plots.layer_key import LayerKey
from sae_mlflow.plots.looks import DPI, FAINT_INK, look_of, theme
from sae_mlflow.plots.panels import (
    Curve,
    draw_panel,
    number_text,
    place_axis_labels,
    ranges,
    without_number,
)

HISTORY_METRICS = ("reconstruction_loss", "total_loss", "sparsity_loss", "l0_norm")

_LEFT, _BOTTOM, _RIGHT = 0.95, 0.62, 0.3  # inches around the panels
_GAP_X, _GAP_Y = 1.05, 1.0
_TITLE_SIZE, _NOTE_SIZE = 14, 9.5
_TITLE_LINE, _NOTE_LINE = 0.24, 0.185  # inches


def training_history(table: pd.DataFrame, note: str = "") -> Figure:
    """The four curves of one layer, 2 x 2; several seeds as mean and range.

    Args:
        table: `frames.COLUMNS`, of one model, layer and setting.
        note: a line under the title.
    """
    with theme():
        figure, panels = _page(2, 2, (4.45, 2.75), _title(table), with_seeds(note, table))
        epochs = _epochs(table)
        for axes, metric in zip(panels, HISTORY_METRICS, strict=True):
            curve = _only_curve(table, metric)
            draw_panel(axes, metric, [curve] if curve else [], epochs)
            if curve:
                text = f"final {number_text(_final(curve)[1])}"
                axes.set_title(text, loc="right", fontsize=9, fontweight="normal", color=FAINT_INK)
        place_axis_labels(panels)
    return figure


def single_metric(table: pd.DataFrame, metric: str, note: str = "") -> Figure:
    """One metric of one layer, its final value written at the line's end."""
    with theme():
        title, note = _title(table), with_seeds(note, table)
        figure, (axes,) = _page(1, 1, (6.9, 4.1), title, note, right=1.1)
        curve = _only_curve(table, metric)
        draw_panel(axes, metric, [curve] if curve else [], _epochs(table))
        place_axis_labels([axes])
        if curve:
            _name_final(axes, curve)
    return figure


def all_layers(table: pd.DataFrame, metric: str, note: str = "") -> Figure:
    """A metric of all layers of a model over each other, coloured by their number.

    Up to 12 lines have a legend; more than 12 layers have a colour bar. A layer trained with
    several settings has a line for each, told apart by dashes and named in the legend.

    Args:
        table: `frames.COLUMNS`, of one model; layers that lack the metric are named in a note.
    """
    with theme():
        key, epochs = LayerKey(table), _epochs(table[table["metric"] == metric])
        means = over_seeds(table[table["metric"] == metric])
        by_line = dict(list(means.groupby(["layer", "setting"])))
        curves = [key.curve(line, by_line[line]) for line in key.lines if line in by_line]
        absent = [" · ".join(filter(None, line)) for line in key.lines if line not in by_line]
        notes = [with_seeds(note, table), incomplete(curves, absent, epochs), hidden(curves)]
        model = str(table["model"].iloc[0])
        figure, (axes,) = _page(
            1, 1, (7.3, 4.5), (model, "all layers"), "\n".join(filter(None, notes))
        )
        draw_panel(axes, metric, curves, epochs)
        place_axis_labels([axes])
        if len(curves) == 1:
            axes.set_xlabel("epoch")  # what is missing stands in the note already
        if curves:
            _widen(figure, key.draw(axes, curves))
    return figure


def hidden(curves: Sequence[Curve]) -> str:
    """A line that names what can't be seen because it lies under another: TopK's L0, for one."""
    alike: dict[tuple[float, ...], list[str]] = {}
    for curve in curves:
        points = curve.finite[["epoch", "mean"]].to_numpy().ravel()
        alike.setdefault(tuple(points.tolist()), []).append(curve.label)
    if len(curves) > 1 and len(alike) == 1:
        return f"The {len(curves)} lines are the same: they lie on each other."
    shared = [" = ".join(labels) for points, labels in alike.items() if points and labels[1:]]
    return f"Lying on each other: {known(shared, limit=3)}" if shared else ""


def _page(
    rows: int,
    columns: int,
    panel: tuple[float, float],
    title: tuple[str, str],
    note: str,
    right: float = _RIGHT,
) -> tuple[Figure, list[Axes]]:
    """A figure with its title and note, and panels of `panel` inches each."""
    width = _LEFT + columns * panel[0] + (columns - 1) * _GAP_X + right
    titles = _title_lines(*title, inches=width - 0.6)
    notes = [part for line in note.split("\n") for part in textwrap.wrap(line, int(width / 0.08))]
    head = 0.33 + _TITLE_LINE * len(titles) + _NOTE_LINE * len(notes) + 0.42
    panels = rows * panel[1] + (rows - 1) * _GAP_Y
    height = _BOTTOM + panels + head
    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    top = (height - 0.2) / height
    left = 0.28 / width
    bold = {"fontsize": _TITLE_SIZE, "fontweight": "bold", "va": "top", "linespacing": 1.15}
    figure.text(left, top, "\n".join(titles), **bold)  # type: ignore[arg-type]
    below = top - (_TITLE_LINE * len(titles) + 0.07) / height
    figure.text(left, below, "\n".join(notes), fontsize=_NOTE_SIZE, va="top", color=FAINT_INK)
    grid = figure.subplots(
        rows,
        columns,
        squeeze=False,
        gridspec_kw={
            "left": _LEFT / width,
            "right": 1 - right / width,
            "bottom": _BOTTOM / height,
            "top": (_BOTTOM + panels) / height,
            "wspace": _GAP_X / panel[0],
            "hspace": _GAP_Y / panel[1],
        },
    )
    return figure, list(grid.ravel())


def _widen(figure: Figure, inches: float) -> None:
    """Room at the right, with everything else staying where and as large as it is."""
    width, height = figure.get_size_inches()
    shrink = width / (width + inches)
    for axes in figure.axes:
        box = axes.get_position()
        axes.set_position((box.x0 * shrink, box.y0, box.width * shrink, box.height))
    for text in figure.texts:
        text.set_x(text.get_position()[0] * shrink)
    figure.set_size_inches(width + inches, height)


def _title(table: pd.DataFrame) -> tuple[str, str]:
    first = table.iloc[0]
    return str(first["model"]), " · ".join(filter(None, (first["layer"], first["setting"])))


def _title_lines(model: str, rest: str, inches: float) -> list[str]:
    """`model · rest` in three lines at most; of a longer model name the middle is left out."""
    model = "".join(c if c.isprintable() else " " for c in model)
    width = int(inches / (_mean_em(f"{model} · {rest}") * _TITLE_SIZE / 72))
    most = max(20, 3 * width - len(rest) - 12)
    if len(model) > most:
        model = f"{model[: most // 2]}…{model[-(most // 2) :]}"
    return textwrap.wrap(
        " · ".join(filter(None, (model, rest))), width, max_lines=4, placeholder="…"
    )


def _mean_em(text: str) -> float:
    """About how wide a letter of the bold title is, in ems: `i` 0.4, `a` 0.7, `W` 1.1."""
    widths = [
        1.1 if c in "mwMW@%" else 0.88 if c.isupper() else 0.45 if c in "ijl-/.,'|" else 0.73
        for c in text
    ]
    return sum(widths) / len(widths)


def _epochs(table: pd.DataFrame) -> list[int]:
    return sorted(map(int, table["epoch"].unique()))


def _only_curve(table: pd.DataFrame, metric: str) -> Curve | None:
    rows = table[table["metric"] == metric]
    return Curve(over_seeds(rows), look_of(metric).colour) if len(rows) else None


def _final(curve: Curve) -> tuple[int, float]:
    """The last epoch and its value, a number or not."""
    last = curve.values.iloc[-1]
    return int(last["epoch"]), float(last["mean"])


def _name_final(axes: Axes, curve: Curve) -> None:
    """Write the final value beyond the frame, where no line can run through it."""
    epoch, value = _final(curve)
    finite = math.isfinite(value)
    if finite:
        axes.plot(epoch, value, marker="o", markersize=8, color=curve.colour, zorder=3)
    axes.text(
        1.012,
        value if finite else axes.get_ylim()[1],
        f"final\n{number_text(value)}",
        transform=axes.get_yaxis_transform(),
        va="center" if finite else "top",
        color=curve.colour,
        fontweight="bold",
        linespacing=1.3,
    )


def with_seeds(note: str, table: pd.DataFrame) -> str:
    most = table.groupby(["layer", "setting"])["run_id"].nunique().max()
    seeds = "line: mean over seeds, band: their range" if most > 1 else ""
    return " · ".join(filter(None, (note, seeds)))


def incomplete(curves: Sequence[Curve], absent: Sequence[str], epochs: Sequence[int]) -> str:
    """A line that names the layers whose numbers are missing, all of them or in part."""
    gaps = [(curve.label, without_number(curve, epochs)) for curve in curves]
    parts = [f"{name} (all)" for name in absent]
    parts += [f"{label} (epochs {ranges(missing)})" for label, missing in gaps if missing]
    return f"No number: {known(parts, limit=4)}" if parts else ""
