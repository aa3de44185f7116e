"""Compiled CPU kernels that pick pre-activations: the k largest of a row, or all over a bound.

A row is looked at while it is still in the cache. As in `cpu`, the number of threads doesn't change
a bit.
"""

from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor

from sae_mlflow.sae.compiled import array, inner, n_threads, parallel


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
def _reach(values: Any, n: int, bound: Any) -> Any:
    """How many of the first n reach the bound; counted in the values' own type, which vectorises
    twice as wide as an integer's would."""
    one, total = values.dtype.type(1), values.dtype.type(0)
    for i in range(n):
        total += one if values[i] >= bound else values.dtype.type(0)
    return total


@inner
def _bound(values: Any, n: int, k: int, most: int, rounds: int) -> Any:
    """A number that k to `most` of the first n values reach, found by halving.

    After so many rounds it may be one that more than `most` reach. A dozen counts, each of them
    vectorised, take less than one selection with its branches.
    """
    low = high = values[0]
    for i in range(n):
        low = values[i] if values[i] < low else low
        high = values[i] if values[i] > high else high
    half = values.dtype.type(0.5)
    for _ in range(rounds):
        middle = (low + high) * half
        reach = _reach(values, n, middle)
        if reach < k:
            high = middle
        else:
            low = middle
            if reach <= most:
                break
    return low


@inner
def _candidates(
    row: Any, group: int, maxima: Any, bound: float, groups: Any, values: Any, members: Any
) -> int:
    """All that reach the bound, from groups whose maximum does; returns how many.

    Args:
        groups: int64 `[n_groups + 1]`, to work in.
    """
    n_groups, n, n_chosen = len(maxima), 0, 0
    for g in range(n_groups):
        groups[n_chosen] = g
        n_chosen += maxima[g] >= bound
    for first in range(0, n_groups * group, n_groups):
        for chosen in range(n_chosen):
            i = first + groups[chosen]
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
def _keep(values: Any, members: Any, n: int, k: int) -> None:
    """Bring the k largest of the first n to the front, members along.

    A bound that exactly k reach is found faster than their order; where several are equal at the
    border there is none.
    """
    bound = _bound(values, n, k, k, 24)
    if _reach(values, n, bound) != k:
        _select(values, members, n, k)
        return
    kept = 0
    for i in range(n):
        value = values[i]
        values[kept] = value
        members[kept] = members[i]
        kept += value >= bound


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
    group = 32 if d_sae >= 256 * k else 16 if d_sae >= 64 * k else 8
    n_groups = d_sae // group
    for thread in prange(threads):
        maxima = np.empty(n_groups, pre_acts.dtype)
        groups = np.empty(n_groups + 1, np.int64)
        found = np.empty(d_sae + 1, pre_acts.dtype)
        members = np.empty(d_sae + 1, np.int64)
        for b in range(thread * batch // threads, (thread + 1) * batch // threads):
            row = pre_acts[b]
            n = 0
            if n_groups >= 2 * k:
                _group_maxima(row, n_groups, group, maxima)
                bound = _bound(maxima, n_groups, k, k + k // 4, 12)
                n = _candidates(row, group, maxima, bound, groups, found, members)
            if n < k:  # too many for groups, or a bound that is not a number
                n = _everything(row, found, members)
            _keep(found, members, n, k)
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


@inner
def _largest_gaps(row: Any, lower: Any, n_groups: int, group: int, gaps: Any) -> None:
    """Largest of row - lower in each group: over 0 exactly where one is over its bound."""
    for g in range(n_groups):
        gaps[g] = row[g] - lower[g]
    for step in range(1, group):
        first, end = step * n_groups, (step + 1) * n_groups
        part, bounds = row[first:end], lower[first:end]
        for g in range(n_groups):
            gap = part[g] - bounds[g]
            gaps[g] = gap if gap > gaps[g] else gaps[g]


@inner
def _chosen(gaps: Any, n_groups: int, groups: Any) -> int:
    """The groups with a gap over 0, or that is not a number (of infinities); how many."""
    n = 0
    for g in range(n_groups):
        groups[n] = g
        n += not gaps[g] <= 0
    return n


@inner
def _gather_over(
    row: Any, lower: Any, group: int, groups: Any, n_chosen: int, values: Any, members: Any
) -> int:
    """All of the chosen groups that are over their bounds, in ascending order; returns how many."""
    n, n_groups = 0, len(row) // group
    for first in range(0, n_groups * group, n_groups):
        for chosen in range(n_chosen):
            i = first + groups[chosen]
            value = row[i]
            values[n] = value
            members[n] = i
            n += value > lower[i]
    for i in range(n_groups * group, len(row)):
        values[n] = row[i]
        members[n] = i
        n += row[i] > lower[i]
    return n


@inner
def _scan_over(row: Any, lower: Any, values: Any, members: Any) -> int:
    """The same of all groups."""
    n = 0
    for i in range(len(row)):
        value = row[i]
        values[n] = value
        members[n] = i
        n += value > lower[i]
    return n


@parallel
def _fill_above(
    pre_acts: Any, lower: Any, starts: Any, values: Any, latents: Any, threads: int
) -> None:
    """Only groups of which one is over its bound are gone through."""
    batch, d_sae = pre_acts.shape
    for thread in prange(threads):
        found, members = np.empty(d_sae + 1, pre_acts.dtype), np.empty(d_sae + 1, np.int64)
        gaps, groups = np.empty(d_sae, pre_acts.dtype), np.empty(d_sae + 1, np.int64)
        n = d_sae
        for b in range(thread * batch // threads, (thread + 1) * batch // threads):
            row, start = pre_acts[b], starts[b]
            if d_sae >= 16 and (n <= 64 or 128 * n <= d_sae):  # of the row before
                _largest_gaps(row, lower, d_sae // 16, 16, gaps)
                n_chosen = _chosen(gaps, d_sae // 16, groups)
                n = _gather_over(row, lower, 16, groups, n_chosen, found, members)
            else:  # most groups would have one
                n = _scan_over(row, lower, found, members)
            for i in range(n):
                values[start + i] = found[i]
                latents[start + i] = members[i]
