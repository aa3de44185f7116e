"""The plain files of a training, beside the store: `results/saes/{model}/...`.

Pictures among them are copies of those in the store.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

from sae_mlflow import naming
from sae_mlflow.activations.layer import LayerActivations
from sae_mlflow.config import Settings
from sae_mlflow.errors import UserError, reason_of
from sae_mlflow.formats import sae_files
from sae_mlflow.history import FILE_SUFFIX, write_history
from sae_mlflow.plots.choice import Choice
from sae_mlflow.plots.style import load_style
from sae_mlflow.sae import SAE

log = logging.getLogger(__name__)


def pictures(settings: Settings) -> Choice:
    """How a training's pictures are drawn, and where they are copied to.

    Raises:
        UserError: `plots.style` is no style, or a broken one.
    """
    style = load_style(settings.plots.style)
    plots = settings.plots
    return Choice(
        output_dir=settings.output.folder,
        style=style,
        formats=plots.formats,
        interactive=plots.interactive,
    )


def write_layer(
    settings: Settings, sae: SAE | None, acts: LayerActivations, history: Mapping[str, list[float]]
) -> None:
    """`{layer}_training_history.json`, `{layer}_sae/`, and `{layer}_sae.pt` where asked for.

    A folder that is full by now, or closed, costs a warning: the store has it all.

    Args:
        sae: None where a training came to nothing.
    """
    assert settings.output.folder is not None
    folder = settings.output.folder / naming.sanitise(settings.model.label)
    try:
        _write(folder, settings, sae, acts, history)
    except (UserError, *sae_files.WRITE_ERRORS) as error:
        log.warning(
            "output.dir: the files of %s can't be written to %s: %s. The training goes on; the "
            "store has what they hold (`sae-mlflow export`).",
            acts.site.label,
            folder,
            reason_of(error),
        )


def _write(
    folder: Path,
    settings: Settings,
    sae: SAE | None,
    acts: LayerActivations,
    history: Mapping[str, list[float]],
) -> None:
    label = acts.site.label
    folder.mkdir(parents=True, exist_ok=True)
    write_history(folder / f"{label}{FILE_SUFFIX}", history)
    if sae is None:
        return
    sae_files.save_sae(sae, folder / f"{label}_sae", acts, settings)
    if settings.output.pt:
        sae_files.save_pt(sae, folder / f"{label}_sae.pt", acts, settings)
