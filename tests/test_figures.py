"""What stands in the figures: lines, ticks, labels, colours, and that nothing overlaps."""

import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from plot_store import MODEL, history
from readable import assert_readable, texts

from sae_mlflow.plots.figures import HISTORY_METRICS, all_layers, single_metric, training_history
from sae_mlflow.plots.frames import history_table
from sae_mlflow.plots.numbers import number_text, ranges, whole_ticks
from sae_mlflow.plots.value_axis import ValueTicks


def curve(epochs: int, start: float = 0.8) -> dict[str, list[float]]:
    """Like `history`, falling slowly enough for a thousand epochs."""
    falling = [0.2 + start * math.exp(-4 * n / epochs) for n in range(epochs)]
    return {**history(epochs), "reconstruction_loss": falling, "total_loss": falling}


def layers(count: int, epochs: int) -> pd.DataFrame:
    return history_table(MODEL, {f"layer{n}": curve(epochs, 0.5 + n / 50) for n in range(count)})


def setting(table: pd.DataFrame, name: str) -> pd.DataFrame:
    return table.assign(setting=name)


def title(figure: Figure) -> str:
    return figure.texts[0].get_text()


def note(figure: Figure) -> str:
    return figure.texts[1].get_text()


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_a_training_history_has_four_panels_in_their_order():
    figure = training_history(history_table(MODEL, {"layer10": history(3)}), "topk")
    assert [axes.get_title() for axes in figure.axes] == [
        "Reconstruction loss",
        "Total loss",
        "Sparsity loss",
        "L0 norm",
    ]
    assert title(figure) == f"{MODEL} · layer10"
    assert note(figure) == "topk"
    for axes in figure.axes:
        assert axes.get_xlabel() == "epoch"
        assert "lower is" in axes.get_ylabel()
        assert axes.xaxis.get_gridlines()[0].get_visible()
        assert axes.yaxis.get_gridlines()[0].get_visible()


def test_lines_are_the_numbers_with_epochs_from_one():
    figure = training_history(history_table(MODEL, {"layer10": history(3)}))
    for axes, metric in zip(figure.axes, HISTORY_METRICS, strict=True):
        (line,) = axes.lines
        assert np.array_equal(line.get_xdata(), [1, 2, 3])
        assert np.array_equal(line.get_ydata(), history(3)[metric])


def test_the_axis_of_a_metric_holds_all_of_its_line():
    figure = training_history(history_table(MODEL, {"layer10": history(3)}))
    for axes in figure.axes:
        low, high = axes.get_ylim()
        assert low < min(axes.lines[0].get_ydata())
        assert high > max(axes.lines[0].get_ydata())


@pytest.mark.parametrize("epochs", [1, 2, 10, 37, 1000])
def test_ticks_are_whole_epochs_from_the_first(epochs):
    figure = single_metric(history_table(MODEL, {"layer10": curve(epochs)}), "total_loss")
    ticks = figure.axes[0].get_xticks()
    assert ticks[0] == 1
    assert ticks[-1] <= epochs
    assert all(tick == int(tick) for tick in ticks)
    labels = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert labels[0] == "1"
    assert not any("." in label for label in labels)


@pytest.mark.parametrize(
    ("last", "ticks"),
    [
        (1, [1]),
        (3, [1, 2, 3]),
        (10, list(range(1, 11))),
        (12, [1, 4, 6, 8, 10, 12]),
        (1000, [1, 200, 400, 600, 800, 1000]),
    ],
)
def test_round_ticks_leave_room_for_the_first(last, ticks):
    assert whole_ticks(1, last) == ticks


def test_the_final_loss_is_written_at_the_end_of_its_line():
    figure = single_metric(history_table(MODEL, {"layer10": history(3)}), "reconstruction_loss")
    (axes,) = figure.axes
    (text,) = axes.texts
    assert text.get_text() == "final\n0.2"
    assert text.get_position()[1] == 0.2
    assert np.array_equal(axes.lines[0].get_ydata(), [0.8, 0.4, 0.2])


def test_a_sparsity_loss_of_zero_is_explained_instead_of_scaled():
    figure = training_history(history_table(MODEL, {"layer10": history(3)}))
    axes = figure.axes[2]
    assert "there is no sparsity penalty" in axes.texts[0].get_text()
    assert axes.get_yticks().tolist() == [0]


def test_a_missing_metric_is_said_and_the_others_are_drawn():
    short = {
        **history(4),
        "reconstruction_loss": [0.5, 0.4],
        "total_loss": [1.0, math.nan, 0.8, 0.7],
    }
    del short["l0_norm"]
    figure = training_history(history_table(MODEL, {"layer10": short}))
    reconstruction, total, _, l0_norm = figure.axes
    assert reconstruction.get_xlabel() == "epoch (no number at 3-4)"
    assert total.get_xlabel() == "epoch (no number at 2)"
    assert np.array_equal(total.lines[0].get_ydata(), [1.0, math.nan, 0.8, 0.7], equal_nan=True)
    assert l0_norm.texts[0].get_text() == "no numbers for l0_norm"
    assert {axes.get_xlim() for axes in figure.axes} == {reconstruction.get_xlim()}


def test_infinity_is_a_gap_and_a_final_nan_is_named():
    table = history_table(MODEL, {"layer10": {"total_loss": [1.0, math.inf, 0.5, math.nan]}})
    (axes,) = single_metric(table, "total_loss").axes
    assert np.array_equal(axes.lines[0].get_ydata(), [1.0, math.nan, 0.5, math.nan], equal_nan=True)
    assert axes.texts[0].get_text() == "final\nNaN"
    assert axes.get_ylim()[1] < 2


def test_layers_stand_in_the_legend_by_number():
    names = ["layer10", "layer9", "layer100", "layer9_mlp", "head"]
    figure = all_layers(history_table(MODEL, {n: history(3) for n in names}), "l0_norm")
    assert legend(figure) == ["layer9", "layer9_mlp", "layer10", "layer100", "head"]
    assert title(figure) == f"{MODEL} · all layers"


def test_each_layer_has_its_line_and_colour():
    table = history_table(MODEL, {f"layer{n}": history(3, start=n) for n in (3, 12, 1)})
    (axes,) = all_layers(table, "reconstruction_loss").axes
    named = [line for line in axes.lines if line.get_label() in table["layer"].values]
    drawn = {line.get_label(): line.get_ydata().tolist() for line in named}
    assert drawn == {f"layer{n}": [n, n / 2, n / 4] for n in (1, 3, 12)}
    assert len({line.get_color() for line in named}) == 3


@pytest.mark.parametrize(("count", "bar"), [(1, False), (12, False), (13, True), (48, True)])
def test_more_than_twelve_layers_have_a_colour_bar(count, bar):
    figure = all_layers(layers(count, 2), "total_loss")
    assert len(figure.axes) == (2 if bar else 1)
    assert (figure.axes[0].get_legend() is None) == bar
    assert len({line.get_color() for line in figure.axes[0].lines}) == count
    if bar:
        assert figure.axes[1].get_ylabel() == "layer"


def test_the_colour_of_a_layer_is_the_one_at_its_number_on_the_bar():
    numbers = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 40]
    table = history_table(MODEL, {f"layer{n}": history(2, start=n + 1) for n in numbers})
    main, bar = all_layers(table, "total_loss").axes
    (shown,) = [c for c in bar.collections if c.get_array() is not None]
    for line, number in zip(main.lines, numbers, strict=True):
        expected = shown.cmap(shown.norm(number))[:3]
        red_green_blue = [int(line.get_color()[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        assert red_green_blue == pytest.approx(expected, abs=1 / 255)


def test_several_settings_of_a_layer_are_told_apart_by_label_and_dashes():
    table = pd.concat([setting(layers(2, 3), f"sae.k={k}") for k in (64, 8, 32)])
    figure = all_layers(table, "total_loss")
    assert legend(figure) == [f"layer{n} · sae.k={k}" for n in (0, 1) for k in (8, 32, 64)]
    lines = figure.axes[0].lines
    assert len({(line.get_color(), str(line._dash_pattern)) for line in lines}) == 6


def test_settings_are_in_the_order_of_their_numbers():
    rates = ["1e-05", "0.0001", "0.001", "0.01"]
    table = pd.concat([setting(layers(1, 3), f"lr={rate}") for rate in sorted(rates)])
    assert legend(all_layers(table, "total_loss")) == [f"layer0 · lr={rate}" for rate in rates]


def test_many_lines_of_few_layers_have_a_legend_of_colours_and_one_of_dashes():
    table = pd.concat([setting(layers(6, 3), f"sae.k={k}") for k in (8, 32, 64)])
    figure = all_layers(table, "total_loss")
    expected = [f"layer{n}" for n in range(6)] + ["sae.k=8", "sae.k=32", "sae.k=64"]
    assert legend(figure) == expected


def test_seeds_are_a_mean_with_their_range():
    seeds = [
        history_table(MODEL, {"layer1": history(3, start)}).assign(run_id=str(start), seed=start)
        for start in (0.4, 0.8)
    ]
    figure = all_layers(pd.concat(seeds), "reconstruction_loss")
    (axes,) = figure.axes
    assert axes.lines[0].get_ydata() == pytest.approx([0.6, 0.3, 0.15])
    (band,) = axes.collections
    assert band.get_datalim(axes.transData).intervaly.tolist() == pytest.approx([0.1, 0.8])
    assert "band: their range" in note(figure)


def test_lines_that_hide_each_other_are_named():
    same = history_table(MODEL, {f"layer{n}": history(3) for n in (9, 10, 11)})
    assert "The 3 lines are the same" in note(all_layers(same, "l0_norm"))
    two = history_table(MODEL, {"layer1": history(3), "layer2": history(3), "layer3": curve(3)})
    assert "layer1 = layer2" in note(all_layers(two, "total_loss"))


def test_layers_without_numbers_are_named():
    halves = {"layer1": history(4), "layer2": {**history(2)}, "layer3": {"fvu": [0.5]}}
    figure = all_layers(history_table(MODEL, halves), "total_loss")
    assert "No number: layer3 (all), layer2 (epochs 3-4)" in note(figure)
    assert legend(figure) == ["layer1", "layer2"]


@pytest.mark.parametrize("epochs", [1, 10, 1000])
@pytest.mark.parametrize("count", [1, 3, 12, 48])
def test_nothing_overlaps_whatever_the_number_of_layers_and_epochs(count, epochs):
    assert_readable(all_layers(layers(count, epochs), "reconstruction_loss", "topk · k=32"))


LONG = "some-organisation/" + "a-very-long-model-name_with_parts." * 9
NAMES = ["m", LONG, LONG.upper(), "W" * 400, r"$\alpha_1$/<b>x</b>^2_$y$", "two\nlines\tof\x07 it"]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_overlaps_whatever_the_name(name):
    table = history_table(name, {"layer10_mlp": curve(3)})
    assert_readable(single_metric(table, "reconstruction_loss", "topk · k=32 · 4,608 latents"))


@pytest.mark.parametrize("epochs", [1, 10, 1000])
def test_nothing_overlaps_in_a_layers_pictures_whatever_the_epochs(epochs):
    table = history_table(LONG, {"layer10_mlp": curve(epochs)})
    assert_readable(training_history(table, "topk · k=32 · 4,608 latents · seed 0"))
    assert_readable(single_metric(table, "reconstruction_loss", "topk"))


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1e4, 123456.7, 1e300, -1.0])
def test_nothing_overlaps_at_any_scale(scale):
    scaled = {key: [scale * v for v in values] for key, values in curve(10).items()}
    assert_readable(training_history(history_table(MODEL, {"layer10": scaled})))


def test_long_settings_are_wrapped_and_none_is_cut():
    settings = [f"sae.k={k}, text.source=/a/long/folder/{'x' * 60}.jsonl" for k in (8, 16, 32)]
    table = pd.concat([setting(layers(3, 10), name) for name in settings])
    assert_readable(all_layers(table, "total_loss"))


def test_many_settings_of_many_layers_fit():
    table = pd.concat([setting(layers(14, 3), f"sae.k={k}") for k in range(25)])
    assert_readable(all_layers(table, "total_loss"))


def test_names_are_drawn_as_they_are():
    name = r"$\alpha_1$/<b>x</b>"
    figure = single_metric(history_table(name, {"layer1": history(2)}), "total_loss")
    assert title(figure) == f"{name} · layer1"
    assert not any(text.get_parse_math() for text in texts(figure))


def test_steady_values_are_not_blown_up_into_noise():
    steady = {"l0_norm": [31.9999, 32.0, 31.9998]}
    (axes,) = single_metric(history_table(MODEL, {"layer1": steady}), "l0_norm").axes
    low, high = axes.get_ylim()
    assert high - low > 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.253412, "0.2534"),
        (12500.4, "12,500"),
        (1.25e-5, "1.25e-5"),
        (3e12, "3e12"),
        (math.nan, "NaN"),
        (-math.inf, "-infinity"),
    ],
)
def test_numbers_are_written_short(value, text):
    assert number_text(value) == text


@pytest.mark.parametrize(
    ("ticks", "texts"),
    [
        ([0, 5e6, 1e7, 1.5e7], ["0", "5e6", "1e7", "1.5e7"]),
        ([1e-4, 1.5e-4, 2e-4], ["1e-4", "1.5e-4", "2e-4"]),
        ([0.01, 1, 100, 1e8], ["1e-2", "1", "1e2", "1e8"]),
        ([0.1, 1, 10, 100], ["0.1", "1", "10", "100"]),
        ([-0.5, 1e-17, 0.5], ["-0.5", "0.0", "0.5"]),
        ([5e-324, 0.25], ["0.00", "0.25"]),
        ([10_000, 20_000], ["10,000", "20,000"]),
    ],
)
def test_the_ticks_of_an_axis_are_in_one_notation(ticks, texts):
    assert ValueTicks().format_ticks(ticks) == texts


def test_epochs_are_written_as_ranges():
    assert ranges([4, 5, 6, 9]) == "4-6, 9"
    assert ranges([1, 3, 5, 7, 9, 11]) == "1, 3, 5, 7, and 2 more"


def test_figures_leave_pyplot_alone():
    code = (
        "from sae_mlflow.plots.frames import history_table\n"
        "from sae_mlflow.plots.figures import single_metric\n"
        "import matplotlib, matplotlib.pyplot as plt\n"
        "before = dict(matplotlib.rcParams)\n"
        "single_metric(history_table('m', {'layer1': {'fvu': [1.0, 0.5]}}), 'fvu')\n"
        "assert not plt.get_fignums() and dict(matplotlib.rcParams) == before\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
