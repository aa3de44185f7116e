"""One SAE on a stream of batches. Yields what happened; knows no tracker, no console, no files."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sae_mlflow.config import TrainSettings
from sae_mlflow.metrics import Tally
from sae_mlflow.sae import SAE, StepLoss

MAX_DEAD_AFTER_TOKENS = 10_000_000
INITIAL_SAMPLE_TOKENS = 8_192


class Activations(Protocol):
    """Scaled activations of one hookpoint; `activations.LayerActivations` is one."""

    n_train: int

    def batches(self, batch_tokens: int, generator: torch.Generator) -> Iterator[Tensor]:
        """One epoch: every training token once, shuffled; `[batch_tokens, d_in]` each."""

    def held_out_batches(self, batch_tokens: int) -> Iterator[Tensor]:
        """The held-out tokens in order."""

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """`[<= n, d_in]` training tokens."""


@dataclass(frozen=True)
class StepRecord:
    """What one step showed, for a progress bar; numbers stay tensors so that a GPU needn't wait."""

    epoch: int
    tokens: int
    """Tokens in this step."""
    loss: Tensor
    n_dead: Tensor
    so_far: Tally
    """The epoch up to here."""


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch came to; `metrics` under the names that stand in the store."""

    epoch: int
    """Counted from 1."""
    metrics: dict[str, float]


def default_learning_rate(d_sae: int) -> float:
    """Peak learning rate for a width: the scaling law of Gao et al. 2024, appendix A.3."""
    return 2e-4 / (d_sae / 2**14) ** 0.5


def train(trainer: "Trainer", acts: Activations, seed: int) -> Iterator[StepRecord | EpochRecord]:
    """Train an SAE, its first weights included; deterministic from `seed` on one machine."""
    generator = torch.Generator().manual_seed(seed)
    trainer.sae.initialise(acts.sample(INITIAL_SAMPLE_TOKENS, generator), generator)
    for epoch in range(1, trainer.settings.epochs + 1):
        yield from trainer.epoch(epoch, acts, generator)


class Trainer:
    """The state of one training: optimizer, schedule, and how long each latent has been silent."""

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
        self.peak_learning_rate = settings.learning_rate or default_learning_rate(sae.d_sae)
        self.dead_after_tokens = settings.dead_after_tokens or min(
            max(n_train // 2, 1), MAX_DEAD_AFTER_TOKENS
        )
        self.silent_tokens = torch.zeros(sae.d_sae, dtype=torch.int64, device=sae.W_dec.device)
        self._optimizer = torch.optim.Adam(sae.parameters(), lr=0.0, fused=True)

    @property
    def dead(self) -> Tensor:
        """`[d_sae]` bool: latents that haven't fired in the last `dead_after_tokens` tokens."""
        return self.silent_tokens >= self.dead_after_tokens

    @property
    def learning_rate(self) -> float:
        """Of the coming step: a linear warm-up, a plateau, a linear decay towards 0."""
        warmup = self.settings.warmup_fraction * self.n_steps
        decay = self.settings.decay_fraction * self.n_steps
        rising = (self.steps_done + 1) / warmup if warmup else 1.0
        falling = (self.n_steps - self.steps_done) / decay if decay else 1.0
        return self.peak_learning_rate * min(rising, falling, 1.0)

    def step(self, x: Tensor) -> StepLoss:
        """One update on a batch of scaled activations `[batch, d_in]`."""
        loss = self.sae.loss(x, self.dead)
        self._optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        self.sae.project_gradient()
        torch.nn.utils.clip_grad_norm_(self.sae.parameters(), self.settings.gradient_clip)
        for group in self._optimizer.param_groups:
            group["lr"] = self.learning_rate
        self._optimizer.step()
        self.sae.normalise_decoder()
        self.silent_tokens += x.shape[0]
        self.silent_tokens[loss.fired] = 0
        self.steps_done += 1
        return loss

    def epoch(
        self, epoch: int, acts: Activations, generator: torch.Generator
    ) -> Iterator[StepRecord | EpochRecord]:
        """One pass over the training tokens, a record a step, then one for the epoch."""
        tally, seconds = Tally(), 0.0
        started = time.perf_counter()
        for x in acts.batches(self.settings.batch_tokens, generator):
            rate = self.learning_rate
            loss = self.step(x)
            tally.add(x, loss.recon, loss.l0, loss.fired)
            tally.accumulate("total_loss", loss.total * x.shape[0])
            tally.accumulate("sparsity_loss", loss.sparsity * x.shape[0])
            seconds += time.perf_counter() - started
            yield StepRecord(epoch, x.shape[0], loss.total.detach(), self.dead.sum(), tally)
            started = time.perf_counter()  # what the caller does with a record isn't training
        metrics = {
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
        yield EpochRecord(epoch, metrics | validate(self.sae, acts, self.settings.batch_tokens))


@torch.no_grad()
def validate(sae: SAE, acts: Activations, batch_tokens: int) -> dict[str, float]:
    """The metrics on the held-out tokens."""
    tally = Tally()
    nothing_dead = torch.zeros(sae.d_sae, dtype=torch.bool, device=sae.W_dec.device)
    for x in acts.held_out_batches(batch_tokens):
        loss = sae.loss(x, nothing_dead)
        tally.add(x, loss.recon, loss.l0, loss.fired)
    return {
        "val_reconstruction_loss": tally.reconstruction_loss(),
        "val_fvu": tally.fvu(),
        "val_l0_norm": tally.l0_norm(),
        "val_dead_fraction": tally.never_fired_fraction(),
    }
