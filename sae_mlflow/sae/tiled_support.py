"""The support of codes that are frequent enough for tiles of tokens to pay, on the CPU.

Values stand in the tiles' order from the start, so that no product has to bring them there.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sae_mlflow.sae import kernels
from sae_mlflow.sae.kernels import tile_above, tile_codes, tile_products, tiles
from sae_mlflow.sae.support import SparseSupport, Support

# Codes of a latent within one tile, on average, from which on sorting by tiles pays.
TILED_FROM = 2.0


class TiledSupport(Support):
    """Some latents of each token, sorted by tile, latent and token.

    Silent codes, where there are some, have the value 0 and a gradient.
    """

    def __init__(self, codes: tiles.Tiles) -> None:
        self.codes = codes
        self.n_tokens = codes.n_tokens
        self.d_sae = codes.d_sae

    @property
    def tokens(self) -> Tensor:
        """The token of each value: int64 `[nnz]`."""
        return self.codes.tokens.long()

    @cached_property
    def latents(self) -> Tensor:
        """The latent of each value: int64 `[nnz]`."""
        return tile_codes.spread(torch.arange(self.d_sae), self.codes)

    def spread(self, per_latent: Tensor) -> Tensor:
        spread: Tensor = _Spread.apply(per_latent, self.codes)
        return spread

    def gathered(self, values: Tensor) -> Tensor:
        gathered: Tensor = _Gathered.apply(values, self.codes)
        return gathered

    def dense(self, values: Tensor) -> Tensor:
        zeros = values.new_zeros(self.n_tokens, self.d_sae)
        return zeros.index_put((self.tokens, self.latents), values)

    def times(self, values: Tensor, rows: Tensor) -> Tensor:
        return tile_products.times(values.to(rows.dtype), self.codes, rows)

    def transposed_times(self, values: Tensor, dense: Tensor) -> Tensor:
        return tile_products.transposed_times(values.to(dense.dtype), self.codes, dense)

    def sampled(self, dense: Tensor, rows: Tensor) -> Tensor:
        return tile_products.sampled(dense.to(rows.dtype), self.codes, rows)

    def reconstruct(
        self, values: Tensor, rows: Tensor, bias: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As a `SparseSupport` does it."""
        return tile_products.reconstruct(values, self.codes, rows, bias, y)

    def jump(self, values: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
        return tile_codes.jump(values, self.codes, threshold)

    def jump_gradients(
        self, values: Tensor, threshold: Tensor, grad: Tensor, grad_count: Tensor, bandwidth: float
    ) -> tuple[Tensor, Tensor]:
        return tile_codes.jump_gradients(
            values, self.codes, threshold, grad, grad_count.item(), bandwidth
        )

    def rescaled(self, values: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        rescaled: Tensor = _Rescaled.apply(values, scale, shift, self.codes)
        return rescaled

    def columns(self, first: int, end: int) -> tuple[Any, Support]:
        return _columns(self.codes, first, end)

    def fired(self, latents: Tensor) -> Tensor:
        return tile_codes.fired(latents, self.codes)


def pays(density: float, n_tokens: int) -> bool:
    """Whether tiles do, where such a share of a batch's latents is kept."""
    return density * min(tiles.HEIGHT, n_tokens) >= TILED_FROM


def sparse_support(
    values: Tensor,
    latents: Tensor,
    starts: Tensor,
    d_sae: int,
    silent_up_to: Tensor | None = None,
) -> tuple[Tensor, Support]:
    """The support of a list of codes, in the kind that is fastest, and the values in its order.

    Args:
        values: `[nnz]`.
        latents, starts: as a `SparseSupport` has them.
        silent_up_to: `[d_sae]`; what isn't over it is going to be 0.
    """
    n_tokens = len(starts) - 1
    density = len(latents) / max(n_tokens * d_sae, 1)
    if not pays(density, n_tokens) or not kernels.compiled(values):
        return values, SparseSupport(latents, starts, d_sae)
    silent = None if silent_up_to is None else (values, silent_up_to)
    codes, places = tiles.sort(latents, starts, d_sae, tiles.height(n_tokens), silent)
    return values.index_select(0, places), TiledSupport(codes)


def tiled_above(
    chunks: Iterator[Tensor],
    bias: Tensor,
    lower: Tensor,
    silent_up_to: Tensor | None,
    height: int,
) -> tuple[Tensor, TiledSupport]:
    """Values over a bound and their support; see `tile_above.above`."""
    values, codes = tile_above.above(chunks, bias, lower, silent_up_to, height)
    return values, TiledSupport(codes)


def _columns(codes: tiles.Tiles, first: int, end: int) -> tuple[Tensor, TiledSupport]:
    """See `Support.columns`; a tile's codes of these latents stand together."""
    assert codes.starts.shape[1] == codes.d_sae + 1, "silent codes have no columns"
    old = codes.starts[:, first : end + 1]
    counts = old[:, -1] - old[:, 0]
    new_first = counts.cumsum(0) - counts
    shift = old[:, 0] - new_first  # of each tile's codes
    n = int(counts.sum())
    places = torch.arange(n) + shift.repeat_interleave(counts, output_size=n)
    starts = (old - shift[:, None]).contiguous()
    tokens = codes.tokens.index_select(0, places)
    return places, TiledSupport(codes._replace(starts=starts, tokens=tokens, d_sae=end - first))


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, per_latent: Tensor, codes: tiles.Tiles) -> Tensor:
        ctx.codes = codes
        return tile_codes.spread(per_latent, codes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return tile_codes.gathered(grad, ctx.codes), None


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, codes: tiles.Tiles) -> Tensor:
        ctx.codes = codes
        return tile_codes.gathered(values, codes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return tile_codes.spread(grad, ctx.codes), None


class _Rescaled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, scale: Tensor, shift: Tensor, codes: tiles.Tiles
    ) -> Tensor:
        made = tile_codes.rescaled(values, codes, scale, shift)
        ctx.codes = codes
        ctx.save_for_backward(values, made, scale)
        return made

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, made, scale = ctx.saved_tensors
        return *tile_codes.rescaled_gradients(values, made, ctx.codes, scale, grad), None
