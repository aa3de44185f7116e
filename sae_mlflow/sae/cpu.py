"""Compiled CPU kernels for sparse codes: what standard operators do in several passes over memory.

Codes are ragged: token b's latents are `latents[starts[b]:starts[b + 1]]`, with one value each.
Every kernel writes each of its outputs from one thread, in a fixed order: the number of threads
doesn't change a bit. They are compiled on first use, for each dtype, and kept on disk.
"""

from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor

from sae_mlflow.sae.compiled import (
    add_rows,
    array,
    dots,
    inner,
    n_threads,
    parallel,
    sort_by_latent,
)


def topk(pre_acts: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, exactly, in no order: values and int64 latents `[batch, k]`."""
    values = pre_acts.new_empty(pre_acts.shape[0], k)
    latents = torch.empty(pre_acts.shape[0], k, dtype=torch.int64)
    _topk(array(pre_acts), k, values.numpy(), latents.numpy(), n_threads())
    return values, latents


def above(pre_acts: Tensor, lower: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values and latents of what is over each latent's bound, row by row, and how many a row.

    Args:
        pre_acts: `[batch, d_sae]`.
        lower: `[d_sae]`.
    """
    rows, bounds, threads = array(pre_acts), array(lower), n_threads()
    counts = torch.empty(len(rows), dtype=torch.int64)
    _count_above(rows, bounds, counts.numpy(), threads)
    ends = counts.cumsum(0)
    n = int(ends[-1]) if len(ends) else 0
    values, latents = pre_acts.new_empty(n), torch.empty(n, dtype=torch.int64)
    starts = (ends - counts).numpy()
    _fill_above(rows, bounds, starts, values.numpy(), latents.numpy(), threads)
    return values, latents, counts


def by_latent(latents: Tensor, starts: Tensor, d_sae: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same codes sorted by latent, tokens in order: starts `[d_sae + 1]`, tokens, places."""
    latent_starts = torch.empty(d_sae + 1, dtype=torch.int64)
    tokens = torch.empty_like(latents)
    places = torch.empty_like(latents)
    _by_latent(
        latents.numpy(), starts.numpy(), latent_starts.numpy(), tokens.numpy(), places.numpy()
    )
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


@inner
def _select(values: Any, members: Any, n: int, k: int) -> None:
    """Bring the k largest of the first n to the front: Hoare's quickselect, members along."""
    low, high, place = 0, n - 1, k - 1
    while low < high:
        pivot = values[(low + high) >> 1]
        i, j = low, high
        while i <= j:
            while values[i] > pivot:
                i += 1
            while values[j] < pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                members[i], members[j] = members[j], members[i]
                i += 1
                j -= 1
        if place <= j:
            high = j
        elif place >= i:
            low = i
        else:
            return


@inner
def _group_maxima(row: Any, n_groups: int, group: int, maxima: Any) -> None:
    """Largest of row[g], row[g + n_groups], ...: strided groups, so that it vectorises."""
    for g in range(n_groups):
        maxima[g] = row[g]
    for step in range(1, group):
        part = row[step * n_groups : (step + 1) * n_groups]
        for g in range(n_groups):
            maxima[g] = part[g] if part[g] > maxima[g] else maxima[g]


@inner
def _bound(maxima: Any, k: int) -> Any:
    """A number that at least k maxima reach, and seldom more than 1.25 k: found by halving.

    A dozen counts, each of them vectorised, take less than one selection with its branches.
    """
    low = high = maxima[0]
    for value in maxima:
        low = value if value < low else low
        high = value if value > high else high
    for _ in range(12):
        middle = (low + high) / 2
        n = 0
        for value in maxima:
            n += value >= middle
        if n < k:
            high = middle
        else:
            low = middle
            if n <= k + k // 4:
                break
    return low


@inner
def _candidates(row: Any, group: int, maxima: Any, bound: float, values: Any, members: Any) -> int:
    """All that reach the bound, from groups whose maximum does; returns how many."""
    n_groups = len(maxima)
    n = 0
    for g in range(n_groups):
        if maxima[g] >= bound:
            for i in range(g, n_groups * group, n_groups):
                value = row[i]
                values[n] = value
                members[n] = i
                n += value >= bound
    for i in range(n_groups * group, len(row)):
        value = row[i]
        values[n] = value
        members[n] = i
        n += value >= bound
    return n


@inner
def _everything(row: Any, values: Any, members: Any) -> int:
    for i in range(len(row)):
        values[i] = row[i]
        members[i] = i
    return len(row)


@parallel
def _topk(pre_acts: Any, k: int, values: Any, latents: Any, threads: int) -> None:
    """Every one of the k largest reaches a bound that k groups' maxima reach."""
    batch, d_sae = pre_acts.shape
    group = 16 if d_sae >= 64 * k else 8
    n_groups = d_sae // group
    for thread in prange(threads):
        maxima = np.empty(n_groups, pre_acts.dtype)
        found = np.empty(d_sae + 1, pre_acts.dtype)
        members = np.empty(d_sae + 1, np.int64)
        for b in range(thread * batch // threads, (thread + 1) * batch // threads):
            row = pre_acts[b]
            n = 0
            if n_groups >= 2 * k:
                _group_maxima(row, n_groups, group, maxima)
                n = _candidates(row, group, maxima, _bound(maxima, k), found, members)
            if n < k:  # too many for groups, or a bound that is not a number
                n = _everything(row, found, members)
            _select(found, members, n, k)
            for i in range(k):
                values[b, i] = found[i]
                latents[b, i] = members[i]


@parallel
def _count_above(pre_acts: Any, lower: Any, counts: Any, threads: int) -> None:
    batch, d_sae = pre_acts.shape
    for thread in prange(threads):
        for b in range(thread * batch // threads, (thread + 1) * batch // threads):
            row = pre_acts[b]
            n = 0
            for i in range(d_sae):
                n += row[i] > lower[i]
            counts[b] = n


@parallel
def _fill_above(
    pre_acts: Any, lower: Any, starts: Any, values: Any, latents: Any, threads: int
) -> None:
    batch, d_sae = pre_acts.shape
    for thread in prange(threads):
        found = np.empty(d_sae + 1, pre_acts.dtype)
        members = np.empty(d_sae + 1, np.int64)
        for b in range(thread * batch // threads, (thread + 1) * batch // threads):
            row = pre_acts[b]
            n = 0
            for i in range(d_sae):
                value = row[i]
                found[n] = value
                members[n] = i
                n += value > lower[i]
            values[starts[b] : starts[b] + n] = found[:n]
            latents[starts[b] : starts[b] + n] = members[:n]


@inner
def _by_latent(latents: Any, starts: Any, latent_starts: Any, tokens: Any, places: Any) -> None:
    free = np.empty(len(latent_starts), np.int64)
    sort_by_latent(latents, starts, 0, len(starts) - 1, latent_starts, tokens, places, free)


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
