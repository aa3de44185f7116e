"""`mlflow run .` itself, in a folder with the project's MLproject, in the installed environment."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pulled_plug import PullsThePlug

from sae_mlflow.config_load import load_settings
from sae_mlflow.pipeline import run_training
from sae_mlflow.tracking.store import Store

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_model, text_file):
    """What `mlflow run` needs of a clone; the store and the artifacts land here."""
    folder = tmp_path_factory.mktemp("home")
    for name in ("MLproject", "python_env.yaml"):
        shutil.copy(ROOT / name, folder)
    data = {
        "experiment": "tiny",
        "model": {"name": str(tiny_model), "layers": [1]},
        "text": {"source": str(text_file), "tokens": 2048, "context": 32},
        "sae": {"k": 4, "expansion_factor": 2},
        "train": {"epochs": 2, "batch_tokens": 128},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(data))
    return folder


def mlflow_run(home, *args, experiment=None):
    """Run the project and return the finished process and its store."""
    named = ["--experiment-name", experiment] if experiment else []
    command = [sys.executable, "-m", "mlflow", "run", ".", "--env-manager", "local", *named]
    parameters = [part for arg in args for part in ("-P", arg)]
    done = subprocess.run(
        [*command, *parameters],
        cwd=home,
        capture_output=True,
        text=True,
        env={key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
        | {
            "SAE_MLFLOW_CACHE": str(home / "cache"),
            # MLproject calls `python`: the one that runs these tests
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        },
    )
    return done, Store(f"sqlite:///{home / 'mlflow.db'}")


def launchers(store, experiment="Default"):
    rows = store._search(store.find_experiment(experiment), "")
    return [row for row in rows if "mlflow.project.entryPoint" in row.tags]


def test_the_training_goes_to_the_configs_experiment_and_the_launcher_links_there(home):
    done, store = mlflow_run(home, f"config={home / 'tiny.yaml'}", "set=sae.k=5 seed=3")
    assert done.returncode == 0, done.stderr
    (layer,) = store.layer_runs(store.find_experiment("tiny"))
    folder = home / "mlruns" / layer.experiment_id / layer.run_id / "artifacts"
    assert len(list((folder / "training_plots").glob("*.png"))) == 2
    assert (layer.params["sae.k"], layer.params["seed"], layer.layer) == ("5", "3", "layer1")
    parent = store.run(layer.parent_id)
    assert parent.tags["sae.role"] == "sweep" and parent.experiment_id == layer.experiment_id
    (launcher,) = launchers(store)
    assert launcher.status == "FINISHED" and "sae.role" not in launcher.tags
    link = f"#/experiments/{parent.experiment_id}/runs/{parent.run_id}"
    assert link in launcher.tags["mlflow.note.content"]


def test_with_an_experiment_name_the_launchers_run_is_the_parent(home):
    parameters = [f"config={home / 'tiny.yaml'}", "layers=2", "output_dir=plain"]
    done, store = mlflow_run(home, *parameters, experiment="chosen")
    assert done.returncode == 0, done.stderr
    (layer,) = store.layer_runs(store.find_experiment("chosen"))
    assert layer.layer == "layer2"
    (launcher,) = launchers(store, "chosen")
    assert layer.parent_id == launcher.run_id
    assert launcher.tags["sae.role"] == "sweep" and launcher.status == "FINISHED"
    assert launcher.params["layers"] == "2" and launcher.params["model.layers"] == "2"
    assert (home / "plain" / "tiny-llama" / "layer2_training_history.json").is_file()
    assert len(launchers(store)) == 1  # the one of the test before; nothing in the default one


def test_bad_input_ends_with_one_and_its_reason_on_the_launchers_run(home):
    done, store = mlflow_run(home, f"config={home / 'tiny.yaml'}", "set=sae.kk=5")
    assert done.returncode == 1
    message = "unknown setting 'sae.kk'. Did you mean sae.k?"
    assert done.stderr.count(f"error: --set: {message}") == 1
    launcher = launchers(store)[0]
    assert launcher.status == "FAILED" and message in launcher.tags["sae.failure"]


def test_resume_goes_on_in_the_interrupted_trainings_runs_and_the_launcher_links_there(
    home, monkeypatch
):
    monkeypatch.setenv("SAE_MLFLOW_CACHE", str(home / "cache"))
    monkeypatch.chdir(home)
    settings = load_settings(str(home / "tiny.yaml"), {"seed": 7})
    uri = f"sqlite:///{home / 'mlflow.db'}"
    with pytest.raises(KeyboardInterrupt):
        run_training(settings, PullsThePlug("layer1", 1), tracking_uri=uri)
    parameters = [f"config={home / 'tiny.yaml'}", "set=seed=7", "resume=auto"]
    done, store = mlflow_run(home, *parameters, experiment="tiny")
    assert done.returncode == 0, done.stderr
    interrupted, *_ = (
        row
        for row in store.parent_runs(store.find_experiment("tiny"), running=False)
        if row.params["seed"] == "7"
    )
    assert interrupted.status == "FINISHED"
    (layer,) = store.layer_runs(interrupted.experiment_id, parent_id=interrupted.run_id)
    assert [step for _, step, _ in store.history(layer.run_id, ["total_loss"])] == [1, 2]
    launcher = launchers(store, "tiny")[0]
    assert launcher.params["resume"] == "auto" and "sae.role" not in launcher.tags
    link = f"#/experiments/{interrupted.experiment_id}/runs/{interrupted.run_id}"
    assert launcher.status == "FINISHED" and link in launcher.tags["mlflow.note.content"]
