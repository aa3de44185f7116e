"""The command line as a person meets it: options, exit statuses, and one sentence for bad input."""

import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

from sae_mlflow import __main__ as cli
from sae_mlflow.errors import UserError
from sae_mlflow.tracking.store import Store

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def store_file(tmp_path_factory):
    """A store that was made before, so that a test needn't wait for the tables."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    Store(f"sqlite:///{file}")
    return file


@pytest.fixture
def folder(tmp_path, monkeypatch, store_file):
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store_file}")
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # pytest keeps its own Ctrl-C
    return folder


@pytest.fixture
def config(folder, tiny_model, text_file):
    """The config of a tiny training, `tiny.yaml`, in the working folder."""
    data = {
        "experiment": "tiny",
        "model": {"name": str(tiny_model), "layers": [1]},
        "text": {"source": str(text_file), "tokens": 2048, "context": 32},
        "sae": {"k": 4, "expansion_factor": 2},
        "train": {"epochs": 1, "batch_tokens": 128},
        "plots": {"after_training": False},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(data))
    return folder / "tiny.yaml"


def sae_mlflow(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["sae-mlflow", *args])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


def refused(monkeypatch, capsys, *args):
    """The one line on stderr of a command that has to end with status 2."""
    started = time.monotonic()
    status = sae_mlflow(monkeypatch, "train", *args)
    seconds = time.monotonic() - started
    error = capsys.readouterr().err
    assert status == 2, error
    assert seconds < 10
    assert "Traceback" not in error
    assert error.startswith("error: ") and error.count("\n") == 1, error
    return error


def test_train_ends_with_a_table_the_stores_place_and_the_two_next_commands(
    config, monkeypatch, capsys
):
    assert sae_mlflow(monkeypatch, "train", "--config", "tiny.yaml") == 0
    out = capsys.readouterr().out
    assert "held-out FVU" in out and "layer1" in out
    assert "Evaluating on 192 held-out tokens" in out  # 2,048 were asked for
    assert re.search(r"^ *tiny-llama *$", out, re.MULTILINE)  # the table's heading, of a folder
    assert re.search(r"mlflow ui   then open http://\S+/runs\?workflowType=machine_learning", out)
    assert "python -m sae_mlflow.plot --experiment tiny" in out


def test_the_command_says_its_version(monkeypatch, capsys):
    assert sae_mlflow(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"sae-mlflow {version('sae-mlflow')}\n"


def test_settings_are_listed_by_section_with_the_values_that_they_may_have(monkeypatch, capsys):
    assert sae_mlflow(monkeypatch, "settings") == 0
    out = capsys.readouterr().out
    assert "\n\nsae: The sparse autoencoder.\nsae.architecture = topk\n" in out
    codes = "Activation function of a transcoder.\n    Values: topk, jumprelu.\n"
    assert f"sae.codes = topk\n    {codes}" in out
    assert "trackers = mlflow\n" in out and "    Values: mlflow, tensorboard.\n" in out
    assert out.count("Values: png, pdf, svg.") == 1
    assert "unset means `1e-3 / sqrt(d_sae / 2^14)`" in out


def test_an_empty_value_means_unset(config, monkeypatch, capsys):
    """What `mlflow run` passes for a parameter that nobody gave."""
    empty = ["--model-name", "", "--layers", "", "--set", "", "--output-dir", ""]
    assert sae_mlflow(monkeypatch, "train", "--config", "tiny.yaml", *empty) == 0
    assert "layer1" in capsys.readouterr().out


def test_options_and_mlproject_parameters_agree(monkeypatch, capsys):
    """What only the command has, MLflow has itself (the experiment, the store) or `set` does."""
    project = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]["main"]
    assert sae_mlflow(monkeypatch, "train", "--help") == 0
    options = set(re.findall(r"^\s+--([a-z-]+)", capsys.readouterr().out, re.MULTILINE))
    parameters = {name.replace("_", "-") for name in project["parameters"]}
    assert options - parameters == {"experiment-name", "tracking-uri", "pt", "help"}
    assert parameters <= options
    assert set(re.findall(r"\{(\w+)\}", project["command"])) == set(project["parameters"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "Config 'bad.yaml' not found"),
        ("", "bad.yaml is empty"),
        ("a: [", "is not valid YAML"),
        ("sae: {kk: 1}", "unknown setting 'sae.kk'. Did you mean sae.k?"),
        ("trian: {epochs: 1}", "unknown setting 'trian'. Did you mean train"),
        ("sae: {k: many}", "sae.k = 'many', but"),
        ("extends: tiny.yaml\nsae: {k: 65}", "sae.k = 65 is larger than d_sae = 64"),
        ("train: {epochs: -3}", "train.epochs = -3, but input should be greater than 0"),
        ("extends: tiny.yaml\nmodel: {layers: [9]}", "0..3"),
        ("extends: tiny.yaml\nmodel: {layers: [layers.1.nope]}", "layers.1.nope"),
        ("extends: tiny.yaml\nmodel: {name: ./gone}", "gone"),
        ("extends: tiny.yaml\nmodel: {name: ../../etc}", "etc"),
        ("extends: tiny.yaml\nmodel: {name: 'a b; rm -rf /'}", "a b; rm -rf /"),
        ("extends: tiny.yaml\nmodel: {device: abacus}", "abacus"),
        ("extends: tiny.yaml\ntext: {source: gone.txt}", "gone.txt"),
        ("extends: tiny.yaml\ntext: {source: empty.txt}", "empty.txt"),
        ("extends: tiny.yaml\ntext: {source: short.txt}", "short.txt"),
        ("extends: tiny.yaml\ntrain: {batch_tokens: 100000}", "less than one batch"),
        ("extends: tiny.yaml\noutput: {dir: tiny.yaml/x}", "tiny.yaml/x can't be written"),
    ],
)
def test_bad_settings_get_one_sentence_and_status_2(
    config, folder, monkeypatch, capsys, text, message
):
    (folder / "empty.txt").write_text("")
    (folder / "short.txt").write_text("word1 word2 word3")
    if text is not None:
        (folder / "bad.yaml").write_text(text)
    assert message in refused(monkeypatch, capsys, "--config", "bad.yaml")


@pytest.mark.parametrize(
    "wrong",
    [
        "train.optimizer=adamm",
        "sae.k=65",
        "sae.architecture=matryoshka sae.prefixes=[8,4]",
        "text.source=gone.txt",
        "text.source=.",
        "text.context=1000",
        "text.source=lines.jsonl text.column=body",
        "text.tokens=70",
    ],
)
def test_what_needs_no_language_model_to_be_found_leaves_no_run(
    config, folder, monkeypatch, capsys, store_file, wrong
):
    (folder / "lines.jsonl").write_text('{"text": "word1 word2"}\n')
    monkeypatch.setattr(sys, "argv", ["sae-mlflow", "train", "--config", "tiny.yaml"])
    sys.argv += ["--set", f"experiment=wrong {wrong}"]
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr()
    assert end.value.code == 2 and said.err.startswith("error: ")
    assert "To go on from here" not in said.out
    store = Store(f"sqlite:///{store_file}")
    assert list(store._search(store.find_experiment("wrong"), "")) == []


def test_a_run_that_was_opened_is_failed_with_the_reason_and_no_way_to_go_on(
    config, folder, tiny_model, monkeypatch, capsys, store_file
):
    """That weights are no numbers is only known when the model is run."""
    broken = Path(shutil.copytree(tiny_model, folder / "broken"))
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][:] = math.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    options = ["--model-name", "broken", "--set", "experiment=few"]
    monkeypatch.setattr(sys, "argv", ["sae-mlflow", "train", "--config", "tiny.yaml", *options])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr()
    error = said.err
    assert end.value.code == 2 and "To go on from here" not in said.out
    store = Store(f"sqlite:///{store_file}")
    runs = list(store._search(store.find_experiment("few"), ""))
    assert [run.status for run in runs] == ["FAILED"]
    assert error == f"error: {runs[0].tags['sae.failure']}\n"


def test_a_store_out_of_reach_is_said_before_anything_is_trained(config, monkeypatch, capsys):
    uri = "http://127.0.0.1:9"
    assert "can't be reached" in refused(
        monkeypatch, capsys, "--config", "tiny.yaml", "--tracking-uri", uri
    )


def test_a_hub_model_that_cannot_be_had_is_refused_quickly(config, monkeypatch, capsys):
    """No network is asked: the Hub library is told that it is offline."""
    code = "from sae_mlflow.__main__ import main; main()"
    command = [sys.executable, "-c", code, "train", "--config", "tiny.yaml"]
    done = subprocess.run(
        [*command, "--model-name", "meta-llama/Llama-2-7b-hf"],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "meta-llama/Llama-2-7b-hf" in done.stderr
    assert "Traceback" not in done.stderr


def test_settings_lists_every_setting(monkeypatch, capsys):
    assert sae_mlflow(monkeypatch, "settings") == 0
    out = capsys.readouterr().out
    assert "train.epochs = 10\n    Passes over the training tokens." in out


def test_the_cache_is_listed_and_pruned(config, monkeypatch, capsys):
    assert sae_mlflow(monkeypatch, "train", "--config", "tiny.yaml") == 0
    capsys.readouterr()
    assert sae_mlflow(monkeypatch, "cache", "list") == 0
    line, total = capsys.readouterr().out.splitlines()
    key = line.split()[0]
    assert "tiny-llama" in line and "layers.1" in line and total.startswith("1 entries")
    assert re.search(r"last used 20\d\d-\d\d-\d\d \d\d:\d\d$", line)
    assert sae_mlflow(monkeypatch, "cache", "prune") == 2
    assert "Nothing was chosen" in capsys.readouterr().err
    assert sae_mlflow(monkeypatch, "cache", "prune", "nope") == 2
    assert key in capsys.readouterr().err
    assert sae_mlflow(monkeypatch, "cache", "prune", key) == 0
    assert sae_mlflow(monkeypatch, "cache", "list") == 0
    freed, total = capsys.readouterr().out.splitlines()
    assert freed.startswith("freed ") and total.startswith("0 entries")


def layer_runs(store, experiment):
    try:
        return store.layer_runs(store.find_experiment(experiment), finished=False)
    except UserError:  # not made yet
        return []


def test_ctrl_c_closes_the_runs_as_killed(config, store_file):
    """SIGINT and at once SIGTERM, as `mlflow run` passes Ctrl-C on, in the middle of training."""
    command = [sys.executable, "-m", "sae_mlflow", "train", "--config", "tiny.yaml"]
    endless = ["--set", "experiment=endless train.epochs=100000"]
    process = subprocess.Popen([*command, *endless], stdout=subprocess.DEVNULL)
    store = Store(f"sqlite:///{store_file}")
    give_up = time.monotonic() + 60
    while not any(run.metrics for run in layer_runs(store, "endless")):
        assert time.monotonic() < give_up and process.poll() is None
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=30)
    assert process.returncode == 130
    runs = list(store._search(store.find_experiment("endless"), ""))
    assert {(run.status, run.tags["sae.failure"]) for run in runs} == {("KILLED", "interrupted")}
    assert len(runs) == 2


@pytest.mark.parametrize(
    "command",
    [
        "plot --experiment llama2",
        "report --experiment llama2",
        "watch --experiment llama2",
        "health --experiment llama2",
        "evaluate --experiment llama2",
        "promote --experiment llama2 --max-l0 32",
        "reap --experiment llama2",
        "export --model models:/x@best --format pt --output out",
        "register --run 0123",
    ],
)
def test_what_only_reads_makes_no_store(command, folder, monkeypatch, capsys):
    """Else one that is started in the wrong folder leaves a database there, and speaks of it."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert sae_mlflow(monkeypatch, *command.split(), "--tracking-uri", "sqlite:///my.db") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: There is no store {folder}/my.db. Start this where you trai")
    assert list(folder.iterdir()) == []
