"""Crosscoder: Lindsey et al. 2024 (Anthropic). One set of latents for several layers."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from sae_mlflow.sae.batch import Batch, Sizes
from sae_mlflow.sae.standard import StandardSAE
from sae_mlflow.sae.support import Support


class CrosscoderSAE(StandardSAE):
    """z = relu(sum_l x_l W_enc^l + b); + lambda sum_i z_i sum_l ||W_dec,i^l||.

    x is the layers' activations side by side, `[batch, d_1 + ... + d_L]`, and so is what is
    reconstructed; the loss is the sum of the layers' mean squared errors.
    """

    kind = "crosscoder"

    def __init__(self, sizes: Sizes, l1_coefficient: float = 0.0) -> None:
        super().__init__(sizes, l1_coefficient)
        assert sum(sizes.widths) == sizes.d_in
        self.widths = sizes.widths

    @classmethod
    def from_config(cls, config: dict[str, Any], sizes: Sizes) -> "CrosscoderSAE":
        return cls(replace(sizes, widths=tuple(config["widths"])))

    @property
    def centre(self) -> None:
        return None

    def decoder_lengths(self) -> Tensor:
        parts = self.W_dec.split(self.widths, dim=1)
        return torch.stack([part.norm(dim=1) for part in parts]).sum(dim=0)

    def _reconstructed(
        self, latents: Tensor, support: Support, batch: Batch, W_dec: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The reconstruction, detached, and the sum of the layers' mean squared errors."""
        recon = self._decoded(latents, support, batch.x, W_dec)
        layers = zip(*(side.split(self.widths, dim=1) for side in (recon, batch.y)), strict=True)
        return recon.detach(), torch.stack([mse_loss(*layer) for layer in layers]).sum()

    def hyperparameters(self) -> dict[str, Any]:
        return {"widths": list(self.widths)}
