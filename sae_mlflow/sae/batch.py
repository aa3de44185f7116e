"""What an SAE is given and what it makes of that: a batch, the SAE's sizes, a step's loss."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Scaled activations of some tokens: what an SAE reads, and what it reconstructs."""

    x: Tensor
    """`[batch, d_in]`."""
    y: Tensor
    """`[batch, d_out]`; of an autoencoder the same tensor as x."""


@dataclass(frozen=True)
class Sizes:
    """Dimensions of an SAE."""

    d_in: int
    d_sae: int
    d_out: int | None = None
    """Of a transcoder: dimensions of its target. None for an autoencoder, whose target is x."""
    skip: bool = False
    """Whether a linear map of x is added to the reconstruction (skip transcoders)."""
    widths: tuple[int, ...] = ()
    """Of a crosscoder: dimensions of each of its layers, `d_in` in all."""


@dataclass(frozen=True)
class Reconstruction:
    """What an SAE makes of a batch."""

    recon: Tensor
    """`[batch, d_out]`."""
    l0: Tensor
    """Mean number of latents > 0 a token."""
    fired: Tensor
    """`[d_sae]` bool: latents > 0 on some token of the batch."""


@dataclass(frozen=True)
class StepLoss(Reconstruction):
    """One batch's loss terms, and what the metrics need of the forward pass (detached)."""

    total: Tensor
    """What is minimised: reconstruction + sparsity + auxiliary terms."""
    sparsity: Tensor
    """The architecture's penalty; 0 where sparsity is structural."""
