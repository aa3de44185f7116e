"""Which latents fired where: kept sparse, for the tokens in context that fire a latent most."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sae_mlflow.errors import UserError

_MOST_ENTRIES = 50_000_000  # 12 bytes each; an SAE with an L0 of 100 gets there with 500,000 tokens


class Example(NamedTuple):
    """A stretch of a window around the token on which a latent fires most."""

    token_ids: tuple[int, ...]
    activations: tuple[float, ...]
    """Of the latent, one a token; 0 where it doesn't fire, or the token passes through."""
    peak: int
    """Index of the token that fires it most."""


@dataclass(frozen=True)
class Chosen:
    """A latent, and why it was chosen."""

    latent: int
    reason: str


class Firings:
    """The latents > 0 of the tokens of a text, by latent."""

    def __init__(self) -> None:
        none = np.empty(0, np.int32)
        self._parts = [(none, none, np.empty(0, np.float32))]
        self._entries = 0
        self.complete = True
        """False where there were so many that the last tokens' aren't kept."""

    def add(self, latents: Tensor, positions: Tensor) -> None:
        """Keep latents `[n, d_sae]` of the tokens at `positions` `[n]` in the flattened windows."""
        rows, columns = torch.nonzero(latents > 0, as_tuple=True)
        if self._entries + len(rows) > _MOST_ENTRIES:
            self.complete = False
        if self.complete:
            self._entries += len(rows)
            values = latents[rows, columns].float().cpu().numpy()
            where = positions.to(rows.device)[rows].int().cpu().numpy()
            self._parts.append((columns.int().cpu().numpy(), where, values))

    def examples(
        self, windows: np.ndarray, latents: Sequence[int], n: int, around: int
    ) -> Iterator[list[Example]]:
        """For each latent the n windows in which it fires most, at most one stretch of each.

        Args:
            windows: int `[n_windows, context]`, of which the positions were counted.
            around: tokens shown on either side of the one that fires it most.
        """
        of, where, values = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        order = np.argsort(of, kind="stable")
        of, where, values = of[order], where[order], values[order]
        for latent in latents:
            own = slice(*np.searchsorted(of, [latent, latent + 1]))
            yield list(_best(windows, where[own], values[own], n, around))


def _best(
    windows: np.ndarray, where: np.ndarray, values: np.ndarray, n: int, around: int
) -> Iterator[Example]:
    context = windows.shape[1]
    fired = dict(zip(where.tolist(), values.tolist(), strict=True))
    seen: set[int] = set()
    for i in np.argsort(-values, kind="stable"):
        window, peak = divmod(int(where[i]), context)
        if window in seen:
            continue
        if len(seen) == n:
            return
        seen.add(window)
        start, end = max(0, peak - around), min(context, peak + around + 1)
        yield Example(
            token_ids=tuple(windows[window, start:end].tolist()),
            activations=tuple(fired.get(window * context + p, 0.0) for p in range(start, end)),
            peak=peak - start,
        )


def check_named(latents: Sequence[int], d_sae: int) -> None:
    """Raises a UserError where an SAE has no latent of one of these indexes."""
    for latent in latents:
        if not 0 <= latent < d_sae:
            raise UserError(
                f"--latent {latent}: this SAE has latents 0..{d_sae - 1}. Name one of them."
            )


def choose_latents(
    density: np.ndarray, n: int, named: Sequence[int] = (), seed: int = 0
) -> list[Chosen]:
    """The named latents, the most frequent ones, and random ones of the rest that fired.

    Args:
        density: `[d_sae]`.
        n: how many beside the named; half of them by frequency.

    Raises:
        UserError: there is no latent of a named index.
    """
    check_named(named, len(density))
    chosen = dict.fromkeys(named, "named")
    fired = [int(i) for i in np.argsort(-density, kind="stable") if density[i] > 0]
    others = [latent for latent in fired if latent not in chosen]
    n_frequent = -(-n // 2)
    chosen |= dict.fromkeys(others[:n_frequent], "most frequent")
    rest = np.random.default_rng(seed).permutation(others[n_frequent:])
    chosen |= dict.fromkeys(rest[: n - n_frequent].tolist(), "random")
    return [Chosen(latent, reason) for latent, reason in chosen.items()]
