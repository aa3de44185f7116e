"""TopK with AuxK: Gao et al. 2024, Scaling and evaluating sparse autoencoders (2406.04093)."""

from typing import Any

import torch
from torch import Tensor

from sae_mlflow.config_sae import SAESettings
from sae_mlflow.sae import sparse
from sae_mlflow.sae.auxk import Revival
from sae_mlflow.sae.base import SAE
from sae_mlflow.sae.batch import Batch, Sizes, StepLoss
from sae_mlflow.sae.select import Rule, TopK
from sae_mlflow.sae.support import Support

# Of encoder rows at the start. At 1 the sum of k latents overshoots, and since Adam moves every
# weight by about its rate, directions that are shorter turn faster: FVU is 5% lower after 210 steps
# and 11% after 50 (benchmarks/README.md).
ENCODER_LENGTH = 0.6


class TopKSAE(SAE):
    """z keeps the k largest pre-activations `(x - b_dec) W_enc + b_enc` of a token, then relu."""

    kind = "topk"
    unit_norm = True

    def __init__(
        self, sizes: Sizes, k: int, aux_k: int | None = None, aux_k_coefficient: float = 1 / 32
    ) -> None:
        """
        Args:
            aux_k: dead latents that AuxK revives at once; None means half of d_out.
            aux_k_coefficient: weight of AuxK; 0 turns it off.
        """
        super().__init__(sizes)
        self.k = k
        self.aux_k = aux_k or max(self.d_out // 2, 1)
        self.aux_k_coefficient = aux_k_coefficient

    @classmethod
    def from_settings(cls, settings: SAESettings, sizes: Sizes) -> "TopKSAE":
        return cls(sizes, settings.k, settings.aux_k, settings.aux_k_coefficient)

    @classmethod
    def from_config(cls, config: dict[str, Any], sizes: Sizes) -> "TopKSAE":
        return cls(sizes, config["k"])

    @torch.no_grad()
    def initialise(self, sample: Batch, generator: torch.Generator) -> None:
        """As every SAE, with shorter encoder rows; not of a transcoder, whose decoder is 0."""
        super().initialise(sample, generator)
        if not self.transcodes:
            self.W_enc.mul_(ENCODER_LENGTH)

    @property
    def training_rule(self) -> Rule:
        """What is kept of a batch in training."""
        return TopK(self.k)

    def codes(self, x: Tensor) -> tuple[Tensor, Support]:
        pre_acts, support = self._kept(x, TopK(self.k))
        return pre_acts.relu(), support

    def loss(self, batch: Batch, dead: Tensor, sparsity_warmup: float = 1.0) -> StepLoss:
        revival = Revival.of(self, dead if self.aux_k_coefficient else torch.zeros_like(dead))
        pre_acts, support = sparse.encode(
            batch.x, revival.W_enc, self.b_enc, self.centre, self.training_rule
        )
        latents = pre_acts.relu()
        recon, missed = self._reconstructed(latents, support, batch, revival.W_dec)
        aux = revival.loss(self.centre, batch, recon, self.aux_k)
        total = missed + self.aux_k_coefficient * aux
        return StepLoss(
            recon=recon,
            l0=support.l0(latents),
            fired=support.fired(latents),
            total=total,
            sparsity=total.new_zeros(()),
        )

    def hyperparameters(self) -> dict[str, Any]:
        return {"k": self.k}

    def chosen_settings(self) -> dict[str, Any]:
        return super().chosen_settings() | {"aux_k": self.aux_k}
