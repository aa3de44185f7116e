"""Which runs count, what tells them apart, and the numbers over seeds."""

import math

import pandas as pd
import pytest
from plot_store import MODEL, filled_store, history

from sae_mlflow.plots.frames import (
    COLUMNS,
    describe,
    groups,
    history_table,
    over_seeds,
    run_table,
    setting_labels,
)
from sae_mlflow.tracking.contents import RunRow


def row(run_id: str, layer: str = "layer10", model: str = MODEL, **params: object) -> RunRow:
    """A finished run; of several, give the newest first, as queries do."""
    settings = {"sae.k": 32, "seed": 0} | {k.replace("__", "."): v for k, v in params.items()}
    tags = {"sae.model": model, "sae.layer": layer, "sae.hookpoint": layer}
    params_as_text = {key: str(value) for key, value in settings.items()}
    return RunRow(run_id, run_id, "1", "p", "FINISHED", 0, params_as_text, {}, tags)


def ids(grouped: list[list[RunRow]]) -> list[list[str]]:
    return [[run.run_id for run in group] for group in grouped]


def test_the_latest_of_runs_that_differ_in_nothing_but_the_seed_counts():
    rows = [row("new", seed=1), row("old", seed=0), row("older", seed=1)]
    assert ids(groups(rows, "latest")) == [["new"]]


def test_all_keeps_the_latest_of_each_seed_by_seed():
    rows = [row("new", seed=10), row("other", seed=9), row("again", seed=10)]
    assert ids(groups(rows, "all")) == [["other", "new"]]


@pytest.mark.parametrize("key", ["sae.k", "train.epochs", "text.tokens", "activations.dtype"])
def test_runs_with_another_setting_stand_beside_each_other(key):
    rows = [row("a", **{key: 64}), row("b", **{key: 16})]
    assert len(groups(rows, "latest")) == 2


@pytest.mark.parametrize("key", ["model.layers", "model.device", "seed", "data.tokens", "d_sae"])
def test_what_is_no_setting_does_not_tell_runs_apart(key):
    rows = [row("new", **{key: 64}), row("old", **{key: 16})]
    assert ids(groups(rows, "latest")) == [["new"]]


def test_layers_are_ordered_by_number_within_each_model():
    rows = [row(f"{m}{n}", f"layer{n}", m) for m in "ba" for n in (10, 9, 100)]
    assert ids(groups(rows, "latest")) == [["a9"], ["a10"], ["a100"], ["b9"], ["b10"], ["b100"]]


def test_settings_are_named_where_a_layer_has_several():
    grouped = groups([row("a", sae__k=64), row("b", sae__k=32, train__epochs=5)], "latest")
    labels = dict(zip([g[0].run_id for g in grouped], setting_labels(grouped), strict=True))
    assert labels == {"a": "sae.k=64, train.epochs=unset", "b": "sae.k=32, train.epochs=5"}


def labels_of(*rows: RunRow) -> list[str]:
    return [setting_labels(groups(rows, "latest"))[i] for i in range(len(rows))]


RATES = {"64": 0.016, "128": 0.011}


def test_what_nobody_set_is_not_named_where_the_rest_tells_the_runs_apart():
    """A learning rate and AuxK's share follow from a width that was set."""
    nobody = {"derived": "sae.aux_k,train.learning_rate"}
    rows = [row(w, sae__d_sae=w, train__learning_rate=RATES[w], **nobody) for w in RATES]
    assert labels_of(*rows) == ["sae.d_sae=64", "sae.d_sae=128"]


def test_what_follows_from_a_layers_data_is_not_named_either():
    """A layer may leave out some tokens, and half of an epoch is another number then."""
    nobody = {"derived": "train.dead_after_tokens"}
    rows = [
        row(f"{layer}-{k}", layer, sae__k=k, train__dead_after_tokens=tokens, **nobody)
        for layer, tokens in (("layer1", 1822), ("layer2", 1824))
        for k in (16, 64)
    ]
    assert labels_of(*rows) == ["sae.k=16", "sae.k=64"] * 2


def test_what_was_set_in_one_of_the_runs_is_named_in_all():
    one = row("a", sae__d_sae=64, train__learning_rate=0.016, derived="train.learning_rate")
    other = row("b", sae__d_sae=64, train__learning_rate=0.001, derived="sae.aux_k")
    assert labels_of(one, other) == ["train.learning_rate=0.016", "train.learning_rate=0.001"]


def test_what_nobody_set_is_named_where_nothing_else_tells_the_runs_apart():
    """Such as runs of two versions with other defaults; and older ones don't say what was set."""
    rows = [row(w, train__learning_rate=RATES[w], derived="train.learning_rate") for w in RATES]
    assert labels_of(*rows) == ["train.learning_rate=0.016", "train.learning_rate=0.011"]
    older = [row(w, sae__d_sae=w, train__learning_rate=RATES[w]) for w in RATES]
    assert labels_of(*older)[0] == "sae.d_sae=64, train.learning_rate=0.016"


def test_settings_are_not_named_where_each_layer_has_one():
    grouped = groups([row("a", "layer1", sae__k=64), row("b", "layer2")], "latest")
    assert setting_labels(grouped) == ["", ""]


def test_a_table_has_a_row_for_each_number_in_the_store():
    store, runs = filled_store()
    table = run_table(store, [[store.run(runs["layer9"])]], ["total_loss", "l0_norm", "none"])
    assert list(table.columns) == COLUMNS
    assert set(table["run_id"]) == {runs["layer9"]}
    total = table[table["metric"] == "total_loss"]
    assert total["epoch"].tolist() == [1, 2, 3]
    assert total["value"].tolist() == history(3, start=0.4)["total_loss"]
    assert len(table) == 6


def test_nan_and_infinity_come_back_out_of_the_store():
    store, runs = filled_store()
    table = run_table(store, [[store.run(runs["diverged"])]], ["reconstruction_loss"])
    first, second, third = table["value"]
    assert first == 0.5
    assert second == math.inf
    assert math.isnan(third)


def test_over_seeds_is_mean_and_range_at_each_epoch():
    one = history_table("m", {"layer1": {"fvu": [0.5, 0.4]}}).assign(run_id="a", seed="0")
    two = history_table("m", {"layer1": {"fvu": [0.7, 0.2]}}).assign(run_id="b", seed="1")
    spread = over_seeds(pd.concat([one, two]))
    assert spread["epoch"].tolist() == [1, 2]
    assert spread["mean"].tolist() == pytest.approx([0.6, 0.3])
    assert spread["low"].tolist() == [0.5, 0.2]
    assert spread["high"].tolist() == [0.7, 0.4]
    assert spread["seeds"].tolist() == [2, 2]


def test_a_mean_over_seeds_is_nan_where_one_of_them_is():
    tables = [
        history_table("m", {"layer1": {"fvu": values}}).assign(run_id=str(values))
        for values in ([0.5, math.nan], [0.7, 0.2])
    ]
    spread = over_seeds(pd.concat(tables))
    assert spread["mean"].tolist() == pytest.approx([0.6, math.nan], nan_ok=True)


def test_over_one_seed_mean_and_range_are_the_value():
    spread = over_seeds(history_table("m", {"layer1": {"fvu": [0.5, 0.4]}}))
    for column in ("mean", "low", "high"):
        assert spread[column].tolist() == [0.5, 0.4]


def test_runs_are_described_by_what_was_trained():
    rows = [row("a", sae__architecture="topk", d_sae=4608, seed=s) for s in (10, 9)]
    assert describe(rows) == "topk · k=32 · 4,608 latents · seeds 9, 10"
    assert describe([]) == ""
