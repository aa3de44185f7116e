"""The model registry on a real SQLite store: what is registered, promoted, and outlives its run."""

import math
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import torch
import yaml
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file, save_file
from saved_saes import change_config, saved

from sae_mlflow import __main__ as cli
from sae_mlflow import load_sae
from sae_mlflow.config import Settings
from sae_mlflow.config_load import load_settings, setting_docs
from sae_mlflow.config_set import parse_set
from sae_mlflow.errors import UserError
from sae_mlflow.naming import registered_name, sanitise
from sae_mlflow.pipeline import run_training
from sae_mlflow.plots.choice import Choice
from sae_mlflow.registry import promote, register_run
from sae_mlflow.reporting.display import Display
from sae_mlflow.reporting.stopwatch import Stopwatch
from sae_mlflow.runs import layer as layer_run
from sae_mlflow.runs.later import now_or_later, registration
from sae_mlflow.runs.training import Experiment, Training
from sae_mlflow.stopping import Stopping
from sae_mlflow.tracking.journalled import JournalledStore
from sae_mlflow.tracking.operations import is_pending
from sae_mlflow.tracking.store import Store


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("registry")


@pytest.fixture(scope="module")
def sae_folder(home):
    """The files of an SAE, and raw activations."""
    _, acts = saved(home / "sae")
    return home / "sae", acts


@pytest.fixture(scope="module")
def made_store(home):
    return Store(f"sqlite:///{home / 'mlflow.db'}")


@pytest.fixture
def store(made_store, home, monkeypatch):
    monkeypatch.chdir(home)  # where artifacts land
    return made_store


@pytest.fixture
def model(request):
    """Each test's own language model, and so its own registered models."""
    return f"org/{request.node.originalname[:60]}"


@pytest.fixture
def experiment(store, request):
    name = sanitise(request.node.name)
    store.experiment_id(name)
    return name


@pytest.fixture
def trained(store, experiment, model, sae_folder):
    """`trained(layer, fvu, l0)`: a finished layer run with an SAE; returns its id."""

    def train(
        layer="layer10", fvu=0.3, l0=32.0, status="FINISHED", setting=model, kind="topk", tokens=9
    ):
        tags = {"sae.role": "layer", "sae.model": model, "sae.layer": layer}
        tags["sae.architecture"] = kind
        run = store.open_run(store.experiment_id(experiment), "r", tags)
        run.log_params({"model.name": setting, "text.source": "a.txt", "text.tokens": tokens})
        run.log_metrics(1, {"val_fvu": 0.9, "val_l0_norm": 1.0})
        run.log_metrics(2, {"val_fvu": fvu, "val_l0_norm": l0})
        run.log_folder(sae_folder[0], "sae")
        run.finish(status)
        return run.run_id

    return train


def test_a_run_is_registered_once_as_model_and_layer(store, trained, model):
    name = registered_name(model, "layer10")
    assert name.startswith("org--test_a_run") and name.endswith("-layer10")
    run = trained()
    assert register_run(store, run) == (f"models:/{name}/1", True)
    assert register_run(store, run) == (f"models:/{name}/1", False)
    assert register_run(store, trained()) == (f"models:/{name}/2", True)


def test_an_sae_that_cannot_be_opened_is_not_registered(store, trained, model, tmp_path):
    run = trained()
    artifacts = mlflow.MlflowClient(store.uri).get_run(run).info.artifact_uri
    weights = Path(artifacts.removeprefix("file://")) / "sae" / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UserError, match=rf"runs:/{run}/sae.*sae_weights\.safetensors"):
        register_run(store, run)
    assert (
        mlflow.MlflowClient(store.uri).search_registered_models(f"name LIKE '%{model[4:]}%'") == []
    )


def test_the_model_gives_latents_through_mlflow_and_an_sae_through_load_sae(
    store, trained, sae_folder, monkeypatch
):
    uri, _ = register_run(store, trained())
    folder, acts = sae_folder
    latents = load_sae(folder).encode(acts)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    served = mlflow.pyfunc.load_model(uri)
    for given in (acts.numpy(), acts.double().numpy(), acts):
        assert torch.equal(torch.from_numpy(served.predict(given)), latents)
    assert torch.equal(torch.from_numpy(served.predict(acts.clone().requires_grad_())), latents)
    rounded = load_sae(folder).encode(acts.bfloat16().float())
    assert torch.equal(torch.from_numpy(served.predict(acts.bfloat16())), rounded)
    assert served.predict(acts.view(1, *acts.shape).numpy()).shape == (1, *latents.shape)
    with pytest.raises(ValueError, match=r"acts are \[37, 9\], but this SAE reads \[..., 10\]"):
        served.predict(acts[:, :9].numpy())
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert torch.equal(load_sae(uri, tracking_uri=store.uri).encode(acts), latents)


def test_the_model_is_code_and_safetensors_with_explicit_requirements(store, trained, tmp_path):
    uri, _ = register_run(store, trained())
    folder = store.download(uri, tmp_path)
    files = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
    assert {"registered_model.py", "artifacts/sae/cfg.json"} < files
    assert not any(name.endswith((".pkl", ".pt")) for name in files)
    requirements = (folder / "requirements.txt").read_text().split()
    assert [line.partition("==")[0] for line in requirements] == [
        "sae-mlflow",
        "mlflow",
        "torch",
        "numpy",
        "safetensors",
    ]
    assert not any("+" in line for line in requirements)
    flavor = yaml.safe_load((folder / "MLmodel").read_text())["flavors"]["python_function"]
    assert Path(flavor["model_code_path"]).name == "registered_model.py"


def test_a_promoted_model_outlives_its_run(store, trained, experiment, model, sae_folder):
    run = trained()
    list(promote(store, experiment, max_l0=40))
    client = mlflow.MlflowClient(store.uri)
    artifacts = Path(client.get_run(run).info.artifact_uri.removeprefix("file://"))
    client.delete_run(run)
    shutil.rmtree(artifacts)
    uri = f"models:/{registered_name(model, 'layer10')}@best"
    folder, acts = sae_folder
    latents = load_sae(folder).encode(acts)
    assert torch.equal(load_sae(uri, tracking_uri=store.uri).encode(acts), latents)
    code = (
        "import mlflow, numpy as np, sys; mlflow.set_tracking_uri(sys.argv[1]);"
        "print(mlflow.pyfunc.load_model(sys.argv[2]).predict(np.zeros((3, 10))).shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, store.uri, uri], capture_output=True, text=True
    )
    assert done.stdout.strip() == "(3, 96)", done.stderr


def test_promote_moves_best_to_the_lowest_fvu_within_the_l0(store, trained, experiment, model):
    """By last values: every run was at L0 1 and FVU 0.9 after its first epoch."""
    name = registered_name(model, "layer10")
    dense, good, worse = trained(fvu=0.1, l0=64), trained(fvu=0.3, l0=32), trained(fvu=0.4, l0=30)
    trained(fvu=0.01, l0=1, status="FAILED")
    trained(fvu=float("nan"), l0=1)
    assert list(promote(store, experiment, max_l0=32)) == [
        f"models:/{name}@best moved to version 1 (run {good}, val_fvu 0.3 at L0 32)"
    ]
    assert list(promote(store, experiment, max_l0=32.5)) == [
        f"models:/{name}@best stays at version 1 (run {good}, val_fvu 0.3 at L0 32)"
    ]
    assert f"from version 1 to version 2 (run {dense}" in next(promote(store, experiment, 64))
    assert f"from version 2 to version 3 (run {worse}" in next(promote(store, experiment, 31))
    assert "from version 3 to version 1" in next(promote(store, experiment, 32))
    assert store.models.aliased_version(name, "best") == "1"


def test_promote_goes_by_model_and_layer_or_one_of_them(store, trained, experiment, model):
    trained("layer10", l0=32), trained("layer9", l0=32), trained("layer20", l0=64)
    lines = list(promote(store, experiment, max_l0=40))
    assert ["layer9@best" in lines[0], "layer10@best" in lines[1]] == [True, True]
    assert "layer20: no run has val_l0_norm <= 40; the lowest there is 64" in lines[2]
    for layer in ("9", "layer9", "layers.9"):
        (line,) = promote(store, experiment, 40, model=model, layer=layer)
        assert "layer9@best stays at version 1" in line
    with pytest.raises(UserError, match="has no finished run of layer11. There are: org/"):
        list(promote(store, experiment, 40, layer="layer11"))


def test_two_folders_of_one_name_are_two_models(store, trained, experiment, model):
    """Their val_fvu aren't held against each other, and one of them can be asked for."""
    folders = {path: trained(setting=path) for path in ("/a/checkpoint-9", "/b/checkpoint-9")}
    names = {path: registered_name(model, "layer10", path) for path in folders}
    moved = {
        path: f"models:/{names[path]}@best moved to version 1 (run {run}, val_fvu 0.3 at L0 32)"
        for path, run in folders.items()
    }
    assert names["/a/checkpoint-9"] != names["/b/checkpoint-9"]
    (line,) = promote(store, experiment, 40, model="/b/checkpoint-9")
    assert line == moved["/b/checkpoint-9"]
    stays = moved["/b/checkpoint-9"].replace("moved to", "stays at")
    assert sorted(promote(store, experiment, 40)) == sorted([moved["/a/checkpoint-9"], stays])


def test_transcoders_of_a_module_are_promoted_apart_from_its_autoencoders(
    store, trained, experiment, model
):
    """They read its input and not its output: their val_fvu says nothing of one another."""
    sae = trained("layer1_mlp", fvu=0.3)
    trained("layer1_mlp", fvu=0.2, kind="transcoder")
    skip = trained("layer1_mlp", fvu=0.1, kind="skip_transcoder")
    name = registered_name(model, "layer1_mlp")
    assert sorted(promote(store, experiment, 40)) == [
        f"models:/{name}-transcoder@best moved to version 1 (run {skip}, val_fvu 0.1 at L0 32)",
        f"models:/{name}@best moved to version 1 (run {sae}, val_fvu 0.3 at L0 32)",
    ]


def test_promote_compares_only_runs_of_the_newest_ones_text(store, trained, experiment):
    """A val_fvu of other held-out tokens is another number."""
    trained(fvu=0.1, tokens=5), trained(fvu=0.1, tokens=7), trained("layer11", tokens=5)
    good, _ = trained(fvu=0.3), trained(fvu=0.4)
    said, layer10, layer11 = promote(store, experiment, 40)
    assert said == (
        "2 of 5 runs are left out: their text.* settings differ from those of the newest run of "
        "their layer, so their val_fvu is of other held-out tokens"
    )
    assert f"(run {good}, val_fvu 0.3" in layer10 and "layer11@best" in layer11
    with pytest.raises(UserError, match="the lowest there is 32"):
        list(promote(store, experiment, 31))


def test_promote_without_a_run_within_the_l0_names_the_lowest(store, trained, experiment):
    trained(l0=64)
    low = trained(l0=48.5)
    expected = rf"has val_l0_norm <= 32; the lowest there is 48.5 \(run {low}\). Raise --max-l0"
    with pytest.raises(UserError, match=expected):
        list(promote(store, experiment, max_l0=32))


def test_a_run_whose_val_fvu_is_no_number_is_not_the_best_and_the_reason_is_told(
    store, trained, experiment
):
    """Of an infinity a store makes the largest float."""
    nan, infinite = trained(fvu=math.nan, l0=31), trained(fvu=math.inf, l0=32)
    with pytest.raises(UserError) as error:
        list(promote(store, experiment, max_l0=40))
    assert str(error.value) == (
        f"'{experiment}': no run with val_l0_norm <= 40 has a val_fvu that is a number (not "
        f"{infinite}, {nan}). Train again."
    )
    trained("layer11")
    first, second = promote(store, experiment, max_l0=40)
    assert f"has a val_fvu that is a number (not {infinite}, {nan})" in first
    assert "layer11@best moved to version 1" in second


def test_a_run_without_an_l0_is_within_none(store, experiment, trained, model):
    tags = {"sae.role": "layer", "sae.model": model, "sae.layer": "layer10"}
    run = store.open_run(store.experiment_id(experiment), "r", tags)
    run.log_metrics(1, {"val_fvu": 0.1})
    run.finish("FINISHED")
    with pytest.raises(UserError, match="none has a val_l0_norm that is a number. Raise --max-l0"):
        list(promote(store, experiment, max_l0=math.inf))
    good = trained()
    assert f"(run {good}," in next(promote(store, experiment, max_l0=math.inf))


def test_a_best_run_that_cannot_be_registered_costs_the_other_layers_nothing(
    store, trained, experiment, model
):
    bad = trained("layer9")
    artifacts = mlflow.MlflowClient(store.uri).get_run(bad).info.artifact_uri
    shutil.rmtree(Path(artifacts.removeprefix("file://")) / "sae")
    trained("layer10"), trained("layer11")
    with pytest.raises(UserError) as error:
        list(promote(store, experiment, max_l0=40))
    assert str(error.value).startswith(
        f"{registered_name(model, 'layer9')}: runs:/{bad}/sae can't be read"
    )
    for layer in ("layer10", "layer11"):
        assert store.models.aliased_version(registered_name(model, layer), "best") == "1"


def test_a_training_registers_its_layers_where_it_is_asked_to(
    made_store, tiny_model, text_file, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    settings = Settings.model_validate(
        {
            "experiment": "registering",
            "register": True,
            "model": {"name": str(tiny_model), "layers": [1, 2], "device": "cpu"},
            "text": {"source": str(text_file), "tokens": 2048, "context": 32},
            "sae": {"k": 4, "expansion_factor": 2},
            "train": {"epochs": 1, "batch_tokens": 128},
            "plots": {"after_training": False},
            "evaluate": {"after_training": False},
        }
    )
    training = run_training(settings, Display(), tracking_uri=made_store.uri)
    for row in training.rows:
        own = load_sae(f"runs:/{row.run_id}/sae", tracking_uri=made_store.uri)
        uri = f"models:/{registered_name('tiny-llama', row.layer, str(tiny_model))}/1"
        registered = load_sae(uri, tracking_uri=made_store.uri)
        assert torch.equal(registered.W_enc, own.W_enc)
        assert register_run(made_store, row.run_id) == (uri, False)


def test_register_is_a_setting_like_any_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("register: true\n")
    settings = load_settings("a.yaml")
    assert settings.register_model and settings.flat()["register"] is True
    assert not load_settings("a.yaml", parse_set("register=false")).register_model
    Path("b.yaml").write_text(settings.to_yaml())
    assert load_settings("b.yaml") == settings
    assert ("register", "False") in [(key, default) for key, default, _ in setting_docs()]
    with pytest.raises(UserError, match=r"--set: register = 'maybe', but .* register: Register"):
        load_settings("a.yaml", parse_set("register=maybe"))


@pytest.fixture
def journalled(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # as a training sets it
    journalled = JournalledStore(f"{store.uri}?timeout=0.1", print)
    yield journalled
    journalled.close()


def training_in(store):
    ours = Settings(), store, Experiment("e", "0"), Display(), Stopwatch(), torch.device("cpu")
    return Training(*ours, Choice(), n_layers=1, stopping=Stopping())


def test_a_registry_that_refuses_costs_a_warning_alone(journalled, trained, capsys, home):
    run = journalled.reopen(trained())
    layer_run._register(training_in(journalled), run, home / "nowhere")
    assert f"register it later: sae-mlflow register --run {run.run_id}" in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_run_without_an_id_yet_is_registered_under_the_one_that_it_gets(
    journalled, experiment, model, home, sae_folder
):
    """Another process locks the store while the run is opened."""
    experiment_id = journalled.experiment_id(experiment)
    other = sqlite3.connect(home / "mlflow.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    tags = {"sae.role": "layer", "sae.model": model, "sae.layer": "layer10"}
    run = journalled.open_run(experiment_id, "r", tags)
    task = registration(run.run_id)
    assert is_pending(task.run_id)
    other.execute("ROLLBACK")
    other.close()
    assert journalled.wait(20)
    name = registered_name(model, "layer10")
    made = now_or_later(training_in(journalled), task, sae_folder[0])
    assert made == [f"models:/{name}/1"]
    assert journalled.models.version_of_run(name, run.run_id) == "1"


def command(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["sae-mlflow", *args])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


def test_the_commands_register_promote_and_export(
    store, trained, experiment, sae_folder, monkeypatch, capsys, tmp_path
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    run = trained()
    assert command(monkeypatch, "register", "--run", run) == 0
    uri = capsys.readouterr().out.split()[0]
    assert command(monkeypatch, "promote", "--experiment", experiment, "--max-l0", "32") == 0
    assert "moved to version 1" in capsys.readouterr().out
    best = uri.rpartition("/")[0] + "@best"
    folder, acts = sae_folder
    wanted = load_sae(folder).encode(acts)
    for source in (["--run", run], ["--model", best], ["--model", uri]):
        for name in ("sae_lens", "sparsify", "dictionary_learning", "pt"):
            out = tmp_path / f"{source[1]}-{name}".replace("/", "-")
            assert (
                command(monkeypatch, "export", *source, "--format", name, "--output", str(out)) == 0
            )
            torch.testing.assert_close(load_sae(out).encode(acts), wanted)
    assert f"topk SAE, 10 -> 96 latents, as pt in {out}" in capsys.readouterr().out


def test_an_sae_whose_weights_are_no_numbers_is_not_exported(
    store, trained, sae_folder, monkeypatch, capsys, tmp_path
):
    """`load_sae` opens all that is exported."""
    run = store.reopen(trained())
    broken = Path(shutil.copytree(sae_folder[0], tmp_path / "sae"))
    change_config(broken)
    weights = load_file(broken / "sae_weights.safetensors")
    weights["W_dec"][0, 0] = math.nan
    save_file(weights, broken / "sae_weights.safetensors")
    run.log_folder(broken, "sae")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    out = tmp_path / "out"
    words = ("--run", run.run_id, "--format", "pt", "--output", str(out))
    assert command(monkeypatch, "export", *words) == 2
    assert "weights that aren't numbers (NaN or infinity): 1 of 960" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("export --format pt --output OUT", "Give one of --run ID and --model"),
        ("export --run RUN --model models:/a/1 --format pt --output OUT", "Give one of --run ID"),
        ("export --run RUN --format onnx --output OUT", "--format 'onnx' is not known. There are"),
        ("export --run RUN --format pt --output FULL", "is not empty. Name a new folder"),
        ("export --run RUN --format pt --output FULL/file/x", "can't be written"),
        ("export --run gone --format pt --output OUT", "No run 'gone' in"),
        ("export --run PARENT --format pt --output OUT", "run: none of this training's has fini"),
        ("export --run OTHER --format pt --output OUT", "Give a layer's run: it has none."),
        ("export --run RUN --format sae_lense --output OUT", "Did you mean sae_lens? There are"),
        ("export --model name@best --format pt --output OUT", "write it as models:/NAME@ALIAS"),
        ("export --model models:/no@best --format pt --output OUT", "models:/no@best can't be rea"),
        ("export --model models:/no@best --format pt --output OUT", ". Registered there: "),
        ("export --model models:/no/7 --format pt --output OUT", "models:/no/7 can't be read"),
        ("export --model models:/no --format pt --output OUT", "models:/no can't be read"),
        ("export --model models:/known --format pt --output OUT", "/known there are: @best, /1."),
        ("export --model models:/known@old --format pt --output OUT", "there are: @best, /1."),
        ("export --model models:/knwon@best --format pt --output OUT", "Did you mean known?"),
        ("register --run gone", "No run 'gone' in"),
        ("register --run PARENT", "holds no SAE. Give a layer's run"),
        ("promote --experiment gone --max-l0 32", "No experiment 'gone'"),
        ("promote --experiment EXPERIMENT --max-l0 1", "the lowest there is 32"),
        ("promote --experiment EXPERIMENT --max-l0 nan", "--max-l0 nan is no L0. Give a number"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(
    args, message, store, trained, experiment, monkeypatch, capsys, tmp_path
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").write_text("")
    parent = store.open_run(store.experiment_id(experiment), "p", {"sae.role": "sweep"}).run_id
    other = store.open_run(store.experiment_id(experiment), "o", {}).run_id
    if not store.models.aliased_version("known", "best"):
        client = MlflowClient(store.uri)
        client.create_registered_model("known")
        client.create_model_version("known", str(tmp_path))
        store.models.move_alias("known", "best", "1")
    names = {"RUN": trained(), "PARENT": parent, "OUT": tmp_path / "out", "FULL": full}
    names["OTHER"] = other
    for name, value in (names | {"EXPERIMENT": experiment}).items():
        args = args.replace(name, str(value))
    assert command(monkeypatch, *args.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    assert message in error
    assert not (tmp_path / "out").exists()


def test_a_run_may_be_named_as_commands_print_it(store, trained, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    words = ("--run", f"runs:/{trained()}/sae", "--format", "pt", "--output", str(tmp_path / "out"))
    assert command(monkeypatch, "export", *words) == 0, capsys.readouterr().err
    assert (tmp_path / "out" / "sae.pt").is_file()


def test_a_parent_that_is_opened_names_its_layers(store, experiment, trained):
    run_id = trained()
    parent = store.open_run(store.experiment_id(experiment), "p", {"sae.role": "sweep"})
    with pytest.raises(
        UserError, match="holds no SAE. Give a layer's run: none of this training's"
    ):
        load_sae(f"runs:/{parent.run_id}/sae", tracking_uri=store.uri)
    with pytest.raises(UserError, match=f"runs:/{run_id}/other can't be read from "):
        load_sae(f"runs:/{run_id}/other", tracking_uri=store.uri)
