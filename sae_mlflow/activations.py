"""Activations of a language model: planned, collected once for all layers, and read shuffled.

windows = token_windows(settings.text, load_tokenizer(settings.model))
plan = plan_activations(settings, windows)          # no LM yet; says what will be written
if plan.missing:
    lm = load_language_model(settings.model)
    for tokens_read in fill_activations(plan, lm):  # of plan.tokens_to_read
        ...
for layer in open_activations(plan):                # in the order of settings.model.layers
    for batch in layer.batches(1024, generator):    # one epoch, `[1024, d_in]`
        ...
"""

import errno
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from filelock import Timeout
from torch import Tensor

from sae_mlflow import activation_cache, assets
from sae_mlflow.activation_plan import ActivationPlan, all_windows, plan_activations, starts_of
from sae_mlflow.activation_store import RowFile, Store
from sae_mlflow.errors import UserError
from sae_mlflow.hookpoints import LanguageModel

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


def open_activations(
    plan: ActivationPlan, device: torch.device | None = None
) -> "list[LayerActivations]":
    """Open every layer of a plan whose cache is filled; batches come on `device` (default: cpu).

    Raises:
        UserError: the cap on norms leaves less than one batch; a layer's activations are all 0.
    """
    assert all(store.complete() for store in plan.stores), "fill_activations comes first"
    activation_cache.touch(plan.folder)
    return [_open(plan, store, device or torch.device("cpu")) for store in plan.stores]


def _open(plan: ActivationPlan, store: Store, device: torch.device) -> "LayerActivations":
    norms = store.norms()
    train_norms = norms[: plan.n_train_rows]
    usual = norms <= plan.settings.activations.max_norm_ratio * _median(train_norms)
    train_rows, held_out_rows = (
        part.nonzero().flatten() + before
        for part, before in (
            (usual[: plan.n_train_rows], 0),
            (usual[plan.n_train_rows :], plan.n_train_rows),
        )
    )
    power = norms[train_rows].double().square().mean().item() / store.d_in
    if len(train_rows) < plan.settings.train.batch_tokens or not len(held_out_rows) or not power:
        raise UserError(_nothing_left(plan, store, len(train_rows), len(held_out_rows), power))
    return LayerActivations(
        hookpoint=store.hookpoint,
        d_in=store.d_in,
        n_train=len(train_rows),
        n_held_out=len(held_out_rows),
        n_giant_train=plan.n_train_rows - len(train_rows),
        n_giant_held_out=len(norms) - plan.n_train_rows - len(held_out_rows),
        scale=power**-0.5,
        device=device,
        _rows=store.rows(),
        _train_rows=train_rows,
        _held_out_rows=held_out_rows,
    )


@dataclass(eq=False)
class LayerActivations:
    """One hookpoint's activations, scaled so that their mean square per dimension is 1."""

    hookpoint: str
    d_in: int
    n_train: int
    """Training tokens."""
    n_held_out: int
    n_giant_train: int
    """Tokens left out because their norm is over the cap, or not a number."""
    n_giant_held_out: int
    scale: float
    """s in x' = s x; from the training tokens alone."""
    device: torch.device
    _rows: RowFile = field(repr=False)
    _train_rows: Tensor = field(repr=False)
    _held_out_rows: Tensor = field(repr=False)

    def batches(self, batch_tokens: int, generator: torch.Generator) -> Iterator[Tensor]:
        """One epoch: every training token at most once, in an order drawn from `generator` over
        the whole set, as float32 `[batch_tokens, d_in]`; what is left for a last, shorter batch
        is dropped."""
        order = self._train_rows[torch.randperm(self.n_train, generator=generator)]
        for begin in range(0, self.n_train - batch_tokens + 1, batch_tokens):
            yield self._scaled(order[begin : begin + batch_tokens])

    def held_out_batches(self, batch_tokens: int) -> Iterator[Tensor]:
        """Every held-out token once, in the text's order, as float32 `[<= batch_tokens, d_in]`."""
        for rows in self._held_out_rows.split(batch_tokens):
            yield self._scaled(rows)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """`n` random training tokens (all, where there are fewer): float32 `[n, d_in]`."""
        order = torch.randperm(self.n_train, generator=generator)[:n]
        return self._scaled(self._train_rows[order])

    def _scaled(self, rows: Tensor) -> Tensor:
        return self._rows[rows].to(self.device, torch.float32) * self.scale


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


def _median(norms: Tensor) -> float:
    """Of the finite ones; nothing is below the median of none."""
    finite = norms[norms.isfinite()]
    return finite.median().item() if len(finite) else -1.0


def _nothing_left(
    plan: ActivationPlan, store: Store, train: int, held_out: int, power: float
) -> str:
    if train and not power:
        return f"{store.hookpoint}: all activations are 0. Choose another module."
    return (
        f"{store.hookpoint}: {train:,} training and {held_out:,} held-out tokens are left within "
        f"activations.max_norm_ratio = {plan.settings.activations.max_norm_ratio:g} times the "
        f"median norm, less than one batch of train.batch_tokens = "
        f"{plan.settings.train.batch_tokens:,}. Give more text, or raise max_norm_ratio."
    )
