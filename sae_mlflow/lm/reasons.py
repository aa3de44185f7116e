"""Why transformers can't use a model's files, in one sentence."""

import pickle
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sae_mlflow.config import EMBEDDED_MODEL, ModelSettings
from sae_mlflow.errors import UserError
from sae_mlflow.lm.files import locate
from sae_mlflow.lm.quiet import quiet_transformers
from sae_mlflow.lm.remote_code import needs_code, refusal

_LONGEST = 300  # characters of a reason


@contextmanager
def told(model: ModelSettings, trouble: str, advice: str) -> Iterator[None]:
    """Whatever transformers raises while the block runs, as a UserError with the reason.

    Args:
        trouble: what can't be done; stands behind the model's name.
        advice: what helps where nothing better is known.
    """
    try:
        with quiet_transformers():
            yield
    except UserError:
        raise
    # A config's wrong values get anywhere in a model's code, and raise there whatever that raises.
    except Exception as error:
        raise UserError(_sentence(model, error, trouble, advice)) from None


def _sentence(model: ModelSettings, error: Exception, trouble: str, advice: str) -> str:
    match error:
        case torch.OutOfMemoryError() | MemoryError():
            advice = "Choose a smaller model.dtype, another model.device, or a smaller model."
        case _ if model.name != EMBEDDED_MODEL and needs_code(model, locate(model).folder):
            return refusal(model)
        case pickle.UnpicklingError():
            return (
                f"{model.name}{trouble}: its weights hold more than tensors, and unpickling that "
                "could run code. Get them as safetensors."
            )
        case ImportError():
            advice = "Install what is missing, or choose another model."
    return f"{model.name}{trouble}: {_reason(error)} {advice}"


def _reason(error: Exception) -> str:
    """An error's first line, with the next where that only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1]).rstrip(".")
    text = textwrap.shorten(text, _LONGEST, placeholder=" ...")
    if isinstance(error, OSError | ValueError | RuntimeError | ImportError) and text:
        return f"{text}."
    return f"{type(error).__name__}: {text}." if text else f"{type(error).__name__}."
