"""The training steps of sparsify and SAELens, as their own trainers take them, on given batches.

Both with the recipe of the comparison: learning rate at its default with 5% of warm-up and a linear
decay over the last fifth, `b_dec` at the mean of a first sample, scaled activations. What a peer
does beyond its own forward pass (gradient projection, clipping, decoder norm) follows its trainer.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

WARMUP, DECAY = 0.05, 0.2


class Peer(Protocol):
    """One training of somebody else's SAE."""

    name: str
    module: torch.nn.Module

    def step(self, x: Tensor) -> None:
        """One update on scaled activations `[batch, d_in]`."""

    def evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction `[batch, d_in]` and latents that fired `[d_sae]` on held-out tokens."""


@dataclass(frozen=True)
class Recipe:
    """What all trainings of a comparison share."""

    d_in: int
    d_sae: int
    k: int
    batch: int
    steps: int
    seed: int = 0


def there_are() -> bool:
    """Whether both peers are installed (`pip install -e ".[oracle]"`)."""
    from importlib.util import find_spec

    return find_spec("sparsify") is not None and find_spec("sae_lens") is not None


def linear_share(recipe: Recipe, step: int) -> float:
    """Warm-up, plateau, decay; as a share of the peak."""
    rising = (step + 1) / max(WARMUP * recipe.steps, 1e-9)
    falling = (recipe.steps - step) / max(DECAY * recipe.steps, 1e-9)
    return min(rising, falling, 1.0)


class Sparsify:
    """eai-sparsify's `SparseCoder` with the step of its `Trainer.fit`."""

    def __init__(self, recipe: Recipe, sample: Tensor, optimizer: str = "adam") -> None:
        from sparsify import SparseCoder, SparseCoderConfig

        torch.manual_seed(recipe.seed)
        self.name = "sparsify" if optimizer == "adam" else f"sparsify, {optimizer}"
        self.recipe, self._step = recipe, 0
        config = SparseCoderConfig(k=recipe.k, num_latents=recipe.d_sae)
        self.module = SparseCoder(recipe.d_in, config, dtype=torch.float32)
        self.module.b_dec.data = sample.mean(0)
        self._schedule = optimizer == "adam"
        width = (recipe.d_sae / 2**14) ** 0.5
        if self._schedule:
            self.peak = 2e-4 / width
            self._optimizer: Any = torch.optim.Adam(self.module.parameters(), lr=self.peak)
        else:
            self._optimizer = self._signum(5e-3 / width)

    def _signum(self, rate: float) -> Any:
        from schedulefree import ScheduleFreeWrapper
        from sparsify.sign_sgd import SignSGD

        groups = [{"params": list(self.module.parameters()), "lr": rate}]
        optimizer = ScheduleFreeWrapper(SignSGD(groups), momentum=0.95)
        optimizer.train()
        return optimizer

    def step(self, x: Tensor) -> None:
        self.module.set_decoder_norm_to_unit_norm()
        self.module(x, dead_mask=None).fvu.backward()  # its auxk_alpha is 0 by default
        self.module.remove_gradient_parallel_to_decoder_directions()
        if self._schedule:
            rate = self.peak * linear_share(self.recipe, self._step)
            self._optimizer.param_groups[0]["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._step += 1

    @torch.no_grad()
    def evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self._schedule:
            self._optimizer.eval()
        out = self.module(x)
        fired = torch.zeros(self.recipe.d_sae, dtype=torch.bool)
        fired[out.latent_indices[out.latent_acts > 0]] = True
        return out.sae_out, fired


class SAELens:
    """SAELens' TopK training SAE with the step of its own `SAETrainer`."""

    name = "SAELens"

    def __init__(self, recipe: Recipe, sample: Tensor) -> None:
        from sae_lens.config import SAETrainerConfig
        from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.training.sae_trainer import SAETrainer

        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        config = TopKTrainingSAEConfig(d_in=recipe.d_in, d_sae=recipe.d_sae, k=recipe.k)
        self.module = TopKTrainingSAE(config)
        self.module.b_dec.data = sample.mean(0)
        trainer_config = SAETrainerConfig(
            total_training_samples=recipe.steps * recipe.batch,
            train_batch_size_samples=recipe.batch,
            lr_end=3e-5,  # has to be there, as a tenth of its rate; a constant rate ignores it
            lr_warm_up_steps=round(WARMUP * recipe.steps),
            lr_decay_steps=round(DECAY * recipe.steps),
        )
        self._trainer: Any = SAETrainer(trainer_config, self.module, iter(()))

    def step(self, x: Tensor) -> None:
        self._trainer.step(x)
        self._trainer.n_training_steps += 1

    @torch.no_grad()
    def evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.module.eval()
        latents = self.module.encode(x)
        recon = self.module.decode(latents)
        dense = latents.to_dense() if latents.is_sparse else latents
        return recon, (dense > 0).any(dim=0)
