"""SAEs on disk: what is written, that raw activations fare as scaled ones did, and bad files."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_mlflow import load_sae
from sae_mlflow.errors import UserError
from sae_mlflow.export import save_sae, save_state_dict
from sae_mlflow.sae import TopKSAE

SCALE = 0.037


@pytest.fixture
def sae():
    sae = TopKSAE(6, 24, 3)
    sae.initialise(torch.randn(50, 6), torch.Generator().manual_seed(0))
    with torch.no_grad():
        sae.b_enc.normal_()
    return sae


@pytest.fixture
def folder(sae, tmp_path):
    save_sae(sae, tmp_path / "sae", scale=SCALE, model_name="org/model", layer=10)
    return tmp_path / "sae"


def test_a_loaded_sae_does_to_raw_activations_what_the_trained_one_does_to_scaled_ones(sae, folder):
    acts = torch.randn(30, 6) / SCALE
    loaded = load_sae(folder)
    torch.testing.assert_close(loaded.encode(acts), sae.encode(SCALE * acts))
    torch.testing.assert_close(loaded(acts), sae(SCALE * acts) / SCALE, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loaded.decode(loaded.encode(acts)), loaded(acts))
    assert not any(p.requires_grad for p in loaded.parameters())


def test_the_files_are_in_saelens_layout(sae, folder):
    """By SAELens' own rule: relu of the top k of (a - b_dec) W_enc + b_enc, from the raw files."""
    weights = load_file(folder / "sae_weights.safetensors")
    shapes = {name: tuple(w.shape) for name, w in weights.items()}
    assert shapes == {"W_enc": (6, 24), "b_enc": (24,), "W_dec": (24, 6), "b_dec": (6,)}
    cfg = json.loads((folder / "cfg.json").read_text())
    assert cfg["architecture"] == "topk" and cfg["k"] == 3
    assert cfg["normalize_activations"] == "none" and cfg["apply_b_dec_to_input"] is True
    assert cfg["rescale_acts_by_decoder_norm"] is False
    assert cfg["metadata"]["hook_name"] == "blocks.10.hook_resid_post"
    assert cfg["metadata"]["model_name"] == "org/model"
    acts = torch.randn(9, 6) / SCALE
    pre_acts = (acts - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
    values, indices = pre_acts.topk(3)
    latents = torch.zeros_like(pre_acts).scatter(1, indices, values.relu())
    torch.testing.assert_close(load_sae(folder).encode(acts), latents)


def test_a_state_dict_opens_without_running_any_pickled_code(sae, folder, tmp_path):
    save_state_dict(sae, tmp_path / "sae.pt", scale=SCALE)
    state = torch.load(tmp_path / "sae.pt", weights_only=True)
    for name, value in load_file(folder / "sae_weights.safetensors").items():
        assert torch.equal(state[name], value)


def test_a_folder_without_an_sae_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"has no cfg.json. Give the folder of a saved SAE"):
        load_sae(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "magic"}, "architecture 'magic' is not known. Known: topk"),
        ({"d_sae": 25}, "doesn't fit its cfg.json"),
        ({"k": None}, "a needed key is missing or wrong"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations"),
        ({"d_in": None}, "it needs architecture, d_in and d_sae"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_with_the_reason(folder, change, message):
    config = json.loads((folder / "cfg.json").read_text()) | change
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        load_sae(folder)


def test_missing_or_broken_weights_are_refused(folder):
    weights = folder / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match="doesn't fit its cfg.json"):
        load_sae(folder)
    weights.unlink()
    with pytest.raises(UserError, match="has no sae_weights.safetensors"):
        load_sae(folder)


def test_weights_without_a_needed_matrix_are_refused(folder):
    weights = load_file(folder / "sae_weights.safetensors")
    del weights["b_enc"]
    save_file(weights, folder / "sae_weights.safetensors")
    with pytest.raises(UserError, match="doesn't fit its cfg.json"):
        load_sae(folder)
