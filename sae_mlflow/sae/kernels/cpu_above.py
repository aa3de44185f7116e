"""Compiled CPU kernels that pick all pre-activations over a bound, row by row.

A row is read once, 64 numbers to a word of marks, which vectorises; then only what is marked is
gone to. As in `cpu`, the number of threads doesn't change a bit.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_mlflow.sae.kernels.jit import array, inner, n_threads, parallel, prange, trailing_zeros
from sae_mlflow.sae.kernels.loops import ones


def above(
    pre_acts: Tensor, lower: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Values and latents of what is over each latent's bound, row by row, and how many a row.

    Args:
        pre_acts: `[batch, d_sae]`.
        lower: `[d_sae]`.
        bias: `[d_sae]`, still to be added to each row.
    """
    bias = torch.zeros_like(lower) if bias is None else bias
    rows, biases, threads = array(pre_acts), array(bias), n_threads()
    marks = np.empty((len(rows), -(-len(lower) // 64)), np.uint64)
    counts = torch.empty(len(rows), dtype=torch.int64)
    _mark(rows, biases, array(lower), marks, counts.numpy(), threads)
    ends = counts.cumsum(0)
    n = int(ends[-1]) if len(ends) else 0
    values, latents = pre_acts.new_empty(n), torch.empty(n, dtype=torch.int64)
    starts = (ends - counts).numpy()
    _gather(rows, biases, marks, starts, values.numpy(), latents.numpy(), threads)
    return values, latents, counts


@inner
def _mark_row(row: Any, bias: Any, lower: Any, marks: Any) -> int:
    """Bit j of word w says whether number 64 w + j is over its bound; returns how many are."""
    n = 0
    for w in range(len(row) // 64):
        part, more, bounds = row[64 * w :], bias[64 * w :], lower[64 * w :]
        word = np.uint64(0)
        for j in range(64):
            word |= np.uint64(part[j] + more[j] > bounds[j]) << np.uint64(j)
        marks[w] = word
        n += ones(word)
    rest = len(row) // 64 * 64
    if rest < len(row):
        word = np.uint64(0)
        for i in range(rest, len(row)):
            word |= np.uint64(row[i] + bias[i] > lower[i]) << np.uint64(i - rest)
        marks[rest // 64] = word
        n += ones(word)
    return n


@parallel
def _mark(pre_acts: Any, bias: Any, lower: Any, marks: Any, counts: Any, threads: int) -> None:
    batch = len(pre_acts)
    for thread in prange(threads):
        for b in range(thread * batch // threads, (thread + 1) * batch // threads):
            counts[b] = _mark_row(pre_acts[b], bias, lower, marks[b])


@parallel
def _gather(
    pre_acts: Any, bias: Any, marks: Any, starts: Any, values: Any, latents: Any, threads: int
) -> None:
    batch = len(pre_acts)
    for thread in prange(threads):
        for b in range(thread * batch // threads, (thread + 1) * batch // threads):
            row, n = pre_acts[b], starts[b]
            for w in range(marks.shape[1]):
                word = marks[b, w]
                while word:
                    i = 64 * w + np.int64(trailing_zeros(word))
                    values[n] = row[i] + bias[i]
                    latents[n] = i
                    n += 1
                    word &= word - np.uint64(1)
