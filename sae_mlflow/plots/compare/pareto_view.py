"""The Pareto picture as a view of an interactive page."""

from typing import Any

import pandas as pd

from sae_mlflow.plots.compare.page_parts import (
    RUN_KEYS,
    Entries,
    Runs,
    View,
    numbers,
    panel,
    values_of,
    view,
)
from sae_mlflow.plots.compare.pareto import (
    FIGURES,
    FRONTIER,
    best_of,
    drawn_of,
    l0_range,
    left_out,
    points,
    said_of_seeds,
    there_of,
)
from sae_mlflow.plots.compare.pareto_looks import Looks
from sae_mlflow.plots.numbers import number_text
from sae_mlflow.plots.style import Style

SYMBOLS = {
    "o": "circle",
    "s": "square",
    "D": "diamond",
    "^": "triangle-up",
    "v": "triangle-down",
    "P": "cross",
    "*": "star",
    "X": "x",
    "<": "triangle-left",
    ">": "triangle-right",
    "p": "pentagon",
    "h": "hexagon",
}
"""What plotly calls matplotlib's markers."""


def pareto_view(
    ends: pd.DataFrame, looks: Looks, style: Style, entries: Entries, runs: Runs
) -> View:
    """Lines by L0 for each architecture and layer, and the frontier over all."""
    table = points(ends)
    of = runs.by(ends, RUN_KEYS)
    drawn = drawn_of(table)
    shown = pd.concat([there_of(table, name)["l0"] for name in drawn])
    x = {
        "title": "L0, active latents per token",
        "log": True,
        "range": list(l0_range(shown.min(), shown.max())),
    }
    panels, traces = [], []
    for place, name in enumerate(drawn):
        panels.append(panel("", x, {"title": FIGURES[name]}))
        there, best = there_of(table, name), best_of(table, name)
        if len(best) > 1:
            traces.append(
                {
                    **values_of(best, "l0", name),
                    "panel": place,
                    "entries": [entries.place("frontier", FRONTIER)],
                    "name": FRONTIER,
                    "colour": style.colours.faint,
                    "step": True,
                }
            )
        keys = ["model", "architecture", "layer"]
        for key, line in there.groupby(keys, sort=False):
            model, architecture, layer = map(str, key)
            line = line.sort_values("l0")
            colour, marker = looks.of(model, architecture, layer)
            belongs = [
                entries.place("kinds", (model, architecture)),
                entries.place("layers", layer),
            ]
            traces.append(
                {
                    **values_of(line, "l0", name),
                    "panel": place,
                    "entries": belongs,
                    "name": " · ".join((model, architecture, layer)),
                    "colour": colour,
                    "symbol": SYMBOLS[marker],
                    "facts": _pareto_facts(line),
                    "each": [of[k] for k in line[RUN_KEYS].itertuples(index=False, name=None)],
                }
            )
    said = [said_of_seeds(table), left_out(table, drawn)]
    return view("", panels, traces, said, log=False, share_x=True)


def _pareto_facts(line: pd.DataFrame) -> list[list[Any]]:
    missed = [line[f"{edge}missed_ce_loss"] for edge in ("", "high_", "low_")]
    found = [
        ["setting", line["label"].tolist()],
        ["L0", _with_range(line, *(line[f"{edge}l0"] for edge in ("", "low_", "high_")))],
        ["FVU", _with_range(line, *(line[f"{e}missed_variance"] for e in ("", "low_", "high_")))],
        ["CE loss recovered", _with_range(line, *(1 - edge for edge in missed))],
    ]
    return [[name, column] for name, column in found if any(v is not None for v in column)]


def _with_range(
    line: pd.DataFrame, means: pd.Series, low: pd.Series, high: pd.Series
) -> list[float | str | None]:
    """Numbers, of several seeds as text with the range that they are the mean of."""
    texts = [
        f"{number_text(mean)} (mean over {seeds} seeds, {number_text(a)} to {number_text(b)})"
        for mean, a, b, seeds in zip(means, low, high, line["seeds"], strict=True)
    ]
    values = zip(numbers(means), texts, line["seeds"], strict=True)
    return [text if mean is not None and seeds > 1 else mean for mean, text, seeds in values]
