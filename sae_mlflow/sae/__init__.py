"""Sparse autoencoders: `build_sae` to train one, `sae_from_config` for one that was stored."""

import importlib
from collections.abc import Iterable
from typing import Any

from sae_mlflow.architectures import ARCHITECTURES, parse_stored, stored_names
from sae_mlflow.config_sae import SAESettings
from sae_mlflow.errors import UserError, known
from sae_mlflow.sae.base import SAE
from sae_mlflow.sae.batch import Batch, Reconstruction, Sizes, StepLoss

__all__ = ["SAE", "Batch", "Reconstruction", "Sizes", "StepLoss", "build_sae", "sae_from_config"]


def build_sae(settings: SAESettings, widths_in: Iterable[int], d_out: int | None = None) -> SAE:
    """An SAE to be trained, its parameters still zero.

    Args:
        widths_in: dimensions of each hookpoint that is read; only a crosscoder has several.
        d_out: dimensions of a transcoder's target; None means as many as it reads.

    Raises:
        UserError: the settings ask for more latents than there are.
    """
    widths = tuple(widths_in)
    sizes = Sizes(
        d_in=sum(widths),
        d_sae=settings.width(max(widths)),
        d_out=(d_out or sum(widths)) if settings.transcodes else None,
        skip=settings.architecture == "skip_transcoder",
        widths=widths,
    )
    return _class_of(settings.activation).from_settings(settings, sizes)


def sae_from_config(config: dict[str, Any]) -> SAE:
    """An SAE to be loaded, its parameters still zero, from what stands in its `cfg.json`.

    Raises:
        UserError: the architecture isn't known.
        KeyError: a hyperparameter is missing.
    """
    stored = str(config["architecture"])
    if stored not in stored_names():
        raise UserError(f"architecture {stored!r} is not known. Known: {known(stored_names())}.")
    kind = parse_stored(stored)
    sizes = Sizes(
        d_in=config["d_in"],
        d_sae=config["d_sae"],
        d_out=config["d_out"] if kind.transcodes else None,
        skip=kind.skip,
    )
    return _class_of(kind.codes).from_config(config, sizes)


def _class_of(name: str) -> type[SAE]:
    module, _, class_name = ARCHITECTURES[name].rpartition(".")
    found: type[SAE] = getattr(importlib.import_module(module), class_name)
    return found
