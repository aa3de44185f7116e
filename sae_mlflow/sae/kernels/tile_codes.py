"""Compiled CPU kernels for what is done to each code by its latent's numbers, codes in tiles.

A latent's codes of a tile stand together, so that its numbers are read once for all of them and
sums over its codes need no second list. As in `cpu`, each output is written by one thread, in an
order that doesn't depend on their number.
"""

from typing import Any

import torch
from torch import Tensor

from sae_mlflow.sae.kernels.jit import array, n_threads, parallel, prange
from sae_mlflow.sae.kernels.tiles import Tiles, shares


def spread(per_latent: Tensor, tiles: Tiles) -> Tensor:
    """To each code its latent's number: `[nnz]` of `[d_sae]`."""
    made = per_latent.new_empty(len(tiles.tokens))
    _spread(array(per_latent), tiles.starts.numpy(), made.numpy(), n_threads())
    return made


def gathered(values: Tensor, tiles: Tiles) -> Tensor:
    """The sum of each latent's values: `[d_sae]`."""
    made = values.new_zeros(tiles.d_sae)
    _gathered(array(values), tiles.starts.numpy(), made.numpy(), shares(tiles, n_threads()))
    return made


def fired(values: Tensor, tiles: Tiles) -> Tensor:
    """`[d_sae]` bool: which latents have a value > 0."""
    found = torch.zeros(tiles.d_sae, dtype=torch.bool)
    _fired(array(values), tiles.starts.numpy(), found.numpy(), shares(tiles, n_threads()))
    return found


def jump(values: Tensor, tiles: Tiles, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """The values over their latent's threshold, others 0; and how many there are."""
    made = torch.empty_like(values)
    counts = torch.zeros(len(tiles.starts), dtype=torch.int64)
    numbers = array(values), tiles.starts.numpy(), array(threshold)
    _jump(*numbers, made.numpy(), counts.numpy(), n_threads())
    return made, counts.sum()


def jump_gradients(
    values: Tensor,
    tiles: Tiles,
    threshold: Tensor,
    grad: Tensor,
    grad_count: float,
    bandwidth: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of `jump` by values and by threshold; see `Support.jump_gradients`."""
    by_value, by_threshold = torch.empty_like(values), torch.zeros_like(threshold)
    numbers = array(values), tiles.starts.numpy(), array(threshold), array(grad)
    made = by_value.numpy(), by_threshold.numpy(), shares(tiles, n_threads())
    _jump_gradients(*numbers, grad_count, bandwidth / 2, *made)
    return by_value, by_threshold.div_(-bandwidth)


def rescaled(values: Tensor, tiles: Tiles, scale: Tensor, shift: Tensor) -> Tensor:
    """`relu(value * scale + shift)` of values > 0; scale and shift are `[d_sae]`."""
    made = torch.empty_like(values)
    numbers = array(values), tiles.starts.numpy(), array(scale), array(shift)
    _rescaled(*numbers, made.numpy(), n_threads())
    return made


def rescaled_gradients(
    values: Tensor, made: Tensor, tiles: Tiles, scale: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `rescaled` by values `[nnz]`, scale and shift `[d_sae]`; it `made` these."""
    by_value = torch.empty_like(values)
    by_scale, by_shift = torch.zeros_like(scale), torch.zeros_like(scale)
    numbers = array(values), array(made), tiles.starts.numpy(), array(scale), array(grad)
    out = by_value.numpy(), by_scale.numpy(), by_shift.numpy()
    _rescaled_gradients(*numbers, *out, shares(tiles, n_threads()))
    return by_value, by_scale, by_shift


# Below, codes of a tile are gone through from each `base`: 0, and d_sae where silent ones are.


@parallel
def _spread(per_latent: Any, starts: Any, made: Any, threads: int) -> None:
    n_tiles, d_sae = len(starts), len(per_latent)
    for thread in prange(threads):
        for t in range(thread * n_tiles // threads, (thread + 1) * n_tiles // threads):
            for base in range(0, starts.shape[1] - 1, d_sae):
                for f in range(d_sae):
                    for i in range(starts[t, base + f], starts[t, base + f + 1]):
                        made[i] = per_latent[f]


@parallel
def _gathered(values: Any, starts: Any, made: Any, bounds: Any) -> None:
    for thread in prange(len(bounds) - 1):
        for t in range(len(starts)):
            for base in range(0, starts.shape[1] - 1, len(made)):
                for f in range(bounds[thread], bounds[thread + 1]):
                    total = values.dtype.type(0)
                    for i in range(starts[t, base + f], starts[t, base + f + 1]):
                        total += values[i]
                    made[f] += total


@parallel
def _fired(values: Any, starts: Any, found: Any, bounds: Any) -> None:
    for thread in prange(len(bounds) - 1):
        for t in range(len(starts)):
            for base in range(0, starts.shape[1] - 1, len(found)):
                for f in range(bounds[thread], bounds[thread + 1]):
                    i, end = starts[t, base + f], starts[t, base + f + 1]
                    while i < end and not found[f]:
                        found[f] = values[i] > 0
                        i += 1


@parallel
def _jump(values: Any, starts: Any, threshold: Any, made: Any, counts: Any, threads: int) -> None:
    n_tiles, d_sae = len(starts), len(threshold)
    for thread in prange(threads):
        for t in range(thread * n_tiles // threads, (thread + 1) * n_tiles // threads):
            for base in range(0, starts.shape[1] - 1, d_sae):
                for f in range(d_sae):
                    for i in range(starts[t, base + f], starts[t, base + f + 1]):
                        over = values[i] > threshold[f]
                        made[i] = values[i] if over else values.dtype.type(0)
                        counts[t] += over


@parallel
def _jump_gradients(
    values: Any,
    starts: Any,
    threshold: Any,
    grad: Any,
    grad_count: float,
    half: float,
    by_value: Any,
    by_threshold: Any,
    bounds: Any,
) -> None:
    for thread in prange(len(bounds) - 1):
        for t in range(len(starts)):
            for base in range(0, starts.shape[1] - 1, len(threshold)):
                for f in range(bounds[thread], bounds[thread + 1]):
                    own, total = threshold[f], by_threshold[f]
                    for i in range(starts[t, base + f], starts[t, base + f + 1]):
                        value, pull = values[i], grad[i]
                        by_value[i] = pull if value > own else values.dtype.type(0)
                        if abs(value - own) < half:
                            total += pull * own + grad_count
                    by_threshold[f] = total


@parallel
def _rescaled(values: Any, starts: Any, scale: Any, shift: Any, made: Any, threads: int) -> None:
    n_tiles, d_sae = len(starts), len(scale)
    for thread in prange(threads):
        for t in range(thread * n_tiles // threads, (thread + 1) * n_tiles // threads):
            for base in range(0, starts.shape[1] - 1, d_sae):
                for f in range(d_sae):
                    for i in range(starts[t, base + f], starts[t, base + f + 1]):
                        value = values[i] * scale[f] + shift[f]
                        off = value < 0 or values[i] <= 0  # what isn't a number stays
                        made[i] = values.dtype.type(0) if off else value


@parallel
def _rescaled_gradients(
    values: Any,
    made: Any,
    starts: Any,
    scale: Any,
    grad: Any,
    by_value: Any,
    by_scale: Any,
    by_shift: Any,
    bounds: Any,
) -> None:
    for thread in prange(len(bounds) - 1):
        for t in range(len(starts)):
            for base in range(0, starts.shape[1] - 1, len(scale)):
                for f in range(bounds[thread], bounds[thread + 1]):
                    for i in range(starts[t, base + f], starts[t, base + f + 1]):
                        pull = grad[i] if made[i] > 0 else values.dtype.type(0)
                        by_value[i] = pull * scale[f]
                        by_scale[f] += pull * values[i]
                        by_shift[f] += pull
