"""What an SAE's latents do over a text, and how the rows of its weights lie to one another."""

import numpy as np
import torch
from torch import Tensor

from sae_mlflow.sae import SAE

_COSINE_ROWS = 1024


class FiringCounts:
    """On how many tokens each latent fires."""

    def __init__(self, d_sae: int) -> None:
        self.tokens = 0
        self._counts = torch.zeros(d_sae, dtype=torch.int64)

    def add(self, latents: Tensor) -> None:
        """Count latents `[n, d_sae]` of n tokens."""
        self.tokens += latents.shape[0]
        self._counts += (latents > 0).sum(dim=0).cpu()

    def density(self) -> np.ndarray:
        """Share of tokens that each latent fires on: float64 `[d_sae]`."""
        return self._counts.numpy() / max(self.tokens, 1)


@torch.no_grad()
def decoder_max_cosine(W_dec: Tensor) -> float:
    """Mean over decoder rows of the cosine with the nearest other row; low means all differ.

    Args:
        W_dec: `[d_sae, d_out]`, two rows at least.
    """
    rows = torch.nn.functional.normalize(W_dec.float(), dim=1)
    total = 0.0
    for start in range(0, len(rows), _COSINE_ROWS):
        cosines = rows[start : start + _COSINE_ROWS] @ rows.t()
        cosines.diagonal(start).fill_(-1.0)  # a row isn't its own neighbour
        total += cosines.amax(dim=1).cpu().double().sum().item()
    return total / len(rows)


@torch.no_grad()
def encoder_decoder_cosine(W_enc: Tensor, W_dec: Tensor) -> float:
    """Mean over latents of the cosine between what a latent reads and what it writes.

    Args:
        W_enc: `[d_in, d_sae]`.
        W_dec: `[d_sae, d_in]`, in the same space.
    """
    cosines = torch.cosine_similarity(W_enc.t().float(), W_dec.float(), dim=1)
    return cosines.cpu().double().mean().item()


def weight_metrics(sae: SAE, *, reads_what_it_writes: bool) -> dict[str, float]:
    """Both cosines, of an SAE's weights for raw activations.

    The encoder-decoder cosine is left out where the SAE reads another activation than it writes
    (transcoders): the two rows are then in different spaces.
    """
    metrics = {}
    if sae.d_sae > 1:
        metrics["decoder_max_cosine"] = decoder_max_cosine(sae.W_dec)
    if reads_what_it_writes:
        metrics["encoder_decoder_cosine"] = encoder_decoder_cosine(sae.W_enc, sae.W_dec)
    return metrics
