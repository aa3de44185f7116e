"""The architectures. A new one is a file here and a line in `ARCHITECTURES`."""

from sae_mlflow.config import SAESettings
from sae_mlflow.sae.base import SAE, StepLoss
from sae_mlflow.sae.topk import TopKSAE

__all__ = ["ARCHITECTURES", "SAE", "StepLoss", "TopKSAE", "build_sae"]

ARCHITECTURES: dict[str, type[SAE]] = {"topk": TopKSAE}


def build_sae(settings: SAESettings, d_in: int) -> SAE:
    """An SAE for activations of `d_in` dimensions, its parameters still zero.

    Raises:
        UserError: `k` is larger than the number of latents.
    """
    return ARCHITECTURES[settings.architecture].from_settings(settings, d_in)
