"""What every architecture has: parameters, `encode`, `decode`, and the loss of a step."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sae_mlflow.config import SAESettings


@dataclass(frozen=True)
class StepLoss:
    """One batch's loss terms, and what the metrics need of the forward pass."""

    total: Tensor
    """What is minimised: reconstruction + sparsity + auxiliary terms."""
    reconstruction: Tensor
    """Mean over tokens and dimensions of the squared error."""
    sparsity: Tensor
    """The architecture's penalty; 0 where sparsity is structural."""
    recon: Tensor
    """`[batch, d_in]`, detached."""
    l0: Tensor
    """Mean number of latents > 0 a token."""
    fired: Tensor
    """`[d_sae]` bool: latents > 0 on some token of the batch."""


class SAE(nn.Module, ABC):
    """A sparse autoencoder: latents z `[..., d_sae]` of activations `[..., d_in]`.

    In training it works on scaled activations (mean square 1 per dimension); one that was saved and
    loaded works on raw ones, since the scale is folded into its weights.
    """

    architecture: str
    W_enc: nn.Parameter
    """`[d_in, d_sae]`; its transpose is contiguous, as the sparse kernels want it."""
    b_enc: nn.Parameter
    W_dec: nn.Parameter
    """`[d_sae, d_in]`."""
    b_dec: nn.Parameter

    def __init__(self, d_in: int, d_sae: int) -> None:
        super().__init__()
        self.d_in = d_in
        self.d_sae = d_sae
        self.W_enc = nn.Parameter(torch.zeros(d_sae, d_in).t())
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.W_dec = nn.Parameter(torch.zeros(d_sae, d_in))
        self.b_dec = nn.Parameter(torch.zeros(d_in))

    @classmethod
    @abstractmethod
    def from_settings(cls, settings: SAESettings, d_in: int) -> "SAE":
        """One to be trained; raises a UserError where the settings don't fit `d_in`."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: dict[str, Any]) -> "SAE":
        """One to be loaded: from the sizes and `hyperparameters` that stand in a `cfg.json`."""

    @torch.no_grad()
    def initialise(self, sample: Tensor, generator: torch.Generator) -> None:
        """Random unit decoder rows, the encoder their transpose, `b_dec` the sample's mean.

        Args:
            sample: scaled activations `[n, d_in]`.
            generator: on the CPU, so that a seed means the same weights on every device.
        """
        rows = torch.randn(self.d_sae, self.d_in, generator=generator)
        rows /= rows.norm(dim=1, keepdim=True)
        self.W_dec.copy_(rows)
        self.W_enc.copy_(rows.t())
        self.b_enc.zero_()
        self.b_dec.copy_(sample.double().mean(dim=0))

    @abstractmethod
    def encode(self, acts: Tensor) -> Tensor:
        """Latents `[..., d_sae]` of activations `[..., d_in]`."""

    def decode(self, latents: Tensor) -> Tensor:
        """Reconstruction `[..., d_in]` of latents `[..., d_sae]`."""
        return latents @ self.W_dec + self.b_dec

    def forward(self, acts: Tensor) -> Tensor:
        return self.decode(self.encode(acts))

    @abstractmethod
    def loss(self, x: Tensor, dead: Tensor) -> StepLoss:
        """The loss on scaled activations `[batch, d_in]`.

        Args:
            dead: `[d_sae]` bool, the latents that count as dead before this step.
        """

    @torch.no_grad()
    def project_gradient(self) -> None:
        """Remove from each decoder row's gradient what would only change the row's length."""
        grad = self.W_dec.grad
        assert grad is not None
        grad.addcmul_((grad * self.W_dec).sum(dim=1, keepdim=True), self.W_dec, value=-1)

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Bring each decoder row back to unit length."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12))

    @torch.no_grad()
    def fold_scale(self, scale: float) -> dict[str, Tensor]:
        """The parameters that do to raw activations a what these do to x = scale * a."""
        state = {name: p.detach().clone() for name, p in self.state_dict().items()}
        state["W_enc"] *= scale
        state["W_dec"] /= scale
        state["b_dec"] /= scale
        return state

    def hyperparameters(self) -> dict[str, Any]:
        """What, beside the sizes, has to be known to build this SAE again."""
        return {}
