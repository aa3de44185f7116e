"""Activations of a language model: planned, collected once for all sites, and read shuffled.

windows = token_windows(settings.text, load_tokenizer(settings.model))
plan = plan_activations(settings, windows)          # no LM yet; says what will be written
if plan.missing:
    lm = load_language_model(settings.model)
    for tokens_read in fill_activations(plan, lm):  # of plan.tokens_to_read
        ...
for acts in open_activations(plan):                 # one for each of plan.sites
    for batch in acts.batches(1024, generator):     # one epoch of Batch(x, y), `[1024, d]` each
        ...
"""

import errno
import logging
import time
from collections.abc import Iterator

import torch
from filelock import Timeout

from sae_mlflow import activation_cache, assets
from sae_mlflow.activation_plan import ActivationPlan, all_windows, plan_activations, starts_of
from sae_mlflow.errors import UserError
from sae_mlflow.hookpoints import LanguageModel
from sae_mlflow.layer_activations import LayerActivations, open_activations

__all__ = [
    "ActivationPlan",
    "LayerActivations",
    "fill_activations",
    "open_activations",
    "plan_activations",
]

log = logging.getLogger(__name__)


def fill_activations(plan: ActivationPlan, lm: LanguageModel) -> Iterator[int]:
    """Collect what is missing, every hookpoint in the same forward passes.

    Yields the number of tokens read so far, after each batch; all that was yielded for is on disk.
    Another process that fills the same entry is waited for, and what it wrote is used.

    Raises:
        UserError: the disk is full.
    """
    lock = activation_cache.lock_of(plan.key)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("Waiting for another process that is writing the same activations")
        lock.acquire()
    try:
        yield from _fill(plan, lm)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise UserError(
            f"The disk with {plan.folder} is full. Make room (`sae-mlflow cache prune`) and run "
            "again: what was written is kept."
        ) from None
    finally:
        lock.release()


def _fill(plan: ActivationPlan, lm: LanguageModel) -> Iterator[int]:
    batch_windows = plan.settings.activations.batch_windows
    starts = starts_of(plan.stores, batch_windows)
    if not starts:
        return
    _write_facts(plan)
    stores = [store for store in plan.stores if store.hookpoint in starts]
    for store in stores:
        store.cut(starts[store.hookpoint])
    windows = all_windows(plan.windows)
    first = min(starts.values())
    for begin in range(first, len(windows), batch_windows):
        batch = windows[begin : begin + batch_windows]
        wanted = [store for store in stores if starts[store.hookpoint] <= begin]
        acts = lm.activations(torch.from_numpy(batch).long(), [s.hookpoint for s in wanted])
        kept = torch.from_numpy(plan.windows.kept(batch).reshape(-1)).to(lm.device)
        for store in wanted:
            store.append(acts[store.hookpoint][kept])
        yield (begin - first + len(batch)) * plan.windows.context


def _write_facts(plan: ActivationPlan) -> None:
    activation_cache.write_facts(
        assets.make_folder(plan.folder),
        model=plan.settings.model.name,
        text=plan.windows.source,
        tokens=plan.windows.n_tokens,
        context=plan.windows.context,
        dtype=plan.settings.activations.dtype,
        created=time.strftime("%Y-%m-%d %H:%M:%S"),
    )
    activation_cache.touch(plan.folder)
