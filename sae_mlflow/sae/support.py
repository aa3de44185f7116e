"""Which latents a batch's values belong to: a ragged list where few fire, all where many do.

An architecture's loss is written once, over a flat tensor of values; the support says what each
value's latent is. Outside a sparse support a latent is zero and learns nothing.
"""

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sae_mlflow.sae import kernels
from sae_mlflow.sae.kernels import cpu, tile_products, tiles

# Codes of a latent within one tall tile, on average, from which on the weights' gradients gain
# from them (at 4,096 x 3,072 x 384 half of their time).
TALL_FROM = 5.0


class Support(ABC):
    """The places of a batch's values."""

    n_tokens: int
    d_sae: int

    @abstractmethod
    def spread(self, per_latent: Tensor) -> Tensor:
        """`[d_sae]` brought to the values' shape: to each value its latent's number."""

    @abstractmethod
    def gathered(self, values: Tensor) -> Tensor:
        """`[d_sae]`: the sum of each latent's values."""

    @abstractmethod
    def dense(self, values: Tensor) -> Tensor:
        """The values as `[batch, d_sae]`."""

    @abstractmethod
    def times(self, values: Tensor, rows: Tensor) -> Tensor:
        """Z rows, `[batch, d]`: Z `[batch, d_sae]` has the values; rows are `[d_sae, d]`."""

    @abstractmethod
    def transposed_times(self, values: Tensor, dense: Tensor) -> Tensor:
        """Z^T dense, `[d_sae, d]`: dense is `[batch, d]`."""

    @abstractmethod
    def sampled(self, dense: Tensor, rows: Tensor) -> Tensor:
        """dense rows^T where the support is, in the values' shape."""

    @abstractmethod
    def columns(self, first: int, end: int) -> "tuple[Any, Support]":
        """The latents from first to before end: an index into values, and their own support."""

    @abstractmethod
    def fired(self, latents: Tensor) -> Tensor:
        """`[d_sae]` bool: latents > 0 on some token."""

    def jump(self, values: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
        """The values over their latent's threshold `[d_sae]`, others 0; and how many there are."""
        over = values > self.spread(threshold)
        return values * over, over.sum()

    def jump_gradients(
        self, values: Tensor, threshold: Tensor, grad: Tensor, grad_count: Tensor, bandwidth: float
    ) -> tuple[Tensor, Tensor]:
        """Of `jump`, by values and by threshold; by the latter through a rectangle of `bandwidth`.

        Args:
            grad: of what is over, in the values' shape.
            grad_count: of how many there are, `[]`.
        """
        own = self.spread(threshold)
        near = ((values - own).abs() < bandwidth / 2).to(values.dtype)
        pull = near * (grad * own + grad_count) / -bandwidth
        return grad * (values > own), self.gathered(pull)

    def rescaled(self, values: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """`relu(value * scale + shift)` of values > 0; scale and shift are `[d_sae]`."""
        return (values * self.spread(scale) + self.spread(shift)).relu() * (values > 0)

    def l0(self, latents: Tensor) -> Tensor:
        """Mean over tokens of the number of latents > 0."""
        return (latents.detach() > 0).sum() / max(self.n_tokens, 1)


class DenseSupport(Support):
    """Every latent of every token: values are `[batch, d_sae]`."""

    def __init__(self, n_tokens: int, d_sae: int) -> None:
        self.n_tokens = n_tokens
        self.d_sae = d_sae

    def spread(self, per_latent: Tensor) -> Tensor:
        return per_latent

    def gathered(self, values: Tensor) -> Tensor:
        return values.sum(dim=0)

    def dense(self, values: Tensor) -> Tensor:
        return values

    def times(self, values: Tensor, rows: Tensor) -> Tensor:
        return values @ rows

    def transposed_times(self, values: Tensor, dense: Tensor) -> Tensor:
        return values.t() @ dense

    def sampled(self, dense: Tensor, rows: Tensor) -> Tensor:
        return dense @ rows.t()

    def columns(self, first: int, end: int) -> tuple[Any, Support]:
        return (slice(None), slice(first, end)), DenseSupport(self.n_tokens, end - first)

    def fired(self, latents: Tensor) -> Tensor:
        return (latents.detach() > 0).any(dim=0)


class SparseSupport(Support):
    """Some latents of each token: token b's are `latents[starts[b]:starts[b + 1]]`, distinct."""

    def __init__(self, latents: Tensor, starts: Tensor, d_sae: int) -> None:
        """
        Args:
            latents: int64 `[nnz]`.
            starts: int64 `[batch + 1]`.
        """
        self.latents = latents
        self.starts = starts
        self.n_tokens = len(starts) - 1
        self.d_sae = d_sae

    @cached_property
    def tokens(self) -> Tensor:
        """The token of each value: int64 `[nnz]`."""
        counts = self.starts.diff()
        tokens = torch.arange(self.n_tokens, device=counts.device)
        return tokens.repeat_interleave(counts, output_size=len(self.latents))

    @cached_property
    def by_latent(self) -> tuple[Tensor, Tensor, Tensor]:
        """Sorted by latent: starts `[d_sae + 1]`, tokens and places `[nnz]`.

        Sorted once for the gradients of both weight matrices.
        """
        return kernels.by_latent(self.latents, self.starts, self.d_sae)

    def spread(self, per_latent: Tensor) -> Tensor:
        return per_latent.index_select(0, self.latents)

    def gathered(self, values: Tensor) -> Tensor:
        return values.new_zeros(self.d_sae).index_add_(0, self.latents, values)

    def jump(self, values: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
        if not kernels.compiled(values):
            return super().jump(values, threshold)
        return cpu.jump(values, self.latents, threshold)

    def jump_gradients(
        self, values: Tensor, threshold: Tensor, grad: Tensor, grad_count: Tensor, bandwidth: float
    ) -> tuple[Tensor, Tensor]:
        if not kernels.compiled(values):
            return super().jump_gradients(values, threshold, grad, grad_count, bandwidth)
        return cpu.jump_gradients(
            values, self.latents, threshold, grad, grad_count.item(), bandwidth
        )

    def dense(self, values: Tensor) -> Tensor:
        zeros = values.new_zeros(self.n_tokens, self.d_sae)
        return zeros.index_put((self.tokens, self.latents), values)

    @cached_property
    def tall_tiles(self) -> tuple[tiles.Tiles, Tensor] | None:
        """Where a latent has several codes in each: the rows of activations are then at hand."""
        if self.n_tokens <= tiles.TALL:
            return None
        in_a_tile = len(self.latents) * tiles.TALL / (self.n_tokens * self.d_sae)
        if in_a_tile < TALL_FROM:
            return None
        return tiles.sort(self.latents, self.starts, self.d_sae, tiles.TALL)

    def times(self, values: Tensor, rows: Tensor) -> Tensor:
        return kernels.weighted_rows(values, self.latents, self.starts, rows)

    def transposed_times(self, values: Tensor, dense: Tensor) -> Tensor:
        if kernels.compiled(dense) and self.tall_tiles is not None:
            codes, places = self.tall_tiles
            in_tiles = values.to(dense.dtype).index_select(0, places)
            return tile_products.transposed_times(in_tiles, codes, dense)
        starts, tokens, places = self.by_latent
        return kernels.weighted_rows(values.index_select(0, places), tokens, starts, dense)

    def sampled(self, dense: Tensor, rows: Tensor) -> Tensor:
        if self.d_sae <= self.n_tokens:
            return kernels.row_dots(dense, rows, self.latents, self.starts)
        # the smaller matrix is the one whose rows are fetched again and again
        starts, tokens, places = self.by_latent
        dots = kernels.row_dots(rows, dense, tokens, starts)
        return torch.empty_like(dots).index_copy_(0, places, dots)

    def reconstruct(
        self, values: Tensor, rows: Tensor, bias: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The values' reconstruction of y with decoder rows and bias, and how it misses; only where
        kernels are compiled.

        Returns:
            recon `[batch, d]`; error `recon - y`; its squared length for each token, float64
            `[batch]`; `error rows^T` where the support is, in the values' shape.
        """
        return cpu.reconstruct(values, self.latents, self.starts, rows, bias, y)

    def columns(self, first: int, end: int) -> tuple[Any, Support]:
        mask = (self.latents >= first) & (self.latents < end)
        places, starts = kernels.kept(mask, self.starts)
        latents = self.latents.index_select(0, places) - first
        return places, SparseSupport(latents, starts, end - first)

    def fired(self, latents: Tensor) -> Tensor:
        return kernels.fired(latents.detach(), self.latents, self.d_sae)
