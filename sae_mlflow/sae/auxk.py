"""AuxK: dead latents learn from what the living ones miss (Gao et al. 2024, appendix A.2)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sae_mlflow.sae import sparse
from sae_mlflow.sae.base import SAE
from sae_mlflow.sae.batch import Batch
from sae_mlflow.sae.select import TopK

# Tokens whose dead latents are looked at together: half of 12,288 latents may be dead.
_CHUNK_TOKENS = 512


@dataclass(frozen=True)
class Revival:
    """An SAE's weights, and the rows of its dead latents apart; gradients of both meet in it.

    Attributes:
        W_enc: `[d_in, d_sae]`, for the main loss.
        W_dec: `[d_sae, d_out]`, for the main loss.
        rows: of the dead latents: encoder `[n_dead, d_in]`, biases `[n_dead]`, decoder
            `[n_dead, d_out]`.
    """

    W_enc: Tensor
    W_dec: Tensor
    rows: tuple[Tensor, Tensor, Tensor]

    @classmethod
    def of(cls, sae: SAE, dead: Tensor) -> "Revival":
        """
        Args:
            dead: `[d_sae]` bool.
        """
        latents = dead.nonzero().squeeze(1)
        encoder, encoder_rows = _RowsApart.apply(sae.W_enc.t(), latents)
        decoder, decoder_rows = _RowsApart.apply(sae.W_dec, latents)
        return cls(encoder.t(), decoder, (encoder_rows, sae.b_enc[latents], decoder_rows))

    def loss(self, centre: Tensor | None, batch: Batch, recon: Tensor, aux_k: int) -> Tensor:
        """Var(y) min(n_dead / aux_k, 1) ||e - e_hat||^2 / Var(e), e = y - recon; 0 if none is dead.

        e_hat decodes, without `b_dec`, the `aux_k` largest pre-activations of dead latents, relu.

        Args:
            centre: `[d_in]`, what is subtracted from x; None for nothing.
            recon: `[batch, d_out]`, what the living latents make of the batch; detached.
        """
        n_dead = len(self.rows[1])
        if not n_dead:
            return recon.new_zeros(())
        error = batch.y - recon
        share = min(n_dead / aux_k, 1.0)
        # what isn't a number becomes 0 before it meets a gradient: 0 * NaN would be NaN again
        weight = (share * variance(batch.y) / variance(error)).nan_to_num(0.0, posinf=0.0)
        missed: Tensor = _Missed.apply(*self.rows, centre, batch.x, error, min(aux_k, n_dead))
        return weight * missed / max(error.numel(), 1)


def variance(acts: Tensor) -> Tensor:
    """Mean over tokens and dimensions of the squared distance to the tokens' mean."""
    return (acts - acts.mean(dim=0)).square_().mean()


class _RowsApart(torch.autograd.Function):
    """A matrix `[n, d]`, and some of its rows: their gradient is added to the matrix's in place,
    where indexing would make a second one as large, most of it zeros."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(rows)
        ctx.set_materialize_grads(False)
        return matrix.view_as(matrix), matrix[rows]

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor | None, grad_rows: Tensor | None
    ) -> tuple[Tensor | None, None]:
        (rows,) = ctx.saved_tensors
        if grad is None or grad_rows is None or not len(rows):
            assert grad_rows is None or not len(rows), "the main loss asks for all of the matrix"
            return grad, None
        return grad.index_add_(0, rows, grad_rows.to(grad.dtype)), None


class _Missed(torch.autograd.Function):
    """||e - e_hat||^2, summed. Gradients are made in the forward pass, some tokens after others, so
    that what dead latents say of all tokens never stands in memory at once."""

    @staticmethod
    def forward(
        ctx: Any,
        encoder_rows: Tensor,
        biases: Tensor,
        decoder_rows: Tensor,
        centre: Tensor | None,
        x: Tensor,
        error: Tensor,
        k: int,
    ) -> Tensor:
        given = (encoder_rows, biases, decoder_rows) + (() if centre is None else (centre,))
        gradients = [torch.zeros_like(each) for each in given]
        total = error.new_zeros(())
        with torch.enable_grad():
            leaves = [each.detach().requires_grad_() for each in given]
            encoder, bias, decoder = leaves[:3]
            middle = leaves[3] if len(leaves) > 3 else None
            for part, missing in zip(
                x.detach().split(_CHUNK_TOKENS), error.split(_CHUNK_TOKENS), strict=True
            ):
                values, support = sparse.encode(part, encoder.t(), bias, middle, TopK(k))
                missed = missing - sparse.decode(values.relu(), support, decoder)
                squared = missed.square().sum()
                for gradient, made in zip(
                    gradients, torch.autograd.grad(squared, leaves), strict=True
                ):
                    gradient += made
                total += squared.detach()
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [each.mul_(grad) for each in ctx.saved_tensors]
        return (*scaled, *[None] * (7 - len(scaled)))
