"""SAEs on disk: every format and architecture, there and back; what can't be held; bad files."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from saved_saes import (
    AT_REST,
    CASES,
    SCALE_IN,
    SCALE_OUT,
    Acts,
    assert_same_latents,
    assert_same_recon,
    change_config,
    saved,
)

from sae_mlflow import load_sae
from sae_mlflow.config import Settings
from sae_mlflow.errors import UserError
from sae_mlflow.formats.sae_files import FORMATS, export_sae, read_stored, save_pt, save_sae
from sae_mlflow.lm.sites import sites
from sae_mlflow.sae import Sizes
from sae_mlflow.sae.topk import TopKSAE


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "sae"


def exported(folder, format_name):
    out = folder.with_name(format_name)
    export_sae(read_stored(folder)[0], format_name, out)
    return out


@pytest.mark.parametrize("case", CASES)
def test_a_loaded_sae_does_to_raw_activations_what_the_trained_one_does_to_scaled_ones(
    case, folder
):
    trained, acts = saved(folder, case)
    loaded = load_sae(folder)
    scale_out = SCALE_OUT if trained.transcodes else SCALE_IN
    assert_same_latents(loaded.encode(acts), trained.encode(SCALE_IN * acts))
    assert_same_recon(loaded(acts), trained(SCALE_IN * acts) / scale_out)
    assert_same_recon(loaded.decode(loaded.encode(acts), acts), loaded(acts))
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())


def test_the_files_are_in_saelens_layout(folder):
    """By SAELens' own rule: relu of the top k of (a - b_dec) W_enc + b_enc, from the raw files."""
    _, acts = saved(folder, "topk")
    weights = load_file(folder / "sae_weights.safetensors")
    shapes = {name: tuple(w.shape) for name, w in weights.items()}
    assert shapes == {"W_enc": (10, 96), "b_enc": (96,), "W_dec": (96, 10), "b_dec": (10,)}
    cfg = json.loads((folder / "cfg.json").read_text())
    assert cfg["architecture"] == "topk" and cfg["k"] == 5
    assert cfg["normalize_activations"] == "none" and cfg["apply_b_dec_to_input"] is True
    assert cfg["rescale_acts_by_decoder_norm"] is False
    assert cfg["metadata"]["hook_name"] == "blocks.10.hook_resid_post"
    assert cfg["metadata"]["model_name"] == "org/model"
    pre_acts = (acts - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
    values, indices = pre_acts.topk(5)
    latents = torch.zeros_like(pre_acts).scatter(1, indices, values.relu())
    assert_same_latents(load_sae(folder).encode(acts), latents)


@pytest.mark.parametrize(
    ("model_type", "layer", "hook"),
    [
        ("llama", "layers.1.mlp", "blocks.1.hook_mlp_out"),
        ("gemma2", "layers.1.mlp", "layers.1.mlp"),
        ("gemma3_text", "layers.1.self_attn", "layers.1.self_attn"),
        ("gemma2", "layers.1.post_feedforward_layernorm", "blocks.1.hook_mlp_out"),
        ("olmo2", "layers.1.post_attention_layernorm", "blocks.1.hook_attn_out"),
        ("olmo2", "layers.1.mlp", "layers.1.mlp"),
        ("gone", "layers.1.mlp", "layers.1.mlp"),
    ],
)
def test_saelens_is_told_of_the_hook_that_has_the_same_activations(
    model_type, layer, hook, folder, tmp_path
):
    """What a Gemma or OLMo puts out of attention and MLP, SAELens hooks behind a norm."""
    from transformers import AutoConfig

    lm = tmp_path / "lm"
    if model_type != "gone":
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
        config = AutoConfig.for_model(model_type, vocab_size=50, **sizes, **heads)
        config.save_pretrained(lm)
    sae, settings = TopKSAE(Sizes(16, 32), k=2), Settings()
    changed = settings.model.model_copy(update={"name": str(lm), "layers": (layer,)})
    settings = settings.model_copy(update={"model": changed})
    scale = torch.ones(16).double()
    save_sae(sae, folder, Acts(sites(settings)[0], scale, scale), settings)
    assert json.loads((folder / "cfg.json").read_text())["metadata"]["hook_name"] == hook


EXPRESSIBLE = {
    "sae_lens": {case for case in CASES if not case.startswith("topk_")} - {"crosscoder"},
    "sparsify": {"topk", "topk_transcoder", "topk_skip_transcoder"},
    "dictionary_learning": {"standard", "topk", "batchtopk", "matryoshka", "jumprelu", "gated"},
    "pt": set(CASES),
}


@pytest.mark.parametrize("case", CASES)
def test_the_config_says_of_each_architecture_whether_b_dec_is_subtracted_first(case, folder):
    sae, _ = saved(folder, case)
    config = json.loads((folder / "cfg.json").read_text())
    assert config["apply_b_dec_to_input"] == (sae.centre is not None)


@pytest.mark.parametrize("case", CASES)
def test_each_format_gives_back_what_it_was_given_or_names_those_that_would(case, folder):
    _, acts = saved(folder, case, **({"d_out": 10} if "transcoder" in case else {}))
    original = load_sae(folder)
    able = [name for name in FORMATS if case in EXPRESSIBLE[name]]
    for name in FORMATS:
        if name in able:
            back = load_sae(exported(folder, name))
            assert_same_latents(back.encode(acts), original.encode(acts))
            assert_same_recon(back(acts), original(acts))
            continue
        with pytest.raises(UserError) as error:
            exported(folder, name)
        assert f"has no {AT_REST.get(case, case)}" in str(error.value)
        assert str(error.value).endswith(f"This SAE goes into {', '.join(able)}.")
        assert not folder.with_name(name).exists()


def test_sparsify_refuses_a_transcoder_to_other_dimensions(folder):
    saved(folder, "topk_transcoder", d_out=7)
    message = "have d_out = d_in, this one has 7 and 10. This SAE goes into pt"
    with pytest.raises(UserError, match=message):
        exported(folder, "sparsify")


# -- .pt --------------------------------------------------------------------------------------


def test_a_pt_file_holds_plain_values_and_is_what_a_training_writes_too(folder, tmp_path):
    trained, acts = saved(folder, "topk")
    settings = Settings.model_validate({"model": {"name": "org/model"}, "sae": {"k": 5}})
    scale = torch.full((10,), SCALE_IN).double()
    save_pt(trained, tmp_path / "x.pt", Acts(sites(settings)[0], scale, scale), settings)
    one = torch.load(tmp_path / "x.pt", weights_only=True)
    other = torch.load(exported(folder, "pt") / "sae.pt", weights_only=True)
    assert one.keys() == other.keys() == {"config", "state_dict"}
    assert one["config"]["architecture"] == "topk" and one["config"]["k"] == 5
    assert json.loads(json.dumps(one["config"])) == one["config"]
    for name, value in load_file(folder / "sae_weights.safetensors").items():
        assert torch.equal(one["state_dict"][name], value)
        assert torch.equal(other["state_dict"][name], value)
    assert_same_recon(load_sae(tmp_path / "x.pt")(acts), load_sae(folder)(acts))


class Payload:
    """Unpickled without care, it makes a folder."""

    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self.proof),)


@pytest.mark.parametrize("way", ["torch.save", "pickle", "in a state dict", "in ae.pt"])
def test_a_pt_file_that_would_run_code_is_not_opened(way, tmp_path):
    proof, file = tmp_path / "ran", tmp_path / "bad.pt"
    match way:
        case "torch.save":
            torch.save(Payload(proof), file)
        case "pickle":
            file.write_bytes(pickle.dumps(Payload(proof)))
        case "in a state dict":
            torch.save({"config": {}, "state_dict": {"W_enc": Payload(proof)}}, file)
        case "in ae.pt":
            file = tmp_path / "ae"
            file.mkdir()
            torch.save({"encoder.weight": Payload(proof)}, file / "ae.pt")
            (file / "config.json").write_text('{"trainer": {"dict_class": "AutoEncoder"}}')
    with pytest.raises(UserError, match=r"could run code: it isn't opened") as error:
        load_sae(file)
    assert "\n" not in str(error.value)
    assert not proof.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a PyTorch file, or is damaged"),
        (b"PK\x03\x04 not a zip", "is not a PyTorch file, or is damaged"),
        ([1], "is not an SAE: it holds a list"),
        ({"W_enc": torch.zeros(2, 2)}, "is not an SAE of ours: it needs a config and a state_d"),
        ({"config": {}, "state_dict": {}}, "its config needs an architecture"),
        ({"config": {"architecture": "topk"}, "state_dict": {"W_enc": 1}}, "holds tensors alone"),
    ],
)
def test_a_pt_file_that_is_no_sae_is_refused(content, message, tmp_path):
    file = tmp_path / "x.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(UserError, match=message):
        load_sae(file)


# -- bad files --------------------------------------------------------------------------------


def test_what_holds_no_sae_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"hf://a/b is on the net. Download it, and give the folder"
    ):
        load_sae("hf://a/b")
    with pytest.raises(UserError, match=r"isn't there. Give the folder of a saved SAE, a .pt file"):
        load_sae(tmp_path / "gone")
    (tmp_path / "README").write_text("")
    message = r"holds no SAE's weights: none of sae_weights.safetensors \(sae_lens\), .* README\."
    with pytest.raises(UserError, match=message):
        load_sae(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "magic"}, "architecture 'magic' can't be read. Known: standard, topk"),
        ({"architecture": "batchtopk"}, "architecture 'batchtopk' can't be read"),
        ({"architecture": "gated"}, "isn't a whole SAE|isn't part of a gated SAE"),
        ({"architecture": ["topk"]}, "can't be read. Known"),
        ({"d_sae": 97}, r"d_in, d_sae = \(10, 97\), but its W_enc is \[10, 96\]"),
        ({"d_sae": "96"}, "d_sae is '96'; it has to be a whole number over 0"),
        ({"k": None}, "k is missing; it has to be a whole number over 0"),
        ({"k": 97}, "k = 97 is larger than d_sae = 96"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations = 'layer_norm' can't be"),
        ({"d_in": None}, "it needs architecture, d_in and d_sae"),
        ({"architecture": "topk_transcoder"}, "a topk_transcoder subtracts nothing"),
        (
            {"architecture": "topk_transcoder", "apply_b_dec_to_input": False},
            "d_out is missing; it has to be a whole number over 0",
        ),
        (
            {"architecture": "crosscoder", "apply_b_dec_to_input": False, "widths": [4, 5]},
            r"widths = \[4, 5\]; they have to be the layers' widths, d_in = 10",
        ),
    ],
)
def test_a_config_that_does_not_fit_is_refused_with_the_reason(change, message, folder):
    saved(folder, "topk")
    change_config(folder, **change)
    with pytest.raises(UserError, match=message) as error:
        load_sae(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not valid JSON"), ("[]", "holds a list"), (None, "cfg.json can't be read")],
)
def test_a_config_that_is_none_is_refused(text, message, folder):
    saved(folder, "topk")
    (folder / "cfg.json").unlink()
    if text is not None:
        (folder / "cfg.json").write_text(text)
    with pytest.raises(UserError, match=message):
        load_sae(folder)


@pytest.mark.parametrize("case", CASES)
def test_weights_that_lack_one_or_have_another_are_refused(case, folder):
    saved(folder, case)
    change_config(folder)
    file = folder / "sae_weights.safetensors"
    whole = load_file(file)
    for name, weight in whole.items():
        for changed in (None, torch.zeros(*weight.shape[:-1], weight.shape[-1] + 1)):
            weights = {k: v for k, v in (whole | {name: changed}).items() if v is not None}
            save_file(weights, file)
            with pytest.raises(UserError, match=f"{name} is|W_enc is|{name}"):
                load_sae(folder)
    save_file(whole | {"extra": torch.zeros(1)}, file)
    with pytest.raises(UserError, match="extra isn't part of a"):
        load_sae(folder)


def test_weights_that_are_cut_short_are_refused(folder):
    saved(folder, "topk")
    file = folder / "sae_weights.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        load_sae(folder)


def test_an_export_never_writes_into_a_folder_that_holds_something(folder):
    saved(folder, "topk")
    with pytest.raises(UserError, match="is not empty. Name a new folder"):
        export_sae(read_stored(folder)[0], "sparsify", folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "groupmax"}, "activation = 'groupmax' can't be read, only 'topk'"),
        ({"skip_connection": True}, "skip_connection without transcode can't be read"),
        ({"num_latents": 0, "expansion_factor": "8"}, "expansion_factor is '8'"),
    ],
)
def test_a_config_of_sparsify_that_does_not_fit_is_refused(change, message, folder):
    saved(folder, "topk")
    out = exported(folder, "sparsify")
    (out / "cfg.json").write_text(json.dumps(json.loads((out / "cfg.json").read_text()) | change))
    with pytest.raises(UserError, match=message):
        load_sae(out)


@pytest.mark.parametrize("widths", [["a"], [-4, 14], [4.0, 6.0], [[4, 6]], [0, 10], 10, None])
def test_a_crosscoders_widths_are_whole_numbers_over_0(widths, folder):
    saved(folder, "crosscoder")
    change_config(folder, widths=widths)
    with pytest.raises(UserError, match="widths = .*; they have to be the layers' widths, d_in ="):
        load_sae(folder)


def test_a_size_is_held_against_the_weights_before_memory_is_asked_for(folder):
    saved(folder, "topk_transcoder")
    change_config(folder, d_out=10**30)
    with pytest.raises(UserError, match=r"d_sae, d_out = \(96, 10{30}\), but its W_dec is \[96, 7"):
        load_sae(folder)


def test_a_matrix_of_sparsify_with_a_dimension_too_many_is_refused(folder):
    saved(folder, "topk")
    file = exported(folder, "sparsify") / "sae.safetensors"
    weights = load_file(file)
    save_file(weights | {"encoder.weight": weights["encoder.weight"][None]}, file)
    with pytest.raises(UserError, match=r"its W_enc is \[1, 96, 10\]"):
        load_sae(file.parent)


@pytest.mark.parametrize("wrong", [{"k": "a"}, {"k": 10**30}, {"hookpoints_in": 5}, {"k": [1]}])
def test_what_a_config_says_beside_the_sae_keeps_none_from_being_written(wrong, folder):
    saved(folder, "batchtopk")
    metadata = json.loads((folder / "cfg.json").read_text())["metadata"]
    change_config(folder, metadata=metadata | wrong)
    load_sae(exported(folder, "dictionary_learning"))


@pytest.mark.parametrize("value", [2.5, "false", [], {"a": 1}, 0])
def test_what_decides_how_weights_are_meant_is_true_or_false(value, folder):
    saved(folder, "topk")
    out = exported(folder, "sparsify")
    for home, key in [
        (folder, "apply_b_dec_to_input"),
        (folder, "rescale_acts_by_decoder_norm"),
        (out, "transcode"),
        (out, "skip_connection"),
    ]:
        whole = (home / "cfg.json").read_text()
        change_config(home, **{key: value})
        with pytest.raises(UserError, match=rf"{key} is .*; it has to be true or false\."):
            load_sae(home)
        (home / "cfg.json").write_text(whole)


@pytest.mark.parametrize("uri", ["runs:/0123456789abcdef", "runs:/0123456789abcdef/"])
def test_a_whole_run_is_no_sae(uri):
    with pytest.raises(
        UserError, match=rf"^{uri} is a whole run\. Its SAE is {uri.rstrip('/')}/sae"
    ):
        load_sae(uri)
