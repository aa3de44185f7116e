"""The operations on sparse codes: compiled on a CPU with numba, standard operators elsewhere.

Both ways give the same numbers up to the order of sums. Codes are ragged, as in `support`.
"""

import numpy as np
import torch
from torch import Tensor

from sae_mlflow.sae.kernels import cpu, cpu_above, cpu_largest, cpu_topk
from sae_mlflow.sae.kernels.jit import AVAILABLE

_COMPILED = {torch.float32, torch.float64}


def topk(pre_acts: Tensor, k: int, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k largest of each row, exactly, in no order: values and latents `[batch, k]`.

    Args:
        bias: `[d_sae]`, still to be added to each row.
    """
    if compiled(pre_acts):
        return cpu_topk.topk(pre_acts, k, bias)
    pre_acts = pre_acts if bias is None else pre_acts + bias
    values, latents = pre_acts.topk(k, sorted=False)
    return values, latents


def above(
    pre_acts: Tensor, lower: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Values and latents `[nnz]` over each latent's bound, row by row, and how many a row.

    Args:
        pre_acts: `[batch, d_sae]`.
        lower: `[d_sae]`.
        bias: `[d_sae]`, still to be added to each row.
    """
    if compiled(pre_acts):
        return cpu_above.above(pre_acts, lower, bias)
    pre_acts = pre_acts if bias is None else pre_acts + bias
    mask = pre_acts > lower
    return pre_acts[mask], mask.nonzero()[:, 1], mask.sum(dim=1)


def nth_largest(values: Tensor, n: int) -> Tensor:
    """The n-th largest of `[m]`, counted from 1: `[]`."""
    place = len(values) - n
    if compiled(values):
        # vectorised in NumPy: a sixth of the time of kthvalue
        return torch.from_numpy(np.partition(values.detach().numpy(), place)[place : place + 1])[0]
    return values.kthvalue(place + 1).values


def is_largest(values: Tensor, n: int) -> Tensor:
    """Which of the values `[m]` are the n largest; of equal ones at the border, the first."""
    if n >= len(values):
        return torch.ones_like(values, dtype=torch.bool)
    border = nth_largest(values, n)
    mask = values > border
    ties = (values == border).nonzero().flatten()
    mask[ties[: n - int(mask.sum())]] = True
    return mask


def largest(
    values: Tensor, latents: Tensor, starts: Tensor, n: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The n largest of a ragged list's values, in its order; of equal ones at the border the first.

    Args:
        values: `[nnz]`, all > 0, at least n of them.
    """
    if compiled(values):
        return cpu_largest.largest(values, latents, starts, n)
    places, starts = kept(is_largest(values, n), starts)
    return values.index_select(0, places), latents.index_select(0, places), starts


def by_latent(latents: Tensor, starts: Tensor, d_sae: int) -> tuple[Tensor, Tensor, Tensor]:
    """The codes sorted by latent, tokens in order: starts `[d_sae + 1]`, tokens, places `[nnz]`."""
    if AVAILABLE and latents.device.type == "cpu":
        return cpu.by_latent(latents, starts, d_sae)
    places = latents.sort(stable=True).indices
    latent_starts = latents.new_zeros(d_sae + 1)
    latent_starts[1:] = torch.bincount(latents, minlength=d_sae).cumsum(0)
    tokens = torch.arange(len(starts) - 1, device=latents.device).repeat_interleave(starts.diff())
    return latent_starts, tokens[places], places


def weighted_rows(values: Tensor, members: Tensor, starts: Tensor, rows: Tensor) -> Tensor:
    """Sum of `values[i] * rows[members[i]]` from `starts[n]` to `starts[n + 1]`: `[n, d]`."""
    values = values.to(rows.dtype)
    if compiled(rows):
        return cpu.weighted_rows(values, members, starts, rows)
    if rows.device.type == "cpu" and rows.dtype not in _COMPILED:  # torch has no such product
        return weighted_rows(values.float(), members, starts, rows.float()).to(rows.dtype)
    shape = (len(starts) - 1, rows.shape[0])
    sparse = torch.sparse_csr_tensor(starts, members, values, shape, check_invariants=False)
    return sparse @ rows


def row_dots(grad: Tensor, rows: Tensor, members: Tensor, starts: Tensor) -> Tensor:
    """`grad[n] . rows[members[i]]` for every i from `starts[n]` to `starts[n + 1]`: `[nnz]`."""
    grad = grad.to(rows.dtype)
    if compiled(rows):
        return cpu.row_dots(grad, rows, members, starts)
    if not len(members):
        return rows.new_empty(0)
    token = torch.arange(len(starts) - 1, device=rows.device).repeat_interleave(starts.diff())
    # the kernel behind embedding_bag's own backward: no gathered [nnz, d] is made
    dots: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        grad, rows, members, starts[:-1], token, 0, -1
    )
    return dots


def kept(mask: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """The codes that a mask `[nnz]` keeps: their places, in order, and the starts of their list."""
    if AVAILABLE and mask.device.type == "cpu":
        return cpu.kept(mask, starts)
    before = torch.nn.functional.pad(mask.cumsum(0), (1, 0))
    return mask.nonzero().flatten(), before[starts]


def fired(values: Tensor, latents: Tensor, d_sae: int) -> Tensor:
    """`[d_sae]` bool: which latents have a value > 0."""
    if compiled(values):
        return cpu.fired(values, latents, d_sae)
    found = torch.zeros(d_sae, dtype=torch.bool, device=latents.device)
    found[latents[values > 0]] = True
    return found


def remove_along(grad: Tensor, rows: Tensor) -> None:
    """Take from each of grad's rows, in place, what points along a row of length 1: `[n, d]`."""
    if compiled(grad) and grad.is_contiguous():
        cpu.remove_along(grad, rows)
    else:
        along = torch.bmm(grad[:, None], rows[..., None])[:, 0]  # row by row
        grad.addcmul_(along, rows, value=-1)


def compiled(tensor: Tensor) -> bool:
    """Whether there are compiled kernels for a tensor's numbers where they are."""
    return AVAILABLE and tensor.device.type == "cpu" and tensor.dtype in _COMPILED
