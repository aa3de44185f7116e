"""Codes sorted by tiles of tokens, and by latent within each.

A latent's row of weights is then fetched once a tile and stays in the first cache, the tile's rows
of activations in the second, where lists by token or by latent fetch a row from far away for each
code.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numba import prange
from torch import Tensor

from sae_mlflow.sae.compiled import array, inner, n_threads, parallel

HEIGHT = 128
"""Tokens in a tile: their activations (384 kB at 768 dimensions) fit a core's own cache."""

TALL = 1024
"""Tokens in a tile where fewer fire: more codes of a latent, still near at hand."""


class Tiles(NamedTuple):
    """Codes sorted by tile, latent and token; in each tile silent ones come last.

    A silent code's value is 0, and yet its gradient is asked for: sums leave it out.
    """

    starts: Tensor
    """int64 `[n_tiles, d_sae + 1]`: latent f of tile t is from `starts[t, f]` to before
    `starts[t, f + 1]`. Where there are silent codes `[n_tiles, 2 d_sae + 1]`: latent f's silent
    ones are from `starts[t, d_sae + f]` on."""
    tokens: Tensor
    """int64 `[nnz]`."""
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
        the tiles, and where each of their codes stands in the list by token: int64 `[nnz]`.
    """
    n_tokens = len(starts) - 1
    n_tiles = -(-n_tokens // height)
    made = starts.new_empty(n_tiles, (1 if silent is None else 2) * d_sae + 1)
    tokens, places = torch.empty_like(latents), torch.empty_like(latents)
    keys = latents if silent is None else _keys(latents, *silent)
    numbers = array(keys), array(starts), made.numpy(), tokens.numpy(), places.numpy()
    _sort(*numbers, height, n_threads())
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


def _keys(latents: Tensor, values: Tensor, bounds: Tensor) -> Tensor:
    """The latents, `d_sae` more where a code is silent."""
    keys = torch.empty_like(latents)
    _mark_silent(array(latents), array(values), array(bounds), keys.numpy(), n_threads())
    return keys


@parallel
def _mark_silent(latents: Any, values: Any, bounds: Any, keys: Any, threads: int) -> None:
    n = len(latents)
    for thread in prange(threads):
        for i in range(thread * n // threads, (thread + 1) * n // threads):
            f = latents[i]
            keys[i] = f if values[i] > bounds[f] else f + len(bounds)


@inner
def _sort_tokens(
    latents: Any,
    starts: Any,
    first: int,
    end: int,
    latent_starts: Any,
    tokens: Any,
    places: Any,
    free: Any,
) -> None:
    """Sort the codes of tokens from first to before end by latent, tokens in order.

    Args:
        latent_starts: `[d_sae + 1]`, gets where each latent's codes begin in `tokens` and `places`.
        tokens, places: of all codes; those of other tokens are left alone.
        free: int64 `[>= d_sae]`, to work in.
    """
    d_sae = len(latent_starts) - 1
    latent_starts[:] = 0
    for i in range(starts[first], starts[end]):
        latent_starts[latents[i] + 1] += 1
    latent_starts[0] = starts[first]
    for f in range(d_sae):
        free[f] = latent_starts[f]
        latent_starts[f + 1] += latent_starts[f]
    for b in range(first, end):
        for i in range(starts[b], starts[b + 1]):
            place = free[latents[i]]
            free[latents[i]] = place + 1
            tokens[place] = b
            places[place] = i


@parallel
def _sort(
    latents: Any, starts: Any, made: Any, tokens: Any, places: Any, height: int, threads: int
) -> None:
    n_tiles, batch = made.shape[0], len(starts) - 1
    for thread in prange(threads):
        free = np.empty(made.shape[1], np.int64)
        for t in range(thread * n_tiles // threads, (thread + 1) * n_tiles // threads):
            end = min(batch, (t + 1) * height)
            _sort_tokens(latents, starts, t * height, end, made[t], tokens, places, free)
