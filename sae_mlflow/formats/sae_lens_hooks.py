"""What SAELens (TransformerLens) calls the hookpoints that it knows."""

import re
from collections.abc import Collection

from sae_mlflow import naming
from sae_mlflow.config import ModelSettings
from sae_mlflow.errors import UserError
from sae_mlflow.lm.loading import block_modules

_HOOKS = {"": "hook_resid_post", ":input": "hook_resid_pre"}
# `ln1` and `ln2` are the norms before attention and MLP; of an RMS norm their hook is before its
# weight, ours is behind it.
_NORMED = {
    "mlp:input": "ln2.hook_normalized",
    "self_attn:input": "ln1.hook_normalized",
    "attn:input": "ln1.hook_normalized",
    "attention:input": "ln1.hook_normalized",
}
_OUTPUTS = {
    "mlp": "hook_mlp_out",
    "self_attn": "hook_attn_out",
    "attn": "hook_attn_out",
    "attention": "hook_attn_out",
}
# Where the residual stream takes a norm of what attention and MLP put out (Gemma 2 and 3, OLMo 2
# and 3), these hooks are behind it; and OLMo's have none before.
_PRE_NORM, _POST_NORM = "pre_feedforward_layernorm", "post_feedforward_layernorm"
_POST_NORMED = {"post_attention_layernorm": "hook_attn_out", _POST_NORM: "hook_mlp_out"}


def hook_name(hookpoint: str, model: ModelSettings) -> str:
    """What SAELens calls a model's hookpoint.

    Within a block only what the block is made of tells; where that isn't known any more, its own
    name.
    """
    if naming.is_block(hookpoint):
        return sae_lens_hook(hookpoint)
    try:
        return sae_lens_hook(hookpoint, block_modules(model))
    except UserError:
        return hookpoint


def sae_lens_hook(hookpoint: str, block_modules: Collection[str] = ()) -> str:
    """A hookpoint under the name that SAELens uses: `layers.10` -> `blocks.10.hook_resid_post`.

    One that it has no name for keeps its own.

    Args:
        block_modules: what a block is made of; without a norm behind the MLP among them, attention
            and MLP have norms before them alone.
    """
    post_normed = _POST_NORM in block_modules
    hooks = _HOOKS | (_POST_NORMED if post_normed else _OUTPUTS)
    if not post_normed or _PRE_NORM in block_modules:
        hooks = hooks | _NORMED
    match = re.match(r"layers\.(\d+)\.?(.*)", hookpoint)
    if match and match[2] in hooks:
        return f"blocks.{match[1]}.{hooks[match[2]]}"
    return hookpoint
