"""JumpReLU: Rajamanoharan et al. 2024, Jumping ahead (2407.14435)."""

from typing import Any

import torch
from torch import Tensor, nn

from sae_mlflow.config_sae import SAESettings
from sae_mlflow.sae.batch import Batch, Sizes, StepLoss
from sae_mlflow.sae.select import Above
from sae_mlflow.sae.start import FittedStart, firing_bounds
from sae_mlflow.sae.support import Support

LOWEST_START = 0.01

# Weight of a target's penalty; at 0.1 an L0 of 14 satisfied a target of 32.
TARGET_COEFFICIENT = 2.0


class JumpReLUSAE(FittedStart):
    """z = p where the pre-activation p is over its latent's threshold, else 0.

    The number of latents that fire is penalised itself; thresholds learn by straight-through
    gradients, from pre-activations within half a bandwidth of them. As in the paper nothing is done
    about dead latents but the penalty's warm-up.
    """

    kind = "jumprelu"
    unit_norm = True
    decides_firing = ("threshold", "b_enc")
    threshold: nn.Parameter
    """`[d_sae]`, >= 0."""

    def __init__(
        self,
        sizes: Sizes,
        l0_coefficient: float = 0.0,
        bandwidth: float = 0.3,
        target_l0: float | None = None,
    ) -> None:
        """
        Args:
            l0_coefficient: loss of one latent that fires, or of missing `target_l0` by 100%.
            bandwidth: width of the window, in pre-activation units, in which thresholds learn.
            target_l0: the L0 to be reached; None penalises L0 itself.
        """
        super().__init__(sizes)
        self.threshold = nn.Parameter(torch.full((self.d_sae,), LOWEST_START))
        self.l0_coefficient = l0_coefficient
        self.bandwidth = bandwidth
        self.target_l0 = target_l0

    @classmethod
    def from_settings(cls, settings: SAESettings, sizes: Sizes) -> "JumpReLUSAE":
        coefficient = settings.l0_coefficient
        if coefficient is None:
            missed = sizes.d_out or sizes.d_in  # the loss is a mean over them
            coefficient = 1 / missed if settings.target_l0 is None else TARGET_COEFFICIENT
        return cls(sizes, coefficient, settings.bandwidth, settings.target_l0)

    @classmethod
    def from_config(cls, config: dict[str, Any], sizes: Sizes) -> "JumpReLUSAE":
        return cls(sizes)

    def chosen_settings(self) -> dict[str, Any]:
        return super().chosen_settings() | {"l0_coefficient": self.l0_coefficient}

    @torch.no_grad()
    def start(self, x: Tensor, latents: Tensor) -> None:
        super().start(x, latents)
        if self.centre is None:  # else what points away from the mean could fire on no token
            self.b_enc[latents] = -(x.mean(dim=0) @ self.W_enc[:, latents])
        bounds = firing_bounds(self, x, latents) + self.b_enc[latents]
        self.threshold[latents] = bounds.clamp_min(LOWEST_START)

    def codes(self, x: Tensor) -> tuple[Tensor, Support]:
        # max: p in (threshold, 0] of a threshold that somebody else stored below 0 is no latent
        pre_acts, support = self._kept(x, Above(self.threshold.clamp_min(0.0)))
        return pre_acts * (pre_acts > support.spread(self.threshold).clamp_min(0.0)), support

    def loss(self, batch: Batch, dead: Tensor, sparsity_warmup: float = 1.0) -> StepLoss:
        threshold = self.threshold.detach()
        nearby = Above(threshold - self.bandwidth / 2)
        pre_acts, support = self._kept(batch.x, nearby, silent_up_to=threshold)
        latents, n_fired = _Jump.apply(pre_acts, self.threshold, support, self.bandwidth)
        recon, missed = self._reconstructed(latents, support, batch, self.W_dec)
        l0 = n_fired / max(support.n_tokens, 1)
        miss = l0 if self.target_l0 is None else (l0 / self.target_l0 - 1).square()
        sparsity = self.l0_coefficient * sparsity_warmup * miss
        return StepLoss(
            recon=recon,
            l0=l0.detach(),
            fired=support.fired(latents),
            total=missed + sparsity,
            sparsity=sparsity.detach(),
        )

    @torch.no_grad()
    def constrain(self) -> None:
        super().constrain()
        self.threshold.clamp_min_(0.0)


class _Jump(torch.autograd.Function):
    """p where p > its latent's threshold, and of how many values it is.

    The threshold's gradient of both goes by a rectangle kernel (eq. 11 and 12).
    """

    @staticmethod
    def forward(
        ctx: Any, pre_acts: Tensor, threshold: Tensor, support: Support, bandwidth: float
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(pre_acts, threshold)
        ctx.support, ctx.bandwidth = support, bandwidth
        latents, fired = support.jump(pre_acts, threshold)
        return latents, fired.to(pre_acts.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_fired: Tensor) -> tuple[Tensor | None, ...]:
        pre_acts, threshold = ctx.saved_tensors
        support: Support = ctx.support
        made = support.jump_gradients(pre_acts, threshold, grad, grad_fired, ctx.bandwidth)
        return *made, None, None
