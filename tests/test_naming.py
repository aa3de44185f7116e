"""Names in tags, files and figures."""

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


def test_layers_are_ordered_by_number():
    labels = ["layer10", "layer9", "embed", "layer10_mlp", "layer2"]
    expected = ["layer2", "layer9", "layer10", "layer10_mlp", "embed"]
    assert sorted(labels, key=naming.layer_order) == expected


@pytest.mark.parametrize(
    ("layer", "hook"),
    [
        (10, "blocks.10.hook_resid_post"),
        ("layers.4.mlp", "blocks.4.hook_mlp_out"),
        ("layers.4.self_attn", "blocks.4.hook_attn_out"),
        ("layers.4.mlp.down_proj", "layers.4.mlp.down_proj"),
    ],
)
def test_saelens_gets_the_name_that_it_uses(layer, hook):
    assert naming.sae_lens_hook(layer) == hook
