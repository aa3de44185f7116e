"""Kernels for codes with k non-zero latents a token: exact top-k, encoding, decoding, gradients.

Only the encoder's product is dense, and it is done in chunks of rows, so no `[batch, d_sae]` tensor
outlives its chunk; nothing of that size is kept for backward. Both weight gradients are one
product of a sparse `[d_sae, batch]` matrix with a dense one. All of it runs on CPU and CUDA.
"""

import warnings
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

# said once a process by every use of sparse_csr_tensor
warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)

# Rows encoded at once: 1,024 rows cost 10% over the whole product at 576 x 4,608 (the weights are
# packed again for each chunk), 256 rows up to 60%.
CHUNK_ROWS = 1024

# Group sizes tried for the two-stage top-k, best first (29 ms against 40 for torch.topk at
# 4,096 x 4,608; the maxima of strided groups vectorise, those of adjacent elements don't).
_GROUP_SIZES = (16, 12, 8)


class SparseLatents(NamedTuple):
    """At most k latents a token: the rest are zero."""

    values: Tensor
    """`[batch, k]`, >= 0; a zero is a latent that didn't fire."""
    layout: "Layout"

    @property
    def indices(self) -> Tensor:
        """`[batch, k]`, distinct within a row, in no order."""
        return self.layout.indices

    def dense(self) -> Tensor:
        """The same latents as `[batch, d_sae]`."""
        zeros = self.values.new_zeros(self.values.shape[0], self.layout.d_sae)
        return zeros.scatter(1, self.indices, self.values)


class Layout:
    """Which latents a batch's values belong to.

    Sorted by latent on first use, once for the gradients of both weight matrices.
    """

    indices: Tensor

    def __init__(self, d_sae: int) -> None:
        self.d_sae = d_sae

    @cached_property
    def _by_latent(self) -> tuple[Tensor, Tensor, Tensor]:
        latents, order = self.indices.flatten().sort(stable=True)
        starts = latents.new_zeros(self.d_sae + 1)
        starts[1:] = torch.bincount(latents, minlength=self.d_sae).cumsum(0)
        return starts, order // self.indices.shape[1], order

    def transposed_product(self, values: Tensor, dense: Tensor) -> Tensor:
        """Sum over tokens of `values[b, j] * dense[b]` for each latent: `[d_sae, d_in]`."""
        starts, tokens, order = self._by_latent
        shape = (self.d_sae, self.indices.shape[0])
        sparse = torch.sparse_csr_tensor(
            starts, tokens, values.flatten()[order], shape, check_invariants=False
        )
        return sparse @ dense


def topk(pre_acts: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, exactly, in no order: values and indices `[batch, k]`.

    In two stages: every one of the k largest lies in one of the k groups with the largest maxima.
    """
    batch, d_sae = pre_acts.shape
    group = next((g for g in _GROUP_SIZES if d_sae % g == 0 and d_sae // g >= 2 * k), 0)
    if not group or pre_acts.is_cuda or not batch:
        return pre_acts.topk(k, sorted=False)
    n_groups = d_sae // group
    grouped = pre_acts.view(batch, group, n_groups)
    best = grouped.amax(dim=1).topk(k, sorted=False).indices
    candidates = grouped.gather(2, best[:, None, :].expand(-1, group, -1))
    values, place = candidates.flatten(1).topk(k, sorted=False)
    return values, best.gather(1, place % k) + place // k * n_groups


def encode_topk(x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor, k: int) -> SparseLatents:
    """relu of the k largest of `(x - b_dec) W_enc + b_enc`.

    Args:
        x: `[batch, d_in]`.
        W_enc: `[d_in, d_sae]`; fastest where its transpose is contiguous.
    """
    layout = Layout(W_enc.shape[1])
    values = _EncodeTopK.apply(x, W_enc, b_enc, b_dec, k, layout)
    return SparseLatents(values, layout)


def decode(latents: SparseLatents, W_dec: Tensor, b_dec: Tensor) -> Tensor:
    """`z W_dec + b_dec` `[batch, d_in]` for sparse z."""
    return _Decode.apply(latents.values, W_dec, latents.layout) + b_dec


class _EncodeTopK(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W_enc: Tensor,
        b_enc: Tensor,
        b_dec: Tensor,
        k: int,
        layout: Layout,
    ) -> Tensor:
        centred = x - b_dec
        values = x.new_empty(x.shape[0], k)
        indices = torch.empty(x.shape[0], k, dtype=torch.int64, device=x.device)
        for start in range(0, x.shape[0], CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            values[rows], indices[rows] = topk(torch.addmm(b_enc, centred[rows], W_enc), k)
        values.relu_()
        layout.indices = indices
        ctx.layout = layout
        ctx.save_for_backward(centred, W_enc, values)
        return values

    @staticmethod
    def backward(ctx: Any, grad_values: Tensor) -> tuple[Tensor | None, ...]:
        centred, W_enc, values = ctx.saved_tensors
        layout: Layout = ctx.layout
        grad_pre = grad_values * (values > 0)
        grad_b_enc = W_enc.new_zeros(W_enc.shape[1]).index_add_(
            0, layout.indices.flatten(), grad_pre.flatten()
        )
        grad_W_enc = layout.transposed_product(grad_pre, centred).t()
        grad_x = _bag(grad_pre, layout.indices, W_enc.t()) if ctx.needs_input_grad[0] else None
        return grad_x, grad_W_enc, grad_b_enc, -(W_enc @ grad_b_enc), None, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, W_dec: Tensor, layout: Layout) -> Tensor:
        ctx.layout = layout
        ctx.save_for_backward(values, W_dec)
        return _bag(values, layout.indices, W_dec)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, W_dec = ctx.saved_tensors
        layout: Layout = ctx.layout
        grad = grad.contiguous()
        grad_W_dec = layout.transposed_product(values, grad)
        return _row_dots(grad, W_dec, layout.indices), grad_W_dec, None


def _bag(weights: Tensor, indices: Tensor, rows: Tensor) -> Tensor:
    """Sum over j of `weights[b, j] * rows[indices[b, j]]`: `[batch, d_in]`."""
    if not indices.shape[0]:
        return rows.new_zeros(0, rows.shape[1])
    return torch.nn.functional.embedding_bag(
        indices, rows.contiguous(), per_sample_weights=weights, mode="sum"
    )


def _row_dots(grad: Tensor, rows: Tensor, indices: Tensor) -> Tensor:
    """`grad[b] . rows[indices[b, j]]` `[batch, k]`: what the bag's weights get as gradient.

    The kernel behind embedding_bag's own backward: 6 ms where gather and bmm take 65.
    """
    batch, k = indices.shape
    if not batch:
        return grad.new_zeros(0, k)
    offsets = torch.arange(0, batch * k, k, device=indices.device)
    bag_of = torch.arange(batch, device=indices.device).repeat_interleave(k)
    dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        grad, rows, indices.flatten(), offsets, bag_of, 0, -1
    )
    return dots.view(batch, k)
