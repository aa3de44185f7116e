"""Compiled CPU kernels for sparse codes: what standard operators do in several passes over memory.

Codes are ragged: token b's latents are `latents[starts[b]:starts[b + 1]]`, with one value each.
Every kernel writes each of its outputs from one thread, in a fixed order: the number of threads
doesn't change a bit. They are compiled on first use, for each dtype, and kept on disk.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_mlflow.sae.kernels.jit import array, inner, n_threads, parallel, prange
from sae_mlflow.sae.kernels.loops import add_rows, dots, miss


def by_latent(latents: Tensor, starts: Tensor, d_sae: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same codes sorted by latent, tokens in order: starts `[d_sae + 1]`, tokens, places."""
    latent_starts = torch.empty(d_sae + 1, dtype=torch.int64)
    tokens = torch.empty_like(latents)
    places = torch.empty_like(latents)
    codes, made = (array(latents), array(starts)), (latent_starts, tokens, places)
    _by_latent(*codes, *(tensor.numpy() for tensor in made), n_threads())
    return latent_starts, tokens, places


def weighted_rows(values: Tensor, members: Tensor, starts: Tensor, rows: Tensor) -> Tensor:
    """Sum of `values[i] * rows[members[i]]` from `starts[n]` to `starts[n + 1]`: `[n, d]`."""
    out = rows.new_empty(len(starts) - 1, rows.shape[1])
    numbers = array(values), array(members), array(starts), array(rows)
    _weighted_rows(*numbers, out.numpy(), n_threads())
    return out


def row_dots(grad: Tensor, rows: Tensor, members: Tensor, starts: Tensor) -> Tensor:
    """`grad[n] . rows[members[i]]` for every i from `starts[n]` to `starts[n + 1]`: `[nnz]`."""
    out = rows.new_empty(len(members))
    numbers = array(grad), array(rows), array(members), array(starts)
    _row_dots(*numbers, out.numpy(), n_threads())
    return out


def kept(mask: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """The codes that a mask `[nnz]` keeps: their places, in order, and the starts of their list."""
    places, kept_starts = starts.new_empty(int(mask.sum())), torch.empty_like(starts)
    _kept(array(mask), array(starts), places.numpy(), kept_starts.numpy())
    return places, kept_starts


def fired(values: Tensor, latents: Tensor, d_sae: int) -> Tensor:
    """`[d_sae]` bool: which latents have a value > 0."""
    found = torch.zeros(d_sae, dtype=torch.bool)
    _fired(array(values), array(latents), found.numpy())
    return found


def reconstruct(
    values: Tensor, latents: Tensor, starts: Tensor, rows: Tensor, bias: Tensor, y: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The codes' reconstruction and how it misses y, while their rows are at hand.

    Returns:
        recon `[batch, d]`; error `recon - y`; its squared length for each token, float64
        `[batch]`; `error[b] . rows[f]` for each code `[nnz]`.
    """
    recon, error = torch.empty_like(y), torch.empty_like(y)
    missed, dots = torch.empty(len(y), dtype=torch.float64), rows.new_empty(len(latents))
    numbers = array(values), array(latents), array(starts), array(rows), array(bias), array(y)
    made = recon.numpy(), error.numpy(), missed.numpy(), dots.numpy()
    _reconstruct(*numbers, *made, n_threads())
    return recon, error, missed, dots


def jump(values: Tensor, latents: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """The values over their latent's threshold, others 0; and how many there are."""
    made = torch.empty_like(values)
    n = _jump(array(values), array(latents), array(threshold), made.numpy())
    return made, torch.tensor(n)


def jump_gradients(
    values: Tensor,
    latents: Tensor,
    threshold: Tensor,
    grad: Tensor,
    grad_count: float,
    bandwidth: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of `jump` by values and by threshold; see `Support.jump_gradients`."""
    by_value, by_threshold = torch.empty_like(values), torch.zeros_like(threshold)
    numbers = array(values), array(latents), array(threshold), array(grad)
    made = by_value.numpy(), by_threshold.numpy()
    _jump_gradients(*numbers, grad_count, bandwidth / 2, *made)
    return by_value, by_threshold.div_(-bandwidth)


def remove_along(grad: Tensor, rows: Tensor) -> None:
    """Take from each of grad's rows, in place, what points along a row of length 1."""
    _remove_along(grad.numpy(), array(rows), n_threads())


@parallel
def _by_latent(
    latents: Any, starts: Any, latent_starts: Any, tokens: Any, places: Any, threads: int
) -> None:
    """A counting sort; each thread counts and places the codes of its own tokens."""
    batch, d_sae = len(starts) - 1, len(latent_starts) - 1
    free = np.zeros((threads, d_sae), np.int64)
    for thread in prange(threads):
        for i in range(starts[thread * batch // threads], starts[(thread + 1) * batch // threads]):
            free[thread, latents[i]] += 1
    n = 0
    for f in range(d_sae):
        latent_starts[f] = n
        for thread in range(threads):
            count = free[thread, f]
            free[thread, f] = n
            n += count
    latent_starts[d_sae] = n
    for thread in prange(threads):
        for b in range(thread * batch // threads, (thread + 1) * batch // threads):
            for i in range(starts[b], starts[b + 1]):
                place = free[thread, latents[i]]
                free[thread, latents[i]] = place + 1
                tokens[place] = b
                places[place] = i


@inner
def _share(starts: Any, part: int, parts: int) -> int:
    """Where the part begins when members, not rows, are shared out evenly."""
    if part == parts:
        return len(starts) - 1
    return np.searchsorted(starts, part * starts[-1] // parts)


@parallel
def _weighted_rows(
    values: Any, members: Any, starts: Any, rows: Any, out: Any, threads: int
) -> None:
    for thread in prange(threads):
        for n in range(_share(starts, thread, threads), _share(starts, thread + 1, threads)):
            out[n] = 0
            add_rows(values, members, starts[n], starts[n + 1], rows, out[n])


@parallel
def _row_dots(grad: Any, rows: Any, members: Any, starts: Any, out: Any, threads: int) -> None:
    for thread in prange(threads):
        for n in range(_share(starts, thread, threads), _share(starts, thread + 1, threads)):
            dots(grad[n], rows, members, starts[n], starts[n + 1], out)


@inner
def _kept(mask: Any, starts: Any, places: Any, kept_starts: Any) -> None:
    n = 0
    for b in range(len(starts) - 1):
        kept_starts[b] = n
        for i in range(starts[b], starts[b + 1]):
            if mask[i]:
                places[n] = i
                n += 1
    kept_starts[len(starts) - 1] = n


@inner
def _fired(values: Any, latents: Any, found: Any) -> None:
    for i in range(len(values)):
        found[latents[i]] |= values[i] > 0


@parallel
def _reconstruct(
    values: Any,
    latents: Any,
    starts: Any,
    rows: Any,
    bias: Any,
    y: Any,
    recon: Any,
    error: Any,
    missed: Any,
    made: Any,
    threads: int,
) -> None:
    for thread in prange(threads):
        for b in range(_share(starts, thread, threads), _share(starts, thread + 1, threads)):
            recon[b] = bias
            add_rows(values, latents, starts[b], starts[b + 1], rows, recon[b])
            missed[b] = miss(recon[b], y[b], error[b])
            dots(error[b], rows, latents, starts[b], starts[b + 1], made)


@parallel
def _remove_along(grad: Any, rows: Any, threads: int) -> None:
    n, d = rows.shape
    for thread in prange(threads):
        for f in range(thread * n // threads, (thread + 1) * n // threads):
            along = rows.dtype.type(0)
            for j in range(d):
                along += grad[f, j] * rows[f, j]
            for j in range(d):
                grad[f, j] -= along * rows[f, j]


@inner
def _jump(values: Any, latents: Any, threshold: Any, made: Any) -> int:
    n = 0
    for i in range(len(values)):
        over = values[i] > threshold[latents[i]]
        made[i] = values[i] if over else values.dtype.type(0)
        n += over
    return n


@inner
def _jump_gradients(
    values: Any,
    latents: Any,
    threshold: Any,
    grad: Any,
    grad_count: float,
    half: float,
    by_value: Any,
    by_threshold: Any,
) -> None:
    for i in range(len(values)):
        f = latents[i]
        value, own, pull = values[i], threshold[f], grad[i]
        by_value[i] = pull if value > own else values.dtype.type(0)
        if abs(value - own) < half:
            by_threshold[f] += pull * own + grad_count
