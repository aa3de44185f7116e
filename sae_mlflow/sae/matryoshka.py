"""Matryoshka: Bussmann et al. 2025 (2503.17547). Nested prefixes of BatchTopK codes."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vector_norm

from sae_mlflow.config_sae import SAESettings
from sae_mlflow.errors import UserError
from sae_mlflow.sae import sparse
from sae_mlflow.sae.batch import Batch, Sizes
from sae_mlflow.sae.batchtopk import BatchTopKSAE
from sae_mlflow.sae.support import Support

DEFAULT_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)


class MatryoshkaSAE(BatchTopKSAE):
    """Every prefix of the latents reconstructs on its own, so that the first ones stay general.

    The losses of the G prefixes are averaged (the paper sums them); what is reported as the
    reconstruction is that of all latents.
    """

    def __init__(
        self,
        sizes: Sizes,
        k: int,
        prefixes: tuple[int, ...] | None = None,
        aux_k: int | None = None,
        aux_k_coefficient: float = 1 / 32,
    ) -> None:
        """
        Args:
            prefixes: numbers of latents, ascending, the last one all of them; None means
                1/16, 1/8, 1/4, 1/2 and all.
        """
        super().__init__(sizes, k, aux_k, aux_k_coefficient)
        self.prefixes = prefixes or default_prefixes(self.d_sae)

    @classmethod
    def from_settings(cls, settings: SAESettings, sizes: Sizes) -> "MatryoshkaSAE":
        prefixes = _checked(settings.prefixes, sizes.d_sae) if settings.prefixes else None
        return cls(sizes, settings.k, prefixes, settings.aux_k, settings.aux_k_coefficient)

    def chosen_settings(self) -> dict[str, Any]:
        return super().chosen_settings() | {"prefixes": self.prefixes}

    def _reconstructed(
        self, latents: Tensor, support: Support, batch: Batch, W_dec: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The reconstruction, detached, and the mean over prefixes of their squared errors."""
        self._follow(latents.detach())
        recon, loss = _PrefixLoss.apply(latents, W_dec, self.b_dec, batch.y, support, self.prefixes)
        return recon, loss


def default_prefixes(d_sae: int) -> tuple[int, ...]:
    """1/16, 1/8, 1/4, 1/2 and all of the latents; without those that would be empty."""
    return tuple(sorted({n for share in DEFAULT_SHARES if (n := int(share * d_sae))}))


def _checked(prefixes: tuple[int, ...], d_sae: int) -> tuple[int, ...]:
    if list(prefixes) != sorted(set(prefixes)) or prefixes[-1] > d_sae:
        raise UserError(
            f"sae.prefixes = {list(prefixes)}, but they have to ascend up to d_sae = {d_sae}. "
            "Leave sae.prefixes unset for 1/16, 1/8, 1/4, 1/2 and all of the latents."
        )
    return prefixes if prefixes[-1] == d_sae else (*prefixes, d_sae)


class _PrefixLoss(torch.autograd.Function):
    """Mean over prefixes of the mean squared error, and the whole reconstruction.

    A latent's gradient comes from every prefix that holds it, so the gradients are summed up from
    the last prefix to the first, while each group of latents is taken out of the reconstruction
    again: two `[batch, d_out]` tensors, however many prefixes there are. They are made in the
    forward pass, since the loss is what they are the gradient of.
    """

    @staticmethod
    def forward(
        ctx: Any,
        latents: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        y: Tensor,
        support: Support,
        prefixes: tuple[int, ...],
    ) -> tuple[Tensor, Tensor]:
        recon = sparse.decode(latents, support, W_dec, b_dec)
        error = y - recon
        grad_latents, grad_W_dec = torch.zeros_like(latents), torch.empty_like(W_dec)
        loss, pull = error.new_zeros(()), torch.zeros_like(error)
        for first, end in reversed(list(pairwise((0, *prefixes)))):
            loss += vector_norm(error).square() / max(error.numel(), 1)
            pull += error
            where, group = support.columns(first, end)
            rows, values = W_dec[first:end], latents[where]
            grad_latents[where] = group.sampled(pull, rows)
            grad_W_dec[first:end] = group.transposed_times(values, pull)
            if first:
                error += group.times(values, rows)
        factor = -2 / (len(prefixes) * max(y.numel(), 1))
        ctx.save_for_backward(
            grad_latents.mul_(factor), grad_W_dec.mul_(factor), pull.sum(dim=0).mul_(factor)
        )
        ctx.mark_non_differentiable(recon)
        ctx.set_materialize_grads(False)  # else zeros for the reconstruction, as large as it
        return recon, loss / len(prefixes)

    @staticmethod
    def backward(ctx: Any, _: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:
        latents, W_dec, b_dec = ctx.saved_tensors
        return latents.mul_(grad), W_dec.mul_(grad), b_dec.mul_(grad), None, None, None
