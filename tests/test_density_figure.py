"""The histogram of how often latents fire, as its artists say."""

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from readable import assert_readable

from sae_mlflow.density import density_table
from sae_mlflow.plots.density_figure import density_figure
from sae_mlflow.plots.style import load_style

DENSITY = np.array([0, 0, 0.001, 0.02, 0.02, 0.5])


def figure_of(density, model="a/b", note="topk", style=None, tokens=1000):
    style = style or load_style()
    figure = density_figure(density_table(density, tokens), model, "layer10", style, note)
    words = "\n".join(text.get_text() for text in figure.texts)
    return figure, words


def test_each_bar_is_a_bin_and_the_dead_are_said_in_words():
    figure, words = figure_of(DENSITY)
    bars = figure.axes[0].patches
    assert sum(bar.get_height() for bar in bars) == 4
    tallest = max(bars, key=lambda bar: bar.get_height())
    assert tallest.get_height() == 2
    assert tallest.get_x() <= np.log10(0.02) < tallest.get_x() + tallest.get_width()
    assert "a/b · layer10" in words and "topk" in words
    assert "2 of 6 latents (33.3%) fired on none of 1,000 tokens" in words


def test_the_one_and_ten_percent_lines_stand_where_the_shares_are_counted_from():
    figure, _ = figure_of(DENSITY)
    assert [line.get_xdata()[0] for line in figure.axes[0].lines] == [-2.0, -1.0]
    assert [text.get_text() for text in figure.axes[0].texts] == ["over 1%", "over 10%"]
    ticks = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert ticks == ["-3 (0.1%)", "-2 (1%)", "-1 (10%)", "0 (100%)"]


def test_an_sae_with_no_dead_or_only_dead_latents_is_drawn_too():
    assert "each of 1 latents fired" in figure_of(np.array([0.5]))[1]
    figure, words = figure_of(np.zeros(3))
    assert "3 of 3 latents (100.0%)" in words and not any(
        bar.get_height() for bar in figure.axes[0].patches
    )


@pytest.mark.parametrize("style", ["default", "paper", "dark", "talk"])
@pytest.mark.parametrize("tokens", [1_000, 8_192, 10**9])
def test_every_style_is_kept_and_can_be_read(style, tokens):
    look = load_style(style)
    figure, words = figure_of(DENSITY, style=look, tokens=tokens)
    assert_readable(figure, look)
    assert ("a/b · layer10" in words) == bool(look.titles.single_metric)
    assert ("topk" in words) == look.titles.note
    assert f"2 of 6 latents (33.3%) fired on none of {tokens:,}" in words.replace("\n", " ")
    (axes,) = figure.axes
    assert axes.get_facecolor() == to_rgba(look.colours.panel)
    if look.sizes.page_width:
        assert figure.get_size_inches()[0] == look.sizes.page_width


def test_a_long_model_name_stays_on_the_picture():
    figure, _ = figure_of(DENSITY, model="organisation/" + "long-name-" * 40)
    title = figure.texts[0].get_text().split("\n")
    assert len(title) <= 3 and max(map(len, title)) <= 68
