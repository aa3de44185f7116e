"""`sae-mlflow export-tensorboard`: past runs, as TensorBoard reads them."""

from typing import Annotated

import typer

from sae_mlflow.commands.cli import TRACKING_URI
from sae_mlflow.errors import UserError
from sae_mlflow.folders import user_path
from sae_mlflow.terminal import say


def export_tensorboard_command(
    experiment: Annotated[str, typer.Option(help="All SAE runs of this MLflow experiment.")],
    output: Annotated[str, typer.Option(metavar="DIR", help="Folder that gets a folder a run.")],
    tracking_uri: Annotated[str | None, TRACKING_URI] = None,
) -> None:
    """Write runs as TensorBoard event files.

    `tensorboard --logdir DIR` shows them: scalars of every metric, the histogram of firing
    densities, and the settings with final figures.
    """
    if not output:
        raise UserError("--output is empty. Name a folder.")
    from sae_mlflow.tensorboard.events import check_installed

    check_installed("export-tensorboard")
    from sae_mlflow.tensorboard.export import export_experiment
    from sae_mlflow.tracking.store import existing_store

    folder = user_path(output)
    for made in export_experiment(existing_store(tracking_uri), experiment, folder):
        say(made)
