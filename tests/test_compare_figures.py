"""Comparisons' figures, drawn of tables as they come out of the store: what they say and show."""

import math
from math import nan
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from readable import assert_readable, texts

from sae_mlflow.plots import frames
from sae_mlflow.plots.compare.figures import comparison
from sae_mlflow.plots.compare.heat_map import differs
from sae_mlflow.plots.numbers import whole_ticks
from sae_mlflow.plots.pictures import Picture
from sae_mlflow.plots.style import load_style
from sae_mlflow.plots.value_axis import fit_values

LABEL = "Held-out variance unexplained (FVU)"
UNIT = "fraction of the variance (lower is better)"


def over_epochs(layers, values, metric="val_fvu", seeds=1):
    """A table of `frames.COLUMNS`; a layer's values are the given ones, plus a little for each."""
    rows = [
        (f"{layer} {seed}", "m", layer, "topk", str(seed), epoch, metric, value + 0.001 * place)
        for place, layer in enumerate(layers)
        for seed in range(seeds)
        for epoch, value in enumerate(values, start=1)
    ]
    return pd.DataFrame(rows, columns=frames.COLUMNS)


def ends(points, **columns):
    """A table of `tables.ends_table`: (layer, label, seed, L0, FVU) of each run."""
    facts = ["layer", "label", "seed", "val_l0_norm", "val_fvu"]
    table = pd.DataFrame(points, columns=facts)
    return table.assign(
        run_id=[str(n) for n in range(len(table))], model="m", architecture="topk", depth=0.5
    ).assign(**columns)


def picture(kind, table, words, metric="", style="default"):
    look = load_style(style)
    return Picture(kind, table, Path("x"), metric, title=("m", words), style=look)


def words_of(figure, style):
    """All that is written on a figure, each text in one line."""
    return [" ".join(text.get_text().split()) for text in texts(figure, load_style(style))]


@pytest.mark.parametrize(
    ("kind", "words"), [("facets", "over seeds"), ("heat_map", "by layer and epoch · topk")]
)
def test_a_metric_shown_alone_is_named_in_the_title_or_else_at_its_axis(kind, words):
    """At its axis where the style leaves the title to a caption: the unit may be another's too."""
    table = over_epochs([f"layer{n}" for n in range(13)], [0.5, 0.3, 0.2], seeds=2)
    drawn = comparison(picture(kind, table, words, "val_fvu"))
    assert f"m · {LABEL} {words}" in words_of(drawn, "default")
    assert f"{LABEL} {UNIT}" not in words_of(drawn, "default")
    drawn = comparison(picture(kind, table, words, "val_fvu", "paper"))
    assert f"{LABEL} {UNIT}" in words_of(drawn, "paper")
    assert_readable(drawn, load_style("paper"))


def l0_ticks(figure):
    (axes,) = figure.axes
    low, high = axes.get_xlim()
    return [tick for tick in axes.get_xticks() if low <= tick <= high]


@pytest.mark.parametrize("style", ["default", "paper", "talk"])
def test_l0s_that_are_close_have_round_ticks_apart_and_the_width_of_the_panel(style):
    close = ends([("layer1", "a", 0, 32.32, 0.2), ("layer1", "b", 0, 33.95, 0.1)])
    figure = comparison(picture("pareto", close, "what sparsity costs", style=style))
    low, high = figure.axes[0].get_xlim()
    assert (33.95 - 32.32) / (high - low) > 0.7
    ticks = l0_ticks(figure)
    assert len(ticks) > 1 and all(2 * tick == round(2 * tick) for tick in ticks)
    assert_readable(figure, load_style(style))


def test_the_frontier_is_in_the_legend_where_it_is_a_line():
    def labels(table):
        (legend,) = comparison(picture("pareto", table, "")).legends
        return [text.get_text() for text in legend.get_texts()]

    line = [("layer1", "a", 0, 16, 0.3), ("layer2", "b", 0, 32, 0.2)]
    assert labels(ends(line)) == ["topk", "layer1", "layer2", "not beaten by any"]
    alone = [("layer1", "a", 0, 16, 0.2), ("layer2", "b", 0, 32, 0.3)]
    assert labels(ends(alone)) == ["topk", "layer1", "layer2"]


def test_many_layers_of_a_pareto_picture_are_told_apart_by_colour():
    """And what was trained by marker."""
    layers = [f"layer{n}" for n in range(13)]
    kinds = [("topk", k) for k in (16, 32)] + [("gated", k) for k in (20, 40)]
    rows = [(n, f"{a} {k}", 0, k, 0.9 - 0.01 * k) for n in layers for a, k in kinds]
    table = ends(rows, architecture=[a for _ in layers for a, _ in kinds])
    figure = comparison(picture("pareto", table, ""))
    panel, bar = figure.axes
    drawn = [line for line in panel.lines if line.get_marker() != "None"]
    assert len({line.get_color() for line in drawn}) == 13
    assert {line.get_marker() for line in drawn} == {"o", "s"}
    assert bar.get_ylabel() == "layer"
    (legend,) = figure.legends
    named = [text.get_text() for text in legend.get_texts()]
    assert named == ["topk", "gated", "not beaten by any"]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("pareto", "point: mean over seeds"),
        ("final_metrics_by_layer", "line: mean over seeds, band: their range"),
    ],
)
def test_means_over_seeds_are_said(kind, said):
    once = [("layer1", "a", 0, 16, 0.3), ("layer2", "a", 0, 32, 0.2)]
    assert said not in words_of(comparison(picture(kind, ends(once), "")), "default")
    twice = [*once, ("layer2", "a", 1, 32, 0.4)]
    assert said in words_of(comparison(picture(kind, ends(twice), "")), "default")


def by_layer(points, style="default", **columns):
    return comparison(picture("final_metrics_by_layer", ends(points, **columns), "", style=style))


def test_no_line_goes_through_a_layer_without_a_number():
    """Layers stand at their numbers."""
    values = {3: 0.1, 8: 0.2, 10: math.inf, 20: 0.4, 21: math.nan}
    figure = by_layer([(f"layer{n}", "a", 0, 32, v) for n, v in values.items()])
    (line,) = figure.axes[0].lines
    assert line.get_xdata().tolist() == [3, 8, 10, 20, 21]
    assert line.get_ydata().tolist() == pytest.approx([0.1, 0.2, nan, 0.4, nan], nan_ok=True)
    assert f"No number: {LABEL} of layer10, layer21" in words_of(figure, "default")


def test_a_line_goes_past_the_layers_that_only_others_have():
    points = [("layer1", "a", 0, 32, 0.1), ("layer2", "b", 0, 32, 0.2), ("layer3", "a", 0, 32, 0.3)]
    line, other = by_layer(points).axes[0].lines
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([1, 3], [0.1, 0.3])
    assert other.get_xdata().tolist() == [2]


@pytest.mark.parametrize("style", ["default", "paper", "talk"])
def test_long_names_of_a_few_layers_are_shortened_and_all_there(style):
    names = [f"layer{n}_block_sparse_moe_experts_3" for n in (10, 15, 20)]
    figure = by_layer([(name, "a", 0, 32, 0.1) for name in names], style)
    said = words_of(figure, style)
    for number in (10, 15, 20):
        assert [text for text in said if text.startswith(f"{number}_") and "…" in text]
    assert_readable(figure, load_style(style))


def test_a_name_of_any_length_is_shortened_without_trying_each():
    figure = by_layer([(f"layer{'x' * 50_000}", "a", 0, 32, 0.1)])
    assert [text for text in words_of(figure, "default") if "…" in text]


def test_the_axis_of_a_fraction_near_1_ends_there_and_shows_what_they_lack():
    points = [("layer1", "a", 0, 32, 0.1), ("layer2", "a", 0, 32, 0.2)]
    figure = by_layer(points, ce_loss_recovered=[0.975, 0.99])
    (axes,) = [axes for axes in figure.axes if axes.get_title() == "CE loss recovered"]
    low, high = axes.get_ylim()
    assert high <= 1 and 0.015 / (high - low) > 0.6
    axes = Figure().subplots()
    fit_values(axes, np.array([0.99, 1.0]), fraction=True)
    assert axes.get_ylim()[1] == 1
    fit_values(axes, np.array([0.5, 1.2]), fraction=True)
    assert axes.get_ylim()[1] > 1.2, "an FVU may be"


def test_a_heat_map_has_logarithmic_colours_from_3_to_1_on_with_ticks():
    def bar(values):
        table = over_epochs([f"layer{n}" for n in range(13)], values)
        figure = comparison(picture("heat_map", table, "", "val_fvu"))
        assert_readable(figure)
        low, high = figure.axes[1].get_ylim()
        ticks = [tick for tick in figure.axes[1].get_yticks() if low <= tick <= high]
        return figure.axes[1].get_yscale(), len(ticks)

    scale, ticks = bar([0.6, 0.3, 0.15])
    assert scale == "log" and ticks >= 4
    scale, ticks = bar([0.6, 0.5, 0.4])
    assert scale == "linear" and ticks >= 4


def test_values_that_are_all_the_same_make_no_heat_map():
    table = over_epochs([f"layer{n}" for n in range(13)], [32.0, 32.0], "l0_norm")
    assert differs(table, "l0_norm")
    assert not differs(table.assign(value=32.0), "l0_norm")
    assert not differs(table.assign(value=nan), "l0_norm")


def test_epochs_of_a_narrow_panel_have_their_first_and_last_as_ticks():
    assert whole_ticks(1, 8, 2) == [1, 8]
    assert whole_ticks(1, 8, 3) == [1, 5]
