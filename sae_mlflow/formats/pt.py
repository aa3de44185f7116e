"""One `.pt` file: `{"config": {...}, "state_dict": {...}}` of tensors and plain values.

`torch.load(file, weights_only=True)` opens it, and nothing else ever opens one here.
"""

from pathlib import Path

import torch
from torch import Tensor

from sae_mlflow.errors import UserError
from sae_mlflow.formats.stored_sae import StoredSAE
from sae_mlflow.formats.weight_files import read_pt

WEIGHTS_FILE = "sae.pt"


def refusal(stored: StoredSAE) -> str | None:
    """Why this can't hold an SAE: it holds any."""
    return None


def write(stored: StoredSAE, folder: Path) -> None:
    write_file(stored, folder / WEIGHTS_FILE)


def write_file(stored: StoredSAE, file: Path) -> None:
    torch.save({"config": stored.config, "state_dict": stored.weights}, file)


def read(path: Path) -> StoredSAE:
    """
    Args:
        path: the file, or a folder with one named `sae.pt`.
    """
    file = path / WEIGHTS_FILE if path.is_dir() else path
    content = read_pt(file)
    config, weights = content.get("config"), content.get("state_dict")
    if not isinstance(config, dict) or not isinstance(weights, dict):
        raise UserError(
            f"{file} is not an SAE of ours: it needs a config and a state_dict. Export it again "
            "with sae-mlflow export --format pt."
        )
    if "architecture" not in config or not all(isinstance(w, Tensor) for w in weights.values()):
        raise UserError(
            f"{file} is not an SAE of ours: its config needs an architecture, and its state_dict "
            "holds tensors alone. Export it again with sae-mlflow export --format pt."
        )
    return StoredSAE(config, weights)
