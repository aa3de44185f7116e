"""Gated: Rajamanoharan et al. 2024, Improving dictionary learning with gated SAEs (2404.16014)."""

import torch
from torch import Tensor, nn

from sae_mlflow.sae import sparse
from sae_mlflow.sae.batch import Batch, Sizes, StepLoss
from sae_mlflow.sae.l1 import L1SAE
from sae_mlflow.sae.select import Above
from sae_mlflow.sae.start import FittedStart, firing_bounds
from sae_mlflow.sae.support import Support


class GatedSAE(FittedStart, L1SAE):
    """Which latents fire is decided by one path, how strongly by another with the same directions.

    z = 1[p_g > 0] relu((p_g - b_gate) exp(r_mag) + b_mag), p_g = (x - b_dec) W_enc + b_gate. The
    penalty falls on relu(p_g), so it doesn't shrink z; a reconstruction from relu(p_g), through a
    decoder that doesn't learn from it, keeps the gate honest.
    """

    kind = "gated"
    unit_norm = True  # as in the paper: rows that may shrink make the penalty cheap, not gates rare
    resample_at = (0.25, 0.5)
    default_l1 = 3.5
    b_gate: nn.Parameter
    b_mag: nn.Parameter
    r_mag: nn.Parameter

    def __init__(self, sizes: Sizes, l1_coefficient: float = 0.0) -> None:
        super().__init__(sizes, l1_coefficient)
        del self.b_enc
        self.b_gate = nn.Parameter(torch.zeros(self.d_sae))
        self.b_mag = nn.Parameter(torch.zeros(self.d_sae))
        self.r_mag = nn.Parameter(torch.zeros(self.d_sae))

    @torch.no_grad()
    def start(self, x: Tensor, latents: Tensor) -> None:
        self.b_gate[latents] = -firing_bounds(self, x, latents)
        self.b_mag[latents] = 0.0
        self.r_mag[latents] = 0.0

    def codes(self, x: Tensor) -> tuple[Tensor, Support]:
        gates, support = self._gates(x)
        return self._latents(gates, support), support

    def loss(self, batch: Batch, dead: Tensor, sparsity_warmup: float = 1.0) -> StepLoss:
        gates, support = self._gates(batch.x)
        latents = self._latents(gates, support)
        recon, missed = self._reconstructed(latents, support, batch, self.W_dec)
        open_gates = gates.relu()
        decoder = self.W_dec.detach(), self.b_dec.detach()
        _, auxiliary = sparse.reconstruct(open_gates, support, *decoder, batch.y)
        sparsity = self.l1_penalty(open_gates, support, sparsity_warmup)
        return StepLoss(
            recon=recon,
            l0=support.l0(latents),
            fired=support.fired(latents),
            total=missed + sparsity + auxiliary,
            sparsity=sparsity.detach(),
        )

    def _gates(self, x: Tensor) -> tuple[Tensor, Support]:
        """p_g where it is over 0."""
        rule = Above(torch.zeros_like(self.b_gate))
        return sparse.encode(x, self.W_enc, self.b_gate, self.centre, rule)

    def _latents(self, gates: Tensor, support: Support) -> Tensor:
        strength = self.r_mag.exp()
        return support.rescaled(gates, strength, self.b_mag - self.b_gate * strength)
