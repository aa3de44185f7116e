"""One SAE on a stream of batches. Yields what happened; knows no tracker, no console, no files."""

import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor, nn

from sae_mlflow.config_train import TrainSettings
from sae_mlflow.metrics import Tally
from sae_mlflow.optimizers import clip_gradients, forget, make_optimizer
from sae_mlflow.records import EpochRecord, EpochSoFar, Record, StepRecord, WithinEpochRecord
from sae_mlflow.sae import SAE, Batch, StepLoss
from sae_mlflow.sae.resample import resample
from sae_mlflow.schedule import default_learning_rate, learning_rate_share, warmed_up

MAX_DEAD_AFTER_TOKENS = 10_000_000
INITIAL_SAMPLE_TOKENS = 8_192

# AuxK for whatever was silent in the last batch or two would disturb latents that are merely rare.
MIN_AUX_K_AFTER_BATCHES = 4


class Activations(Protocol):
    """Scaled activations of one site; `activations.layer.LayerActivations` is one."""

    n_train: int

    def batches(
        self, batch_tokens: int, generator: torch.Generator, skip: int = 0
    ) -> Iterator[Batch]:
        """One epoch: every training token once, shuffled; `batch_tokens` each, without the first
        `skip` batches of that order."""

    def held_out_batches(self, batch_tokens: int) -> Iterator[Batch]:
        """The held-out tokens in order."""

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """At most n training tokens."""


def train(trainer: "Trainer", acts: Activations, seed: int) -> Iterator[Record]:
    """Train an SAE, its first weights included; deterministic from `seed` on one machine.

    A trainer that was restored (`train_state`) goes on, with the same bits, from where it was.
    """
    if not trainer.has_begun:
        trainer.generator.manual_seed(seed)
        sample = acts.sample(INITIAL_SAMPLE_TOKENS, trainer.generator)
        trainer.sae.initialise(sample, trainer.generator)
        trainer.has_begun = True
    while trainer.so_far.epoch <= trainer.settings.epochs:
        yield from trainer.epoch(acts)


class Trainer:
    """The state of one training: the SAE, the optimizer, how many steps were made, how long each
    latent has been silent, and the generator that batches and new directions are drawn with."""

    def __init__(self, sae: SAE, settings: TrainSettings, n_train: int) -> None:
        """
        Args:
            n_train: training tokens; the last ones, too few for a batch, wait for another epoch.
        """
        self.sae = sae
        self.settings = settings
        steps_per_epoch = n_train // settings.batch_tokens
        self.epoch_tokens = steps_per_epoch * settings.batch_tokens
        self.n_steps = steps_per_epoch * settings.epochs
        self.steps_done = 0
        self.has_begun = False
        self.so_far = EpochSoFar(1)
        self.peak_learning_rate = settings.learning_rate or default_learning_rate(sae.d_sae)
        self.dead_after_tokens = settings.dead_after_tokens or self._default_dead_after(n_train)
        self.aux_k_after_tokens = settings.aux_k_after_tokens or min(
            max(n_train // 20, MIN_AUX_K_AFTER_BATCHES * settings.batch_tokens),
            self.dead_after_tokens,
        )
        self.silent_tokens = torch.zeros(sae.d_sae, dtype=torch.int64, device=sae.W_dec.device)
        self.generator = torch.Generator()
        # [d_sae, d_in], in the memory of W_enc: what the optimizer knows it by. torch's fused Adam
        # copies gradient and moments of a parameter that isn't contiguous, at every step.
        self.encoder_rows = nn.Parameter(sae.W_enc.detach().t())
        self.optimizer = self._make_optimizer()

    @property
    def dead(self) -> Tensor:
        """`[d_sae]` bool: latents that haven't fired in the last `dead_after_tokens` tokens."""
        return self.silent_tokens >= self.dead_after_tokens

    @property
    def learning_rate(self) -> float:
        """Of the coming step."""
        share = learning_rate_share(self.settings, self.steps_done, self.n_steps)
        return self.peak_learning_rate * share

    @property
    def sparsity_warmup(self) -> float:
        """Share of its coefficient that the sparsity penalty has in the coming step."""
        return warmed_up(self.settings.sparsity_warmup_fraction, self.steps_done, self.n_steps)

    @property
    def resample_at(self) -> tuple[float, ...]:
        """Dead latents start anew after these shares of the steps."""
        chosen = self.settings.resample_at
        return self.sae.resample_at if chosen is None else chosen

    @property
    def resampling_steps(self) -> set[int]:
        """Dead latents start anew once so many steps are done."""
        return {round(share * self.n_steps) for share in self.resample_at}

    def step(self, batch: Batch) -> StepLoss:
        """One update on a batch of scaled activations."""
        self.optimizer.zero_grad(set_to_none=True)  # before the loss, which then has their memory
        self.sae.W_enc.grad = None
        with self._autocast:
            silent = self.silent_tokens >= self.aux_k_after_tokens
            loss = self.sae.loss(batch, silent, self.sparsity_warmup)
        loss.total.backward()
        self.sae.project_gradient()
        assert self.sae.W_enc.grad is not None
        self.encoder_rows.grad = self.sae.W_enc.grad.t().contiguous()  # which it is already
        clip_gradients(list(self.optimized.values()), self.settings.gradient_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * group["rate_multiple"]
        self.optimizer.step()
        self.sae.constrain()
        self.silent_tokens += batch.x.shape[0]
        self.silent_tokens[loss.fired] = 0
        self.steps_done += 1
        if self.steps_done in self.resampling_steps:
            self.resample(batch)
        return loss

    def resample(self, batch: Batch) -> Tensor:
        """Start dead latents anew, by their indices (int64); the optimizer forgets them."""
        anew = resample(self.sae, batch, self.dead, self.generator)
        forget(self.optimizer, [self.optimized[name] for name in self.sae.per_latent()], anew)
        self.silent_tokens[anew] = 0
        return anew

    @property
    def optimized(self) -> dict[str, nn.Parameter]:
        """What the optimizer steps, by the names in the SAE; latents come first where there are."""
        return dict(self.sae.named_parameters()) | {"W_enc": self.encoder_rows}

    def _default_dead_after(self, n_train: int) -> int:
        """So few tokens that a latent that never fired can start anew the first time already."""
        times = sorted({0, *self.resampling_steps})
        gaps = [(end - start) * self.settings.batch_tokens for start, end in pairwise(times)]
        return max(min(n_train // 2, MAX_DEAD_AFTER_TOKENS, *gaps), 1)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        """What decides about firing is a group of its own, with another learning rate."""
        settings, firing = self.settings, self.sae.decides_firing
        quick = [p for name, p in self.optimized.items() if name in firing]
        others = [p for name, p in self.optimized.items() if name not in firing]
        optimizer = make_optimizer(settings.optimizer, settings.optimizer_options, others)
        optimizer.param_groups[0]["rate_multiple"] = 1.0
        if quick:
            optimizer.add_param_group({"params": quick, "rate_multiple": settings.firing_rate})
        return optimizer

    @property
    def _autocast(self) -> torch.autocast:
        narrow = self.settings.precision == "bfloat16"
        return torch.autocast(self.sae.W_dec.device.type, torch.bfloat16, enabled=narrow)

    def epoch(self, acts: Activations) -> Iterator[Record]:
        """What is left of one pass over the training tokens: a record a step, then the epoch's.

        Where an epoch is longer than `log_every_tokens`, there is one for every so many, too.
        With each record everything up to it is in this object: it can be saved there.
        """
        so_far = self.so_far
        yield from self._part()  # of a trainer that was saved right before it
        started = time.perf_counter()
        for batch in acts.batches(self.settings.batch_tokens, self._order(), so_far.batches):
            so_far.rate, tokens = self.learning_rate, batch.x.shape[0]
            loss = self.step(batch)
            so_far.tally.add(batch.y, loss.recon, loss.l0, loss.fired)
            so_far.tally.accumulate("total_loss", loss.total * tokens)
            so_far.tally.accumulate("sparsity_loss", loss.sparsity * tokens)
            so_far.batches += 1
            so_far.seconds += time.perf_counter() - started
            total = loss.total.detach()
            del loss  # as large as the batch, and the next step needs none of it
            yield StepRecord(so_far.epoch, tokens, total, self.dead.sum(), so_far.tally)
            yield from self._part()
            started = time.perf_counter()  # what the caller does with a record isn't training
        metrics = self._metrics(so_far.tally, so_far.rate, so_far.seconds)
        metrics |= validate(self.sae, acts, self.settings.batch_tokens)
        self.so_far = EpochSoFar(so_far.epoch + 1)
        yield EpochRecord(so_far.epoch, metrics)

    def _order(self) -> torch.Generator:
        """What the epoch's order is drawn with: of one under way the same as before, while our own
        generator has gone on."""
        if self.so_far.order is None:
            self.so_far.order = self.generator.get_state()
            return self.generator
        again = torch.Generator()
        again.set_state(self.so_far.order)
        return again

    def _part(self) -> Iterator[WithinEpochRecord]:
        """The record of a part of the epoch, where one is due."""
        so_far, every = self.so_far, self.settings.log_every_tokens
        tokens = so_far.tally.tokens - so_far.part_tally.tokens
        if tokens < every or self.epoch_tokens <= every:
            return
        added, seconds = so_far.tally.since(so_far.part_tally), so_far.seconds - so_far.part_seconds
        so_far.part_tally, so_far.part_seconds = so_far.tally.copy(), so_far.seconds
        metrics = self._metrics(added, so_far.rate, seconds)
        yield WithinEpochRecord(self.steps_done * self.settings.batch_tokens, metrics)

    def _metrics(self, tally: Tally, rate: float, seconds: float) -> dict[str, float]:
        """What the tallied tokens came to, under the names that stand in the store."""
        return {
            "total_loss": tally.mean("total_loss"),
            "reconstruction_loss": tally.reconstruction_loss(),
            "sparsity_loss": tally.mean("sparsity_loss"),
            "l0_norm": tally.l0_norm(),
            "fvu": tally.fvu(),
            "explained_variance": 1.0 - tally.fvu(),
            "cosine_similarity": tally.cosine_similarity(),
            "dead_fraction": self.dead.double().mean().item(),
            "learning_rate": rate,
            "tokens_per_second": tally.tokens / seconds,
        }


@torch.no_grad()
def validate(sae: SAE, acts: Activations, batch_tokens: int) -> dict[str, float]:
    """The metrics on the held-out tokens."""
    tally = Tally()
    for batch in acts.held_out_batches(batch_tokens):
        made = sae.reconstruct(batch.x)
        tally.add(batch.y, made.recon, made.l0, made.fired)
    return {
        "val_reconstruction_loss": tally.reconstruction_loss(),
        "val_fvu": tally.fvu(),
        "val_l0_norm": tally.l0_norm(),
        "val_dead_fraction": tally.never_fired_fraction(),
    }
