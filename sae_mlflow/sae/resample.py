"""Dead latents get new directions from what is reconstructed worst: Bricken et al. 2023, Towards
Monosemanticity, appendix on neuron resampling."""

import torch
from torch import Tensor

from sae_mlflow.sae.base import SAE
from sae_mlflow.sae.batch import Batch

# Length of a new encoder row as a share of the living ones' mean, so that it doesn't drown them.
ENCODER_LENGTH = 0.2


@torch.no_grad()
def resample(
    sae: SAE,
    batch: Batch,
    dead: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Start dead latents anew, each from a token of its own.

    Tokens are drawn with probabilities in proportion to their squared loss. The latent's decoder
    row becomes the token's direction at length 1, its encoder row the direction of what is read, at
    0.2 times the mean length of living rows. Two things are not as in the appendix: directions are
    those of centred activations, since `b_dec` is added anyway (in a skip transcoder also without
    what the skip makes of them), and the latent fires as seldom as
    at the start of a training, while a bias of 0 would have it fire on half of the tokens.

    Args:
        dead: `[d_sae]` bool.
        generator: on the CPU; drawn from only where a latent is dead.

    Returns:
        int64: the latents that were started anew. There are as many tokens with a loss at most; the
        others wait for another time.
    """
    waiting = dead.nonzero().squeeze(1)
    if not len(waiting):
        return waiting
    read = batch.x if sae.centre is None else batch.x - sae.centre
    written = batch.y - sae.b_dec
    if sae.W_skip is not None:
        written = written - batch.x @ sae.W_skip.t()
    tokens = draw_tokens(sae.reconstruct(batch.x).recon, batch.y, len(waiting), generator)
    latents = waiting[: len(tokens)]
    living = sae.W_enc.t()[~dead]
    length = living.norm(dim=1).mean() if len(living) else living.new_ones(())
    sae.W_enc.t()[latents] = ENCODER_LENGTH * length * unit(read[tokens])
    sae.W_dec[latents] = unit(written[tokens])
    sae.start(batch.x, latents)
    return latents


def draw_tokens(recon: Tensor, y: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """At most n tokens, none twice, the likelier the larger their squared loss is: int64.

    Args:
        recon, y: `[batch, d_out]`.
    """
    losses = (y - recon).square().mean(dim=1).double().cpu()
    weights = losses.square().nan_to_num(0.0, posinf=0.0)
    n = min(n, int((weights > 0).sum()))
    if not n:
        return torch.empty(0, dtype=torch.int64, device=y.device)
    return torch.multinomial(weights, n, generator=generator).to(y.device)


def unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
