"""BatchTopK: Bussmann et al. 2024 (2412.06410). Tokens share a budget of k latents on average."""

import torch
from torch import Tensor

from sae_mlflow.sae.batch import Batch, Sizes
from sae_mlflow.sae.select import Above, BatchTopK, Rule
from sae_mlflow.sae.support import Support
from sae_mlflow.sae.topk import TopKSAE

THRESHOLD_RATE = 0.01

# The threshold is a mean over as many of the last batches as a tenth of all that were, up to
# 1 / THRESHOLD_RATE: pre-activations shrink while an SAE learns, and a mean that remembers
# all of 70 steps lets 12 latents fire where 32 were asked for.
_HORIZON = 0.1


class BatchTopKSAE(TopKSAE):
    """In training z keeps the `k * batch` largest positive pre-activations of a whole batch.

    Once trained it keeps all over one threshold, the running mean of the smallest that was kept, so
    that a token's latents don't depend on its neighbours. It is stored as a JumpReLU SAE.
    """

    kind = "jumprelu"
    threshold: Tensor
    """float64 `[]`; not a number until the first batch was seen."""
    followed: Tensor
    """int64 `[]`: batches that the threshold was moved by."""

    def __init__(
        self, sizes: Sizes, k: int, aux_k: int | None = None, aux_k_coefficient: float = 1 / 32
    ) -> None:
        super().__init__(sizes, k, aux_k, aux_k_coefficient)
        self.register_buffer("threshold", torch.full((), torch.nan, dtype=torch.float64))
        self.register_buffer("followed", torch.zeros((), dtype=torch.int64))

    @property
    def training_rule(self) -> Rule:
        return BatchTopK(self.k)

    def codes(self, x: Tensor) -> tuple[Tensor, Support]:
        if self.threshold.isnan():
            pre_acts, support = self._kept(x, BatchTopK(self.k))
            return pre_acts.relu(), support
        bound = self.threshold.to(x.dtype).expand(self.d_sae)
        pre_acts, support = self._kept(x, Above(bound))
        return pre_acts * (pre_acts > support.spread(bound)), support

    def _reconstructed(
        self, latents: Tensor, support: Support, batch: Batch, W_dec: Tensor
    ) -> tuple[Tensor, Tensor]:
        self._follow(latents.detach())
        return super()._reconstructed(latents, support, batch, W_dec)

    def _follow(self, latents: Tensor) -> None:
        """Move the threshold towards the smallest latent that this batch kept."""
        if not latents.numel():
            return
        smallest = latents.where(latents > 0, torch.inf).min().double()
        if smallest.isfinite():
            self.followed += 1
            rate = (1 / (_HORIZON * self.followed)).clamp(THRESHOLD_RATE, 1.0)
            before = self.threshold.where(~self.threshold.isnan(), smallest)
            self.threshold.copy_(before + rate * (smallest - before))

    def fold_scale(self, scale_in: Tensor, scale_out: Tensor) -> dict[str, Tensor]:
        state = super().fold_scale(scale_in, scale_out)
        del state["followed"]
        threshold = state["threshold"].nan_to_num(0.0).to(self.b_enc.dtype)
        return state | {"threshold": threshold.expand(self.d_sae).clone()}

    def hyperparameters(self) -> dict[str, object]:
        return {}
