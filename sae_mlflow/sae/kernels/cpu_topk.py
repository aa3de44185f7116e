"""Compiled CPU kernel that picks the k largest pre-activations of each row.

A row is looked at while it is still in the cache. As in `cpu`, the number of threads doesn't change
a bit.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_mlflow.sae.kernels.jit import array, inner, n_threads, parallel, prange


def topk(pre_acts: Tensor, k: int, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k largest of each row, exactly, in no order: values and int64 latents `[batch, k]`.

    Args:
        bias: `[d_sae]`, still to be added to each row.
    """
    bias = pre_acts.new_zeros(pre_acts.shape[1]) if bias is None else bias
    values = pre_acts.new_empty(pre_acts.shape[0], k)
    latents = torch.empty(pre_acts.shape[0], k, dtype=torch.int64)
    _topk(array(pre_acts), array(bias), k, values.numpy(), latents.numpy(), n_threads())
    return values, latents


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
def _group_maxima(row: Any, bias: Any, n_groups: int, group: int, maxima: Any) -> None:
    """Largest of row[g], row[g + n_groups], ...: strided groups, so that it vectorises."""
    for g in range(n_groups):
        maxima[g] = row[g] + bias[g]
    for step in range(1, group):
        first, end = step * n_groups, (step + 1) * n_groups
        part, more = row[first:end], bias[first:end]
        for g in range(n_groups):
            value = part[g] + more[g]
            maxima[g] = value if value > maxima[g] else maxima[g]


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
    row: Any,
    bias: Any,
    group: int,
    maxima: Any,
    bound: float,
    groups: Any,
    values: Any,
    members: Any,
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
            value = row[i] + bias[i]
            values[n] = value
            members[n] = i
            n += value >= bound
    for i in range(n_groups * group, len(row)):
        value = row[i] + bias[i]
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
def _everything(row: Any, bias: Any, values: Any, members: Any) -> int:
    for i in range(len(row)):
        values[i] = row[i] + bias[i]
        members[i] = i
    return len(row)


@parallel
def _topk(pre_acts: Any, bias: Any, k: int, values: Any, latents: Any, threads: int) -> None:
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
                _group_maxima(row, bias, n_groups, group, maxima)
                bound = _bound(maxima, n_groups, k, k + k // 4, 12)
                n = _candidates(row, bias, group, maxima, bound, groups, found, members)
            if n < k:  # too many for groups, or a bound that is not a number
                n = _everything(row, bias, found, members)
            _keep(found, members, n, k)
            for i in range(k):
                values[b, i] = found[i]
                latents[b, i] = members[i]
