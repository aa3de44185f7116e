"""Activations that aren't numbers: a few are left out and counted, many are an error."""

from torch import Tensor

from sae_mlflow.errors import UserError, known
from sae_mlflow.lm.hookpoints import LanguageModel

MOST = 0.5
"""A layer of which more than this share of the tokens isn't finite can't be trained on."""


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
