"""Compiled CPU kernels that pick all pre-activations over a bound, straight into tiles.

A tile's marks, a bit for each token and latent, are turned over 64 by 64: a latent's tokens then
stand together in their order, and nothing has to be sorted.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_mlflow.sae.kernels.jit import array, inner, n_threads, parallel, prange, trailing_zeros
from sae_mlflow.sae.kernels.loops import ones
from sae_mlflow.sae.kernels.tiles import Tiles


def above(
    chunks: Iterable[Tensor],
    bias: Tensor,
    lower: Tensor,
    silent_up_to: Tensor | None,
    height: int,
) -> tuple[Tensor, Tiles]:
    """Values over each latent's bound, and their tiles; what isn't over `silent_up_to` is silent.

    Args:
        chunks: of rows `[n, d_sae]`, all but the last a multiple of the tiles' height.
        bias: `[d_sae]`, still to be added to each row.
        lower, silent_up_to: `[d_sae]`.
        height: tokens in a tile, a multiple of 64.
    """
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    n_tokens = n = 0
    for chunk in chunks:
        parts.append(_picked(chunk, bias, lower, silent_up_to, height, n_tokens))
        parts[-1][2].add_(n)
        n_tokens, n = n_tokens + len(chunk), n + len(parts[-1][0])
    assert n < 2**31
    values, tokens, starts = (torch.cat(made) for made in zip(*parts, strict=True))
    return values, Tiles(starts, tokens, n_tokens, len(lower), height)


def _picked(
    chunk: Tensor,
    bias: Tensor,
    lower: Tensor,
    silent_up_to: Tensor | None,
    height: int,
    first_token: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """A chunk's values, tokens and starts, the latter counted from its own first code."""
    rows, d_sae = chunk.shape
    n_tiles, kinds = -(-rows // height), 1 if silent_up_to is None else 2
    loud_from = lower if silent_up_to is None else silent_up_to
    columns = np.empty((n_tiles, kinds, -(-d_sae // 64) * 64, height // 64), np.uint64)
    starts = torch.empty(n_tiles, kinds * d_sae + 1, dtype=torch.int64)
    numbers, threads = (array(chunk), array(bias)), n_threads()
    _mark(*numbers, array(lower), array(loud_from), columns, starts.numpy(), height, threads)
    counts = starts[:, -1]
    starts += (counts.cumsum(0) - counts)[:, None]
    n = int(starts[-1, -1]) if n_tiles else 0
    values, tokens = chunk.new_empty(n), torch.empty(n, dtype=torch.int32)
    made = values.numpy(), tokens.numpy()
    _gather(*numbers, columns, starts.numpy(), *made, height, first_token, threads)
    return values, tokens, starts


@inner
def _mark_row(row: Any, bias: Any, lower: Any, loud_from: Any, marks: Any) -> None:
    """Bit j of `marks[:, w]` says of number 64 w + j whether it is loud, or silent."""
    for w in range(marks.shape[1]):
        first = 64 * w
        part, more = row[first:], bias[first:]
        bounds, louds = lower[first:], loud_from[first:]
        over, loud = np.uint64(0), np.uint64(0)
        if first + 64 <= len(row):
            for j in range(64):
                over |= np.uint64(part[j] + more[j] > bounds[j]) << np.uint64(j)
                loud |= np.uint64(part[j] + more[j] > louds[j]) << np.uint64(j)
        else:
            for j in range(len(row) - first):
                over |= np.uint64(part[j] + more[j] > bounds[j]) << np.uint64(j)
                loud |= np.uint64(part[j] + more[j] > louds[j]) << np.uint64(j)
        marks[0, w] = over & loud
        if marks.shape[0] == 2:
            marks[1, w] = over & ~loud


@inner
def _turn(block: Any) -> None:
    """Transpose 64 words of 64 bits in place, by halves (Hacker's Delight, 7-3)."""
    step, mask = 32, np.uint64(0xFFFFFFFF)
    while step:
        shift = np.uint64(step)
        for first in range(0, 64, 2 * step):
            for k in range(first, first + step):
                change = ((block[k] >> shift) ^ block[k + step]) & mask
                block[k + step] ^= change
                block[k] ^= change << shift
        step >>= 1
        mask ^= mask << np.uint64(step)


@inner
def _count(columns: Any, d_sae: int, starts: Any) -> None:
    """Where each latent's codes begin in its tile, from its columns of bits."""
    starts[0] = 0
    for kind in range(columns.shape[0]):
        for f in range(d_sae):
            n, place = 0, kind * d_sae + f
            for g in range(columns.shape[2]):
                n += ones(columns[kind, f, g])
            starts[place + 1] = starts[place] + n


@parallel
def _mark(
    pre_acts: Any,
    bias: Any,
    lower: Any,
    loud_from: Any,
    columns: Any,
    starts: Any,
    height: int,
    threads: int,
) -> None:
    n_tiles, kinds, n_words = columns.shape[0], columns.shape[1], columns.shape[2] // 64
    for thread in prange(threads):
        marks, block = np.empty((height, kinds, n_words), np.uint64), np.empty(64, np.uint64)
        for t in range(thread * n_tiles // threads, (thread + 1) * n_tiles // threads):
            first, end = t * height, min(len(pre_acts), (t + 1) * height)
            marks[end - first :] = 0
            for b in range(first, end):
                _mark_row(pre_acts[b], bias, lower, loud_from, marks[b - first])
            for kind in range(kinds):
                for w in range(n_words):
                    for g in range(height // 64):
                        for j in range(64):
                            block[j] = marks[64 * g + j, kind, w]
                        _turn(block)
                        for j in range(64):
                            columns[t, kind, 64 * w + j, g] = block[j]
            _count(columns[t], pre_acts.shape[1], starts[t])


@parallel
def _gather(
    pre_acts: Any,
    bias: Any,
    columns: Any,
    starts: Any,
    values: Any,
    tokens: Any,
    height: int,
    first_token: int,
    threads: int,
) -> None:
    n_tiles, d_sae = columns.shape[0], pre_acts.shape[1]
    for thread in prange(threads):
        for t in range(thread * n_tiles // threads, (thread + 1) * n_tiles // threads):
            for kind in range(columns.shape[1]):
                for f in range(d_sae):
                    n = starts[t, kind * d_sae + f]
                    for g in range(columns.shape[3]):
                        word = columns[t, kind, f, g]
                        while word:
                            b = t * height + 64 * g + np.int64(trailing_zeros(word))
                            values[n] = pre_acts[b, f] + bias[f]
                            tokens[n] = first_token + b
                            n += 1
                            word &= word - np.uint64(1)
