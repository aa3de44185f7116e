"""Files that hold an SAE's config and weights, opened without running what they hold."""

import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sae_mlflow.errors import UserError


def read_json(file: Path) -> dict[str, Any]:
    """A config.

    Raises:
        UserError: there is none, or it isn't an object in JSON.
    """
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise _unreadable(file, error) from None
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{file} is not valid JSON: {reason}.") from None
    if not isinstance(config, dict):
        raise UserError(f"{file} is not an SAE's config: it holds a {type(config).__name__}.")
    return config


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """Tensors by name.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    try:
        weights: dict[str, Tensor] = load_file(file)
    except OSError as error:
        raise _unreadable(file, error) from None
    except SafetensorError as error:
        raise UserError(f"{file} is not a whole safetensors file: {error}.") from None
    return weights


def read_pt(file: Path) -> dict[str, Any]:
    """What a `.pt` file holds: tensors and plain values in a dict.

    Raises:
        UserError: there is no such file, it is damaged, or opening it would run code.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a pickle that is refused a moment later
            content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise _unreadable(file, error) from None
    except pickle.UnpicklingError:
        raise UserError(
            f"{file} holds more than tensors and plain values, and unpickling that could run code: "
            "it isn't opened. Ask its author for safetensors or a plain state dict."
        ) from None
    except Exception:  # damaged bytes lead torch's unpickler to errors of any type
        raise UserError(f"{file} is not a PyTorch file, or is damaged. Save it again.") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} is not an SAE: it holds a {type(content).__name__}.")
    return content


def _unreadable(file: Path, error: OSError) -> UserError:
    reason = error.strerror or "no such file"
    return UserError(f"{file} can't be read: {reason}. Give the folder of a saved SAE.")
