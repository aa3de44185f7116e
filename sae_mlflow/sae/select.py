"""Which pre-activations of a batch are kept: the k largest of each token or of the batch, or all
over a bound.

A rule sees the pre-activations in chunks of rows, as the encoder's product makes them, and gives
back what is kept as a ragged list; chunks that were looked at are gone. Biases may be left for the
rule to add while it looks: that saves writing each chunk once more.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sae_mlflow.sae import kernels


class Picked(NamedTuple):
    """Token b keeps `values[starts[b]:starts[b + 1]]`."""

    values: Tensor
    """`[nnz]`."""
    latents: Tensor
    """int64 `[nnz]`, distinct within a token."""
    starts: Tensor
    """int64 `[batch + 1]`."""


Chunks = Callable[[], Iterator[Tensor]]
"""Makes a batch's pre-activations, in chunks `[rows, d_sae]`; each call makes them again."""


class Rule(Protocol):
    """What is kept of a batch's pre-activations."""

    def density(self, sample: Callable[[], Tensor], d_sae: int) -> float:
        """About what share is kept, 0 to 1; may be judged by some tokens `[n, d_sae]`."""

    def pick(self, chunks: Chunks, bias: Tensor | None = None) -> Picked:
        """What is kept, where biases `[d_sae]` are still to be added to the chunks."""

    def masked(self, pre_acts: Tensor) -> Tensor:
        """`[batch, d_sae]` with 0 (and no gradient) for what isn't kept and might be positive."""


@dataclass(frozen=True)
class TopK:
    """The k largest of each token; whatever their sign, so there are always k."""

    k: int

    def density(self, sample: Callable[[], Tensor], d_sae: int) -> float:
        return self.k / d_sae

    def pick(self, chunks: Chunks, bias: Tensor | None = None) -> Picked:
        parts = [kernels.topk(chunk, self.k, bias) for chunk in chunks()]
        values = torch.cat([v.flatten() for v, _ in parts])
        latents = torch.cat([i.flatten() for _, i in parts])
        starts = torch.arange(0, len(latents) + 1, self.k, device=latents.device)
        return Picked(values, latents, starts)

    def masked(self, pre_acts: Tensor) -> Tensor:
        kept = torch.zeros_like(pre_acts, dtype=torch.bool)
        kept.scatter_(1, pre_acts.detach().topk(self.k, sorted=False).indices, True)
        return pre_acts * kept


@dataclass(frozen=True)
class Above:
    """All over a bound, `[d_sae]`; the rest is zero by the architecture's own activation."""

    lower: Tensor

    def density(self, sample: Callable[[], Tensor], d_sae: int) -> float:
        over = sample() > self.lower
        return over.double().mean().item() if over.numel() else 0.0

    def pick(self, chunks: Chunks, bias: Tensor | None = None) -> Picked:
        lower = self.lower.detach()
        return _joined([kernels.above(chunk, lower.to(chunk.dtype), bias) for chunk in chunks()])

    def masked(self, pre_acts: Tensor) -> Tensor:
        return pre_acts


@dataclass(frozen=True)
class BatchTopK:
    """The k * batch largest of the whole batch, of those that are positive."""

    k: int

    def density(self, sample: Callable[[], Tensor], d_sae: int) -> float:
        return self.k / d_sae

    def pick(self, chunks: Chunks, bias: Tensor | None = None) -> Picked:
        """Candidates over a bound that a few tokens suggest, then exactly the largest of them.

        Where the bound was too high for some batch, a lower one is tried, down to 0.
        """
        bound = None
        while True:
            parts = []
            for chunk in chunks():
                bound = _suggested_bound(chunk, self.k, bias) if bound is None else bound
                parts.append(kernels.above(chunk, chunk.new_full(chunk.shape[1:], bound), bias))
            picked = _joined(parts)
            wanted = self.k * (len(picked.starts) - 1)
            if len(picked.values) > wanted:
                return Picked(*kernels.largest(*picked, wanted))
            if len(picked.values) == wanted or not bound:
                return picked
            bound = bound / 4 if 1e-3 < bound < math.inf else 0.0

    def masked(self, pre_acts: Tensor) -> Tensor:
        flat = pre_acts.detach().flatten()
        kept = kernels.is_largest(flat, self.k * pre_acts.shape[0]) & (flat > 0)
        return pre_acts * kept.view_as(pre_acts)


# Tokens that suggest a bound, and how many times too many candidates it should let through.
_SAMPLE_TOKENS = 64
_MARGIN = 1.5


def _suggested_bound(chunk: Tensor, k: int, bias: Tensor | None) -> float:
    sample = chunk[:_SAMPLE_TOKENS]
    sample = (sample if bias is None else sample + bias).flatten()
    n = min(int(_MARGIN * k * min(len(chunk), _SAMPLE_TOKENS)), len(sample))
    return max(kernels.nth_largest(sample, n).item(), 0.0) if n else 0.0


def _joined(parts: list[tuple[Tensor, Tensor, Tensor]]) -> Picked:
    counts = torch.cat([count for _, _, count in parts])
    starts = counts.new_zeros(len(counts) + 1)
    starts[1:] = counts.cumsum(0)
    return Picked(torch.cat([v for v, _, _ in parts]), torch.cat([i for _, i, _ in parts]), starts)
