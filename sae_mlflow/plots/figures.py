"""Tables to figures: nothing here queries, saves or touches pyplot's global state."""

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sae_mlflow.plots.curve import Curve
from sae_mlflow.plots.frames import over_seeds
from sae_mlflow.plots.layer_key import LayerKey
from sae_mlflow.plots.marks import NO_MARKS, Marks, draw_marks, health_note
from sae_mlflow.plots.notes import hidden, incomplete, with_seeds
from sae_mlflow.plots.numbers import number_text
from sae_mlflow.plots.panels import draw_panel, label_lines, place_axis_labels
from sae_mlflow.plots.sheet import Rooms, new_sheet
from sae_mlflow.plots.style import Style, load_style
from sae_mlflow.plots.style_parts import Panel, fill
from sae_mlflow.plots.text_size import inches
from sae_mlflow.plots.value_axis import with_scales

HISTORY_METRICS = ("reconstruction_loss", "total_loss", "sparsity_loss", "l0_norm")


def training_history(
    table: pd.DataFrame, note: str = "", style: Style | None = None, marks: Marks = NO_MARKS
) -> Figure:
    """The four curves of one layer, 2 x 2; several seeds as mean and range.

    Args:
        table: `frames.COLUMNS`, of one model, layer and setting.
        note: a line under the title, where the style has one.
        marks: what the health of the run found.
    """
    style = with_scales(style or load_style(), table, HISTORY_METRICS)
    with style.theme():
        columns, panel = style.sizes.history_columns, style.sizes.history_panel
        curves = {metric: _only_curve(style, table, metric) for metric in HISTORY_METRICS}
        sheet = new_sheet(
            style,
            len(HISTORY_METRICS) // columns,
            columns,
            panel,
            (style.titles.training_history, _words(table)),
            [*_facts(style, note, table), health_note(marks, curves)],
            label_lines=_label_lines(style, table, HISTORY_METRICS, panel),
        )
        for axes, (metric, curve) in zip(sheet.panels, curves.items(), strict=True):
            _draw_only_curve(axes, style, table, metric)
            if curve:
                draw_marks(axes, style, curve, marks.on(metric, curve))
                _write_final(axes, style, curve)
        place_axis_labels(style, sheet.panels)
    return sheet.figure


def single_metric(
    table: pd.DataFrame,
    metric: str,
    note: str = "",
    style: Style | None = None,
    marks: Marks = NO_MARKS,
) -> Figure:
    """One metric of one layer, its final value written at the line's end."""
    style = with_scales(style or load_style(), table, [metric])
    with style.theme():
        panel, curve = style.sizes.single_panel, _only_curve(style, table, metric)
        sheet = new_sheet(
            style,
            1,
            1,
            panel,
            (style.titles.single_metric, _words(table, style.metric(metric).label)),
            [*_facts(style, note, table), health_note(marks, {metric: curve})],
            label_lines=_label_lines(style, table, [metric], panel),
            right=_room_for_final(style, table, metric),
        )
        (axes,) = sheet.panels
        _draw_only_curve(axes, style, table, metric)
        if curve:
            draw_marks(axes, style, curve, marks.on(metric, curve))
        place_axis_labels(style, [axes])
        if curve:
            _name_final(axes, style, curve)
    return sheet.figure


def all_layers(
    table: pd.DataFrame,
    metric: str,
    note: str = "",
    style: Style | None = None,
    left_out: str = "",
) -> Figure:
    """A metric of all layers of a model over each other, coloured by their number.

    Up to 12 lines have a legend; more than 12 layers have a colour bar. A layer trained with
    several settings has a line for each, told apart by dashes and named in the legend.

    Args:
        table: `frames.COLUMNS`, of one model; layers that lack the metric are named in a note.
        left_out: what isn't in the table; a line under the title whatever the style.
    """
    style = with_scales(style or load_style(), table, [metric])
    with style.theme():
        key, epochs = LayerKey(table, style), _epochs(table[table["metric"] == metric])
        curves, absent = _curves(key, table, metric)
        facts = [
            left_out,
            *incomplete(curves, absent, epochs, style.metric(metric)),
            hidden(curves),
        ]
        words, panel = _words(table, style.metric(metric).label), style.sizes.overlay_panel
        sheet = new_sheet(
            style,
            1,
            1,
            panel,
            (style.titles.all_layers, {**words, "layer": "all layers", "setting": ""}),
            [*_facts(style, note, table), *facts],
            label_lines=_label_lines(style, table, [metric], panel),
        )
        (axes,) = sheet.panels
        if curves:
            sheet.make_room(key.draw(axes, curves))
        draw_panel(axes, style, metric, curves, epochs, fill(style.titles.panel, **words))
        place_axis_labels(style, [axes])
        if len(curves) == 1:
            axes.set_xlabel("epoch")  # what is missing stands in the note already
    return sheet.figure


def _curves(key: LayerKey, table: pd.DataFrame, metric: str) -> tuple[list[Curve], list[str]]:
    """The lines that have the metric, and the names of those that don't."""
    means = over_seeds(table[table["metric"] == metric])
    by_line = dict(list(means.groupby(["layer", "setting"])))
    curves = [key.curve(line, by_line[line]) for line in key.lines if line in by_line]
    absent = [" · ".join(filter(None, line)) for line in key.lines if line not in by_line]
    return curves, absent


def _words(table: pd.DataFrame, metric: str = "") -> dict[str, str]:
    """What a title's placeholders stand for."""
    first = table.iloc[0]
    return {"metric": metric, **{key: str(first[key]) for key in ("model", "layer", "setting")}}


def _facts(style: Style, note: str, table: pd.DataFrame) -> list[str]:
    """The line under the title: what was trained, and how it is drawn."""
    parts = (with_seeds(note if style.titles.note else "", table), style.smoothing.words)
    return [" · ".join(filter(None, parts))]


def _label_lines(style: Style, table: pd.DataFrame, metrics: Sequence[str], panel: Panel) -> int:
    """Lines of the longest y label."""
    return max(
        len(label_lines(style, metric, bool(_panel_title(style, table, metric)), panel[1]))
        for metric in metrics
    )


def _panel_title(style: Style, table: pd.DataFrame, metric: str) -> str:
    return fill(style.titles.panel, **_words(table, style.metric(metric).label))


def _epochs(table: pd.DataFrame) -> list[int]:
    return sorted(map(int, table["epoch"].unique()))


def _only_curve(style: Style, table: pd.DataFrame, metric: str) -> Curve | None:
    rows = table[table["metric"] == metric]
    return Curve(over_seeds(rows), str(style.metric(metric).colour)) if len(rows) else None


def _draw_only_curve(axes: Axes, style: Style, table: pd.DataFrame, metric: str) -> Curve | None:
    curve = _only_curve(style, table, metric)
    title = _panel_title(style, table, metric)
    draw_panel(axes, style, metric, [curve] if curve else [], _epochs(table), title)
    return curve


def _final(curve: Curve) -> tuple[int, float]:
    """The last epoch and its value, a number or not."""
    last = curve.values.iloc[-1]
    return int(last["epoch"]), float(last["mean"])


def _write_final(axes: Axes, style: Style, curve: Curve) -> None:
    """Write the final value above the panel, as long as its title leaves room."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    size = style.points("tick")
    room = figure.get_size_inches()[0] * axes.get_position().width - 0.1
    room -= inches(axes.get_title(), style.points("panel"), bold=True)
    value = number_text(_final(curve)[1])
    fitting = [text for text in (f"final {value}", value) if inches(text, size) <= room]
    axes.set_title(
        "".join(fitting[:1]),
        loc="right",
        fontsize=size,
        fontweight="normal",
        color=style.colours.faint,
    )


def _room_for_final(style: Style, table: pd.DataFrame, metric: str) -> float:
    """The inches that `_name_final` takes beyond the frame."""
    curve, size = _only_curve(style, table, metric), style.points("label")
    texts = ("final", number_text(_final(curve)[1])) if curve else ("",)
    return Rooms(style).final + max(inches(text, size, bold=True) for text in texts)


def _name_final(axes: Axes, style: Style, curve: Curve) -> None:
    """Write the final value beyond the frame, where no line can run through it."""
    epoch, value = _final(curve)
    low, high = axes.get_ylim()
    on_axis = math.isfinite(value) and low <= value <= high
    if on_axis:
        size = 8 * style.factor * style.lines.width / 1.9
        axes.plot(epoch, value, marker="o", markersize=size, color=curve.colour, zorder=3)
    axes.text(
        1.012,
        value if on_axis else low if value < low else high,
        f"final\n{number_text(value)}",
        transform=axes.get_yaxis_transform(),
        va="center" if on_axis else "bottom" if value < low else "top",
        color=curve.colour,
        fontsize=style.points("label"),
        fontweight="bold",
        linespacing=1.3,
    )
