"""The views of a comparison's page: panels, and the lines, bars and cells in them."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import to_hex

from sae_mlflow.errors import known
from sae_mlflow.plots.compare.by_layer import (
    absent,
    ends_of,
    lines_of,
    metrics_of,
    places_of,
    values_by_layer,
)
from sae_mlflow.plots.compare.depth import depth_lines
from sae_mlflow.plots.compare.heat_map import is_wide, means_of
from sae_mlflow.plots.compare.page_parts import (
    RUN_KEYS,
    Entries,
    Runs,
    View,
    line_of,
    numbers,
    panel,
    view,
)
from sae_mlflow.plots.compare.ridges import HEIGHTS, OVERLAP
from sae_mlflow.plots.compare.tables import layers_of
from sae_mlflow.plots.density_figure import AXIS, BOUNDS
from sae_mlflow.plots.frames import over_seeds
from sae_mlflow.plots.notes import SEEDS
from sae_mlflow.plots.numbers import number_text
from sae_mlflow.plots.page_shell import rounded
from sae_mlflow.plots.style import Style
from sae_mlflow.plots.style_parts import MetricStyle


def facet_view(
    table: pd.DataFrame, look: MetricStyle, metric: str, entries: Entries, runs: Runs
) -> View:
    """A panel a layer, all of them; lines are the means of `over_seeds`, with their range."""
    rows = table[table["metric"] == metric]
    layers = layers_of(rows)
    of = runs.by(rows, ["layer", "setting"])
    means = over_seeds(rows)
    traces, lost = [], []
    for key, line in means.groupby(["layer", "setting"], sort=False):
        layer, setting = map(str, key)
        trace = line_of(layers.index(layer), entries, setting, line, "epoch", of[layer, setting])
        traces.append({**trace, "facts": [["epoch", "x"], [look.label, "y"]]})
        if not np.isfinite(line["mean"].to_numpy(dtype=float)).all():
            lost.append(f"{layer} · {setting}")
    said = [SEEDS if (means["seeds"] > 1).any() else "", _not_all_numbers(lost)]
    panels = [panel(layer, {"title": "epoch"}, {"title": look.unit}) for layer in layers]
    shared = {"share_x": True, "share_y": True, "columns": 4}
    return view(look.label, panels, _in_order(traces), said, log=False, **shared)


def depth_view(
    ends: pd.DataFrame, look: MetricStyle, metric: str, entries: Entries, runs: Runs
) -> View:
    """A line for each model from its first block to its last."""
    of = runs.by(ends[ends[metric].notna()], RUN_KEYS)
    traces = []
    for name, line in depth_lines(ends, metric).items():
        each = [of[key] for key in line[RUN_KEYS].itertuples(index=False, name=None)]
        trace = line_of(0, entries, name, line, "depth", each=each)
        facts = [["layer", line["layer"].tolist()], ["relative depth", "x"], [look.label, "y"]]
        traces.append({**trace, "facts": facts})
    x = {"title": "relative depth (0: first block, 1: last)", "range": [-0.03, 1.03]}
    only = panel(look.label, x, {"title": look.unit})
    return view(look.label, [only], traces, [], log=False)


def by_layer_view(
    ends: pd.DataFrame,
    wanted: Iterable[Sequence[str]],
    style: Style,
    entries: Entries,
    runs: Runs,
) -> View:
    """A panel for each metric that there is: its last value over the layers."""
    metrics, places = metrics_of(ends, wanted), places_of(layers_of(ends))
    axis = {
        "title": "layer",
        "ticks": [layer.removeprefix("layer") for layer in places],
        "at": list(places.values()),
        "range": list(ends_of(places.values())),
    }
    panels, traces, several = [], [], False
    for place, metric in enumerate(metrics):
        look = style.metric(metric)
        panels.append(panel(look.label, axis, {"title": look.unit}))
        of = runs.by(ends[ends[metric].notna()], RUN_KEYS)
        for name, rows in lines_of(ends).items():
            line = values_by_layer(rows, metric)
            line = line.assign(at=line["layer"].map(places))
            each = [of.get(key, []) for key in line[RUN_KEYS].itertuples(index=False, name=None)]
            trace = line_of(place, entries, name, line, "at", each=each)
            facts = [["layer", line["layer"].tolist()], [look.label, "y"]]
            traces.append({**trace, "facts": facts})
            several |= bool((line["seeds"] > 1).any())
    said = [absent(ends, metrics, style), SEEDS if several else ""]
    return view("", panels, traces, said, log=False, share_x=True, columns=2)


def heat_view(table: pd.DataFrame, look: MetricStyle, metric: str, runs: Runs) -> View:
    """A row a layer, a column an epoch."""
    rows = table[table["metric"] == metric]
    means, of = means_of(table, metric), runs.by(rows, ["layer"])
    values = means.to_numpy()
    layers, setting = list(means.index), str(rows["setting"].iloc[0])
    cells = {
        "kind": "cells",
        "panel": 0,
        "entries": [],
        "name": setting,
        "x": list(means.columns),
        "z": [[rounded(value) for value in row] for row in values],
        "rows": layers,
        "unit": look.unit,
        "label": look.label,
        "each": [of[layer] for layer in layers],
    }
    y = {"title": "layer", "ticks": [layer.removeprefix("layer") for layer in layers]}
    only = panel("", {"title": "epoch"}, {**y, "reverse": True})
    said = ["empty: no number"] if np.isnan(values).any() else []
    wide = is_wide(values[np.isfinite(values)])
    title = " · ".join(filter(None, (look.label, setting)))
    return view(title, [only], [cells], said, log=wide, row_height=18 * len(layers) + 120)


def ridge_view(table: pd.DataFrame, style: Style, runs: Runs) -> View:
    """A ridge a run, from top to bottom, as bars with the bins' own edges."""
    names = list(dict.fromkeys(table["run_id"]))
    colours, tallest = style.layer_colours(), float(table["share"].max()) or 1.0
    traces, labels, dead = [], [], []
    for rank, run in enumerate(names):
        rows = table[table["run_id"] == run].sort_values("low")
        labels.append(str(rows["ridge"].iloc[0]))
        dead.append(f"dead {rows['never_fired'].iloc[0]:.1%}")
        traces.append(
            {
                "kind": "bars",
                "panel": 0,
                "entries": [],
                "name": labels[-1],
                "colour": to_hex(colours(rank / max(1, len(names) - 1))),
                "base": len(names) - 1 - rank,
                "from": numbers(rows["low"]),
                "to": numbers(rows["high"]),
                "heights": numbers(rows["share"] / tallest * OVERLAP),
                "facts": [
                    ["fire on", [_share_of_tokens(*b) for b in _bins(rows)]],
                    ["share of the latents", [f"{share:.3%}" for share in rows["share"]]],
                    ["never fired", [f"{never:.1%}" for never in rows["never_fired"]]],
                ],
                "runs": runs.places([run]),
            }
        )
    y = {"title": "", "ticks": labels[::-1], "beside": dead[::-1], "top": OVERLAP}
    low = float(table["low"].min())
    marks = [bound for bound in BOUNDS if bound > low]
    x = {"title": AXIS, "range": [low - 0.05, 0.05], "marks": marks, "decades": True}
    height = 26 * len(names) + 130
    return view("", [panel("", x, y)], traces, [HEIGHTS], row_height=height)


def _in_order(traces: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By panel, and within it as in the legend."""
    return sorted(traces, key=lambda trace: (trace["panel"], trace["entries"]))


def _not_all_numbers(lines: Sequence[str]) -> str:
    return f"Not every value is a number: {known(lines, 4)}" if lines else ""


def _bins(rows: pd.DataFrame) -> Iterable[tuple[float, float]]:
    return zip(rows["low"], rows["high"], strict=True)


def _share_of_tokens(low: float, high: float) -> str:
    return f"{number_text(100 * 10**low, 3)}% to {number_text(100 * 10**high, 3)}% of the tokens"
