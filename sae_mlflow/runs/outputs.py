"""The plain files of a training, beside the store: `results/saes/{model}/...`."""

import os
from collections.abc import Mapping
from pathlib import Path

from sae_mlflow import naming
from sae_mlflow.activations.layer import LayerActivations
from sae_mlflow.config import Settings
from sae_mlflow.errors import UserError
from sae_mlflow.formats import sae_files
from sae_mlflow.history import write_history
from sae_mlflow.plots.histories import (
    plot_all_layers_comparison,
    plot_reconstruction_loss_only,
    plot_sae_training_history,
)
from sae_mlflow.plots.pictures import OVERLAY_METRICS
from sae_mlflow.sae import SAE


def check_folder(folder: str | None) -> None:
    """Raise a UserError, before anything is trained, where `output.dir` can't be written."""
    if folder is None:
        return
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(_unwritable(folder, error.strerror)) from None
    if not os.access(folder, os.W_OK):
        raise UserError(_unwritable(folder, "permission denied"))


def write_layer(
    settings: Settings, sae: SAE, acts: LayerActivations, history: Mapping[str, list[float]]
) -> None:
    """`{layer}_training_history.json`, `{layer}_sae/`, and `{layer}_sae.pt` where asked for."""
    folder, label = _folder(settings), acts.site.label
    folder.mkdir(parents=True, exist_ok=True)
    write_history(folder / f"{label}_training_history.json", history)
    sae_files.save_sae(sae, folder / f"{label}_sae", acts, settings)
    if settings.output.pt:
        sae_files.save_pt(sae, folder / f"{label}_sae.pt", acts, settings)


def draw_layer(settings: Settings, layer: str, history: Mapping[str, list[float]]) -> None:
    """A layer's two pictures."""
    if settings.plots.after_training:
        for plot in (plot_sae_training_history, plot_reconstruction_loss_only):
            plot(history, settings.model.label, layer, _folder(settings) / naming.PLOTS_FOLDER)


def draw_overlays(settings: Settings, histories: Mapping[str, Mapping[str, list[float]]]) -> None:
    """The pictures of all layers together."""
    if settings.plots.after_training:
        for metric in OVERLAY_METRICS:
            folder = _folder(settings) / naming.PLOTS_FOLDER
            plot_all_layers_comparison(histories, settings.model.label, folder, metric=metric)


def _folder(settings: Settings) -> Path:
    assert settings.output.dir is not None
    return Path(settings.output.dir) / naming.sanitise(settings.model.label)


def _unwritable(folder: str, reason: str | None) -> str:
    return f"output.dir: {folder} can't be written: {reason}. Choose a folder that can."
