"""The evaluation at a training's end: one SAE is bad, or the store goes away meanwhile."""

import math
import sqlite3

import pytest
from cached_acts import planned
from PIL import Image, ImageColor
from safetensors.torch import load_file, save_file
from saved_saes import change_config

from sae_mlflow.activations.layer import open_activations
from sae_mlflow.errors import UserError
from sae_mlflow.lm.loading import load_language_model
from sae_mlflow.pipeline import run_training
from sae_mlflow.plots.style import load_style
from sae_mlflow.reporting.display import Display
from sae_mlflow.runs.evaluation import evaluate_layers
from sae_mlflow.tracking.journalled import JournalledStore
from sae_mlflow.tracking.refusals import is_away
from sae_mlflow.tracking.store import Store

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_layer_counts_as_evaluated_once_its_run_has_the_figures(
    tiny_settings, tmp_path, monkeypatch
):
    """Another process locks the store while the LM reads for the second; what isn't evaluated yet
    is begun again afterwards."""
    monkeypatch.setattr("sae_mlflow.runs.evaluation._TOGETHER_BYTES", 0)  # each by itself
    settings = tiny_settings(
        "model.layers=[0,1]",
        "evaluate.after_training=false",
        "evaluate.tokens=256",
        "plots.after_training=false",
    )
    file = tmp_path / "mlflow.db"
    uri = f"sqlite:///{file}?timeout=0.1"
    rows = run_training(settings, Display(), tracking_uri=uri).rows
    plan, lm = planned(settings), load_language_model(settings.model)
    store = JournalledStore(uri, print)  # of a training that is gone on with: its runs aren't known
    other = sqlite3.connect(file, isolation_level=None)
    found = {}

    def lock(*_):
        if found and not other.in_transaction:
            other.execute("BEGIN EXCLUSIVE")

    def evaluate():
        pairs = zip(rows, open_activations(plan, lm.device), strict=True)
        waiting = [(row, acts) for row, acts in pairs if row.run_id not in found]
        for row, metrics in evaluate_layers(store, settings, lm, plan.windows, waiting):
            assert store.flush()
            found[row.run_id] = metrics

    handle = lm.model.register_forward_pre_hook(lock)
    with pytest.raises(Exception) as error:
        evaluate()
    assert is_away(error.value) and list(found) == [rows[0].run_id]

    handle.remove()
    other.execute("ROLLBACK")
    evaluate()
    store.close()
    query = "SELECT value FROM metrics WHERE run_uuid = ? AND key = 'ce_loss_recovered'"
    for row in rows:
        value = found[row.run_id]["ce_loss_recovered"]
        assert other.execute(query, [row.run_id]).fetchall() == [(value,)]
    other.close()


def test_the_densities_are_drawn_in_the_trainings_style(tiny_settings, tmp_path):
    settings = tiny_settings(
        *("model.layers=[1]", "plots.style=dark", "plots.after_training=false"),
        *("evaluate.after_training=true", "evaluate.tokens=64"),
    )
    training = run_training(settings, Display(), tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    place = f"runs:/{training.rows[0].run_id}/evaluation/density.png"
    with Image.open(training.store.download(place, tmp_path)) as image:
        corner = image.convert("RGB").getpixel((0, 0))
    assert corner == ImageColor.getrgb(load_style("dark").colours.page)


def test_an_sae_that_cannot_be_evaluated_costs_the_other_layers_nothing(tiny_settings, tmp_path):
    """One has a weight that is no number; to another every token of the text is a giant."""
    settings = tiny_settings(
        "model.layers=[0,1,2]",
        "evaluate.after_training=false",
        "evaluate.tokens=64",
        "plots.after_training=false",
    )
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    rows = run_training(settings, Display(), tracking_uri=uri).rows
    plan, lm = planned(settings), load_language_model(settings.model)
    store, all_acts = Store(uri), open_activations(plan, lm.device)
    broken = store.download(f"runs:/{rows[0].run_id}/sae", tmp_path)
    weights = load_file(broken / "sae_weights.safetensors")
    weights["W_enc"][0, 0] = math.nan
    save_file(weights, broken / "sae_weights.safetensors")
    change_config(broken)
    store.reopen(rows[0].run_id).log_folder(broken, "sae")
    all_acts[1].caps["layers.1"] = -1.0
    layers = list(zip(rows, all_acts, strict=True))
    found = list(evaluate_layers(store, settings, lm, plan.windows, layers))
    assert [row for row, _ in found] == rows
    nan, giants, metrics = (each for _, each in found)
    assert str(nan).startswith(f"runs:/{rows[0].run_id}/sae: weights that aren't numbers")
    assert isinstance(giants, UserError) and "have giant norms" in str(giants)
    assert "ce_loss_recovered" in metrics
    assert "ce_loss_recovered" in store.run(rows[2].run_id).metrics
