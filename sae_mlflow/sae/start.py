"""From where on latents fire at the start: few of them do so from the first step.

Encoder directions of length 1 would fire on half of the tokens, and what decides about firing moves
by about a learning rate a step: a short training would end before sparsity was reached. Anthropic's
January 2025 update solves for biases from a sample of the data in this way.
"""

import torch
from torch import Tensor

from sae_mlflow.sae.base import SAE
from sae_mlflow.sae.batch import Batch

# Latents that fire on a token at the start, as a share of the dimensions that are read.
L0_PER_DIMENSION = 1 / 8

CHUNK_LATENTS = 512


@torch.no_grad()
def firing_bounds(sae: SAE, x: Tensor, latents: Tensor) -> Tensor:
    """What each latent's `(x - centre) W_enc` exceeds so often that `d_in / 8` fire on a token.

    Args:
        x: `[n, d_in]` scaled activations; a latent exceeds its bound on one of them at least,
            unless they are equal.
        latents: int64 `[m]`, which ones are asked about.

    Returns:
        `[m]`, in units of pre-activations.
    """
    share = sae.d_in * L0_PER_DIMENSION / sae.d_sae
    firing = max(round(share * len(x)), 1)
    centred = x if sae.centre is None else x - sae.centre
    bounds = []
    for some in latents.split(CHUNK_LATENTS):
        products = sae.W_enc.t()[some] @ centred.t()
        largest = products.topk(min(firing + 1, len(x)), dim=1)
        bounds.append(largest.values[:, -1])
    return torch.cat(bounds) if bounds else sae.W_enc.new_empty(0)


class FittedStart(SAE):
    """An SAE whose encoder starts at the length that reconstructs best."""

    @torch.no_grad()
    def initialise(self, sample: Batch, generator: torch.Generator) -> None:
        super().initialise(sample, generator)
        fit_length(self, sample)


@torch.no_grad()
def fit_length(sae: SAE, sample: Batch) -> None:
    """Bring the encoder's directions to the length that reconstructs best, bounds along with it."""
    sae.W_enc.mul_(best_length(sae, sample))
    sae.start(sample.x, torch.arange(sae.d_sae, device=sample.x.device))


@torch.no_grad()
def best_length(sae: SAE, sample: Batch) -> Tensor:
    """What the encoder's directions have to be multiplied by for the least squared error: `[]`.

    Latents that pass their bound at full strength say the same thing several times over: at length
    1 their sum overshoots, and the first steps would push latents down until some never fire.

    Args:
        sample: scaled activations; 1 where the SAE makes nothing of them.
    """
    made = sae.reconstruct(sample.x).recon - sae.b_dec
    wanted = sample.y - sae.b_dec
    factor = (made * wanted).sum() / made.square().sum()
    return torch.where(factor > 0, factor, 1.0)  # not a number where nothing is made
