"""Runs as a table with a row each, for pictures of what trainings came to."""

from collections.abc import Mapping, Sequence

import pandas as pd

from sae_mlflow import naming
from sae_mlflow.history import restored
from sae_mlflow.plots.frames import differences
from sae_mlflow.tracking.contents import RunRow

FACTS = ["run_id", "name", "model", "layer", "architecture", "label", "seed", "depth"]
"""Of an ends table, before a column for each metric. `label` is the architecture, and what tells
runs of one architecture, model and layer apart; `depth` is a layer's place in its model, 0 (first
block) to 1 (last), or not a number where the store doesn't say how many blocks there are."""

FINAL_METRICS: Mapping[str, tuple[str, ...]] = {
    "FVU": ("val_fvu", "fvu"),
    "L0": ("val_l0_norm", "l0_norm"),
    "CE recovered": ("ce_loss_recovered",),
    "dead": ("val_dead_fraction", "dead_fraction"),
}
"""What trainings are told by, and of each the metrics that it may be: the first that there is."""


def ends_table(rows: Sequence[RunRow]) -> pd.DataFrame:
    """Each run's last value of every metric: `FACTS` and the metrics' names.

    By model, layer number, label and seed, with numbers in these as numbers.
    """
    labels = run_labels(rows)
    facts = [
        {
            "run_id": row.run_id,
            "name": row.name,
            "model": row.model,
            "layer": row.layer,
            "architecture": row.architecture,
            "label": labels[row.run_id],
            "seed": row.params.get("seed", ""),
            "depth": _depth(row),
            **{key: restored(value) for key, value in row.metrics.items()},
        }
        for row in rows
    ]
    table = pd.DataFrame(facts, columns=None if facts else FACTS)
    order = table.assign(
        layer=table["layer"].map(naming.layer_order),
        label=table["label"].map(naming.natural_order),
        seed=table["seed"].map(naming.natural_order),
    )
    order = order.sort_values(["model", "layer", "label", "seed"], kind="stable")
    return table.loc[order.index].reset_index(drop=True)


def run_labels(rows: Sequence[RunRow]) -> dict[str, str]:
    """By run: `topk`, or `topk · sae.k=32` where its architecture was trained with several."""
    alike: dict[tuple[str, str, str], list[RunRow]] = {}
    for row in rows:
        alike.setdefault((row.model, row.layer, row.architecture), []).append(row)
    labels = {}
    for (_, _, architecture), same in alike.items():
        for row, what in zip(same, differences(same), strict=True):
            labels[row.run_id] = " · ".join(filter(None, (architecture, what)))
    return labels


def labelled(table: pd.DataFrame, labels: Mapping[str, str]) -> pd.DataFrame:
    """A table of `frames.COLUMNS` whose `setting` is each run's label."""
    return table.assign(setting=table["run_id"].map(labels))


def over_seeds_of(ends: pd.DataFrame, metric: str) -> pd.DataFrame:
    """`model, layer, label, depth, mean, low, high, seeds`, in the ends' order.

    A mean with a run whose value is missing or no number is no number.
    """
    keys = ["model", "layer", "label"]
    if metric not in ends:
        return pd.DataFrame(columns=[*keys, "depth", "mean", "low", "high", "seeds"])
    grouped = ends[ends[metric].notna()].groupby(keys, sort=False)
    spread = grouped[metric].agg(mean="mean", low="min", high="max", seeds="size")
    return spread.join(grouped["depth"].first()).reset_index()


def layers_of(table: pd.DataFrame) -> list[str]:
    """The layers that occur, by number."""
    return sorted(table["layer"].unique(), key=naming.layer_order)


def _depth(row: RunRow) -> float:
    n_layers = row.params.get("lm.n_layers", "")
    number = naming.layer_order(row.layer)[0]
    if not n_layers.isdecimal() or not row.layer.startswith(f"layer{number}"):
        return float("nan")
    return number / max(int(n_layers) - 1, 1)
