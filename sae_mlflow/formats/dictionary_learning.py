"""dictionary_learning's files (0.1): `ae.pt` and `config.json`. Autoencoders only.

Its `AutoEncoder` stretches latents when it is loaded, until decoder rows have length 1; so a
standard SAE is written as an `AutoEncoderNew`, which is used as it is. That one and its
`JumpReluAutoEncoder` subtract nothing from what they read.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_mlflow import naming
from sae_mlflow.errors import UserError, known
from sae_mlflow.formats import stored_sae
from sae_mlflow.formats.place import hookpoints
from sae_mlflow.formats.stored_sae import AUTOENCODERS, StoredSAE
from sae_mlflow.formats.weight_files import read_json, read_pt

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "ae.pt"

# Our name of a tensor to its name in each class. A `.weight` is a linear layer's: [out, in].
_LINEAR = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight"}
_PLAIN = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}
_NAMES = {
    "AutoEncoder": _LINEAR | {"b_dec": "bias"},
    "AutoEncoderNew": _LINEAR | {"b_dec": "decoder.bias"},
    "AutoEncoderTopK": _LINEAR | {"b_dec": "b_dec"},
    "BatchTopKSAE": _LINEAR | {"b_dec": "b_dec", "threshold": "threshold"},
    "MatryoshkaBatchTopKSAE": _PLAIN,
    "JumpReluAutoEncoder": _PLAIN,
    "GatedAutoEncoder": {
        "W_enc": "encoder.weight",
        "b_gate": "gate_bias",
        "b_mag": "mag_bias",
        "r_mag": "r_mag",
        "W_dec": "decoder.weight",
        "b_dec": "decoder_bias",
    },
}
_UNCENTRED = ("AutoEncoderNew", "JumpReluAutoEncoder")


def refusal(stored: StoredSAE) -> str | None:
    """Why dictionary_learning can't open this one; None where it can."""
    if stored.architecture in AUTOENCODERS:
        return None
    return f"dictionary_learning has no {stored.architecture}"


def write(stored: StoredSAE, folder: Path) -> None:
    dict_class, k = _class_of(stored)
    weights = stored.weights
    if dict_class in _UNCENTRED:
        weights = stored_sae.uncentred(weights)
    state = {
        theirs: _turned(weights[name], theirs).float().contiguous()
        for name, theirs in _NAMES[dict_class].items()
    }
    if dict_class == "AutoEncoderTopK":
        state["threshold"] = torch.tensor(-1.0)  # "none yet": it chooses by k
    if dict_class == "BatchTopKSAE":
        state["threshold"] = state["threshold"][0].clone()
    if k is not None:
        state["k"] = torch.tensor(k, dtype=torch.int)
    torch.save(state, folder / WEIGHTS_FILE)
    config = {"trainer": _trainer(stored, dict_class, k)}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _class_of(stored: StoredSAE) -> tuple[str, int | None]:
    """The class that holds an SAE, and the k that it wants."""
    match stored.architecture:
        case "standard":
            return "AutoEncoderNew", None
        case "topk":
            return "AutoEncoderTopK", stored.config["k"]
        case "gated":
            return "GatedAutoEncoder", None
    k, threshold = stored.config.get("metadata", {}).get("k"), stored.weights["threshold"]
    is_one = type(k) is int and 0 < k <= stored.config["d_sae"]
    if is_one and bool((threshold == threshold[0]).all()):
        return "BatchTopKSAE", k
    return "JumpReluAutoEncoder", None


def _trainer(stored: StoredSAE, dict_class: str, k: int | None) -> dict[str, Any]:
    about = stored.config.get("metadata", {})
    hookpoint = next(iter(hookpoints(stored.config, "in")), "")
    return {
        "trainer_class": "sae_mlflow",
        "dict_class": dict_class,
        "activation_dim": stored.config["d_in"],
        "dict_size": stored.config["d_sae"],
        **({} if k is None else {"k": k}),
        "device": "cpu",
        "layer": naming.block_number(hookpoint),
        "lm_name": about.get("model_name"),
        "submodule_name": hookpoint,
    }


def read(folder: Path) -> StoredSAE:
    file = folder / CONFIG_FILE
    trainer = read_json(file).get("trainer")
    dict_class = trainer.get("dict_class") if isinstance(trainer, dict) else None
    if not isinstance(trainer, dict) or not isinstance(dict_class, str) or dict_class not in _NAMES:
        raise UserError(
            f"{file}: trainer.dict_class = {dict_class!r} can't be read. Known: {known(_NAMES)}."
        )
    weights = _ours(dict_class, read_pt(folder / WEIGHTS_FILE), folder / WEIGHTS_FILE)
    d_in, d_sae = weights["W_enc"].shape
    if "threshold" in weights and weights["threshold"].ndim == 0:
        weights["threshold"] = weights["threshold"].expand(d_sae).clone()
    if dict_class in _UNCENTRED:
        weights = stored_sae.centred(weights)
    if dict_class == "AutoEncoder" and not _is_unit(weights["W_dec"]):
        weights = stored_sae.unit_decoder(weights)
    architecture = _architecture(dict_class)
    config = {"architecture": architecture, "d_in": d_in, "d_sae": d_sae}
    config["metadata"] = _place(trainer)
    if architecture == "topk":
        config["k"] = trainer.get("k")
    return StoredSAE(config, weights)


def _place(trainer: dict[str, Any]) -> dict[str, Any]:
    """Where it stands, under our names."""
    ours = {"lm_name": "model_name", "submodule_name": "hook_name", "layer": "layer"}
    return {ours[key]: trainer[key] for key in ours if trainer.get(key) not in (None, "")}


def _architecture(dict_class: str) -> str:
    match dict_class:
        case "AutoEncoder" | "AutoEncoderNew":
            return "standard"
        case "AutoEncoderTopK":
            return "topk"
        case "GatedAutoEncoder":
            return "gated"
        case _:
            return "jumprelu"


def _ours(dict_class: str, state: dict[str, Any], file: Path) -> dict[str, Tensor]:
    names = _NAMES[dict_class]
    for theirs in names.values():
        if not isinstance(state.get(theirs), Tensor):
            raise UserError(f"{file} isn't a whole {dict_class}: it has no {theirs}.")
    weights = {name: _turned(state[theirs], theirs) for name, theirs in names.items()}
    stored_sae.check_shapes(_architecture(dict_class), weights, file)
    return weights


def _turned(tensor: Tensor, theirs: str) -> Tensor:
    is_matrix = theirs.endswith(".weight") and tensor.ndim == 2
    return tensor.t() if is_matrix else tensor


def _is_unit(W_dec: Tensor) -> bool:
    """By the peer's own tolerance, within which it leaves an `AutoEncoder` as it is."""
    lengths = W_dec.norm(dim=1)
    return torch.allclose(lengths, torch.ones_like(lengths))
