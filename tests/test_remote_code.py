"""Python code that a model brings along: it runs by an explicit setting alone, with a warning."""

import json
import logging

import pytest
import torch
import yaml
from remote_model import remote_model

from sae_mlflow.__main__ import main
from sae_mlflow.config import ModelSettings, Settings
from sae_mlflow.errors import UserError
from sae_mlflow.lm.files import weights_hash
from sae_mlflow.lm.loading import check_model, load_language_model, load_tokenizer
from sae_mlflow.tracking.store import Store

pytestmark = pytest.mark.usefixtures("one_thread")
NEEDS = r"needs Python code that it brings along.*set model\.trust_remote_code=true"
IDS = torch.arange(2, 34).reshape(2, 16)


@pytest.fixture
def trace(tmp_path):
    """There once the model's code has run."""
    return tmp_path / "trace"


@pytest.fixture
def own(tiny_model, tmp_path, trace):
    return remote_model(tiny_model, tmp_path / "own-model", trace)


def settings(folder, *, trusted, layers=(1,)):
    return ModelSettings(name=str(folder), layers=layers, device="cpu", trust_remote_code=trusted)


def check(model):
    return check_model(Settings.model_validate({"model": model}))


def test_no_code_is_trusted_unless_a_setting_says_so():
    assert Settings().model.trust_remote_code is False


def test_a_model_that_needs_its_code_is_refused_in_a_sentence_and_the_code_does_not_run(own, trace):
    for load in (check, load_language_model):
        with pytest.raises(UserError, match=NEEDS) as caught:
            load(settings(own, trusted=False))
        assert "\n" not in str(caught.value)
    assert not trace.exists()


def test_a_tokenizer_that_needs_its_code_is_refused_too(own, trace):
    (own / "tokenization_own.py").write_text(f"open({str(trace)!r}, 'w')")
    file = own / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config["tokenizer_class"] = "OwnTokenizer"
    config["auto_map"] = {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}
    file.write_text(json.dumps(config))
    with pytest.raises(UserError, match=NEEDS):
        load_tokenizer(settings(own, trusted=False))
    assert not trace.exists()


def test_of_a_model_that_transformers_knows_its_own_code_is_never_asked_for(
    tiny_model, tmp_path, trace
):
    known = remote_model(tiny_model, tmp_path / "known", trace, kind="llama")
    model = settings(known, trusted=False)
    assert check(model).d_model == 32
    plain = load_language_model(ModelSettings(name=str(tiny_model), device="cpu"))
    acts = load_language_model(model).activations(IDS, ["layers.1"])["layers.1"]
    torch.testing.assert_close(acts, plain.activations(IDS, ["layers.1"])["layers.1"])
    assert not trace.exists()


def test_with_the_setting_the_code_runs_and_each_use_is_warned_of(own, trace, tiny_model, caplog):
    model = settings(own, trusted=True, layers=("layers.1.mlp",))
    for load in (check, load_language_model, check):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "sae_mlflow"):
            load(model)
        (warning,) = caplog.messages
        assert "model.trust_remote_code=true" in warning and str(own) in warning
    assert trace.exists()
    lm = load_language_model(model)
    assert type(lm.model).__name__ == "OwnForCausalLM"
    plain = load_language_model(ModelSettings(name=str(tiny_model), device="cpu"))
    acts = lm.activations(IDS, ["layers.1.mlp"])["layers.1.mlp"]
    torch.testing.assert_close(acts, plain.activations(IDS, ["layers.1.mlp"])["layers.1.mlp"])
    assert load_tokenizer(model)("word7").input_ids == [9]


def test_where_the_code_may_run_it_is_part_of_the_weights_hash(own):
    """It decides the numbers: activations of other code mustn't be found in the cache."""
    before = {trusted: weights_hash(settings(own, trusted=trusted)) for trusted in (True, False)}
    code = own / "modeling_own.py"
    code.write_text(code.read_text() + "\n# changed\n")
    assert weights_hash(settings(own, trusted=True)) != before[True]
    assert weights_hash(settings(own, trusted=False)) == before[False]


def test_a_training_warns_and_an_evaluation_asks_again(
    own, trace, text_file, tmp_path, monkeypatch, capfd
):
    """Who wrote the store chose its settings: they can't turn the code on here."""
    config = {
        "model": {"name": str(own), "layers": [1], "device": "cpu", "trust_remote_code": True},
        "text": {"source": str(text_file), "tokens": 2048, "context": 32},
        "sae": {"k": 4},
        "train": {"batch_tokens": 128, "epochs": 1},
        "plots": {"after_training": False},
        "evaluate": {"after_training": False},
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config))
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr("sys.argv", ["sae-mlflow", *words, "--tracking-uri", uri])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0, capfd.readouterr()

    status, said = run("train", "--config", "own.yaml")
    assert status == 0
    assert "model.trust_remote_code=true" in " ".join(said.out.split())
    trace.unlink()
    (row,) = Store(uri).layer_runs(Store(uri).find_experiment("sae"))
    status, said = run("evaluate", "--run", row.run_id, "--latents", "2")
    assert status == 2 and "--trust-remote-code" in said.err
    assert not trace.exists()
    status, said = run("evaluate", "--run", row.run_id, "--latents", "0", "--trust-remote-code")
    assert status == 0
    assert "model.trust_remote_code=true" in said.out + said.err
