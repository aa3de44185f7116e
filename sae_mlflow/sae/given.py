"""Activations as a user hands them to an SAE: checked, and one token a row."""

import torch
from torch import Tensor

from sae_mlflow.errors import UserError


def tokens_of(acts: Tensor, d_in: int, dtype: torch.dtype) -> Tensor:
    """`[n, d_in]` of acts `[..., d_in]`, in an SAE's own dtype.

    Raises:
        UserError: their last dimension is another; their numbers would be rounded.
    """
    if not acts.ndim or acts.shape[-1] != d_in:
        raise UserError(f"acts are {list(acts.shape)}, but this SAE reads [..., {d_in}].")
    loses = not acts.is_floating_point() or torch.promote_types(acts.dtype, dtype) != dtype
    if loses:
        theirs, ours = (str(each).removeprefix("torch.") for each in (acts.dtype, dtype))
        raise UserError(
            f"acts are {theirs}, but this SAE is {ours}. Give it acts.to(torch.{ours}), or make it "
            "as exact as they are: sae.double()."
        )
    return acts.reshape(-1, d_in).to(dtype)
