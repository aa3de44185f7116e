"""`sae-mlflow evaluate` on a store with two tiny trainings: what it logs, shares and refuses."""

import csv
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from sae_mlflow.__main__ import main
from sae_mlflow.config_load import load_settings
from sae_mlflow.evaluation import runs as evaluated_runs
from sae_mlflow.pipeline import run_training
from sae_mlflow.reporting.display import Display
from sae_mlflow.tracking.store import Store

EPOCHS = 2
CE = ["ce_loss_original", "ce_loss_spliced", "ce_loss_zero_ablated"]
SHARES = ["latents_over_1_percent", "latents_over_10_percent", "latents_dead_fraction"]
OTHERS = ["ce_loss_recovered", "kl_divergence", "decoder_max_cosine", "encoder_decoder_cosine"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("home")
        patch.chdir(folder)
        patch.setenv("SAE_MLFLOW_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def store(home, tiny_model, text_file):
    """Experiment `tiny`: an SAE of block 1 and one of block 2, then a transcoder of block 2."""
    text = Path(shutil.copy(text_file, home / "text.txt"))
    store = Store(f"sqlite:///{home / 'mlflow.db'}")
    base = {
        "experiment": "tiny",
        "model": {"name": str(tiny_model), "layers": [1, 2], "device": "cpu"},
        "text": {"source": str(text), "tokens": 4096, "context": 32},
        "sae": {"k": 4, "expansion_factor": 4},
        "train": {"epochs": EPOCHS, "batch_tokens": 256},
        "plots": {"after_training": False},
        "evaluate": {"after_training": False},
    }
    transcoder = {"layers": ["layers.2.mlp"]}, {"architecture": "transcoder"}
    for model, sae in (({}, {}), transcoder):
        data = base | {"model": base["model"] | model, "sae": base["sae"] | sae}
        (home / "tiny.yaml").write_text(yaml.safe_dump(data))
        run_training(load_settings("tiny.yaml"), Display(), tracking_uri=store.uri)
    return store


@pytest.fixture
def runs(store):
    """The finished layer runs by label."""
    return {row.layer: row for row in store.layer_runs(store.find_experiment("tiny"))}


@pytest.fixture
def command(home, store, monkeypatch, capsys, one_thread):
    """`command("--run", ...)`: its exit status, what it printed, and its errors."""

    def run(*arguments):
        monkeypatch.setenv("SAE_MLFLOW_CACHE", str(home / "cache"))
        monkeypatch.chdir(home)
        argv = ["sae-mlflow", "evaluate", "--tracking-uri", store.uri, *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        return end.value.code, printed.out, printed.err

    return run


def test_a_run_gets_its_metrics_beside_its_last_epoch(command, store, runs):
    run_id = runs["layer1"].run_id
    status, printed, errors = command("--run", run_id, "--tokens", 128)
    assert (status, errors) == (0, "")
    metrics = store.run(run_id).metrics
    assert set(metrics) >= {*CE, *SHARES, *OTHERS}
    assert metrics["evaluation_tokens"] == 128
    assert metrics["ce_loss_zero_ablated"] != metrics["ce_loss_original"] > 0
    assert [step for _, step, _ in store.history(run_id, CE)] == [EPOCHS] * 3
    assert store.run(run_id).status == "FINISHED"
    assert f"{metrics['ce_loss_recovered']:.2%} recovered" in printed
    assert f"runs:/{run_id}/evaluation/latents.html" in printed


def test_a_run_gets_a_table_a_picture_and_a_page(command, store, runs, tmp_path):
    run_id = runs["layer2"].run_id
    command("--run", run_id, "--tokens", 256, "--latents", 6, "--latent", 5, "--latent", 3)
    folder = store.download(f"runs:/{run_id}/evaluation", tmp_path)
    assert {file.name for file in folder.iterdir()} == {
        "density.csv",
        "density.png",
        "latents.html",
    }
    with (folder / "density.csv").open() as lines:
        assert sum(int(row["latents"]) for row in csv.DictReader(lines)) == 4 * 32
    page = (folder / "latents.html").read_text()
    assert page.count("<section") == 8
    assert page.index('id="latent5"') < page.index('id="latent3"') < page.index("Most frequent")
    assert "word" in page and "nearest vocabulary items" in page


def test_the_runs_of_an_experiment_share_one_language_model(command, store, runs, monkeypatch):
    loaded = []

    def counting(settings, load=evaluated_runs.load_language_model):
        loaded.append(settings.name)
        return load(settings)

    monkeypatch.setattr(evaluated_runs, "load_language_model", counting)
    status, printed, _ = command("--experiment", "tiny", "--tokens", 64)
    assert status == 0 and len(loaded) == 1
    assert printed.count("recovered") == len(runs) == 3
    found = [store.run(row.run_id).metrics["ce_loss_original"] for row in runs.values()]
    assert len(set(found)) == 1  # the same text, read once


def test_a_transcoder_stands_in_for_its_module(command, store, runs):
    run_id = runs["layer2_mlp"].run_id
    command("--run", run_id, "--tokens", 64)
    metrics = store.run(run_id).metrics
    assert metrics["ce_loss_zero_ablated"] != metrics["ce_loss_original"]
    assert "decoder_max_cosine" in metrics and "encoder_decoder_cosine" not in metrics


def test_a_parent_stands_for_its_layers(command, runs):
    status, printed, _ = command("--run", runs["layer1"].parent_id, "--tokens", 64)
    assert status == 0 and printed.count("recovered") == 2


def test_what_cannot_be_evaluated_is_said_in_a_sentence(command, store, runs):
    run_id = runs["layer1"].run_id
    assert command() == (2, "", "error: Give one of --experiment NAME and --run ID.\n")
    assert command("--run", run_id, "--experiment", "tiny")[0] == 2
    status, _, error = command("--run", "0" * 32)
    assert status == 2 and error.startswith(f"error: No run '{'0' * 32}' in sqlite:///")
    status, _, error = command("--run", run_id, "--latent", 128)
    assert status == 2 and "--latent 128: this SAE has latents 0..127." in error
    other = store.open_run(runs["layer1"].experiment_id, "note", {})
    assert "is no training of SAEs. Give the parent run of one" in command("--run", other.run_id)[2]
    running = store.open_run(runs["layer1"].experiment_id, "r", {"sae.role": "layer"})
    assert "is RUNNING: only finished runs" in command("--run", running.run_id)[2]
    for run in (other, running):
        run.finish("FAILED")


@pytest.mark.parametrize(
    ("file", "keep", "reason"),
    [
        ("sae_weights.safetensors", 50, "is not a whole safetensors file"),
        ("cfg.json", 1, "is not valid JSON"),
    ],
)
def test_one_damaged_sae_costs_the_others_nothing(file, keep, reason, command, store, runs):
    bad = runs["layer1"].run_id
    damaged = next(Path().rglob(f"{bad}/artifacts/sae/{file}"))
    before = damaged.read_bytes()
    damaged.write_bytes(before[:keep])
    status, printed, error = command("--experiment", "tiny", "--tokens", 64)
    damaged.write_bytes(before)
    assert status == 2 and printed.count("recovered") == 2
    assert f"runs:/{bad}/sae/{file} {reason}" in error
    assert error.count("\n") == 1 and not [
        row for row in runs.values() if row.run_id != bad and row.run_id in error
    ]


def test_figures_stand_in_a_run_once_its_files_do(command, store, runs):
    run_id = runs["layer2"].run_id
    folder = next(Path().rglob(f"{run_id}/artifacts")) / "evaluation"
    shutil.rmtree(folder, ignore_errors=True)
    folder.write_text("in the folder's place")
    status, printed, error = command("--run", run_id, "--tokens", 96)
    folder.unlink()
    assert (status, printed) == (2, "")
    assert f"The evaluation can't be logged to run {run_id}: " in error
    assert store.run(run_id).metrics.get("evaluation_tokens") != 96


def test_text_that_is_gone_or_another_is_refused(command, home, runs):
    run_id = runs["layer1"].run_id
    text = home / "text.txt"
    before = text.read_text()
    text.write_text(before.replace("word1 ", "word2 "))
    status, printed, error = command("--run", run_id)
    assert (status, printed) == (2, "")
    assert error.startswith(f"error: run {run_id}") and "isn't what it was trained on" in error
    text.unlink()
    assert "text.txt' doesn't exist. Correct the path." in command("--run", run_id)[2]
    text.write_text(before)
