"""Tiny language models and SAEs whose effect on them is known beforehand."""

import numpy as np
import torch

from sae_mlflow.lm.hookpoints import LanguageModel
from sae_mlflow.lm.sites import Site
from sae_mlflow.sae import Sizes
from sae_mlflow.sae.topk import TopKSAE
from sae_mlflow.text.corpus import Windows

D_MODEL, VOCABULARY, CONTEXT, SPECIAL_ID = 16, 50, 12, 0
ANY_NORM = 1e9


def tiny_lm(architecture: str) -> LanguageModel:
    """A random model of four blocks whose logits differ enough for losses to be far apart."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    if architecture == "gpt2":
        sizes = {"n_embd": D_MODEL, "n_layer": 4, "n_head": 2, "vocab_size": VOCABULARY}
        model = GPT2LMHeadModel(GPT2Config(**sizes, **ids))
    else:
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=D_MODEL,
            intermediate_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            **ids,
        )
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)
    return LanguageModel(model, architecture)


def gemma3n(vocabulary: int = VOCABULARY) -> LanguageModel:
    """Random, of four blocks, each of which puts out two streams: `[2, batch, context, 16]`."""
    from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

    torch.manual_seed(0)
    config = Gemma3nTextConfig(
        vocab_size=vocabulary,
        vocab_size_per_layer_input=vocabulary,
        hidden_size=D_MODEL,
        hidden_size_per_layer_input=4,
        intermediate_size=32,
        num_hidden_layers=4,
        num_kv_shared_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        laurel_rank=4,
        activation_sparsity_pattern=[0.0] * 4,
        altup_num_inputs=2,
        layer_types=["sliding_attention", "full_attention"] * 2,
        sliding_window=4,
        max_position_embeddings=64,
    )
    return LanguageModel(Gemma3nForCausalLM(config), "gemma3n")


def windows(n: int = 6, seed: int = 0) -> Windows:
    """Random tokens, with a special one in the middle of some windows."""
    ids = np.random.default_rng(seed).integers(1, VOCABULARY, (n, CONTEXT), dtype=np.int32)
    ids[::2, 5] = SPECIAL_ID
    return Windows(ids, ids, frozenset({SPECIAL_ID}), "random", "0" * 64)


def residual(*blocks: int) -> Site:
    paths = tuple(f"layers.{block}" for block in blocks)
    label = "layer" + "-".join(map(str, blocks))
    return Site(
        layer=blocks[0] if len(blocks) == 1 else blocks, label=label, reads=paths, writes=paths
    )


def transcoder(block: int) -> Site:
    path = f"layers.{block}.mlp"
    return Site(path, f"layer{block}_mlp", reads=(f"{path}:input",), writes=(path,))


def identity_sae(d: int) -> TopKSAE:
    """x = relu(x) - relu(-x), exactly: products with 1 and sums with 0 don't round."""
    sae = TopKSAE(Sizes(d, 2 * d), k=d)
    eye = torch.eye(d)
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([eye, -eye], dim=1))
        sae.W_dec.copy_(torch.cat([eye, -eye]))
    return sae.eval().requires_grad_(False)


def zero_sae(d_in: int, d_out: int | None = None) -> TopKSAE:
    return TopKSAE(Sizes(d_in, 8, d_out), k=2).eval().requires_grad_(False)


def random_sae(d_in: int, d_out: int | None = None, d_sae: int = 40, k: int = 4) -> TopKSAE:
    sae = TopKSAE(Sizes(d_in, d_sae, d_out), k=k)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name in ("W_enc", "W_dec", "b_dec"):
            parameter = getattr(sae, name)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / d_in**0.5)
    return sae.eval().requires_grad_(False)
