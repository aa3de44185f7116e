"""The code of a registered SAE, which MLflow copies into the model and runs to open it.

`mlflow.pyfunc.load_model("models:/NAME@best").predict(acts)` gives latents. Nothing here imports
this file: where it runs, only the installed `sae_mlflow` is at hand.
"""

from typing import Any

import numpy as np
import torch
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from sae_mlflow import load_sae


class SAEModel(PythonModel):
    """Raw activations in, latents out."""

    def load_context(self, context: Any) -> None:
        self._sae = load_sae(context.artifacts["sae"])

    def predict(
        self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> np.ndarray:
        """Latents, float32 `[..., d_sae]`.

        Args:
            model_input: raw activations `[..., d_in]`: an array, a tensor, lists or a table.

        Raises:
            ValueError: they have another number of dimensions than the SAE reads.
        """
        if isinstance(model_input, torch.Tensor):  # of any dtype, on any device
            acts = model_input.detach().float().cpu()
        else:
            acts = torch.as_tensor(np.asarray(model_input, dtype=np.float32))
        latents: np.ndarray = self._sae.encode(acts).numpy()
        return latents


set_model(SAEModel())
