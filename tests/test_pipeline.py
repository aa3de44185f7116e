"""One training from settings to store, on a tiny model: every line of the store's contract."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from sae_mlflow import load_sae
from sae_mlflow.config_load import load_settings
from sae_mlflow.history import read_history
from sae_mlflow.pipeline import run_training
from sae_mlflow.reporting.display import Display
from sae_mlflow.tracking.open_run import OpenRun

EPOCHS = 3
LAYERS = [1, "layers.2.mlp"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A working folder with a cache of its own, for a whole module's trainings."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("home")
        patch.chdir(folder)
        patch.setenv("SAE_MLFLOW_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(autouse=True)
def own_cache(home, monkeypatch):
    monkeypatch.setenv("SAE_MLFLOW_CACHE", str(home / "cache"))
    monkeypatch.chdir(home)


@pytest.fixture(scope="module")
def settings(home, tiny_model, text_file):
    data = {
        "experiment": "tiny",
        "model": {"name": str(tiny_model), "layers": LAYERS},
        "text": {"source": str(text_file), "tokens": 4096, "context": 32},
        "sae": {"k": 4, "expansion_factor": 4},
        "train": {"epochs": EPOCHS, "batch_tokens": 256},
        "output": {"dir": str(home / "results"), "pt": True},
    }
    (home / "tiny.yaml").write_text(yaml.safe_dump(data))
    return load_settings("tiny.yaml")


@pytest.fixture(scope="module")
def training(home, settings):
    return run_training(settings, Display(), tracking_uri=f"sqlite:///{home / 'mlflow.db'}")


@pytest.fixture(scope="module")
def store(training):
    return training.store


@pytest.fixture(scope="module")
def layers(store, training):
    """The layer runs, the first trained first."""
    return store.layer_runs(training.experiment.id)[::-1]


@pytest.fixture(scope="module")
def parent(store, layers):
    return store.run(layers[0].parent_id)


def artifacts(store, run, folder):
    """All but the slider's images, whose names have the time in them (see test_live)."""
    folder = store.download(f"runs:/{run.run_id}/", folder)
    found = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
    return {name for name in found if not name.startswith("images/")}


def test_each_layer_is_a_finished_run_nested_under_one_parent(layers, parent):
    assert [run.name for run in layers] == ["tiny-llama_layer1", "tiny-llama_layer2_mlp"]
    assert {run.status for run in [*layers, parent]} == {"FINISHED"}
    assert {run.parent_id for run in layers} == {parent.run_id}
    assert parent.tags["sae.role"] == "sweep"


def test_a_layers_tags_say_what_it_is(layers):
    wanted = ("sae.role", "sae.model", "sae.layer", "sae.hookpoint", "sae.architecture")
    assert [tuple(run.tags[key] for key in wanted) for run in layers] == [
        ("layer", "tiny-llama", "layer1", "layers.1", "topk"),
        ("layer", "tiny-llama", "layer2_mlp", "layers.2.mlp", "topk"),
    ]


def test_a_layers_params_are_its_full_settings_with_defaults_filled_in(layers):
    params = layers[0].params
    assert params["d_in"] == "32" and params["d_sae"] == params["sae.d_sae"] == "128"
    assert params["sae.k"] == "4" and params["train.epochs"] == "3" and params["seed"] == "0"
    assert params["sae.aux_k"] == "16"  # half of d_in
    nobody_set = "sae.d_sae,sae.aux_k,train.learning_rate,train.resample_at"
    nobody_set += ",train.dead_after_tokens,train.aux_k_after_tokens"
    assert params["derived"] == nobody_set
    assert float(params["train.learning_rate"]) == pytest.approx(1e-3 / (128 / 2**14) ** 0.5)
    train_tokens = int(params["data.train_tokens"])
    assert params["train.dead_after_tokens"] == str(train_tokens // 2)
    waits = max(train_tokens // 20, 4 * int(params["train.batch_tokens"]))
    assert params["train.aux_k_after_tokens"] == str(waits)
    assert 3000 < train_tokens < 4096 and int(params["data.held_out_tokens"]) > 100
    assert params["data.giant_norm_train_tokens"] == "0"


def test_the_parent_has_the_resolved_settings_as_params_and_as_a_config(
    store, parent, settings, tmp_path
):
    assert set(settings.flat()) == set(parent.params)
    assert parent.params["model.layers"] == "1,layers.2.mlp"
    written = store.download(f"runs:/{parent.run_id}/config.yaml", tmp_path)
    assert load_settings(str(written)) == settings


def test_params_never_carry_an_mlproject_parameters_name(layers, parent):
    """`mlflow run` has logged those already, empty ones included, and params can't be changed."""
    project = yaml.safe_load((Path(__file__).parents[1] / "MLproject").read_text())
    names = set(project["entry_points"]["main"]["parameters"])
    assert not names & set(parent.params) and not names & set(layers[0].params)


EVALUATED = (
    *("ce_loss_original", "ce_loss_spliced", "ce_loss_zero_ablated", "ce_loss_recovered"),
    *("kl_divergence", "latents_over_1_percent", "latents_over_10_percent"),
    *("latents_dead_fraction", "decoder_max_cosine", "encoder_decoder_cosine"),
    "evaluation_tokens",
)


def test_an_evaluation_of_all_layers_follows_the_last_epoch(store, layers, training):
    for run, row in zip(layers, training.rows, strict=True):
        for name in EVALUATED:
            assert [s for _, s, _ in store.history(run.run_id, [name])] == [3], name
        assert row.evaluation == {name: run.metrics[name] for name in EVALUATED}
    assert layers[0].metrics["ce_loss_original"] == layers[1].metrics["ce_loss_original"]


def test_every_metric_has_one_value_an_epoch_from_step_one(store, layers):
    names = (
        *("total_loss", "reconstruction_loss", "sparsity_loss", "l0_norm", "fvu"),
        *("explained_variance", "cosine_similarity", "dead_fraction", "learning_rate"),
        *("tokens_per_second", "val_reconstruction_loss", "val_fvu", "val_l0_norm"),
        *("val_dead_fraction", "best_val_fvu", "best_epoch"),
    )
    for run in layers:
        assert set(run.metrics) == {*names, *EVALUATED}
        for name in names:
            steps = [step for _, step, _ in store.history(run.run_id, [name])]
            assert steps == [1, 2, 3], name


def test_the_best_epoch_is_kept_up_beside_the_last_value(store, layers):
    held_out = [value for _, _, value in store.history(layers[0].run_id, ["val_fvu"])]
    assert layers[0].metrics["best_val_fvu"] == min(held_out)
    assert layers[0].metrics["best_epoch"] == held_out.index(min(held_out)) + 1


def test_the_artifacts_are_those_of_the_contract(store, layers, parent, tmp_path):
    assert artifacts(store, layers[1], tmp_path / "layer") == {
        "training_plots/tiny-llama_layer2_mlp_training_history.png",
        "training_plots/tiny-llama_layer2_mlp_reconstruction_loss.png",
        "layer2_mlp_training_history.json",
        "sae/cfg.json",
        "sae/sae_weights.safetensors",
        "health.json",
        "evaluation/density.csv",
        "evaluation/density.png",
    }
    assert artifacts(store, parent, tmp_path / "parent") == {
        "training_plots/tiny-llama_all_layers_reconstruction_loss.png",
        "training_plots/tiny-llama_all_layers_total_loss.png",
        "training_plots/tiny-llama_all_layers_l0_norm.png",
        "training_plots/tiny-llama_all_layers.html",
        "config.yaml",
        "seconds_by_stage.json",
    }


def test_the_history_file_holds_what_the_store_holds(store, layers, tmp_path):
    file = store.download(f"runs:/{layers[0].run_id}/layer1_training_history.json", tmp_path)
    history = read_history(file)
    for key in ("total_loss", "reconstruction_loss", "sparsity_loss", "l0_norm", "val_fvu"):
        assert history[key] == [v for _, _, v in store.history(layers[0].run_id, [key])]


def test_the_description_is_a_table_of_layers_with_final_figures_and_links(parent, layers):
    note = parent.tags["mlflow.note.content"]
    for run in layers:
        page = f"#/experiments/{run.experiment_id}/runs/{run.run_id}?workflowType=machine_learning"
        assert f"[{run.layer}]({page})" in note
        assert f"{run.metrics['val_fvu']:.4f}" in note


def test_the_text_is_logged_as_an_input(store, parent):
    inputs = store._client.get_run(parent.run_id).inputs.dataset_inputs
    source = json.loads(inputs[0].dataset.source)
    assert source["context"] == 32 and "tiny.txt" in source["text"]


def test_the_stored_weights_reconstruct_raw_activations_as_well_as_the_run_says(
    store, layers, settings, training
):
    """The held-out FVU, recomputed in float64 from the cache's raw activations."""
    from sae_mlflow.activations.layer import open_activations
    from sae_mlflow.activations.plan import plan_activations
    from sae_mlflow.lm.loading import load_tokenizer
    from sae_mlflow.text.corpus import token_windows

    windows = token_windows(settings.text, load_tokenizer(settings.model))
    for run, acts in zip(
        layers, open_activations(plan_activations(settings, windows)), strict=True
    ):
        raw = torch.cat([b.x for b in acts.held_out_batches(100)]).double() / acts.scale_in
        sae = load_sae(f"runs:/{run.run_id}/sae", tracking_uri=store.uri).double()
        recon = sae(raw)
        fvu = ((raw - recon) ** 2).sum() / ((raw - raw.mean(0)) ** 2).sum()
        assert run.metrics["val_fvu"] == pytest.approx(fvu.item(), rel=1e-4)


def test_an_output_folder_gets_the_same_as_plain_files(home, store, layers, tmp_path):
    folder = home / "results" / "tiny-llama"
    files = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
    expected = {
        f"training_plots/tiny-llama_all_layers_{metric}.png"
        for metric in ("reconstruction_loss", "total_loss", "l0_norm")
    } | {"training_plots/tiny-llama_all_layers.html"}
    for layer in ("layer1", "layer2_mlp"):
        expected |= {
            f"{layer}_training_history.json",
            f"{layer}_sae/cfg.json",
            f"{layer}_sae/sae_weights.safetensors",
            f"{layer}_sae.pt",
            f"training_plots/tiny-llama_{layer}_training_history.png",
            f"training_plots/tiny-llama_{layer}_reconstruction_loss.png",
        }
    assert files == expected
    for run_id in (layers[0].parent_id, *(layer.run_id for layer in layers)):
        (tmp_path / run_id).mkdir()
        stored = store.download(f"runs:/{run_id}/training_plots", tmp_path / run_id)
        for picture in stored.iterdir():
            assert (folder / "training_plots" / picture.name).read_bytes() == picture.read_bytes()
    assert (
        read_history(folder / "layer1_training_history.json")["fvu"][-1] == layers[0].metrics["fvu"]
    )
    one = load_sae(folder / "layer1_sae").state_dict()
    other = load_sae(f"runs:/{layers[0].run_id}/sae", tracking_uri=store.uri).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in other)


def without(settings, **changes):
    """The same settings, but for some; no plain files, no pictures."""
    data = settings.model_dump() | {"output": {}, "plots": {"after_training": False}} | changes
    return type(settings).model_validate(data)


def test_a_second_training_gives_the_same_numbers_from_the_cache_in_the_experiment_named(
    training, settings, layers
):
    again = run_training(
        without(settings), Display(), experiment_name="named", tracking_uri=training.store.uri
    )
    assert "harvest" not in again.clock.seconds
    for row, run in zip(again.rows, layers, strict=True):
        assert row.history["val_fvu"][-1] == run.metrics["val_fvu"]
    named = training.store.find_experiment("named")
    assert [row.layer for row in training.store.layer_runs(named)] == ["layer2_mlp", "layer1"]


def test_a_picture_that_cannot_be_drawn_costs_a_warning_and_nothing_else(
    training, settings, monkeypatch, capsys
):
    import matplotlib.figure

    def broken(*_args, **_kwargs):
        raise OSError("no space left for pictures")

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", broken)
    unseen = without(
        settings, experiment="unseen", plots={}, train={"epochs": 1, "batch_tokens": 256}
    )
    again = run_training(unseen, Display(), tracking_uri=training.store.uri)
    rows = again.store.layer_runs(again.experiment.id)
    assert [row.status for row in rows] == ["FINISHED", "FINISHED"]
    shown = capsys.readouterr().out
    assert shown.count("weren't drawn") == 3 and "no space left for pictures" in shown


def test_a_layer_that_fails_leaves_failed_runs_that_say_why(training, settings, monkeypatch):
    """The second module gives only zeros, which nothing can be learned from."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: x * 0)
    model = settings.model.model_dump() | {"layers": ["layers.3.mlp"]}
    broken = without(settings, experiment="broken", model=model)
    with pytest.raises(ValueError, match="all activations are 0"):
        run_training(broken, Display(), tracking_uri=training.store.uri)
    experiment = training.store.find_experiment("broken")
    rows = list(training.store._search(experiment, ""))
    assert [row.status for row in rows] == ["FAILED"]
    assert "all activations are 0" in rows[0].tags["sae.failure"]


@pytest.mark.parametrize(
    ("role", "error", "status", "failure"),
    [
        ("sweep", KeyboardInterrupt(), "KILLED", "interrupted"),
        ("sweep", OSError("the disk is full"), "FAILED", "the disk is full"),
        ("layer", KeyboardInterrupt(), "KILLED", "interrupted"),
    ],
)
def test_no_run_stays_open_that_cannot_say_what_it_is(
    role, error, status, failure, training, settings, monkeypatch
):
    """What goes wrong while a run's params are logged, right after it was opened."""
    log_params = OpenRun.log_params

    def broken(run, params):
        if ("lm.n_layers" in params) == (role == "layer"):
            raise error
        log_params(run, params)

    monkeypatch.setattr(OpenRun, "log_params", broken)
    name = f"{role} {status}"
    with pytest.raises(type(error)):
        run_training(without(settings, experiment=name), Display(), tracking_uri=training.store.uri)
    rows = list(training.store._search(training.store.find_experiment(name), ""))
    assert {row.status for row in rows} == {status}
    assert {row.tags["sae.failure"] for row in rows} == {failure}
