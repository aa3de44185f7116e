"""TopK with AuxK: Gao et al. 2024, Scaling and evaluating sparse autoencoders (2406.04093)."""

from typing import Any

import torch
from torch import Tensor

from sae_mlflow.config import SAESettings
from sae_mlflow.sae import sparse
from sae_mlflow.sae.base import SAE, StepLoss


class TopKSAE(SAE):
    """z keeps the k largest pre-activations `(x - b_dec) W_enc + b_enc`, then relu."""

    architecture = "topk"

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        k: int,
        aux_k: int | None = None,
        aux_k_coefficient: float = 1 / 32,
    ) -> None:
        super().__init__(d_in, d_sae)
        self.k = k
        self.aux_k = aux_k or max(d_in // 2, 1)
        self.aux_k_coefficient = aux_k_coefficient

    @classmethod
    def from_settings(cls, settings: SAESettings, d_in: int) -> "TopKSAE":
        d_sae = settings.width(d_in)
        return cls(d_in, d_sae, settings.k, settings.aux_k, settings.aux_k_coefficient)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "TopKSAE":
        return cls(config["d_in"], config["d_sae"], config["k"])

    def encode_sparse(self, acts: Tensor) -> sparse.SparseLatents:
        """Latents of activations `[batch, d_in]`, as the k that may be non-zero."""
        return sparse.encode_topk(acts, self.W_enc, self.b_enc, self.b_dec, self.k)

    def encode(self, acts: Tensor) -> Tensor:
        latents = self.encode_sparse(acts.reshape(-1, self.d_in)).dense()
        return latents.view(*acts.shape[:-1], self.d_sae)

    def loss(self, x: Tensor, dead: Tensor) -> StepLoss:
        latents = self.encode_sparse(x)
        recon = sparse.decode(latents, self.W_dec, self.b_dec)
        error = x - recon
        reconstruction = error.square().mean()
        aux = self._aux_loss(x, error.detach(), dead)
        firing = latents.values.detach() > 0
        fired = torch.zeros(self.d_sae, dtype=torch.bool, device=x.device)
        fired[latents.indices[firing]] = True
        return StepLoss(
            total=reconstruction + aux,
            reconstruction=reconstruction.detach(),
            sparsity=x.new_zeros(()),
            recon=recon.detach(),
            l0=firing.sum(dim=1, dtype=x.dtype).mean(),
            fired=fired,
        )

    def _aux_loss(self, x: Tensor, error: Tensor, dead: Tensor) -> Tensor:
        """AuxK: the dead latents with the largest pre-activations learn to explain the error."""
        dead_latents = dead.nonzero().squeeze(1)
        n_dead = dead_latents.numel()
        if not n_dead or not self.aux_k_coefficient:
            return x.new_zeros(())
        pre_acts = torch.addmm(
            self.b_enc[dead_latents], x - self.b_dec, self.W_enc.t()[dead_latents].t()
        )
        values, places = pre_acts.topk(min(self.aux_k, n_dead), sorted=False)
        latents = torch.zeros_like(pre_acts).scatter(1, places, values.relu())
        missed = (error - latents @ self.W_dec[dead_latents]).square().mean()
        weight = self.aux_k_coefficient * min(n_dead / self.aux_k, 1.0)
        return (weight * _variance(x) * missed / _variance(error)).nan_to_num(0.0)

    def hyperparameters(self) -> dict[str, Any]:
        return {"k": self.k}


def _variance(x: Tensor) -> Tensor:
    """Mean over tokens and dimensions of the squared distance to the tokens' mean."""
    return (x - x.mean(dim=0)).square().mean()
