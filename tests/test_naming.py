"""Names in tags, files and figures."""

import re

import pytest

from sae_mlflow import naming


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("meta-llama/Llama-2-7b-hf", "meta-llama-Llama-2-7b-hf"),
        ("smollm2-135m", "smollm2-135m"),
        ("../../etc/passwd", "etc-passwd"),
        ("..", "model"),
        ("/", "model"),
        ("a b\n<script>", "a-b-script"),
        (".hidden", "hidden"),
    ],
)
def test_a_models_name_becomes_a_file_name_that_stays_in_its_folder(name, expected):
    assert naming.sanitise(name) == expected


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("smollm2-135m", "smollm2-135m-layer10"),
        ("gpt2", "gpt2-layer10"),
        ("meta-llama/Llama-2-7b-hf", "meta-llama--Llama-2-7b-hf-layer10"),
        ("my model", "my-model-76eeb051-layer10"),  # sha256 of "my model"
    ],
)
def test_the_registered_name_is_model_and_layer(model, expected):
    assert naming.registered_name(model, "layer10") == expected


@pytest.mark.parametrize(
    ("label", "setting", "expected"),
    [
        ("gpt2", "gpt2", "gpt2-layer10"),
        (
            "meta-llama/Llama-2-7b-hf",
            "meta-llama/Llama-2-7b-hf",
            "meta-llama--Llama-2-7b-hf-layer10",
        ),
        ("gpt2", "/a/gpt2", "gpt2-49edbaa8-layer10"),  # sha256 of "/a/gpt2"
        ("gpt2", "/a/gpt2/", "gpt2-49edbaa8-layer10"),
        ("my model", "/b/my model", "my-model-3c36aebc-layer10"),
    ],
)
def test_a_local_folder_is_registered_with_a_hash_of_its_path(label, setting, expected):
    assert naming.registered_name(label, "layer10", setting) == expected


def test_models_that_look_alike_are_registered_under_different_names():
    alike = [
        "org/model",
        "org-model",
        "org--model",
        "org model",
        "org:model",
        "/org/model",
        "model",
    ]
    alike += ["org/-model", "org-/model", "org//model", "org/model.", ".org/model", "", "model/"]
    alike += ["x" * 121, "x" * 122]
    names = [naming.registered_name(model, "layer10") for model in alike]
    assert len(set(names)) == len(alike)
    assert not [name for name in names if set(name) & set("/: ")]


@pytest.mark.parametrize(
    ("layer", "path", "label"),
    [
        (10, "layers.10", "layer10"),
        ("10", "layers.10", "layer10"),
        ("layers.10.mlp", "layers.10.mlp", "layer10_mlp"),
        ("layers.3.self_attn.o_proj", "layers.3.self_attn.o_proj", "layer3_self_attn_o_proj"),
        ("embed_tokens", "embed_tokens", "embed_tokens"),
    ],
)
def test_a_layer_has_a_module_path_and_a_label(layer, path, label):
    assert naming.hookpoint(layer) == path
    assert naming.layer_label(layer) == label


@pytest.mark.parametrize(
    ("layers", "label"),
    [
        ((10, 15, 20), "layer10-15-20"),
        ((20, "10", 9), "layer9-10-20"),
        ((10, "layers.15.mlp"), "layer10-15_mlp"),
        (("layers.3.mlp", "layers.3.self_attn"), "layer3_mlp-3_self_attn"),
        (("embed_tokens", 2), "layer2-embed_tokens"),
        (("embed_tokens", "norm"), "embed_tokens-norm"),
    ],
)
def test_several_layers_have_a_label_that_begins_with_the_first(layers, label):
    assert naming.joint_label(layers) == label
    assert naming.layer_label(label) == label  # asked for with --layers, it is found


def test_a_label_of_very_many_layers_is_cut_and_stays_its_own():
    labels = {naming.joint_label(range(n)) for n in range(60, 100)}
    assert len(labels) == 40
    assert all(len(label) <= 100 and label.startswith("layer0-1-2-") for label in labels)
    assert naming.joint_label(range(32)).endswith("-30-31")


def test_a_hookpoint_has_a_file_name_that_no_other_has():
    """A module may be called `mlp-input`, which is what `mlp:input` would be sanitised to."""
    stems = {
        "layers.10": "layers.10",
        "layers.10:input": "layers.10@input",
        "layers.10.mlp": "layers.10.mlp",
        "layers.10.mlp:input": "layers.10.mlp@input",
        "layers.10.mlp-input": "layers.10.mlp-input",
        "layers.10.mlp_input": "layers.10.mlp_input",
    }
    assert {hookpoint: naming.file_stem(hookpoint) for hookpoint in stems} == stems
    assert {naming.stored_hookpoint(stem): stem for stem in stems.values()} == stems
    assert re.fullmatch(r"etc-[0-9a-f]{8}@input", naming.file_stem("../../etc:input"))


@pytest.mark.parametrize(
    ("hookpoint", "block"),
    [("layers.3", 3), ("layers.3:input", 3), ("layers.12.mlp:input", 12), ("norm:input", None)],
)
def test_a_hookpoint_lies_in_a_block_whichever_end_it_is(hookpoint, block):
    assert naming.block_number(hookpoint) == block


def test_layers_are_ordered_by_number():
    labels = ["layer10", "layer9", "embed", "layer10_mlp", "layer9-20", "layer2"]
    expected = ["layer2", "layer9", "layer9-20", "layer10", "layer10_mlp", "embed"]
    assert sorted(labels, key=naming.layer_order) == expected


def test_numbers_in_a_text_are_ordered_as_numbers():
    in_order = ["", "10", "sae.k=8", "sae.k=32", "sae.k=128", "topk", "topk · sae.k=1e-3"]
    in_order += ["topk · sae.k=0.02", "topk · sae.k=0.1", "topk · sae.k=unset"]
    by_text = sorted(in_order)
    assert by_text != in_order == sorted(by_text, key=naming.natural_order)
