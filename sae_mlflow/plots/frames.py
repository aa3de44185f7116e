"""Runs to tidy tables: which runs count, what tells them apart, a row per epoch and metric."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Protocol

import pandas as pd

from sae_mlflow import naming
from sae_mlflow.history import drawable
from sae_mlflow.tracking.contents import DERIVED_PARAM, WITHIN_EPOCH, RunRow

if TYPE_CHECKING:
    from sae_mlflow.tracking.store import Store

COLUMNS = ["run_id", "model", "layer", "setting", "seed", "epoch", "metric", "value"]
"""Of every table here. `setting` says how a run's settings differ from the others' (`sae.k=32`),
and is empty where they don't; runs that share model, layer and setting differ in the seed alone."""

Which = Literal["latest", "all"]

EXPERIMENT = "experiment"
"""Among the params of runs that were read from several experiments."""

_SETTING_PREFIXES = ("sae.", "train.", "text.", "activations.", "model.")
# about the whole training, about the machine, and about what is logged of it
_NO_SETTING = {
    *("model.layers", "model.device", "model.trust_remote_code"),
    "train.log_every_tokens",
}


class HasSettings(Protocol):
    """The part of a `RunRow` that groups are made by."""

    @property
    def layer(self) -> str: ...

    @property
    def params(self) -> Mapping[str, str]: ...


def settings_of(row: HasSettings) -> dict[str, str]:
    """The params that make a training another one; the seed isn't among them."""
    return {
        key: value
        for key, value in row.params.items()
        if (key.startswith(_SETTING_PREFIXES) or key == EXPERIMENT) and key not in _NO_SETTING
    }


def groups(rows: Iterable[RunRow], which: Which) -> list[list[RunRow]]:
    """Runs that differ in nothing but the seed, together; by model, layer number and age.

    Args:
        rows: layer runs, newest first.
        which: `latest` keeps a group's newest run, `all` the newest of each seed.
    """
    found: dict[tuple[object, ...], dict[str, RunRow]] = defaultdict(dict)
    for row in rows:
        seed = row.params.get("seed", "") if which == "all" else ""
        found[group_key(row)].setdefault(seed, row)
    ordered = [sorted(seeds.values(), key=_seed_order) for seeds in found.values()]
    return sorted(ordered, key=lambda g: (g[0].model, naming.layer_order(g[0].layer), _age(g)))


def among_others(rows: Iterable[RunRow], experiment: str) -> list[RunRow]:
    """Runs whose experiment, if it is named, is one of their settings."""
    named = {EXPERIMENT: experiment} if experiment else {}
    return [replace(row, params={**row.params, **named}) for row in rows]


def group_key(row: RunRow) -> tuple[object, ...]:
    """What runs share that differ in the seed alone."""
    where = row.tags.get("sae.hookpoint") or row.layer
    what = row.tags.get("sae.architecture", "")
    return (row.model, where, what, frozenset(settings_of(row).items()))


def setting_labels(grouped: Sequence[Sequence[RunRow]]) -> list[str]:
    """For each group what sets it apart within its model: `sae.k=32`, or nothing.

    Only settings that differ are named, and only where a layer of the model was trained with more
    than one: layers that each have their own setting are told apart by their names.
    """
    labels = [""] * len(grouped)
    for model in {group[0].model for group in grouped}:
        mine = [i for i, group in enumerate(grouped) if group[0].model == model]
        layers = [grouped[i][0].layer for i in mine]
        if len(set(layers)) < len(layers):
            for i, label in zip(mine, differences([grouped[i][0] for i in mine]), strict=True):
                labels[i] = label
    return labels


def told_apart(rows: Sequence[RunRow]) -> list[str]:
    """For each run the settings and the seed in which runs differ: `sae.k=32 · seed 1`."""
    seeds = [row.params.get("seed", "") for row in rows]
    named = [f"seed {seed}" if seed and len(set(seeds)) > 1 else "" for seed in seeds]
    settings = setting_labels([[row] for row in rows])
    return [" · ".join(filter(None, both)) for both in zip(settings, named, strict=True)]


def run_table(
    store: "Store", grouped: Sequence[Sequence[RunRow]], metrics: Sequence[str]
) -> pd.DataFrame:
    """The metrics of the groups' runs out of the store, as `COLUMNS`."""
    rows = []
    for group, setting in zip(grouped, setting_labels(grouped), strict=True):
        for run in group:
            head = (run.run_id, run.model, run.layer, setting, run.params.get("seed", ""))
            rows += [
                (*head, epoch, metric, drawable(value))
                for metric, epoch, value in store.history(run.run_id, metrics)
            ]
    return pd.DataFrame(rows, columns=COLUMNS)


def per_epoch(rows: Iterable[RunRow]) -> list[str]:
    """The metrics in the runs whose steps are epochs; of those within an epoch they are tokens."""
    return sorted({key for row in rows for key in row.metrics if _by_epoch(key)})


def by_epoch(table: pd.DataFrame) -> pd.DataFrame:
    """A table without what was measured within epochs."""
    return table[table["metric"].map(_by_epoch).astype(bool)]


def history_table(
    model: str, histories: Mapping[str, Mapping[str, Sequence[float]]]
) -> pd.DataFrame:
    """Histories by layer, as files hold them, as `COLUMNS`; there is no run, setting or seed."""
    rows = [
        ("", model, layer, "", "", epoch, metric, drawable(value))
        for layer, history in histories.items()
        for metric, values in history.items()
        for epoch, value in enumerate(values, start=1)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and range over seeds: `model, layer, setting, metric, epoch, mean, low, high, seeds`.

    With one seed all three are its value. NaN and infinity stay what they are.
    """
    keys = ["model", "layer", "setting", "metric", "epoch"]
    if not table.duplicated(keys).any():  # one seed: the usual case, and 10 ms quicker
        one = table["value"]
        alone = table[keys].assign(mean=one, low=one, high=one, seeds=1)
        return alone.sort_values("epoch", kind="stable")
    spread = table.groupby(keys, sort=False)["value"].agg(
        mean="mean", low="min", high="max", seeds="size", numbers="count"
    )
    # pandas skips NaN; a mean over the seeds that survived would flatter
    gaps = spread["numbers"] < spread["seeds"]
    spread.loc[gaps, ["mean", "low", "high"]] = math.nan
    return spread.drop(columns="numbers").reset_index().sort_values("epoch", kind="stable")


def describe(rows: Iterable[RunRow]) -> str:
    """What was trained, in a line: `topk · k=32 · 4,608 latents · seeds 0, 1`."""
    rows = list(rows)

    def values(key: str) -> list[str]:
        found = {row.params.get(key, "") for row in rows} - {""}
        return sorted(found, key=_number_first)

    facts = [
        ", ".join(values("sae.architecture")),
        _listed("k=", values("sae.k")),
        _listed("", [f"{int(n):,}" for n in values("d_sae") if n.isdecimal()], " latents"),
        _listed("seed " if len(values("seed")) == 1 else "seeds ", values("seed")),
    ]
    return " · ".join(fact for fact in facts if fact)


def _by_epoch(metric: str) -> bool:
    return not metric.startswith(f"{WITHIN_EPOCH}/")


def differences(rows: Sequence[HasSettings]) -> list[str]:
    """For each run the settings in which they differ: `sae.d_sae=4608, sae.k=32`, or nothing.

    What nobody set in any of them (a learning rate for the width) is left out where the rest tells
    the runs of each layer apart: what is derived from the data may differ between layers.
    """
    settings = [settings_of(row) for row in rows]
    keys = sorted({key for each in settings for key in each})
    differing = [key for key in keys if len({each.get(key, "") for each in settings}) > 1]
    derived = [row.params.get(DERIVED_PARAM, "").split(",") for row in rows]
    given = [key for key in differing if not all(key in names for names in derived)]
    layers = [row.layer for row in rows]
    told_apart = _kinds(layers, settings, given) == _kinds(layers, settings, differing)
    shown = given if told_apart else differing
    return [", ".join(f"{key}={each.get(key) or 'unset'}" for key in shown) for each in settings]


def _kinds(
    layers: Sequence[str], settings: Sequence[Mapping[str, str]], keys: Sequence[str]
) -> int:
    """How many are told apart by their layer and some of their settings."""
    both = zip(layers, settings, strict=True)
    return len({(layer, *(each.get(key, "") for key in keys)) for layer, each in both})


def _seed_order(row: RunRow) -> tuple[float, str]:
    return _number_first(row.params.get("seed", ""))


def _age(group: Sequence[RunRow]) -> int:
    return min(row.start_time for row in group)


def _number_first(text: str) -> tuple[float, str]:
    return (float(text) if text.isdecimal() else math.inf, text)


def _listed(before: str, values: Sequence[str], after: str = "", limit: int = 4) -> str:
    if not values:
        return ""
    shown = ", ".join(values[:limit])
    more = f" and {len(values) - limit} more" if len(values) > limit else ""
    return f"{before}{shown}{more}{after}"
