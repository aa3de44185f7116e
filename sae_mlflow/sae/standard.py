"""ReLU with an L1 penalty: Bricken et al. 2023, Towards Monosemanticity, in the form of Anthropic's
April 2024 update: the penalty weighs each latent by its decoder row's length, which is free."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from sae_mlflow.config import SAESettings
from sae_mlflow.sae.base import SAE, Batch, Sizes, StepLoss
from sae_mlflow.sae.select import Above
from sae_mlflow.sae.support import Support


class StandardSAE(SAE):
    """z = relu of the pre-activations; + lambda sum_i z_i ||W_dec,i||.

    As in the update, nothing is done about dead latents but the penalty's warm-up.
    """

    kind = "standard"

    def __init__(self, sizes: Sizes, l1_coefficient: float = 0.0) -> None:
        """
        Args:
            l1_coefficient: lambda, against a reconstruction loss that is a mean over dimensions.
        """
        super().__init__(sizes)
        self.l1_coefficient = l1_coefficient

    @classmethod
    def from_settings(cls, settings: SAESettings, sizes: Sizes) -> "StandardSAE":
        return cls(sizes, l1_coefficient(settings, sizes.d_in))

    @classmethod
    def from_config(cls, config: dict[str, Any], sizes: Sizes) -> "StandardSAE":
        return cls(sizes)

    def codes(self, x: Tensor) -> tuple[Tensor, Support]:
        pre_acts, support = self._kept(x, Above(torch.zeros_like(self.b_enc)))
        return pre_acts.relu(), support

    def loss(self, batch: Batch, dead: Tensor, sparsity_warmup: float = 1.0) -> StepLoss:
        latents, support = self.codes(batch.x)
        recon = self._decoded(latents, support, batch.x)
        lengths = support.spread(self.decoder_lengths())
        penalty = (latents * lengths).sum() / max(support.n_tokens, 1)
        sparsity = self.l1_coefficient * sparsity_warmup * penalty
        return StepLoss(
            recon=recon.detach(),
            l0=support.l0(latents),
            fired=support.fired(latents),
            total=self.reconstruction_loss(recon, batch.y) + sparsity,
            sparsity=sparsity.detach(),
        )

    def decoder_lengths(self) -> Tensor:
        """`[d_sae]`: what the penalty weighs each latent by."""
        return self.W_dec.norm(dim=1)

    def reconstruction_loss(self, recon: Tensor, y: Tensor) -> Tensor:
        """Mean over tokens and dimensions of the squared error."""
        return mse_loss(recon, y)


def l1_coefficient(settings: SAESettings, width: int) -> float:
    """The settings' lambda, or Anthropic's 5 brought from a sum over a layer's width to a mean."""
    return 5 / width if settings.l1_coefficient is None else settings.l1_coefficient
