"""ReLU with an L1 penalty: Bricken et al. 2023, Towards Monosemanticity, in the form of Anthropic's
April 2024 update: the penalty weighs each latent by its decoder row's length, which is free."""

import torch
from torch import Tensor

from sae_mlflow.sae.batch import Batch, StepLoss
from sae_mlflow.sae.l1 import L1SAE
from sae_mlflow.sae.select import Above
from sae_mlflow.sae.start import firing_bounds
from sae_mlflow.sae.support import Support


class StandardSAE(L1SAE):
    """z = relu of the pre-activations; + lambda sum_i z_i ||W_dec,i||.

    As in the update, nothing is done about dead latents but the penalty's warm-up.
    """

    kind = "standard"

    @torch.no_grad()
    def start(self, x: Tensor, latents: Tensor) -> None:
        self.b_enc[latents] = -firing_bounds(self, x, latents)

    def codes(self, x: Tensor) -> tuple[Tensor, Support]:
        pre_acts, support = self._kept(x, Above(torch.zeros_like(self.b_enc)))
        return pre_acts.relu(), support

    def loss(self, batch: Batch, dead: Tensor, sparsity_warmup: float = 1.0) -> StepLoss:
        latents, support = self.codes(batch.x)
        recon, missed = self._reconstructed(latents, support, batch, self.W_dec)
        sparsity = self.l1_penalty(latents, support, sparsity_warmup)
        return StepLoss(
            recon=recon,
            l0=support.l0(latents),
            fired=support.fired(latents),
            total=missed + sparsity,
            sparsity=sparsity.detach(),
        )
