"""Codes sorted by tiles of tokens, and by latent within each.

A latent's row of weights is then fetched once a tile and stays in the first cache, the tile's rows
of activations in the second, where lists by token or by latent fetch a row from far away for each
code.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sae_mlflow.sae.kernels.jit import array, inner, n_threads, parallel, prange

HEIGHT = 128
"""Tokens in a tile, twice as many in large batches: their activations (786 kB at 768 dimensions)
fit a core's own cache, and there are still enough tiles for all cores."""

LARGE_BATCH = 4096

TALL = 1024
"""Tokens in a tile where fewer fire: more codes of a latent, still near at hand."""


def height(n_tokens: int) -> int:
    """Of the tiles of a batch."""
    return HEIGHT if n_tokens < LARGE_BATCH else 2 * HEIGHT


class Tiles(NamedTuple):
    """Codes sorted by tile, latent and token; in each tile silent ones come last.

    A silent code's value is 0, and yet its gradient is asked for: sums leave it out.
    """

    starts: Tensor
    """int64 `[n_tiles, d_sae + 1]`: latent f of tile t is from `starts[t, f]` to before
    `starts[t, f + 1]`. Where there are silent codes `[n_tiles, 2 d_sae + 1]`: latent f's silent
    ones are from `starts[t, d_sae + f]` on."""
    tokens: Tensor
    """int32 `[nnz]`."""
    n_tokens: int
    d_sae: int
    height: int
    """Tokens in a tile."""


def sort(
    latents: Tensor,
    starts: Tensor,
    d_sae: int,
    height: int = HEIGHT,
    silent: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tiles, Tensor]:
    """The codes of which token b's latents are `latents[starts[b]:starts[b + 1]]`.

    Args:
        silent: values `[nnz]` and bounds `[d_sae]`; a code is silent whose value isn't over its
            latent's bound.

    Returns:
        the tiles, and where each of their codes stands in the list by token: int32 `[nnz]`.
    """
    assert len(latents) < 2**31
    n_tokens = len(starts) - 1
    n_tiles = -(-n_tokens // height)
    made = starts.new_empty(n_tiles, (1 if silent is None else 2) * d_sae + 1)
    tokens, places = (torch.empty(len(latents), dtype=torch.int32) for _ in range(2))
    values, bounds = (torch.empty(0), torch.empty(0)) if silent is None else silent
    codes = array(values), array(bounds), array(latents), array(starts)
    _sort(*codes, made.numpy(), tokens.numpy(), places.numpy(), height, n_threads())
    return Tiles(made, tokens, n_tokens, d_sae, height), places


def shares(tiles: Tiles, parts: int) -> Any:
    """`[parts + 1]`: latents cut so that every part has about as many codes."""
    starts, d_sae = tiles.starts.numpy(), tiles.d_sae
    before = starts.sum(axis=0)
    codes = before[: d_sae + 1] - before[:1]
    if len(before) > d_sae + 1:
        codes += before[d_sae:] - before[d_sae]
    wanted = codes[-1] * np.arange(1, parts) // parts
    return np.concatenate([[0], np.searchsorted(codes[1:], wanted), [d_sae]])


@inner
def _keys(
    values: Any, bounds: Any, latents: Any, first: int, end: int, keys: Any, counts: Any
) -> None:
    """The latents of codes from first to before end, `d_sae` more where silent, and their counts.

    Args:
        bounds: empty where none is silent.
    """
    counts[:] = 0
    for i in range(first, end):
        key = latents[i]
        if len(bounds):
            key += 0 if values[i] > bounds[key] else len(bounds)
        keys[i - first] = key
        counts[key] += 1


@inner
def _starts(first: int, counts: Any, starts: Any) -> None:
    """Turn each key's count into where its codes begin, from first on."""
    for f in range(len(counts)):
        starts[f] = first
        first += counts[f]
        counts[f] = starts[f]
    starts[len(counts)] = first


@parallel
def _sort(
    values: Any,
    bounds: Any,
    latents: Any,
    starts: Any,
    made: Any,
    tokens: Any,
    places: Any,
    height: int,
    threads: int,
) -> None:
    n_tiles, batch = made.shape[0], len(starts) - 1
    for thread in prange(threads):
        free = np.empty(made.shape[1] - 1, np.int32)
        for t in range(thread * n_tiles // threads, (thread + 1) * n_tiles // threads):
            end = min(batch, (t + 1) * height)
            first_code = starts[t * height]
            keys = np.empty(starts[end] - first_code, np.int32)
            _keys(values, bounds, latents, first_code, starts[end], keys, free)
            _starts(first_code, free, made[t])
            for b in range(t * height, end):
                for i in range(starts[b], starts[b + 1]):
                    key = keys[i - first_code]
                    place = free[key]
                    free[key] = place + 1
                    tokens[place] = b
                    places[place] = i
