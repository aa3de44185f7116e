"""What of settings that are right alone is wrong together, or with what was asked for by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_mlflow import architectures, naming
from sae_mlflow.config import Settings
from sae_mlflow.config_sae import SAESettings
from sae_mlflow.errors import UserError, known


def check_together(settings: Settings, path: Path) -> None:
    """Refuse settings that are right alone and do nothing, or harm, together."""
    if settings.sae.d_sae:
        settings.sae.check_width(settings.sae.d_sae)
    if settings.output.pt and settings.output.dir is None:
        raise UserError(
            f"{path}: output.pt (--pt) writes into output.dir, which isn't set. Set it "
            "(--output-dir), or leave output.pt away."
        )
    train = settings.train
    if train.schedule != "constant" and train.warmup_fraction + train.decay_fraction > 1 + 1e-9:
        raise UserError(
            f"{path}: train.warmup_fraction = {train.warmup_fraction} and train.decay_fraction = "
            f"{train.decay_fraction} are over 1 together: the learning rate would fall before it "
            "has risen. Lower one of them."
        )


def check_read(sae: SAESettings, overrides: Mapping[str, Any]) -> None:
    """Refuse what was asked for by name and would change nothing; a file may inherit it."""
    for key, value in overrides.items():
        others = architectures.readers_instead(key, {sae.architecture, sae.activation})
        if others and value is not None:
            shown = f"{sae.architecture} with codes {sae.codes}"
            raise UserError(
                f"--set: {key} is for {known(others)}, and sae.architecture is "
                f"{shown if sae.transcodes else sae.architecture}. Leave it away, or choose "
                "another sae.architecture."
            )


def check_layers(layers: tuple[int | str, ...], path: Path) -> None:
    """Refuse a layer that is named twice."""
    labels = [naming.layer_label(layer) for layer in layers]
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(f"{path}: model.layers names {label} twice. Remove one.")


def in_order(settings: Settings) -> Settings:
    """With its layers as their joint label has them: the same SAE however they are listed."""
    layers = sorted(
        settings.model.layers, key=lambda layer: naming.layer_order(naming.layer_label(layer))
    )
    model = settings.model.model_copy(update={"layers": tuple(layers)})
    return settings.model_copy(update={"model": model})
