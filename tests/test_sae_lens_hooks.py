"""Hookpoints under the names that SAELens uses."""

import pytest

from sae_mlflow.formats.sae_lens_hooks import sae_lens_hook


@pytest.mark.parametrize(
    ("hookpoint", "hook"),
    [
        ("layers.10", "blocks.10.hook_resid_post"),
        ("layers.4.mlp", "blocks.4.hook_mlp_out"),
        ("layers.4.self_attn", "blocks.4.hook_attn_out"),
        ("layers.4.mlp.down_proj", "layers.4.mlp.down_proj"),
        ("layers.4:input", "blocks.4.hook_resid_pre"),
        ("layers.4.mlp:input", "blocks.4.ln2.hook_normalized"),
        ("layers.4.self_attn:input", "blocks.4.ln1.hook_normalized"),
        ("layers.4.mlp.down_proj:input", "layers.4.mlp.down_proj:input"),
    ],
)
def test_saelens_gets_the_name_that_it_uses(hookpoint, hook):
    assert sae_lens_hook(hookpoint) == hook


GEMMA = {"post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"}
OLMO = {"post_attention_layernorm", "post_feedforward_layernorm"}


@pytest.mark.parametrize(
    ("hookpoint", "llama", "gemma", "olmo"),
    [
        ("layers.4", "hook_resid_post", "hook_resid_post", "hook_resid_post"),
        ("layers.4:input", "hook_resid_pre", "hook_resid_pre", "hook_resid_pre"),
        ("layers.4.mlp", "hook_mlp_out", None, None),
        ("layers.4.self_attn", "hook_attn_out", None, None),
        ("layers.4.post_attention_layernorm", None, "hook_attn_out", "hook_attn_out"),
        ("layers.4.post_feedforward_layernorm", None, "hook_mlp_out", "hook_mlp_out"),
        ("layers.4.mlp:input", "ln2.hook_normalized", "ln2.hook_normalized", None),
        ("layers.4.self_attn:input", "ln1.hook_normalized", "ln1.hook_normalized", None),
    ],
)
def test_saelens_hooks_are_behind_a_blocks_last_norms(hookpoint, llama, gemma, olmo):
    """As `transformer_lens/components/transformer_block.py` has them."""
    blocks = ((llama, {"post_attention_layernorm"}), (gemma, GEMMA), (olmo, OLMO))
    for hook, modules in blocks:
        expected = f"blocks.4.{hook}" if hook else hookpoint
        assert sae_lens_hook(hookpoint, modules) == expected
