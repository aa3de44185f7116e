"""The plain files of a training, beside the store: `results/saes/{model}/...`.

Pictures among them are copies of those in the store.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from sae_mlflow import naming
from sae_mlflow.activations.layer import LayerActivations
from sae_mlflow.config import Settings
from sae_mlflow.errors import UserError
from sae_mlflow.formats import sae_files
from sae_mlflow.history import write_history
from sae_mlflow.plots.choice import Choice
from sae_mlflow.plots.style import load_style
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


def pictures(settings: Settings) -> Choice:
    """How a training's pictures are drawn, and where they are copied to.

    Raises:
        UserError: `plots.style` is no style, or a broken one.
    """
    folder = Path(settings.output.dir) if settings.output.dir else None
    style = load_style(settings.plots.style)
    plots = settings.plots
    return Choice(
        output_dir=folder, style=style, formats=plots.formats, interactive=plots.interactive
    )


def write_layer(
    settings: Settings, sae: SAE | None, acts: LayerActivations, history: Mapping[str, list[float]]
) -> None:
    """`{layer}_training_history.json`, `{layer}_sae/`, and `{layer}_sae.pt` where asked for.

    Args:
        sae: None where a training came to nothing.
    """
    label = acts.site.label
    assert settings.output.dir is not None
    folder = Path(settings.output.dir) / naming.sanitise(settings.model.label)
    folder.mkdir(parents=True, exist_ok=True)
    write_history(folder / f"{label}_training_history.json", history)
    if sae is None:
        return
    sae_files.save_sae(sae, folder / f"{label}_sae", acts, settings)
    if settings.output.pt:
        sae_files.save_pt(sae, folder / f"{label}_sae.pt", acts, settings)


def _unwritable(folder: str, reason: str | None) -> str:
    return f"output.dir: {folder} can't be written: {reason}. Choose a folder that can."
