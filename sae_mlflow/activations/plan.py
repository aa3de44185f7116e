"""What a training needs of the activation cache, and what of it is missing."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sae_mlflow.activations import cache
from sae_mlflow.activations.store import ActivationFiles, Progress
from sae_mlflow.config import Settings
from sae_mlflow.disk import in_units
from sae_mlflow.errors import UserError
from sae_mlflow.lm.files import weights_hash
from sae_mlflow.lm.loading import hookpoint_widths, model_shape
from sae_mlflow.lm.sites import Site, sites
from sae_mlflow.text.corpus import Windows

log = logging.getLogger(__name__)

_TOLD_BYTES = 2 * 10**9  # a second, and from a slow disk twenty

EXCLUSION_RULE = "no special tokens, no first positions; v1"
"""Part of the cache's key: which positions are stored at all."""


@dataclass(frozen=True, eq=False)
class ActivationPlan:
    """What a training needs of the cache, and what of it isn't there yet."""

    settings: Settings
    windows: Windows
    key: str
    sites: tuple[Site, ...]
    stores: tuple[ActivationFiles, ...]
    """One for each hookpoint of the sites, however many of them need it."""
    missing: tuple[str, ...]
    """Hookpoints that aren't whole in the cache."""
    bytes_to_write: int
    tokens_to_read: int
    """Tokens that the LM has to read for what is missing."""

    @property
    def folder(self) -> Path:
        return cache.activations_folder() / self.key

    @property
    def hookpoints(self) -> tuple[str, ...]:
        return tuple(store.hookpoint for store in self.stores)

    @property
    def n_train_rows(self) -> int:
        """Training tokens in the cache, before the cap on norms."""
        return int(self.stores[0].rows_before[len(self.windows.train)])


def plan_activations(settings: Settings, windows: Windows) -> ActivationPlan:
    """Look up what the cache has and what would have to be written.

    Every byte that the cache has is checked (half a second a GB, once it is in memory);
    what isn't as it was written is said, and is missing.

    Raises:
        UserError: less text than one batch; windows that the model can't read; a layer it hasn't;
            a disk that can't hold what is missing.
    """
    _check_windows(settings, windows)
    places = sites(settings)
    hookpoints = list(dict.fromkeys(h for site in places for h in site.hookpoints))
    widths = hookpoint_widths(settings.model, hookpoints)
    key = _key(settings, windows)
    kept = windows.kept(all_windows(windows)).sum(axis=1)
    stores = tuple(
        ActivationFiles(
            folder=cache.activations_folder() / key,
            hookpoint=hookpoint,
            d_in=widths[hookpoint],
            dtype=getattr(torch, settings.activations.dtype),
            rows_before=np.concatenate([[0], np.cumsum(kept)]),
        )
        for hookpoint in hookpoints
    )
    if (n_bytes := sum(store.bytes_there() for store in stores)) > _TOLD_BYTES:
        log.info("Checking %s of cached activations", in_units(n_bytes))
    progress = {store.hookpoint: store.progress() for store in stores}
    _report_damage(key, progress)
    starts = starts_of(stores, progress, settings.activations.batch_windows)
    bytes_to_write = sum(
        s.missing_bytes(starts[s.hookpoint]) for s in stores if s.hookpoint in starts
    )
    if starts:
        cache.check_disk(bytes_to_write)
    n_windows = stores[0].n_windows
    return ActivationPlan(
        settings=settings,
        windows=windows,
        key=key,
        sites=places,
        stores=stores,
        missing=tuple(starts),
        bytes_to_write=bytes_to_write,
        tokens_to_read=(n_windows - min(starts.values(), default=n_windows)) * windows.context,
    )


def _check_windows(settings: Settings, windows: Windows) -> None:
    shape = model_shape(settings.model)
    n_train = int(windows.kept(windows.train).sum())
    if n_train < settings.train.batch_tokens:
        raise UserError(
            f"{windows.source} gives {n_train:,} training tokens (special ones and each window's "
            f"first left out), less than one batch of train.batch_tokens = "
            f"{settings.train.batch_tokens:,}. Give more text, raise text.tokens, or lower "
            "train.batch_tokens."
        )
    if not windows.kept(windows.held_out).any():
        raise UserError(
            f"{windows.source} gives no held-out tokens but special ones. Give more text, or raise "
            "text.held_out_fraction."
        )
    if shape.max_context and windows.context > shape.max_context:
        raise UserError(
            f"text.context = {windows.context}, but {settings.model.name} reads at most "
            f"{shape.max_context} tokens at once. Lower text.context."
        )
    largest = max(windows.train.max(), windows.held_out.max())
    if shape.vocab_size and largest >= shape.vocab_size:
        raise UserError(
            f"{settings.model.name}'s tokenizer gives token {largest}, but the model knows "
            f"0..{shape.vocab_size - 1}. The folder holds another model's tokenizer; replace it."
        )


def _key(settings: Settings, windows: Windows) -> str:
    """Names what determines the numbers; not what changes their last bits alone (the device, how
    many windows are read at once)."""
    facts = {
        "weights": weights_hash(settings.model),
        "windows": windows.sha256,
        "context": windows.context,
        "lm_dtype": settings.model.dtype,
        "dtype": settings.activations.dtype,
        "exclusions": EXCLUSION_RULE,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def all_windows(windows: Windows) -> np.ndarray:
    """int32 `[n_windows, context]`: training windows, then held-out ones."""
    return np.concatenate([windows.train, windows.held_out])


def _report_damage(key: str, progress: Mapping[str, Progress]) -> None:
    for hookpoint, each in progress.items():
        if each.damage:
            log.warning(
                "Cached activations %s: %s. %s is collected anew%s.",
                *(key, each.damage, hookpoint, " from there" if each.windows else ""),
            )


def starts_of(
    stores: Sequence[ActivationFiles], progress: Mapping[str, Progress], batch_windows: int
) -> dict[str, int]:
    """The window from which each hookpoint that isn't whole goes on; always a batch's first, so
    that an interrupted fill ends in the same bytes as one in one go."""
    done = {store.hookpoint: progress[store.hookpoint].windows for store in stores}
    return {
        store.hookpoint: done[store.hookpoint] // batch_windows * batch_windows
        for store in stores
        if done[store.hookpoint] < store.n_windows
    }
