"""Passwords and tokens: never in a store, on a terminal, in an error or in a file."""

import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import quote

import pytest
import typer
import yaml
from faults.tracking_server import TrackingServer
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file, save_file

from sae_mlflow import assets
from sae_mlflow.commands.cli import run_cli
from sae_mlflow.errors import UserError
from sae_mlflow.reporting.display import Display
from sae_mlflow.secrets import remember, without_secrets
from sae_mlflow.text.embedded import TEXT
from sae_mlflow.tracking.launcher import launched_run
from sae_mlflow.tracking.store import Store

SECRET = "S3cret-of-mine!"
AWKWARD = "p@ss/w0rd'\"&%é"  # what an address, JSON and HTML each write in another way


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:secret@host:5432/db failed", "postgresql://me:***@host:5432/db failed"),
        ("'mysql+pymysql://me:a@b/c:d@host/db'", "'mysql+pymysql://me:***@host/db'"),
        ("http://a:b@c/d and http://e:f@g", "http://a:***@c/d and http://e:***@g"),
        ("https://ghtoken@github.com/me/x.git", "https://***@github.com/me/x.git"),
        ("https://0123456789abcdef0123:@host", "https://***:***@host"),
        ("models://0123456789abcdef0123@host", "models://***@host"),
        (
            "mysql://host/db?user=me&password=abc&ssl=1",
            "mysql://host/db?user=me&password=***&ssl=1",
        ),
        ("http://h/?api_key=abc", "http://h/?api_key=***"),
        (
            "x?odbc_connect=UID%3Dme%3BPWD%3Dabc%3BA%3D1",
            "x?odbc_connect=UID%3Dme%3BPWD%3D***%3BA%3D1",
        ),
        ("no file https:/me:secret@host/a.txt here", "no file https:/me:***@host/a.txt here"),
        ("host=x password=abc user=me", "host=x password=*** user=me"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("hf_abcdefghijklmnopqrstuvwxyzABCDEFGH is wrong", "*** is wrong"),
    ],
)
def test_a_secret_is_known_by_its_form(text, shown):
    assert without_secrets(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////home/me/mlflow.db",
        "postgresql://me@host/db",
        "http://127.0.0.1:5000/#/experiments/1/runs/2?workflowType=machine_learning",
        "ssh://git@github.com/me/x.git",
        "models:/gpt2-layer10@best moved to version 2",
        "models:/smollm2-135m-layer10@best moved to version 2",
        "models:/meta-llama--Llama-2-7b-hf-layer10@best",
        "models:/HuggingFaceTB--SmolLM2-135M-Instruct-layer10_mlp@best",
        "text.tokens = 4096; token 17 of 50; the password is asked for",
        "meta-llama-Llama-2-7b-hf_layer10_training_history_of_all_layers_and_more.png",
        "mail me@host.org, or see https://host/a?b=1#c and layers.10.mlp:input",
    ],
)
def test_what_is_no_secret_stays(text):
    assert without_secrets(text) == text


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HF_TOKEN", SECRET),
        ("MLFLOW_TRACKING_PASSWORD", SECRET),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
        ("HTTPS_PROXY", f"http://me:{SECRET}@proxy:3128"),
        ("PIP_INDEX_URL", f"https://{SECRET}{SECRET}@index/simple"),
        ("DATABASE_URL", f"mysql://host/db?password={SECRET}"),
    ],
)
def test_what_the_environment_keeps_secret_is_hidden_wherever_it_stands(
    variable, value, monkeypatch
):
    text = f"the server answered: {value.partition('=')[2] or value} ({SECRET * 2})"
    monkeypatch.setenv(variable, value)
    assert SECRET not in without_secrets(text)


@pytest.mark.parametrize(
    "variable",
    [
        *("HF_TOKEN", "MLFLOW_TRACKING_TOKEN", "CI_JOB_TOKEN_2", "X_API_KEY", "OPENAI_APIKEY"),
        *("DB_PASSWORD", "PGPASSWORD", "MYSQL_PWD", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID"),
        *("NPM_AUTH", "SSH_PRIVATE_KEY", "CLIENT_SECRET", "APP_SECRETS", "GIT_CREDENTIALS"),
    ],
)
def test_a_variable_whose_name_says_secret_is_one(variable, monkeypatch):
    monkeypatch.setenv(variable, SECRET)
    assert without_secrets(f"with {SECRET}, too") == "with ***, too"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TRAIN_TOKENS", "100000000"),
        ("MAX_TOKEN", "100,000,000"),
        ("DB_PASSWORD", "20240101"),  # a date as well; in an address it is hidden all the same
        ("TOKENIZER_NAME", "meta-llama/Llama-2-7b-hf"),
        ("TOKENIZERS_PARALLELISM", "not-at-all"),
        ("SECRETARY", "Mx Smith of 3b"),
        ("MLFLOW_TRACKING_URI", "postgresql://research-team:S3cret-of-mine!@db/mlflow"),
        ("OTHER_STORE", "postgresql://me:20240101@db/mlflow"),
    ],
)
def test_what_the_environment_doesnt_keep_secret_stays(variable, value, monkeypatch):
    monkeypatch.setenv(variable, value)
    text = (
        "text.tokens = 100000000 or 100,000,000 of meta-llama/Llama-2-7b-hf since 20240101 in "
        "/data/research-team/llama by Mx Smith of 3b, not-at-all"
    )
    assert without_secrets(text) == text
    if "://" in value:
        user = value.split(":")[1]
        assert without_secrets(value) == f"postgresql:{user}:***@db/mlflow"


def test_a_variable_that_goes_away_meanwhile_is_no_trouble(monkeypatch):
    """MLflow's telemetry sets and removes one in a thread of its own."""
    done = threading.Event()

    def come_and_go():
        while not done.is_set():
            os.environ["SAE_MLFLOW_NOW_AND_THEN"] = "1"
            del os.environ["SAE_MLFLOW_NOW_AND_THEN"]

    monkeypatch.setenv("HF_TOKEN", SECRET)
    interval = sys.getswitchinterval()
    other = threading.Thread(target=come_and_go)
    sys.setswitchinterval(1e-6)
    other.start()
    try:
        until = time.monotonic() + 1
        while time.monotonic() < until:
            assert without_secrets(f"with {SECRET}, too") == "with ***, too"
    finally:
        done.set()
        other.join()
        sys.setswitchinterval(interval)


@pytest.mark.parametrize("write", [str, quote, lambda s: quote(s, safe=""), json.dumps, repr])
def test_a_password_is_hidden_however_it_is_written(write):
    remember(f"postgresql://me:{AWKWARD}@host/db")
    shown = without_secrets(
        f"it said {write(AWKWARD)} and postgresql://me:{write(AWKWARD)}@host/db"
    )
    assert "w0rd" not in shown and "host/db" in shown


def test_a_weak_password_is_hidden_in_its_place_and_words_stay_words():
    remember("postgresql://mlflow:mlflow@host/mlflow")
    text = "mlflow run failed at postgresql://mlflow:mlflow@host/mlflow"
    assert without_secrets(text) == "mlflow run failed at postgresql://mlflow:***@host/mlflow"


@pytest.mark.parametrize(
    "address",
    [
        f"http://me:{SECRET}@127.0.0.1:9/",
        f"postgresql://me:{SECRET}@127.0.0.1:9/db",
        f"postgresql://me:{SECRET}/{SECRET}@127.0.0.1:9/db",
        f"postgresql://me:{SECRET}[@127.0.0.1:9/db",
        f"mysql://127.0.0.1:9/db?user=me&password={SECRET}",
        f"sqlite:////nowhere/at/all.db?password={SECRET}",
        f"nosuch://me:{SECRET}@127.0.0.1:9/db",
    ],
)
def test_a_store_out_of_reach_is_told_of_without_its_password(address):
    with pytest.raises(UserError) as caught:
        Store(address)
    assert SECRET not in str(caught.value) and "\n" not in str(caught.value)


def test_what_pip_says_is_told_without_its_indexs_password():
    stderr = f"ERROR: no match at https://me:{SECRET}@index.example/simple/\n"
    said = assets._why_pip_failed(TEXT, stderr)
    assert SECRET not in said and "https://me:***@index.example/simple/" in said


def test_an_unexpected_error_has_its_traceback_without_secrets(capsys):
    app = typer.Typer()

    @app.command()
    def fails() -> None:
        raise RuntimeError(f"could not connect to postgresql://me:{SECRET}@host/db")

    argv, sys.argv = sys.argv, ["x"]
    try:
        with pytest.raises(SystemExit) as end:
            run_cli(app)
    finally:
        sys.argv = argv
    said = capsys.readouterr().err
    assert end.value.code == 1
    assert said.startswith("Traceback") and "postgresql://me:***@host/db" in said
    assert SECRET not in said


def test_the_display_hides_secrets_in_lines_warnings_and_logs(capsys):
    import logging

    from rich.console import Console

    display = Display(Console(width=200))
    address = f"http://me:{SECRET}@host"
    display.say(address)
    display.warn(address)
    logging.getLogger("sae_mlflow.any").warning("at %s", address)
    said = capsys.readouterr().out
    assert said.count("http://me:***@host") == 3 and SECRET not in said


def test_what_mlflow_run_left_of_its_projects_address_is_hidden(tmp_path, monkeypatch):
    store = Store(f"sqlite:///{tmp_path / 'mlflow.db'}")
    client = MlflowClient(store.uri)
    address = f"https://me:{SECRET}@host/project.git"
    experiment = client.create_experiment("x", artifact_location=tmp_path.as_uri())
    run = client.create_run(experiment, tags={"mlflow.source.name": address, "other": "stays"})
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    assert launched_run(store) is not None
    tags = client.get_run(run.info.run_id).data.tags
    assert tags["mlflow.source.name"] == "https://me:***@host/project.git"
    assert tags["other"] == "stays"


# -- a real training, with a secret in every place ------------------------------------------

PLACES = {
    "tracking": "Tracking-Pass-1x",
    "hf": "hf_Token2xTokenTokenToken2x",
    "mlflow": "Mlflow-Token-3x",
    "proxy": "Proxy-Pass-4x",
    "index": "Index-Pass-5x",
    "git": "ghp_Git6xGit6xGit6xGit6xGit6x",
    "source": "Source-Pass-7x",
    "model": "Model-Pass-8x",
    "database": "Database-Pass-9x",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_model, text_file):
    """What is left of trainings by command, one that goes well and three that don't: texts."""
    folder = tmp_path_factory.mktemp("secrets")
    served = folder / "served"
    served.mkdir()
    project = folder / "project"
    project.mkdir()
    remote = f"https://{PLACES['git']}@github.com/me/project.git"
    for words in (
        ["init", "-q"],
        ["remote", "add", "origin", remote],
        [
            *("-c", "user.name=me", "-c", "user.email=me@host"),
            *("commit", "-q", "--allow-empty", "-m", "first"),
        ],
    ):
        subprocess.run(["git", *words], cwd=project, check=True)
    config = {
        "experiment": "kept",
        "trackers": ["mlflow", "tensorboard"],
        "register": True,
        "model": {"name": str(tiny_model), "layers": [1], "device": "cpu"},
        "text": {"source": str(text_file), "tokens": 2048, "context": 32},
        "sae": {"k": 4},
        "train": {"batch_tokens": 128, "epochs": 1},
        "output": {"dir": "out"},
        "plots": {"after_training": False},
    }
    # MLflow tags a run with the repository of the file that was started
    (project / "start.py").write_text("from sae_mlflow.__main__ import main\nmain()\n")
    (project / "x.yaml").write_text(yaml.safe_dump(config))
    environment = os.environ | {
        "HF_TOKEN": PLACES["hf"],
        "MLFLOW_TRACKING_TOKEN": PLACES["mlflow"],
        "HTTPS_PROXY": f"http://me:{PLACES['proxy']}@127.0.0.1:9",
        "PIP_INDEX_URL": f"https://me:{PLACES['index']}@127.0.0.1:9/simple",
        "DATABASE_URL": f"postgresql://host/db?user=me&password={PLACES['database']}",
        "SAE_MLFLOW_CACHE": str(folder / "cache"),
        "SAE_MLFLOW_STATE": str(folder / "state"),
        "NO_PROXY": "127.0.0.1",
    }
    server = TrackingServer(served)
    server.start()
    uri = server.uri.replace("http://", f"http://me:{PLACES['tracking']}@")
    said = []

    def run(*words: str) -> int:
        done = subprocess.run(
            [sys.executable, "start.py", *words, "--tracking-uri", uri],
            cwd=project,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
        )
        said.append(done.stdout + done.stderr)
        return done.returncode

    try:
        assert run("train", "--config", "x.yaml") == 0, said
        no_text = f"text.source=https://me:{PLACES['source']}@127.0.0.1:9/a.txt"
        assert run("train", "--config", "x.yaml", "--set", no_text) == 2
        no_model = f"https://me:{PLACES['model']}@127.0.0.1:9/model"
        assert run("train", "--config", "x.yaml", "--model-name", no_model) == 2
        broken = _there_after_all(project, tiny_model, text_file)
        both = ("--model-name", broken, "--set", no_text)
        assert run("train", "--config", "x.yaml", *both) == 2
        assert run("report", "--experiment", "kept", "--output", "report.html") == 0
        runs = {row.status: row for row in _rows(server.uri)}
    finally:
        server.stop()
    return folder, said, runs


def _there_after_all(project: Path, tiny_model: Path, text_file: Path) -> str:
    """A text in a folder whose name looks like an address, and a model in another, whose weights
    are no numbers: a run is opened for them, and fails. Returns the model's name."""
    text = project / f"https:/me:{PLACES['source']}@127.0.0.1:9/a.txt"
    text.parent.mkdir(parents=True)
    shutil.copy(text_file, text)
    name = "https://me:Folder-0x@127.0.0.1:9/model"  # the cache knows it, as a folder has it
    model = Path(shutil.copytree(tiny_model, project / name))
    weights = load_file(model / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][:] = math.nan
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    return name


def _rows(uri):
    store = Store(uri)
    return store.parent_runs(store.find_experiment("kept"), running=False)


def _holders(folder: Path, secret: str) -> list[Path]:
    forms = [secret.encode(), quote(secret, safe="").encode()]
    ours = [f for f in folder.rglob("*") if f.is_file() and ".git" not in f.parts]
    assert len(ours) > 30
    return [file for file in ours if any(form in file.read_bytes() for form in forms)]


@pytest.mark.parametrize("place", PLACES)
def test_a_training_leaves_no_secret_anywhere(trained, place):
    """Neither in the database, nor in artifacts, plain files, TensorBoard's, or on the terminal."""
    folder, said, _ = trained
    assert PLACES[place] not in "\n".join(said)
    assert _holders(folder, PLACES[place]) == []


def test_what_was_hidden_is_still_told_of(trained):
    """So that the test above looked at runs that would have had them."""
    _, said, runs = trained
    assert set(runs) == {"FINISHED", "FAILED"}
    repository = runs["FINISHED"].tags["mlflow.source.git.repoURL"]
    assert repository.endswith("github.com/me/project.git")
    assert runs["FAILED"].params["text.source"] == "https://me:***@127.0.0.1:9/a.txt"
    assert "https://me:***@127.0.0.1:9/model" in runs["FAILED"].tags["sae.failure"]
    assert "https:/me:***@127.0.0.1:9/a.txt" in said[1]
    assert any("http://me:***@127.0.0.1" in text for text in said)
    assert "https://me:***@127.0.0.1:9/model" in said[2]
