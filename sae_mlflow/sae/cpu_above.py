"""Compiled CPU kernels that pick all pre-activations over a bound, row by row.

As in `cpu`, the number of threads doesn't change a bit.
"""

from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor

from sae_mlflow.sae.compiled import array, inner, n_threads, parallel


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
