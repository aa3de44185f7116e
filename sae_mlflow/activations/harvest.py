"""One LM forward for all sites: what the activation cache lacks is read and written."""

import logging
import time
from collections.abc import Iterator

import torch
from filelock import Timeout

from sae_mlflow.activations import cache
from sae_mlflow.activations.checksums import FORMAT
from sae_mlflow.activations.finite import check_finite
from sae_mlflow.activations.plan import ActivationPlan, all_windows, starts_of
from sae_mlflow.disk import free_bytes, in_units, is_full
from sae_mlflow.errors import UserError, reason_of
from sae_mlflow.folders import CACHE_VARIABLE, make_folder
from sae_mlflow.lm.hookpoints import LanguageModel, check_one_a_token

log = logging.getLogger(__name__)


def fill_activations(plan: ActivationPlan, lm: LanguageModel) -> Iterator[int]:
    """Collect what is missing, every hookpoint in the same forward passes.

    Yields the number of tokens read so far, after each batch; all that was yielded for is on disk.
    Another process that fills the same entry is waited for, and what it wrote is used.

    Raises:
        UserError: the disk is full, or the entry may not be written; a hookpoint hasn't one
            activation a token.
    """
    lock = cache.lock_of(plan.key)
    try:
        cache.take(lock, timeout=0)
    except Timeout:
        log.info("Waiting for another process that is writing the same activations")
        cache.take(lock)
    try:
        yield from _fill(plan, lm)
    except OSError as error:
        said = _disk_full(plan) if is_full(error) else _unwritable(plan, error)
        raise UserError(said) from None
    finally:
        lock.release()


def _fill(plan: ActivationPlan, lm: LanguageModel) -> Iterator[int]:
    batch_windows = plan.settings.activations.batch_windows
    stores = [store for store in plan.stores if store.hookpoint in plan.missing]
    starts = starts_of(stores, {s.hookpoint: s.progress() for s in stores}, batch_windows)
    if not starts:
        return
    _write_facts(plan)
    stores = [store for store in stores if store.hookpoint in starts]
    for store in stores:
        store.cut(starts[store.hookpoint])
    windows = all_windows(plan.windows)
    first = min(starts.values())
    for begin in range(first, len(windows), batch_windows):
        batch = windows[begin : begin + batch_windows]
        wanted = [store for store in stores if starts[store.hookpoint] <= begin]
        hookpoints = [store.hookpoint for store in wanted]
        acts = lm.activations(torch.from_numpy(batch).long(), hookpoints)
        # a block's width was taken from the model's config
        check_one_a_token(lm.name, hookpoints, acts, batch.size)
        kept = torch.from_numpy(plan.windows.kept(batch).reshape(-1)).to(lm.device)
        for store in wanted:
            rows = acts[store.hookpoint][kept]
            check_finite(lm, store.hookpoint, rows)
            store.append(rows, range(begin, begin + len(batch)))
        yield (begin - first + len(batch)) * plan.windows.context


def _disk_full(plan: ActivationPlan) -> str:
    """What is still to come, as far as whole windows are on disk."""
    left = sum(store.missing_bytes(store.progress().windows) for store in plan.stores)
    return (
        f"The disk is full: {in_units(left)} of activations are still to be written to "
        f"{plan.folder}, which has {in_units(free_bytes(plan.folder))} free. Make room "
        "(`sae-mlflow cache prune`) and run again: what was written is kept."
    )


def _unwritable(plan: ActivationPlan, error: OSError) -> str:
    return (
        f"Activations can't be written to {error.filename or plan.folder}: {reason_of(error)}. Ask "
        f"its owner to let you write to it, or point {CACHE_VARIABLE} at a folder of your own."
    )


def _write_facts(plan: ActivationPlan) -> None:
    cache.write_facts(
        make_folder(plan.folder),
        format=FORMAT,
        model=plan.settings.model.name,
        text=plan.windows.source,
        tokens=plan.windows.n_tokens,
        context=plan.windows.context,
        dtype=plan.settings.activations.dtype,
        created=time.strftime("%Y-%m-%d %H:%M:%S"),
    )
    cache.touch(plan.folder)
