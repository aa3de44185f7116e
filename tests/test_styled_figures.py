"""What a style does to pictures: log axes, targets, limits, smoothing, dashes, sizes, colours."""

import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from plot_store import MODEL, history
from readable import assert_readable

from sae_mlflow.plots.figures import all_layers, single_metric, training_history
from sae_mlflow.plots.frames import history_table
from sae_mlflow.plots.style import Style, load_style

OTHER_SIZES = ("paper", "talk")
"""Of the shipped styles: the dark one is laid out like the default."""


@pytest.fixture
def style(tmp_path):
    """`style("metrics: {fvu: {scale: log}}")`: the default with that on top."""

    def write(text: str) -> Style:
        file = tmp_path / "mine.yaml"
        file.write_text(text, encoding="utf-8")
        return load_style(file)

    return write


def one(metric: str, values: list[float]) -> pd.DataFrame:
    return history_table(MODEL, {"layer10": {metric: values}})


def panel(figure):
    return figure.axes[0]


def words(figure) -> str:
    return "\n".join(text.get_text() for text in figure.texts)


def falling(count: int, epochs: int) -> pd.DataFrame:
    """`count` layers whose losses fall over `epochs` epochs, from another value each."""
    shape = np.exp(-4 * np.arange(epochs) / epochs)
    return history_table(
        MODEL,
        {
            f"layer{n}": {
                **history(epochs),
                "reconstruction_loss": (0.005 + (0.4 + n / 50) * shape).tolist(),
                "total_loss": (0.2 + shape).tolist(),
                "l0_norm": [30.0 + n] * epochs,
            }
            for n in range(count)
        },
    )


# -- whatever the style, everything can be read ----------------------------------------------


@pytest.mark.parametrize("epochs", [1, 10, 1000])
@pytest.mark.parametrize("count", [1, 3, 12, 48])
@pytest.mark.parametrize("name", OTHER_SIZES)
def test_nothing_overlaps_or_is_cut_in_any_style(name, count, epochs):
    look = load_style(name)
    table = falling(count, epochs)
    assert_readable(all_layers(table, "reconstruction_loss", "topk · k=32", look), look)
    if count == 1:
        assert_readable(training_history(table, "topk · k=32 · 4,608 latents", look), look)
        assert_readable(single_metric(table, "reconstruction_loss", "topk", look), look)


@pytest.mark.parametrize("name", ["default", *OTHER_SIZES])
@pytest.mark.parametrize(
    "values",
    [
        [0.5],
        [0.0],
        [0.0, 0.5, 1e-4, 0.0],
        [math.nan, 0.5, math.nan, 0.2],
        [-1.0, -2.0],
        [3e-9, 5e7],
        [0.0101, 0.0102, 0.0099],
        [1e-300, 1e300],
        [41.0] * 4,
    ],
)
def test_nothing_overlaps_on_a_log_axis_whatever_the_values(name, values, tmp_path):
    look = on_log_axes(load_style(name))
    every = dict.fromkeys(history(), values)
    assert_readable(training_history(history_table(MODEL, {"layer3": every}), "", look), look)
    table = history_table(MODEL, {"layer3": every, "layer10": history(4)})
    assert_readable(all_layers(table, "reconstruction_loss", "", look), look)


def on_log_axes(look: Style) -> Style:
    log = {
        name: metric.model_copy(update={"scale": "log"}) for name, metric in look.metrics.items()
    }
    return look.model_copy(update={"metrics": log})


@pytest.mark.parametrize("seaborn", ["darkgrid", "white", "dark", "ticks"])
def test_nothing_overlaps_in_seaborns_other_styles_and_the_largest_context(style, seaborn):
    look = style(f"seaborn_style: {seaborn}\ncontext: poster")
    table = falling(1, 1000)
    assert_readable(training_history(table, "topk · k=32 · 4,608 latents", look), look)
    assert_readable(all_layers(falling(12, 1000), "reconstruction_loss", "", look), look)


# -- log axes --------------------------------------------------------------------------------


def test_zeros_on_a_log_axis_are_named_and_not_drawn(style):
    look = style("metrics: {total_loss: {scale: log}}")
    figure = single_metric(one("total_loss", [0.0, 1.0, -2.0, 0.01]), "total_loss", "", look)
    assert panel(figure).get_yscale() == "log"
    assert panel(figure).get_xlabel() == "epoch (0 or less, not on a log axis, at 1, 3)"
    low, high = panel(figure).get_ylim()
    assert 0 < low < 0.01 and high > 1.0


def test_layers_with_zeros_on_a_log_axis_are_named_in_the_note(style):
    look = style("metrics: {total_loss: {scale: log}}")
    losses = {"layer1": [0.0, 1.0, 0.5], "layer2": [0.0] * 3, "layer3": [1.0, 0.5, 0.2]}
    table = history_table(MODEL, {name: {"total_loss": v} for name, v in losses.items()})
    note = words(all_layers(table, "total_loss", "", look))
    assert "0 or less, not on a log axis: layer1 (epochs 1), layer2 (all)" in note


def test_a_log_axis_with_nothing_above_zero_says_so(style):
    look = style("metrics: {total_loss: {scale: log}}")
    figure = single_metric(one("total_loss", [-1.0, 0.0]), "total_loss", "", look)
    said = [text.get_text() for text in panel(figure).texts]
    assert "0 or less at every epoch:\nnot on a log axis" in said


def test_the_range_over_seeds_stays_on_a_log_axis(style):
    look = style("metrics: {total_loss: {scale: log}}")
    seeds = [
        one("total_loss", values).assign(run_id=str(n), seed=n)
        for n, values in enumerate(([1.0, 0.5], [0.0, 0.1]))
    ]
    figure = single_metric(pd.concat(seeds), "total_loss", "", look)
    low, high = panel(figure).get_ylim()
    assert 0.05 < low < 0.1 and 1 < high < 2
    assert_readable(figure, look)


def test_a_number_with_none_beside_it_is_a_dot_however_many_epochs_there_are():
    values = [1.0] * 50 + [math.nan, 0.7, math.nan] + [0.5] * 50
    line = panel(single_metric(one("total_loss", values), "total_loss")).lines[0]
    assert (line.get_marker(), line.get_markevery()) == ("o", [51])


DIVERGED = [0.4, 0.3, 5.9, 4e7]


def test_a_diverged_layer_does_not_flatten_the_others(style):
    table = history_table(
        MODEL, {"layer1": {"total_loss": [0.4, 0.3, 0.2]}, "layer2": {"total_loss": DIVERGED}}
    )
    figure = all_layers(table, "total_loss")
    assert panel(figure).get_yscale() == "log"
    assert "log scale" in panel(figure).get_ylabel()
    assert_readable(figure)
    plain = all_layers(table, "total_loss", "", style("metrics: {total_loss: {scale: linear}}"))
    assert panel(plain).get_yscale() == "linear" and "log" not in panel(plain).get_ylabel()


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([0.001, 0.9], "linear"),
        ([0.001, 1.1], "log"),
        ([0.0, 0.001, 1.1], "linear"),  # a log axis would hide the 0
        ([-1.0, 0.001, 1.1], "linear"),
        ([0.5, math.inf, math.nan], "linear"),
    ],
)
def test_an_axis_is_logarithmic_by_itself_over_a_thousandfold_above_zero(values, scale):
    history = training_history(one("total_loss", values)).axes[1]
    single = panel(single_metric(one("total_loss", values), "total_loss"))
    assert history.get_yscale() == single.get_yscale() == scale


def test_an_axis_whose_limits_hold_zero_stays_linear(style):
    look = style("metrics: {total_loss: {limits: [0, null]}}")
    figure = single_metric(one("total_loss", DIVERGED), "total_loss", "", look)
    assert panel(figure).get_yscale() == "linear"


# -- targets and limits ----------------------------------------------------------------------


def targets(figure) -> list[float]:
    """Heights of the level lines."""
    lines = [line for line in panel(figure).lines if len(set(line.get_ydata())) == 1]
    return [line.get_ydata()[0] for line in lines if list(line.get_xdata()) == [0, 1]]


def test_the_target_is_drawn_where_the_data_comes_near():
    near = single_metric(one("reconstruction_loss", [0.05, 0.02, 0.008]), "reconstruction_loss")
    assert targets(near) == [0.01]
    assert "target 0.01" in [text.get_text() for text in panel(near).texts]


def test_the_target_never_stretches_the_axis_away_from_the_data(style):
    values = [0.8, 0.4, 0.2]
    far = single_metric(one("reconstruction_loss", values), "reconstruction_loss")
    bare = style("metrics: {reconstruction_loss: {target: null}}")
    without = single_metric(one("reconstruction_loss", values), "reconstruction_loss", "", bare)
    assert targets(far) == []
    assert panel(far).get_ylim() == panel(without).get_ylim()


def test_no_target_is_drawn_where_it_would_lie_on_zero():
    figure = single_metric(one("reconstruction_loss", [0.0, 900.0]), "reconstruction_loss")
    assert panel(figure).get_yscale() == "linear"
    assert targets(figure) == []


def test_limits_are_the_axis_and_what_lies_beyond_is_named(style):
    look = style("metrics: {total_loss: {limits: [0, 1]}}")
    figure = single_metric(one("total_loss", [5.0, 0.5, 0.2]), "total_loss", "", look)
    assert panel(figure).get_ylim() == (0, 1)
    assert panel(figure).get_xlabel() == "epoch (off the axis at 1)"
    half = style("metrics: {total_loss: {limits: [0, null]}}")
    figure = single_metric(one("total_loss", [5.0, 0.5]), "total_loss", "", half)
    low, high = panel(figure).get_ylim()
    assert low == 0 and high > 5


# -- smoothing -------------------------------------------------------------------------------


def test_a_smooth_line_is_drawn_over_the_raw_one(style):
    look = style("smoothing: {kind: rolling, epochs: 2}")
    figure = single_metric(one("total_loss", [4.0, 2.0, math.nan, 1.0]), "total_loss", "", look)
    raw, smooth, _final = panel(figure).lines
    assert np.array_equal(raw.get_ydata(), [4.0, 2.0, math.nan, 1.0], equal_nan=True)
    assert np.array_equal(smooth.get_ydata(), [4.0, 3.0, math.nan, 1.0], equal_nan=True)
    assert raw.get_alpha() < 1 and smooth.get_linewidth() > raw.get_linewidth()
    assert panel(figure).texts[0].get_text() == "final\n1"
    assert "running mean over 2 epochs, the raw line fainter behind" in words(figure)


def test_exponential_smoothing_weighs_by_its_span(style):
    """A span of 3 weighs by 1/2 an epoch: (1/2 + 4) / (1/2 + 1) = 3."""
    look = style("smoothing: {kind: exponential, epochs: 3}")
    figure = single_metric(one("total_loss", [1.0, 4.0]), "total_loss", "", look)
    assert panel(figure).lines[1].get_ydata() == pytest.approx([1.0, 3.0])


# -- which layer is which --------------------------------------------------------------------


def test_twelve_layers_are_told_apart_in_grey():
    """Any two lines differ in their dashes, or by a third of the range of lightness."""
    assert_told_apart_in_grey(panel(all_layers(falling(12, 3), "total_loss")).lines)


def test_layers_at_several_hookpoints_are_told_apart_in_grey():
    names = ["layer10_mlp", "layer11_mlp", "layer12_mlp", "layer12_self_attn"]
    table = history_table(MODEL, {name: history(3, n + 1) for n, name in enumerate(names)})
    lines = panel(all_layers(table, "total_loss")).lines
    assert len({str(line._dash_pattern) for line in lines}) == 4


def assert_told_apart_in_grey(lines):
    looks = [(str(line._dash_pattern), grey(line.get_color())) for line in lines]
    span = max(g for _, g in looks) - min(g for _, g in looks)
    for i, (dash, shade) in enumerate(looks):
        for other_dash, other_shade in looks[i + 1 :]:
            assert dash != other_dash or abs(shade - other_shade) > span / 3


def test_where_lines_do_not_fit_by_name_the_legend_is_of_layers_and_of_settings():
    table = falling(12, 3)
    table = table[table["layer"].isin(["layer10", "layer11"])]
    table = pd.concat([table.assign(setting=f"sae.k={k}") for k in (8, 16, 32, 64)])
    figure = all_layers(table, "total_loss", "", load_style("paper"))
    named = [text.get_text() for text in panel(figure).get_legend().get_texts()]
    assert named == ["layer10", "layer11", "sae.k=8", "sae.k=16", "sae.k=32", "sae.k=64"]
    assert_readable(figure, load_style("paper"))


def grey(colour: str) -> float:
    return sum(
        weight * int(to_hex(colour)[at : at + 2], 16)
        for weight, at in ((0.299, 1), (0.587, 3), (0.114, 5))
    )


# -- titles, sizes, colours ------------------------------------------------------------------


def test_titles_follow_their_templates(style):
    look = style("titles: {single_metric: '{metric} of {layer} ({model})', panel: '', note: false}")
    figure = single_metric(one("total_loss", [1.0, 0.5]), "total_loss", "topk", look)
    assert words(figure).split("\n")[0] == f"Total loss of layer10 ({MODEL})"
    assert "topk" not in words(figure)
    assert panel(figure).get_title() == ""
    assert panel(figure).get_ylabel().startswith("Total loss\nall loss terms")


def test_a_picture_for_a_paper_is_as_wide_as_its_column_and_has_no_title():
    look = load_style("paper")
    for figure in (
        training_history(falling(1, 3), "topk", look),
        single_metric(falling(1, 3), "total_loss", "topk", look),
        all_layers(falling(3, 3), "total_loss", "topk", look),
        all_layers(falling(48, 3), "total_loss", "topk", look),
    ):
        assert figure.get_size_inches()[0] == pytest.approx(3.3)
        assert "topk" not in words(figure) and MODEL not in words(figure)
        assert panel(figure).get_position().width * 3.3 > 1.2


def test_what_is_missing_is_said_without_a_title_as_well():
    table = history_table(MODEL, {"layer1": history(4), "layer2": history(2)})
    figure = all_layers(table, "total_loss", "topk", load_style("paper"))
    assert "No number: layer2 (epochs 3-4)" in words(figure)


def test_a_context_scales_letters_and_lines(style):
    usual = single_metric(falling(1, 3), "total_loss")
    large = single_metric(falling(1, 3), "total_loss", "", style("context: poster"))
    for attribute in ("get_linewidth", "get_markersize"):
        one_, two = (getattr(panel(f).lines[0], attribute)() for f in (usual, large))
        assert two == pytest.approx(2 * one_)
    assert panel(large).yaxis.label.get_size() == 2 * panel(usual).yaxis.label.get_size()


def test_a_dark_page_is_dark_everywhere():
    look = load_style("dark")
    figure = all_layers(falling(3, 3), "total_loss", "topk", look)
    assert to_hex(figure.get_facecolor()) == look.colours.page
    assert to_hex(panel(figure).get_facecolor()) == look.colours.panel
    for text in (figure.texts[0], panel(figure).yaxis.label, *panel(figure).get_legend().texts):
        assert to_hex(text.get_color()) == look.colours.ink
