"""SAELens' files (6 and later): `cfg.json` and `sae_weights.safetensors`.

Our own layout too: an architecture that SAELens doesn't know is stored in the same way, under a
name of ours.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sae_mlflow.errors import UserError
from sae_mlflow.formats import stored_sae
from sae_mlflow.formats.stored_sae import AUTOENCODERS, StoredSAE
from sae_mlflow.formats.weight_files import read_json, read_safetensors

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
CHECKSUM = "sha256"
"""In a config: of the weights and of the config itself. SAELens ignores it, and writes none."""

# SAELens' ReLU transcoders, which are JumpReLU transcoders of threshold 0.
_RELU = {"transcoder": "jumprelu_transcoder", "skip_transcoder": "jumprelu_skip_transcoder"}

KNOWN_TO_SAE_LENS = (*AUTOENCODERS, *_RELU.values())

# The SAELens release whose layout this is; a config that names none is taken for one before 6.
SAE_LENS_VERSION = "6.54.12"

# What its configs say beyond what an SAE is made from; all of it is dealt with in reading.
_OF_SAE_LENS_ALONE = {
    "dtype",
    "device",
    "apply_b_dec_to_input",
    "normalize_activations",
    "reshape_activations",
    "rescale_acts_by_decoder_norm",
    CHECKSUM,
}


def refusal(stored: StoredSAE) -> str | None:
    """Why SAELens can't open this one; None where it can."""
    if stored.architecture in KNOWN_TO_SAE_LENS:
        return None
    return f"SAELens has no {stored.architecture}"


def write(stored: StoredSAE, folder: Path) -> None:
    weights = {name: w.float().contiguous() for name, w in stored.weights.items()}
    save_file(weights, folder / WEIGHTS_FILE)
    metadata = {"sae_lens_version": SAE_LENS_VERSION} | stored.config.get("metadata", {})
    config = stored.config | {
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": stored_sae.centres(stored.architecture),
        "normalize_activations": "none",
        "reshape_activations": "none",
        "rescale_acts_by_decoder_norm": False,
        "metadata": metadata,
    }
    config[CHECKSUM] = _checksum(config, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read(folder: Path) -> StoredSAE:
    file = folder / CONFIG_FILE
    config = read_json(file)
    about = config.get("metadata", {})
    if not isinstance(about, dict):
        raise UserError(f"{file}: metadata is a {type(about).__name__}; it has to be an object.")
    weights = read_safetensors(folder / WEIGHTS_FILE)
    _check_sum(config, folder)
    if not {"architecture", "d_in", "d_sae"} <= config.keys():
        raise UserError(f"{file} is not an SAE's config: it needs architecture, d_in and d_sae.")
    _check_normalisation(config, file)
    architecture = str(config["architecture"])
    if architecture in _RELU:
        architecture = _RELU[architecture]
        weights["threshold"] = torch.zeros(stored_sae.whole_number(config, "d_sae", file))
    stored_sae.check_architecture(architecture, file)
    weights = _in_our_terms(architecture, config, weights, file)
    plain = {key: value for key, value in config.items() if key not in _OF_SAE_LENS_ALONE}
    return StoredSAE(plain | {"architecture": architecture, "metadata": about}, weights)


def _checksum(config: dict[str, Any], weights: Path) -> str:
    """sha256 of a weights file, and behind it of its config: neither has a sum of its own."""
    rest = {key: value for key, value in config.items() if key != CHECKSUM}
    with weights.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256")
    digest.update(json.dumps(rest, sort_keys=True).encode())
    return digest.hexdigest()


def _check_sum(config: dict[str, Any], folder: Path) -> None:
    """Older files, and SAELens' own, have none."""
    weights = folder / WEIGHTS_FILE
    if CHECKSUM in config and config[CHECKSUM] != _checksum(config, weights):
        raise UserError(
            f"{folder} isn't as it was saved: {CONFIG_FILE} and {WEIGHTS_FILE} don't have the "
            f"{CHECKSUM} that the former names. One of them is damaged, or was changed: take them "
            f"from their run again (or, if the change was meant, remove {CHECKSUM})."
        )


def _check_normalisation(config: dict[str, Any], file: Path) -> None:
    normalisation = config.get("normalize_activations", "none")
    if normalisation not in ("none", None):
        raise UserError(
            f"{file}: normalize_activations = {normalisation!r} can't be read. "
            "Fold the normalisation into the weights first."
        )


def _in_our_terms(
    architecture: str, config: dict[str, Any], weights: dict[str, Tensor], file: Path
) -> dict[str, Tensor]:
    """Weights for an SAE that centres its input, and chooses latents by pre-activations alone."""
    centres = stored_sae.centres(architecture)
    centring = stored_sae.flag(config, "apply_b_dec_to_input", centres, file)
    rescaling = stored_sae.flag(config, "rescale_acts_by_decoder_norm", False, file)
    if architecture not in AUTOENCODERS:
        if centring != centres:
            subtracts = "nothing" if centring else "b_dec"
            raise UserError(
                f"{file}: apply_b_dec_to_input = {json.dumps(centring)}, but a {architecture} "
                f"subtracts {subtracts} from what it reads. Set it to {json.dumps(not centring)}, "
                "or name another architecture."
            )
        return weights
    stored_sae.check_shapes(architecture, weights, file.with_name(WEIGHTS_FILE))
    weights = weights if centring else stored_sae.centred(weights)
    rescales = rescaling and architecture == "topk"
    return stored_sae.unit_decoder(weights) if rescales else weights
