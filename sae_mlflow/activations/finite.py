"""Activations that aren't numbers: a few are left out and counted, many are an error."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sae_mlflow.errors import UserError, known
from sae_mlflow.lm.hookpoints import LanguageModel

MOST = 0.5
"""A layer of which more than this share of the tokens isn't finite can't be trained on."""


@dataclass(frozen=True)
class NotFinite:
    """Tokens whose activations hold NaN or infinity."""

    tokens: int = 0
    hookpoints: tuple[str, ...] = ()
    """Where."""
    first_window: int | None = None
    """Of the text's windows, counted from 0, training ones first."""


def check_finite(lm: LanguageModel, hookpoint: str, rows: Tensor) -> None:
    """Raise a UserError where all rows `[n, d_in]` of a batch of an LM's hold NaN or infinity.

    Said before hours of them are collected. Weights that aren't numbers are named; where all are,
    the LM's number format is to blame.
    """
    if not len(rows) or bool(rows.isfinite().all(dim=1).any()):
        return
    weights = [name for name, w in lm.model.named_parameters() if not w.isfinite().all()]
    found = f"The activations of {lm.name} at {hookpoint}"
    if weights:
        raise UserError(
            f"{found} aren't numbers (NaN or infinity), and neither are its weights "
            f"{known(weights, limit=3)}. Fetch or save the model again."
        )
    raise UserError(
        f"{found} aren't numbers (NaN or infinity), though its weights are: model.dtype = "
        f"{str(lm.model.dtype).removeprefix('torch.')} may be too narrow for it. Try float32."
    )


def count_not_finite(
    label: str, norms: Mapping[str, Tensor], rows_before: np.ndarray, dtype: str
) -> NotFinite:
    """By the norms, which aren't finite where a row isn't.

    Args:
        label: of the site, for messages.
        norms: of each of its hookpoints, float32 `[n_rows]`.
        rows_before: rows before each window.
        dtype: the cache's.

    Raises:
        UserError: most tokens of a hookpoint aren't.
    """
    counts = {hookpoint: int((~each.isfinite()).sum()) for hookpoint, each in norms.items()}
    for hookpoint, count in counts.items():
        if count > MOST * len(norms[hookpoint]):
            raise UserError(
                f"{label}: {count:,} of {len(norms[hookpoint]):,} tokens at {hookpoint} aren't "
                f"numbers (NaN or infinity) in the cache. activations.dtype = {dtype} may be too "
                "narrow for them: try bfloat16 or float32. Else the model is damaged."
            )
    bad = torch.stack([~each.isfinite() for each in norms.values()]).any(dim=0)
    if not bad.any():
        return NotFinite()
    window = int(np.searchsorted(rows_before, int(bad.nonzero()[0]), side="right")) - 1
    return NotFinite(int(bad.sum()), tuple(h for h, n in counts.items() if n), window)
