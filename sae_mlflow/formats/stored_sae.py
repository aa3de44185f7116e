"""An SAE at rest: what every file format is written from, and read to.

The scale of training is folded in, so that its weights work on the LM's raw activations.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from sae_mlflow.activations.layer import LayerActivations
from sae_mlflow.architectures import (
    STORED_AS_JUMPRELU,
    StoredKind,
    parse_stored,
    stored_names,
)
from sae_mlflow.config import Settings
from sae_mlflow.errors import UserError, known
from sae_mlflow.formats.place import place
from sae_mlflow.formats.sae_lens_hooks import hook_name
from sae_mlflow.lm.sites import Site
from sae_mlflow.sae import SAE, sae_from_config

AUTOENCODERS = ("standard", "topk", "jumprelu", "gated")
"""That peers know too: they read what they reconstruct, and subtract `b_dec` from it."""


def centres(architecture: str) -> bool:
    """Whether it subtracts `b_dec` from what it reads: `SAE.centre`, before one is built."""
    return architecture != "crosscoder" and not parse_stored(architecture).transcodes


@dataclass(frozen=True)
class StoredSAE:
    """Numbers and facts of an SAE, in plain types."""

    config: dict[str, Any]
    """`architecture`, `d_in`, `d_sae`, a transcoder's `d_out`, what `SAE.hyperparameters` gives
    (`k`, `widths`), and `metadata`: where it stands in which model."""
    weights: dict[str, Tensor]
    """By the names of the SAE's own parameters."""

    @property
    def architecture(self) -> str:
        return str(self.config["architecture"])

    @property
    def kind(self) -> StoredKind:
        return parse_stored(self.architecture)


def of_trained(sae: SAE, acts: LayerActivations, settings: Settings) -> StoredSAE:
    """What is stored of an SAE that was trained on scaled activations.

    Args:
        acts: what it was trained on.
        settings: what it was trained with.
    """
    folded = sae.fold_scale(acts.scale_in, acts.scale_out)
    sizes = {"d_in": sae.d_in, "d_sae": sae.d_sae}
    config = {
        "architecture": sae.architecture,
        **(sizes | {"d_out": sae.d_out} if sae.transcodes else sizes),
        **sae.hyperparameters(),
        "metadata": _metadata(acts.site, settings),
    }
    return StoredSAE(config, {name: p.cpu().contiguous() for name, p in folded.items()})


def _metadata(site: Site, settings: Settings) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "model_name": settings.model.label,
        "hook_name": hook_name(site.reads[0], settings.model),
        "trained_as": settings.sae.architecture,
        "hookpoints_in": list(site.reads),
        "hookpoints_out": list(site.writes),
    }
    if settings.sae.transcodes:
        facts["hook_name_out"] = hook_name(site.writes[0], settings.model)
    if settings.sae.activation in STORED_AS_JUMPRELU:
        facts["k"] = settings.sae.k
    return facts


def build(stored: StoredSAE, file: Path) -> SAE:
    """The SAE, in float32.

    Args:
        file: where its config stands, for messages.

    Raises:
        UserError: the config or the weights aren't those of an SAE, or don't belong together.
    """
    config, weights = stored.config, stored.weights
    check_architecture(stored.architecture, file)
    # before memory is asked for: a wrong size may be any number
    _check_matrix("W_enc", ("d_in", "d_sae"), stored, file)
    _check_matrix("W_dec", ("d_sae", "d_out" if stored.kind.transcodes else "d_in"), stored, file)
    _check_hyperparameters(stored, file)
    sae = sae_from_config(config)
    _check_weights(sae, weights, file)
    sae.load_state_dict(weights)
    sae.metadata = place(config)
    return sae


def check_architecture(architecture: object, file: Path) -> None:
    names = stored_names()
    if architecture not in names:
        raise UserError(
            f"{file}: architecture {architecture!r} can't be read. Known: {known(names)}."
        )


def whole_number(config: dict[str, Any], key: str, file: Path) -> int:
    """A config's number that has to be there and over 0."""
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        found = f"is {value!r}" if key in config else "is missing"
        raise UserError(f"{file}: {key} {found}; it has to be a whole number over 0.")
    return value


def flag(config: dict[str, Any], key: str, default: bool, file: Path) -> bool:
    """A config's yes or no."""
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise UserError(f"{file}: {key} is {value!r}; it has to be true or false.")
    return value


def _check_matrix(name: str, keys: tuple[str, str], stored: StoredSAE, file: Path) -> None:
    sizes = tuple(whole_number(stored.config, key, file) for key in keys)
    if name not in stored.weights:
        raise UserError(f"{file} and its weights don't belong together: {name} is missing.")
    shape = tuple(stored.weights[name].shape)
    if shape != sizes:
        raise UserError(
            f"{file} says {', '.join(keys)} = {sizes}, but its {name} is {list(shape)}."
        )


def _check_hyperparameters(stored: StoredSAE, file: Path) -> None:
    config = stored.config
    if stored.kind.codes == "topk":
        k = whole_number(config, "k", file)
        if k > config["d_sae"]:
            raise UserError(f"{file}: k = {k} is larger than d_sae = {config['d_sae']}.")
    if stored.kind.codes == "crosscoder":
        widths = config.get("widths")
        if not _are_widths(widths) or sum(widths) != config["d_in"]:
            raise UserError(
                f"{file}: widths = {widths!r}; they have to be the layers' widths, "
                f"d_in = {config['d_in']} in all."
            )


def _are_widths(widths: object) -> TypeGuard[list[int]]:
    return isinstance(widths, list) and all(type(w) is int and w > 0 for w in widths)


def _check_weights(sae: SAE, weights: dict[str, Tensor], file: Path) -> None:
    wanted = {name: list(p.shape) for name, p in sae.state_dict().items()}
    found = {name: list(p.shape) for name, p in weights.items()}
    wrong = [f"{name} is missing" for name in wanted if name not in found]
    wrong += [f"{name} isn't part of a {sae.architecture} SAE" for name in found.keys() - wanted]
    wrong += [
        f"{name} is {shape}, not {wanted[name]}"
        for name, shape in found.items()
        if wanted.get(name, shape) != shape
    ]
    if wrong:
        raise UserError(f"{file} and its weights don't belong together: {known(wrong)}.")
    counts = {name: int((~p.isfinite()).sum()) for name, p in weights.items()}
    bad = [f"{n:,} of {weights[name].numel():,} in {name}" for name, n in counts.items() if n]
    if bad:
        raise UserError(
            f"{file}: weights that aren't numbers (NaN or infinity): {known(bad)}. The training "
            "went bad, or the file is damaged: `sae-mlflow health` tells of the run."
        )


def check_shapes(architecture: str, weights: dict[str, Tensor], file: Path) -> None:
    """Raise a UserError unless an autoencoder's tensors agree on `d_in` and `d_sae`."""
    biases = {"b_gate", "b_mag", "r_mag"} if architecture == "gated" else {"b_enc"}
    needed = {"W_enc", "W_dec", "b_dec"} | biases
    missing = sorted(needed - weights.keys())
    if missing or weights["W_enc"].ndim != 2:
        what = f"{known(missing)} is missing" if missing else "W_enc is no matrix"
        raise UserError(f"{file} isn't a whole SAE: {what}.")
    d_in, d_sae = weights["W_enc"].shape
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    for name in needed:
        wanted, found = shapes.get(name, (d_sae,)), tuple(weights[name].shape)
        if found != wanted:
            raise UserError(
                f"{file}: {name} is {list(found)}, but W_enc is {[d_in, d_sae]}: they don't "
                f"belong together. {name} has to be {list(wanted)}."
            )


def centred(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same SAE with `b_dec` subtracted from what it reads: biases gain b_dec W_enc."""
    return _shifted(weights, 1.0)


def uncentred(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same SAE with nothing subtracted from what it reads: biases lose b_dec W_enc."""
    return _shifted(weights, -1.0)


def _shifted(weights: dict[str, Tensor], sign: float) -> dict[str, Tensor]:
    shift = sign * (weights["b_dec"].double() @ weights["W_enc"].double())
    by = {"b_enc": shift, "b_gate": shift}
    if "b_gate" in weights:
        by["b_mag"] = shift * weights["r_mag"].double().exp()
    moved = {n: (weights[n].double() + by[n]).float() for n in by if n in weights}
    return weights | moved


def unit_decoder(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same reconstructions with decoder rows of length 1: latents grow by what rows lose."""
    lengths = weights["W_dec"].double().norm(dim=1)
    safe = torch.where(lengths > 0, lengths, 1.0)
    return weights | {
        "W_enc": (weights["W_enc"].double() * lengths).float(),
        "b_enc": (weights["b_enc"].double() * lengths).float(),
        "W_dec": (weights["W_dec"].double() / safe[:, None]).float(),
    }
