"""What SAEs with an L1 penalty share: its coefficient, and how it weighs latents."""

from typing import Any, ClassVar

from torch import Tensor

from sae_mlflow.config_sae import SAESettings
from sae_mlflow.sae.base import SAE
from sae_mlflow.sae.batch import Sizes
from sae_mlflow.sae.support import Support


class L1SAE(SAE):
    """An SAE whose latents' strength is penalised: lambda sum_i z_i ||W_dec,i||."""

    default_l1: ClassVar[float] = 2.0
    """Against a squared error that is summed over a layer's dimensions."""

    def __init__(self, sizes: Sizes, l1_coefficient: float = 0.0) -> None:
        """
        Args:
            l1_coefficient: lambda, against a reconstruction loss that is a mean over dimensions.
        """
        super().__init__(sizes)
        self.l1_coefficient = l1_coefficient

    @classmethod
    def from_settings(cls, settings: SAESettings, sizes: Sizes) -> "L1SAE":
        if settings.l1_coefficient is not None:
            return cls(sizes, settings.l1_coefficient)
        return cls(sizes, cls.default_l1 / max(sizes.widths, default=sizes.d_in))

    @classmethod
    def from_config(cls, config: dict[str, Any], sizes: Sizes) -> "L1SAE":
        return cls(sizes)

    def chosen_settings(self) -> dict[str, Any]:
        return super().chosen_settings() | {"l1_coefficient": self.l1_coefficient}

    def l1_penalty(self, latents: Tensor, support: Support, warmup: float) -> Tensor:
        """The penalty of a batch, at `warmup` of its coefficient."""
        strengths = support.gathered(latents)
        penalty = (strengths * self.decoder_lengths()).sum() / max(support.n_tokens, 1)
        return self.l1_coefficient * warmup * penalty

    def decoder_lengths(self) -> Tensor:
        """`[d_sae]`: what the penalty weighs each latent by."""
        return self.W_dec.norm(dim=1)
