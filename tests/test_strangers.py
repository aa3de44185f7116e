"""Files from strangers: nothing that is opened runs what it holds, wherever it lies."""

import json
import os
import pickle
import shutil
import sys

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from sae_mlflow import load_sae
from sae_mlflow.__main__ import main
from sae_mlflow.activations import cache
from sae_mlflow.config import ModelSettings, TextSettings
from sae_mlflow.config_load import load_settings
from sae_mlflow.config_set import parse_set
from sae_mlflow.density import read_density_table
from sae_mlflow.errors import UserError
from sae_mlflow.evaluation.stored_settings import stored_settings
from sae_mlflow.formats.sae_files import FORMATS
from sae_mlflow.formats.weight_files import read_json
from sae_mlflow.history import read_history
from sae_mlflow.lm.loading import load_language_model, load_tokenizer
from sae_mlflow.plots.style import load_style
from sae_mlflow.text.documents import documents
from sae_mlflow.text.hub import rows_of
from sae_mlflow.tracking.store import Store

YAML_PAYLOADS = [
    "!!python/object/apply:os.system ['touch {trace}']",
    "!!python/object/new:os.system ['touch {trace}']",
    "!!python/name:os.system",
    "!!python/module:os",
]


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return os.mkdir, (self.trace,)


@pytest.fixture
def trace(tmp_path):
    """There once a payload has run, which the test sees by itself that it can."""
    proof = tmp_path / "proof"
    pickle.loads(pickle.dumps(Payload(proof)))
    assert proof.is_dir()
    trace = tmp_path / "trace"
    yield trace
    assert not trace.exists()


def payloads(trace):
    """Files that run code where they are unpickled, as each library writes them."""
    import io

    yield "pickle", pickle.dumps(Payload(trace))
    yield "old pickle", pickle.dumps(Payload(trace), protocol=0)
    for name, old in (("torch", True), ("old torch", False)):
        stream = io.BytesIO()
        content = {"config": {"architecture": "topk"}, "state_dict": Payload(trace)}
        torch.save(content, stream, _use_new_zipfile_serialization=old)
        yield name, stream.getvalue()
    stream = io.BytesIO()
    np.save(stream, np.array([Payload(trace)], dtype=object), allow_pickle=True)
    yield "numpy", stream.getvalue()


KINDS = ("pickle", "old pickle", "torch", "old torch", "numpy")
CONFIGS = {
    "cfg.json": {"architecture": "topk", "d_in": 4, "d_sae": 8, "k": 2, "metadata": {}},
    "config.json": {"trainer": {"dict_class": "AutoEncoderTopK", "k": 2}},
}
WEIGHTS = [each.WEIGHTS_FILE for each in FORMATS.values()]


# -- SAEs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*WEIGHTS, "own.pt", "own.pkl", "cfg.json", "config.json"])
def test_no_file_of_an_sae_is_unpickled(name, kind, trace, tmp_path):
    folder = tmp_path / "sae"
    folder.mkdir()
    for config, content in CONFIGS.items():
        (folder / config).write_text(json.dumps(content))
    if name in CONFIGS:
        (folder / ("ae.pt" if name == "config.json" else "sae.safetensors")).write_bytes(b"")
    (folder / name).write_bytes(dict(payloads(trace))[kind])
    source = folder / name if name.startswith("own") else folder
    with pytest.raises(UserError) as caught:
        load_sae(source)
    assert "\n" not in str(caught.value)


def test_nor_is_one_that_comes_out_of_a_store(trace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = Store(f"sqlite:///{tmp_path / 'mlflow.db'}")
    run = store.open_run(store.experiment_id("x"), "r", {"sae.role": "layer"})
    bad = dict(payloads(trace))["torch"]
    for folder, name in (("sae", "sae.pt"), ("other", "ae.pt")):
        (tmp_path / name).write_bytes(bad)
        run.log_file(tmp_path / name, folder)
        run.log_text(json.dumps(CONFIGS["config.json"]), f"{folder}/config.json")
        with pytest.raises(UserError, match="could run code"):
            load_sae(f"runs:/{run.run_id}/{folder}", tracking_uri=store.uri)


def test_a_registered_models_own_code_is_not_run_by_our_loader(trace, tmp_path, monkeypatch):
    """`mlflow.pyfunc.load_model` runs it, as MLflow means it to; `load_sae` reads the SAE alone."""
    from mlflow.tracking import MlflowClient

    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    model = tmp_path / "model"
    (model / "artifacts" / "sae").mkdir(parents=True)
    (model / "code.py").write_text(f"import os; os.mkdir({str(trace)!r})")
    (model / "python_model.pkl").write_bytes(dict(payloads(trace))["pickle"])
    (model / "artifacts" / "sae" / "sae.pt").write_bytes(dict(payloads(trace))["torch"])
    flavour = {"loader_module": "code", "code": "code", "python_model": "python_model.pkl"}
    (model / "MLmodel").write_text(yaml.safe_dump({"flavors": {"python_function": flavour}}))
    client = MlflowClient(uri)
    client.create_registered_model("evil")
    client.create_model_version("evil", model.as_uri())
    client.set_registered_model_alias("evil", "best", "1")
    for source in ("models:/evil/1", "models:/evil@best"):
        with pytest.raises(UserError, match="could run code"):
            load_sae(source, tracking_uri=uri)


def test_torch_and_numpy_are_asked_for_plain_values_wherever_they_open_a_file():
    """By the source: no call that could unpickle, in any module."""
    import ast
    from pathlib import Path

    import sae_mlflow

    calls = []
    for file in Path(sae_mlflow.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert given.get("allow_pickle", "False") == "False", file
            assert given.get("shell", "False") == "False", file
            assert name not in {"eval", "exec", "os.system", "os.popen", "pickle.load"}, file
            assert name not in {"pickle.loads", "pickle.Unpickler", "joblib.load"}, file
            assert name not in {"yaml.load", "yaml.unsafe_load", "yaml.full_load"}, file
            if name == "torch.load":
                calls.append(given.get("weights_only"))
    assert calls and set(calls) == {"True"}


# -- language models and texts ----------------------------------------------------------------


@pytest.mark.parametrize("kind", ("pickle", "torch", "old torch"))
def test_a_language_models_weights_are_not_unpickled(kind, trace, tiny_model, tmp_path):
    folder = tmp_path / "lm"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "pytorch_model.bin").write_bytes(dict(payloads(trace))[kind])
    with pytest.raises(UserError, match="could run code.*safetensors") as caught:
        load_language_model(ModelSettings(name=str(folder), device="cpu"))
    assert "\n" not in str(caught.value)


def test_weights_in_a_bin_file_that_holds_tensors_alone_are_loaded(tiny_model, tmp_path):
    folder = tmp_path / "lm"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(load_file(tiny_model / "model.safetensors"), folder / "pytorch_model.bin")
    ids = torch.arange(2, 18)[None]
    acts = [
        load_language_model(ModelSettings(name=str(each), device="cpu")).activations(
            ids, ["layers.1"]
        )["layers.1"]
        for each in (tiny_model, folder)
    ]
    torch.testing.assert_close(*acts)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
def test_a_models_own_files_are_not_unpickled(name, trace, tiny_model, tmp_path):
    folder = tmp_path / "lm"
    shutil.copytree(tiny_model, folder)
    (folder / name).write_bytes(dict(payloads(trace))["old pickle"])
    with pytest.raises(UserError):
        load_tokenizer(ModelSettings(name=str(folder), device="cpu"))
        load_language_model(ModelSettings(name=str(folder), device="cpu"))


@pytest.mark.parametrize("suffix", [".pkl", ".pt", ".txt", ".jsonl", ".parquet"])
def test_a_text_is_not_unpickled(suffix, trace, tmp_path):
    file = tmp_path / f"text{suffix}"
    file.write_bytes(dict(payloads(trace))["pickle"])
    with pytest.raises(UserError):
        _, texts = documents(TextSettings(source=str(file)))
        list(texts)


def test_a_data_sets_script_is_not_run(trace, tmp_path, monkeypatch):
    folder = tmp_path / "own_set"
    folder.mkdir()
    (folder / "own_set.py").write_text(f"import os; os.mkdir({str(trace)!r})")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"text\.source"):
        documents(TextSettings(source="own_set"))
    with pytest.raises(UserError, match="script.*isn't run"):
        list(rows_of(str(folder), None, None, "train", 0, 10))


# -- what we keep ourselves -------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_histories_and_tables_are_not_unpickled(kind, trace, tmp_path):
    for name, read in (
        ("layer1_training_history.json", read_history),
        ("density.csv", read_density_table),
    ):
        file = tmp_path / name
        file.write_bytes(dict(payloads(trace))[kind])
        with pytest.raises(UserError):
            read(file)


def test_the_caches_files_are_not_unpickled(trace, own_cache):
    folder = own_cache / "activations" / "0123456789abcdef"
    folder.mkdir(parents=True)
    for name in ("meta.json", "layers.1.acts", "layers.1.norms"):
        (folder / name).write_bytes(dict(payloads(trace))["pickle"])
    (entry,) = cache.list_cache()
    assert entry.model == "?" and entry.hookpoints == ("layers.1",)
    (own_cache / "weights_hashes.json").write_bytes(dict(payloads(trace))["pickle"])
    from sae_mlflow.lm.files import _read_memo

    assert _read_memo(own_cache / "weights_hashes.json") == {}


# -- YAML -------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", YAML_PAYLOADS)
def test_yaml_makes_plain_values_alone(payload, trace, tmp_path):
    """In a config, what it extends, a plot style, `--set`, and settings out of a store."""
    text = payload.format(trace=trace)
    file = tmp_path / "bad.yaml"
    file.write_text(f"experiment: {text}\n")
    (tmp_path / "over.yaml").write_text("extends: bad.yaml\nseed: 1\n")
    for read in (
        lambda: load_settings(str(file)),
        lambda: load_settings(str(tmp_path / "over.yaml")),
        lambda: load_style(str(file)),
        lambda: parse_set(f'"experiment={text}"'),
        lambda: stored_settings(file, trust_remote_code=True),
    ):
        with pytest.raises(UserError, match="YAML"):
            read()


def test_what_nests_without_end_is_refused(tmp_path):
    deep = "[" * 100_000
    for name, read in (("a.yaml", lambda file: load_settings(str(file))), ("cfg.json", read_json)):
        (tmp_path / name).write_text(deep)
        with pytest.raises(UserError):
            read(tmp_path / name)
    with pytest.raises(UserError, match="not a YAML value"):
        parse_set(f"seed={deep}")


def test_settings_out_of_a_store_read_no_file_here(tmp_path):
    secret = tmp_path / "secret.yaml"
    secret.write_text("experiment: secret\n")
    file = tmp_path / "config.yaml"
    file.write_text(f"extends: {secret}\n")
    with pytest.raises(UserError, match="extends another file"):
        stored_settings(file, trust_remote_code=False)


# -- names ------------------------------------------------------------------------------------

NAMES = [
    *("../../x", "..", ".", "/etc/passwd", "C:\\x", "C:/x", "\\\\server\\share", "%2e%2e%2fx"),
    *("a\0b", "a\nb", "a\x1b[2Jb", "\u202egnp.exe", "`touch x`", "$(touch x)", "'; touch x; '"),
    *('"><script>', "con", "NUL.txt", "COM1", "aux.tar.gz", "lpt9", "x" * 5000, "é" * 5000, ""),
    *("~", "~root", "-rf", "--help", ".ssh", "a/../../b", "a/..", "model.", "trailing ", "🧨"),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_stays_in_its_folder_whatever_it_is(name, tmp_path):
    from sae_mlflow import naming
    from sae_mlflow.plots.pictures import stem
    from sae_mlflow.tensorboard.export import run_folder

    devices = {"con", "prn", "aux", "nul", "com1", "lpt9"}
    for file in (
        naming.sanitise(name),
        f"{naming.layer_label(name)}_training_history.json".lstrip("_"),
        naming.file_stem(name),
        naming.registered_name(name, "layer1"),
        stem(name, "layer1", name),
        *run_folder(tmp_path, name, name, "0" * 32).relative_to(tmp_path).parts,
    ):
        assert set(file) <= set(
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-@"
        )
        assert file not in ("", ".", "..") and not file.startswith((".", "~", "-"))
        assert file.partition(".")[0].lower() not in devices
    (tmp_path / stem(name, "layer1", name)).touch()  # a file system takes it


def test_a_model_of_a_hostile_name_trains_into_its_own_folder(
    tiny_model, text_file, tmp_path, monkeypatch, capfd
):
    name = "$(touch pwned) <img src=x onerror=alert(1)> `x` [a](javascript:b) \x1b[2J'\";"
    model = tmp_path / "models" / name
    shutil.copytree(tiny_model, model)
    config = {
        "experiment": name,
        "model": {"name": str(model), "layers": [1], "device": "cpu"},
        "text": {"source": str(text_file), "tokens": 2048, "context": 32},
        "sae": {"k": 4},
        "train": {"batch_tokens": 128, "epochs": 1},
        "plots": {"live": False, "interactive": "none"},
        "evaluate": {"after_training": False},
        "output": {"dir": "out"},
    }
    work = tmp_path / "work"
    work.mkdir()
    (work / "x.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(work)
    uri = f"sqlite:///{work / 'mlflow.db'}"
    monkeypatch.setattr(
        sys, "argv", ["sae-mlflow", "train", "--config", "x.yaml", "--tracking-uri", uri]
    )
    with pytest.raises(SystemExit) as end:
        main()
    said = capfd.readouterr()
    assert not end.value.code
    assert "\x1b" not in said.out + said.err
    assert {each.name for each in work.iterdir()} == {"x.yaml", "mlflow.db", "mlruns", "out"}
    (folder,) = (work / "out").iterdir()
    assert folder.name == "touch-pwned-img-src-x-onerror-alert-1-x-a-javascript-b-2J"
    store = Store(uri)
    (parent,) = store.parent_runs(store.find_experiment(name), running=False)
    note = parent.tags["mlflow.note.content"]
    assert "<img" not in note and "](javascript" not in note and "\x1b" not in note
