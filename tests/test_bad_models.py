"""Language models that transformers can't use: one sentence with the model and the reason."""

import json
import shutil
from pathlib import Path

import pytest
from cached_acts import filled
from faults.tiny import word_tokenizer
from spliced_models import gemma3n

from sae_mlflow.config import ModelSettings
from sae_mlflow.errors import UserError
from sae_mlflow.lm.files import weights_hash
from sae_mlflow.lm.loading import hookpoint_widths, load_language_model, load_tokenizer, model_shape

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def model(tiny_model, tmp_path):
    """`model(hidden_size=None)`: the tiny model with other values in its config.json."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "copied"))
    config = json.loads((folder / "config.json").read_text())

    def make(**values):
        (folder / "config.json").write_text(json.dumps(config | values))
        return ModelSettings(name=str(folder), layers=(1,), device="cpu")

    return make


CONFIGS = [
    ("num_hidden_layers", "three", "'num_hidden_layers' expected int, got str"),
    ("hidden_size", None, "'hidden_size' expected int, got NoneType"),
    ("num_attention_heads", 0, "ZeroDivisionError: integer modulo by zero"),
    ("rope_parameters", 5, "'rope_parameters' with value 5 doesn't match any type"),
    ("auto_map", 5, "TypeError: "),
    ("hidden_act", "nope", "KeyError: 'nope'"),
    ("quantization_config", 5, "AttributeError: 'int' object has no attribute"),
    ("vocab_size", -3, "negative dimension -3"),
    ("model_type", ["llama"], "TypeError: unhashable type"),
]


@pytest.mark.parametrize(("key", "value", "reason"), CONFIGS, ids=[key for key, *_ in CONFIGS])
def test_a_wrong_value_in_a_models_config_is_one_sentence_wherever_it_is_met(
    model, key, value, reason
):
    """A module's width comes from a model without weights, before any text is read."""
    settings = model(**{key: value})
    for trouble, use in [
        ("can't use its config.json", lambda: hookpoint_widths(settings, ["layers.1.mlp"])),
        ("can't be loaded", lambda: load_language_model(settings)),
    ]:
        with pytest.raises(UserError) as error:
            use()
        said = str(error.value)
        assert said.startswith(settings.name) and trouble in said and reason in said
        assert said.endswith("Fetch or save it again.") and "\n" not in said and len(said) < 600


@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "vocab_size"])
@pytest.mark.parametrize("value", [0, -3, True])
def test_a_size_that_is_none_is_refused_by_the_config_alone(model, key, value):
    with pytest.raises(UserError, match=r"config\.json"):
        model_shape(model(**{key: value}))


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq"])
def test_a_quantised_model_whose_package_is_missing_names_it(model, method):
    quantised = model(quantization_config={"quant_method": method, "bits": 4, "load_in_4bit": True})
    with pytest.raises(UserError, match=r"can't be loaded: .*pip install.*Install what is missing"):
        load_language_model(quantised)


def test_a_tokenizer_file_that_is_none_is_one_sentence(model):
    settings = model()
    for text in ("[]", '{"model": 5}', "nonsense", "{}"):
        (Path(settings.name) / "tokenizer.json").write_text(text)
        with pytest.raises(UserError, match="has no tokenizer that loads"):
            load_tokenizer(settings)


def test_a_link_to_weights_that_are_not_there_is_named(model):
    """As in a Hub snapshot that was copied with its links as links."""
    settings = model()
    file = Path(settings.name) / "model.safetensors"
    file.unlink()
    file.symlink_to("../../blobs/0123")
    with pytest.raises(UserError) as error:
        weights_hash(settings)
    assert str(error.value) == (
        f"{file} can't be read: it is a link to ../../blobs/0123, which isn't there. Copy the "
        "model with what its links lead to (cp -rL), or fetch it again."
    )


def test_a_block_that_puts_out_several_streams_is_refused(tiny_settings, tmp_path):
    """Whose width is taken from the config, without a look at the model."""
    gemma3n(vocabulary=202).model.save_pretrained(tmp_path / "gemma3n")
    word_tokenizer().save_pretrained(tmp_path / "gemma3n")
    settings = tiny_settings(f"model.name={tmp_path / 'gemma3n'}", "model.layers=[1]")
    with pytest.raises(UserError) as error:
        filled(settings)
    assert str(error.value) == (
        f"model.layers: layers.1 of {settings.model.name} doesn't put out one activation a token. "
        "Choose another module, for example layers.1.mlp."
    )
