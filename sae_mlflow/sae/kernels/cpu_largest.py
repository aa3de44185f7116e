"""Compiled CPU kernel that cuts a batch's candidates down to its largest.

Positive numbers are in the order of their bits read as whole numbers, so that the border is found
exactly by halving: some 20 counts, each of them vectorised, where a selection has a branch for
every number.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_mlflow.sae.kernels.jit import array, inner

_BITS = {torch.float32: np.int32, torch.float64: np.int64}


def largest(
    values: Tensor, latents: Tensor, starts: Tensor, n: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The n largest of a ragged list's values `[nnz]`, in its order; see `kernels.largest`."""
    kept, kept_latents = values.new_empty(n + 1), latents.new_empty(n + 1)
    kept_starts = torch.empty_like(starts)
    bits = array(values).view(_BITS[values.dtype])
    border, n_equal = _border(bits, n) if n else (np.iinfo(bits.dtype).max, 0)
    made = kept.numpy(), kept_latents.numpy(), kept_starts.numpy()
    _cut(array(values), bits, array(latents), array(starts), border, n_equal, *made)
    return kept[:n], kept_latents[:n], kept_starts


@inner
def _count(bits: Any, bound: Any) -> int:
    one, total = bits.dtype.type(1), bits.dtype.type(0)
    for i in range(len(bits)):
        total += one if bits[i] >= bound else bits.dtype.type(0)
    return total


@inner
def _border(bits: Any, n: int) -> tuple[Any, int]:
    """What the n largest are over, and how many that equal it are among them."""
    low = high = bits[0]
    for i in range(len(bits)):
        low = min(low, bits[i])
        high = max(high, bits[i])
    over = 0  # how many reach `high`, once it is one more than the largest
    high += bits.dtype.type(1)
    while high - low > 1:
        middle = low + (high - low) // bits.dtype.type(2)
        reach = _count(bits, middle)
        if reach == n:
            return middle - bits.dtype.type(1), 0
        if reach > n:
            low = middle
        else:
            high, over = middle, reach
    return low, n - over


@inner
def _cut(
    values: Any,
    bits: Any,
    latents: Any,
    starts: Any,
    border: Any,
    n_equal: int,
    kept: Any,
    kept_latents: Any,
    kept_starts: Any,
) -> None:
    n, most = 0, len(kept) - 1
    for b in range(len(starts) - 1):
        kept_starts[b] = n
        for i in range(starts[b], starts[b + 1]):
            kept[n], kept_latents[n] = values[i], latents[i]  # the next one's place, if it stays
            n += bits[i] > border
            if bits[i] == border and n_equal:
                n_equal -= 1
                n += 1
    assert n == most
    kept_starts[len(starts) - 1] = n
