"""Encoding and decoding where few latents fire, with gradients; nothing `[batch, d_sae]` is kept.

Only the encoder's product is dense. It is made in chunks of rows, and what a rule keeps of a chunk
is all that outlives it. The decoder, the latents' gradient and both weight gradients then cost as
much as there are latents that fire. Where a rule would keep many, all of it is done densely.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from sae_mlflow.sae import kernels
from sae_mlflow.sae.kernels import tiles
from sae_mlflow.sae.select import Above, Rule
from sae_mlflow.sae.support import DenseSupport, SparseSupport, Support
from sae_mlflow.sae.tiled_support import TiledSupport, pays, sparse_support, tiled_above

# Elements of a chunk of pre-activations (16 MB in float32): more falls out of the cache before it
# is looked at, fewer rows make the product slower (its weights are packed again for each chunk).
CHUNK_ELEMENTS = 1 << 22
MIN_CHUNK_ROWS = 512

# From this share of latents on, dense products are faster than following lists.
DENSE_FROM = 0.15
_SAMPLE_TOKENS = 32


def encode(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    centre: Tensor | None,
    rule: Rule,
    silent_up_to: Tensor | None = None,
) -> tuple[Tensor, Support]:
    """The pre-activations `(x - centre) W_enc + b_enc` that a rule keeps, and where they belong.

    Args:
        x: `[batch, d_in]`.
        W_enc: `[d_in, d_sae]`; fastest where its transpose is contiguous.
        centre: `[d_in]`; None where x isn't centred.
        silent_up_to: `[d_sae]`; what isn't over it is going to be 0 as a latent, and to be asked
            for its gradient alone.

    Returns:
        Values before any activation function: `[nnz]`, or `[batch, d_sae]` where many are kept.
    """
    with torch.no_grad():
        centred = x if centre is None else x - centre
        density = rule.density(
            lambda: torch.addmm(b_enc, centred[:_SAMPLE_TOKENS], W_enc), W_enc.shape[1]
        )
    if density >= DENSE_FROM:
        inputs = x if centre is None else x - centre
        pre_acts = rule.masked(torch.addmm(b_enc, inputs, W_enc))
        return pre_acts, DenseSupport(*pre_acts.shape)
    with torch.no_grad():
        values, support = _picked(centred, W_enc, b_enc, rule, density, silent_up_to)
    return _Kept.apply(values, centred, x, W_enc, b_enc, centre, support), support


def decode(latents: Tensor, support: Support, W_dec: Tensor, b_dec: Tensor | None = None) -> Tensor:
    """`z W_dec + b_dec` `[batch, d_out]` for latents z over a support."""
    if not isinstance(support, DenseSupport):
        product: Tensor = _Decode.apply(latents, W_dec, support)
        return product if b_dec is None else product.add_(b_dec)
    return latents @ W_dec if b_dec is None else latents @ W_dec + b_dec


def reconstruct(
    latents: Tensor, support: Support, W_dec: Tensor, b_dec: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """`z W_dec + b_dec`, detached, and its squared error to y, mean over tokens and dimensions."""
    sparse = not isinstance(support, DenseSupport)
    if sparse and kernels.compiled(y) and y.dtype == W_dec.dtype:
        recon, loss = _Reconstruct.apply(latents, W_dec, b_dec, y, support)
        return recon, loss
    recon = decode(latents, support, W_dec, b_dec)
    return recon.detach(), mse_loss(recon, y)


def _picked(
    centred: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    rule: Rule,
    density: float,
    silent_up_to: Tensor | None,
) -> tuple[Tensor, Support]:
    """What the rule keeps, and where it belongs; compiled kernels add the biases, too."""
    narrow = torch.is_autocast_enabled(centred.device.type)
    if narrow or not kernels.compiled(W_enc):
        values, latents, starts = rule.pick(lambda: _chunks(centred, W_enc, b_enc))
    elif isinstance(rule, Above) and pays(density, len(centred)):
        height = tiles.height(len(centred))
        chunks = _chunks(centred, W_enc, None, height)
        lower = rule.lower.detach().to(W_enc.dtype)
        return tiled_above(chunks, b_enc, lower, silent_up_to, height)
    else:
        values, latents, starts = rule.pick(lambda: _chunks(centred, W_enc, None), b_enc)
    values = values.to(W_enc.dtype)  # under autocast the product is narrower
    return sparse_support(values, latents, starts, W_enc.shape[1], silent_up_to)


def _chunks(
    centred: Tensor, W_enc: Tensor, b_enc: Tensor | None, multiple_of: int = 1
) -> Iterator[Tensor]:
    """Each is made in the place of the one before, unless autocast makes it narrower."""
    wanted = max(CHUNK_ELEMENTS // W_enc.shape[1], MIN_CHUNK_ROWS)
    rows = math.ceil(len(centred) / max(round(len(centred) / wanted), 1))
    rows = math.ceil(rows / multiple_of) * multiple_of
    if b_enc is not None and torch.is_autocast_enabled(centred.device.type):
        for part in centred.split(max(rows, 1)):
            yield torch.addmm(b_enc, part, W_enc)
        return
    buffer = centred.new_empty(rows, W_enc.shape[1])
    for part in centred.split(max(rows, 1)):
        # `addmm` would write the biases first and read them again: 5% more at 384 x 3,072
        product = torch.mm(part, W_enc, out=buffer[: len(part)])
        yield product if b_enc is None else product.add_(b_enc)


class _Kept(torch.autograd.Function):
    """Values that were picked without gradients, tied to what they were computed from."""

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        centred: Tensor,
        x: Tensor,
        W_enc: Tensor,
        b_enc: Tensor,
        centre: Tensor | None,
        support: Support,
    ) -> Tensor:
        ctx.support = support
        ctx.save_for_backward(centred, W_enc)
        return values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        centred, W_enc = ctx.saved_tensors
        support: Support = ctx.support
        grad_W_enc = support.transposed_times(grad, centred).t()
        grad_b_enc = support.gathered(grad)
        grad_x = grad_centre = None
        if ctx.needs_input_grad[2]:
            grad_x = support.times(grad, W_enc.t())
        if ctx.needs_input_grad[5]:
            grad_centre = -(W_enc @ grad_b_enc)
        return None, None, grad_x, grad_W_enc, grad_b_enc, grad_centre, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, latents: Tensor, W_dec: Tensor, support: Support) -> Tensor:
        ctx.support = support
        ctx.save_for_backward(latents, W_dec)
        return support.times(latents, W_dec)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        latents, W_dec = ctx.saved_tensors
        support: Support = ctx.support
        grad_latents = grad_W_dec = None
        if ctx.needs_input_grad[0]:
            grad_latents = support.sampled(grad, W_dec)
        if ctx.needs_input_grad[1]:
            grad_W_dec = support.transposed_times(latents, grad)
        return grad_latents, grad_W_dec, None


class _Reconstruct(torch.autograd.Function):
    """The loss's gradient by the latents is made in the forward pass, while a token's decoder rows
    are at hand: fetching them is what a reconstruction costs."""

    @staticmethod
    def forward(
        ctx: Any,
        latents: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        y: Tensor,
        support: SparseSupport | TiledSupport,
    ) -> tuple[Tensor, Tensor]:
        recon, error, missed, dots = support.reconstruct(latents, W_dec, b_dec, y)
        ctx.support = support
        ctx.save_for_backward(latents, error, dots)
        ctx.mark_non_differentiable(recon)
        ctx.set_materialize_grads(False)  # else zeros for the reconstruction, as large as it
        return recon, (missed.sum() / max(y.numel(), 1)).to(y.dtype)

    @staticmethod
    def backward(ctx: Any, _: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:
        latents, error, dots = ctx.saved_tensors
        support: Support = ctx.support
        factor = grad * (2 / max(error.numel(), 1))
        grad_W_dec = grad_b_dec = None
        if ctx.needs_input_grad[1]:
            grad_W_dec = support.transposed_times(latents * factor, error)
        if ctx.needs_input_grad[2]:
            grad_b_dec = error.sum(dim=0) * factor
        return dots * factor, grad_W_dec, grad_b_dec, None, None
