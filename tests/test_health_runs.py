"""Health in the store: of trainings while they go on and once they end, and of past runs."""

import json
import math
import re
import shutil
import subprocess
import sys
from collections import Counter

import pytest
import torch
import typer
from mlflow.tracking import MlflowClient
from plot_store import add_layer, add_parent, filled_store, history, new_experiment

from sae_mlflow import load_sae
from sae_mlflow.activations.layer import LayerActivations
from sae_mlflow.commands.train import _train
from sae_mlflow.health.stored import judge_run
from sae_mlflow.pipeline import run_training
from sae_mlflow.reporting.display import Display
from sae_mlflow.stopping import Stopping
from sae_mlflow.tracking.store import Store
from sae_mlflow.tracking.trainings import rows_of_run
from sae_mlflow.watching.state import Watch

QUIET = ("plots.after_training=false", "plots.live=false")


@pytest.fixture
def train(tiny_settings, tmp_path, monkeypatch, one_thread):
    """`train("health.on_failure=stop", ...)`: a training on the tiny model, without pictures."""
    monkeypatch.chdir(tmp_path)

    def run(*overrides, **top):
        settings = tiny_settings(*QUIET, *overrides).model_copy(update=top)
        return run_training(settings, Display(), tracking_uri=f"sqlite:///{tmp_path}/health.db")

    return run


@pytest.fixture
def poisoned(monkeypatch):
    """`poisoned("layer1", 3)`: a NaN in that layer's activations, from its third epoch on."""

    def poison(label, from_epoch):
        batches, epochs = LayerActivations.batches, Counter()

        def with_nan(self, batch_tokens, generator, skip=0):
            epochs[self.site.label] += 1
            for batch in batches(self, batch_tokens, generator, skip):
                if self.site.label == label and epochs[label] >= from_epoch:
                    batch.x[0, 0] = math.nan
                yield batch

        monkeypatch.setattr(LayerActivations, "batches", with_nan)

    return poison


def stored_health(store, run_id, folder):
    file = store.download(f"runs:/{run_id}/health.json", folder)
    return json.loads(file.read_text(encoding="utf-8"))


def test_a_layers_run_has_its_health_in_tags_params_and_an_artifact(train, tmp_path, capsys):
    """Two epochs: not converged, as the parent's description and a warning say too. So few steps
    leave dead latents as well, which this isn't about."""
    quick = ("train.epochs=2", "evaluate.after_training=false", "model.layers=1")
    training = train(*quick, "health.max_dead_fraction=1")
    run = training.store.run(training.rows[0].run_id)
    assert run.tags["sae.health"] == "warning"
    assert run.tags["sae.health.reasons"] == "not_converged"
    found = stored_health(training.store, run.run_id, tmp_path)
    assert found["status"] == "warning" and found["findings"][0]["advice"] == "train.epochs=4"
    assert run.params["health.last_fall"] == "0.05"
    assert 1 < float(run.params["data.largest_norm_ratio"]) <= 10
    assert judge_run(training.store, run).tags == {
        key: run.tags[key] for key in ("sae.health", "sae.health.reasons")
    }
    assert "health warning, not converged: the loss still fell" in capsys.readouterr().out
    note = training.store.run(run.parent_id).tags["mlflow.note.content"]
    assert "| health" in note and "| warning" in note.splitlines()[-1]


STEADY = ("train.warmup_fraction=0", "train.schedule=constant", "evaluate.tokens=64")


def test_a_layer_that_goes_bad_stops_with_its_last_good_weights_and_the_others_go_on(
    train, poisoned, tmp_path, capsys
):
    """The weights are those of a training that ends with the last good epoch."""
    healthy = train(*STEADY, "train.epochs=2", "model.layers=1")
    wanted = load_sae(f"runs:/{healthy.rows[0].run_id}/sae", tracking_uri=healthy.store.uri)
    poisoned("layer1", 3)
    training = train(
        *STEADY, "train.epochs=6", "health.on_failure=stop", f"output.dir={tmp_path}/results"
    )
    store = training.store
    bad, good = (store.run(row.run_id) for row in training.rows)
    assert (bad.status, good.status) == ("FAILED", "FINISHED")
    assert bad.tags["sae.failure"].startswith("health.on_failure=stop: not_finite at epoch 3: ")
    assert bad.tags["sae.health"] == "failed"
    losses = [value for _, _, value in store.history(bad.run_id, ["total_loss"])]
    assert len(losses) == 3 and math.isnan(losses[2]) and math.isfinite(losses[1])
    assert len(list(store.history(good.run_id, ["total_loss"]))) == 6
    assert stored_health(store, bad.run_id, tmp_path)["findings"][0]["code"] == "not_finite"
    for place in (f"runs:/{bad.run_id}/sae", tmp_path / "results" / "tiny-llama" / "layer1_sae"):
        kept = load_sae(place, tracking_uri=store.uri).state_dict()
        assert all(torch.equal(kept[name], value) for name, value in wanted.state_dict().items())
    parent = store.run(bad.parent_id)
    assert parent.status == "FINISHED"
    last_lines = parent.tags["mlflow.note.content"].splitlines()[-2:]
    assert "| failed" in last_lines[0] and "| failed" not in last_lines[1]
    assert not training.rows[0].evaluation and training.rows[1].evaluation
    assert "layer1: health failed, not finite: total_loss is NaN" in capsys.readouterr().out
    assert judge_run(store, bad).reasons.startswith("not_finite at epoch 3"), "and nothing else"


def test_a_layer_that_is_bad_from_its_first_epoch_on_leaves_no_weights(train, poisoned):
    poisoned("layer1", 1)
    stop = ("model.layers=1", "train.epochs=3", "health.on_failure=stop")
    training = train(*stop, register_model=True)
    row = training.rows[0]
    names = {file.path for file in MlflowClient(training.store.uri).list_artifacts(row.run_id)}
    assert names == {"health.json", "layer1_training_history.json"}
    assert training.store.run(row.run_id).status == "FAILED"
    assert MlflowClient(training.store.uri).search_registered_models() == []


@pytest.mark.parametrize(("on_failure", "status"), [("stop", 1), ("warn", 0)])
def test_the_command_says_by_its_status_that_a_layer_was_stopped(
    on_failure, status, tiny_settings, poisoned, tmp_path, monkeypatch, one_thread
):
    monkeypatch.chdir(tmp_path)
    poisoned("layer1", 2)
    few = ("model.layers=1", "train.epochs=3", "evaluate.after_training=false")
    settings = tiny_settings(*QUIET, *few, f"health.on_failure={on_failure}")
    try:
        _train(settings, Stopping(), {"tracking_uri": f"sqlite:///{tmp_path}/health.db"})
        ended = 0
    except typer.Exit as end:
        ended = end.exit_code
    assert ended == status


def test_by_default_a_bad_layer_trains_on_and_is_called_failed(train, poisoned):
    poisoned("layer1", 2)
    training = train("model.layers=1", "train.epochs=3", "evaluate.after_training=false")
    run = training.store.run(training.rows[0].run_id)
    assert (run.status, run.tags["sae.health"]) == ("FINISHED", "failed")
    assert len(list(training.store.history(run.run_id, ["total_loss"]))) == 3


def with_giant(model, folder, word=9, times=1000):
    """A copy of the tiny model in which one word, 1 of 200, has a giant norm in every layer."""
    from transformers import AutoModelForCausalLM

    shutil.copytree(model, folder)
    lm = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        lm.get_input_embeddings().weight[word] *= times
    lm.save_pretrained(folder)
    return folder


def test_giant_norms_that_are_left_in_are_found(train, tiny_model, tmp_path):
    model = with_giant(tiny_model, tmp_path / "giant")
    left_in = ("activations.max_norm_ratio=1000000", "evaluate.after_training=false")
    training = train(f"model.name={model}", "model.layers=1", "train.epochs=2", *left_in)
    verdict = training.rows[0].verdict
    (giant,) = (f for f in verdict.findings if f.code == "giant_norms")
    assert giant.number > 100 and giant.advice == "activations.max_norm_ratio=10"
    capped = train(f"model.name={model}", "model.layers=1", "evaluate.after_training=false")
    assert "norms" not in capped.rows[0].verdict.reasons


def test_an_evaluation_adds_what_it_finds_of_latents(train, tmp_path):
    """Half of 32 latents fire on every token: a third of them or more on over a tenth."""
    training = train("model.layers=1", "sae.d_sae=32", "sae.k=16", "evaluate.tokens=256")
    run = training.store.run(training.rows[0].run_id)
    assert run.metrics["latents_over_10_percent"] > 0.3
    assert "dense_latents" in run.tags["sae.health.reasons"]
    codes = [f["code"] for f in stored_health(training.store, run.run_id, tmp_path)["findings"]]
    assert "dense_latents" in codes and "dense_latents" in training.rows[0].verdict.reasons


def health_command(*arguments):
    command = [sys.executable, "-m", "sae_mlflow", "health", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def past():
    """A store with an experiment of a healthy, an unconverged, a diverged and a failed run."""
    store, _ = filled_store()
    parent = add_parent(store, new_experiment(store, "past"))
    level = history(6) | {"total_loss": [0.5, 0.4, 0.36, 0.34, 0.33, 0.325]}
    gone = history(3) | {"total_loss": [0.5, math.inf, math.nan]}
    runs = {
        "well": add_layer(store, parent, "layer1", level),
        "short": add_layer(store, parent, "layer2", history(2)),
        "gone": add_layer(store, parent, "layer3", gone),
        "dead": add_layer(store, parent, "layer4", {}, status="FAILED"),
        "parent": parent.run_id,
    }
    parent.finish()
    return store, runs


def test_past_runs_are_judged_and_told_by_the_command_which_exits_1(past, tmp_path):
    store, runs = past
    before = store.run(runs["well"]).tags
    looked = health_command("--experiment", "past", "--tracking-uri", store.uri, "--no-log")
    assert (looked.returncode, looked.stderr) == (1, "")
    assert store.run(runs["well"]).tags == before
    done = health_command("--experiment", "past", "--tracking-uri", store.uri)
    assert done.stdout == looked.stdout
    lines = {line.split()[0]: line.split() for line in done.stdout.splitlines()[1:]}
    assert list(lines) == [runs[name] for name in ("well", "short", "gone", "dead")]
    assert lines[runs["well"]][1:] == ["layer1", "ok"]
    assert lines[runs["short"]][1:5] == ["layer2", "warning", "not", "converged:"]
    assert lines[runs["gone"]][1:5] == ["layer3", "failed", "not", "finite:"]
    assert lines[runs["dead"]][1:5] == ["layer4", "failed", "run", "failed:"]
    assert {name: store.run(runs[name]).tags["sae.health"] for name in ("well", "gone")} == {
        "well": "ok",
        "gone": "failed",
    }
    found = stored_health(store, runs["gone"], tmp_path)["findings"][0]
    assert (found["code"], found["epoch"], found["number"]) == ("not_finite", 2, "inf")


def test_without_a_failed_run_the_command_exits_0(past):
    store, runs = past
    for name in ("well", "short"):
        done = health_command("--run", runs[name], "--tracking-uri", store.uri, "--no-log")
        assert (done.returncode, done.stderr) == (0, "")
        assert len(done.stdout.splitlines()) == 2


def test_runs_of_one_layer_are_told_apart_by_settings_and_seed():
    store, _ = filled_store()
    parent = add_parent(store, new_experiment(store, "k and seeds"))
    for k, seed in ((8, 0), (32, 0), (32, 1)):
        add_layer(store, parent, "layer1", history(6), sae__k=k, seed=seed)
    done = health_command("--experiment", "k and seeds", "--tracking-uri", store.uri, "--no-log")
    assert done.stdout.splitlines()[0].split()[:4] == ["run", "layer", "setting", "status"]
    settings = re.findall(r"sae\.k=\d+ · seed \d", done.stdout)
    assert list(dict.fromkeys(settings)) == [
        "sae.k=8 · seed 0",
        "sae.k=32 · seed 0",
        "sae.k=32 · seed 1",
    ]


def test_a_parent_stands_for_its_layers(past):
    store, runs = past
    rows = rows_of_run(store, runs["parent"])
    assert [row.layer for row in rows] == ["layer4", "layer3", "layer2", "layer1"]
    done = health_command("--run", runs["parent"], "--tracking-uri", store.uri, "--no-log")
    shown = dict.fromkeys(re.findall(r"layer\d", done.stdout))
    assert list(shown) == ["layer1", "layer2", "layer3", "layer4"]


def test_bad_input_is_said_and_exits_2(past):
    store, _ = past
    for arguments, message in (
        ([], "Give one of --experiment NAME and --run ID."),
        (["--experiment", "nowhere"], "No experiment 'nowhere'"),
        (["--experiment", "empty"], "Experiment 'empty' in"),
        (["--run", "nowhere"], "No run 'nowhere'"),
    ):
        done = health_command(*arguments, *(["--tracking-uri", store.uri] if arguments else []))
        assert done.returncode == 2 and done.stderr.startswith(f"error: {message}")


def test_a_run_is_judged_by_the_thresholds_that_it_was_trained_with(past):
    store, runs = past
    parent = store.reopen(runs["parent"])
    lenient = add_layer(store, parent, "layer5", history(2), health__last_fall=0.9)
    assert judge_run(store, store.run(lenient)).status == "ok"
    strange = add_layer(store, parent, "layer6", history(2), health__of_tomorrow=1)
    assert judge_run(store, store.run(strange)).reasons == "not_converged"


def test_an_artifact_location_that_cannot_be_written_is_said(tmp_path):
    store = Store(f"sqlite:///{tmp_path}/mlflow.db")
    (tmp_path / "file").write_text("")
    place = (tmp_path / "file" / "artifacts").as_uri()
    experiment = MlflowClient(store.uri).create_experiment("shut", artifact_location=place)
    run_id = add_layer(store, add_parent(store, experiment), "layer1", history(2))
    done = health_command("--run", run_id, "--tracking-uri", store.uri)
    assert done.returncode == 2
    assert re.search(r"error: health.json can't be logged to run .*--no-log", done.stderr)


def test_watch_judges_a_run_that_has_no_tag_and_believes_one_that_has(past):
    store, _ = past
    parent = add_parent(store, new_experiment(store, "watched"))
    first = add_layer(store, parent, "layer1", history(3) | {"total_loss": [math.nan] * 3})
    second = add_layer(store, parent, "layer2", history(3))
    tags = {"sae.health": "warning", "sae.health.reasons": "loss_spike at epoch 2"}
    store.reopen(second).tag(tags)
    third = add_layer(store, parent, "layer3", {}, status="RUNNING")
    (state,) = Watch(store, "watched").look()
    seen = {layer.run_id: (layer.health, layer.reasons) for layer in state.layers}
    assert seen[first] == ("failed", "not_finite at epoch 1")
    assert seen[second] == ("warning", "loss_spike at epoch 2")
    assert seen[third] == ("", "")


def test_weights_that_are_no_numbers_any_more_are_not_saved_which_is_said_once(
    train, poisoned, capsys
):
    """So that what was saved before can still be gone on from."""
    poisoned("layer1", 2)
    train(*STEADY, "train.epochs=4", "model.layers=1", "evaluate.after_training=false")
    line = "layer1 isn't saved any more: its weights are no numbers."
    assert capsys.readouterr().out.count(line) == 1
