"""Comparisons' figures, drawn of tables as they come out of the store: what they say and show."""

from pathlib import Path

import pandas as pd
import pytest
from readable import assert_readable, texts

from sae_mlflow.plots import frames
from sae_mlflow.plots.compare.figures import comparison
from sae_mlflow.plots.pictures import Picture
from sae_mlflow.plots.style import load_style

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
