"""`sae-mlflow train`: options to settings, a training, and how its end is told."""

import os
import signal
import sys
from typing import Annotated, Any

import typer

from sae_mlflow.commands.cli import TRACKING_URI
from sae_mlflow.config import load_settings, parse_set
from sae_mlflow.errors import UserError
from sae_mlflow.terminal import say

EXIT_SOME_STOPPED = 1


def train_command(
    config: Annotated[
        str, typer.Option(help="Name of a config in configs/, or a path.")
    ] = "sae_balanced.yaml",
    model_name: Annotated[
        str, typer.Option(help="Hugging Face model: Hub name or folder (sets model.name).")
    ] = "",
    layers: Annotated[
        str, typer.Option(help="Layers, as 10,15,20 or 3-7 or layers.10.mlp (sets model.layers).")
    ] = "",
    set_: Annotated[
        str,
        typer.Option(
            "--set",
            metavar="KEY=VALUE ...",
            help='Any settings, as "sae.k=64 train.epochs=3"; `sae-mlflow settings` lists them.',
        ),
    ] = "",
    output_dir: Annotated[
        str, typer.Option(help="Also leave plain files in this folder (sets output.dir).")
    ] = "",
    pt: Annotated[
        bool, typer.Option("--pt", help="With --output-dir: also a .pt file (sets output.pt).")
    ] = False,
    experiment_name: Annotated[
        str, typer.Option(help="MLflow experiment; wins over the config's.")
    ] = "",
    tracking_uri: Annotated[str, TRACKING_URI] = "",
) -> None:
    """Train an SAE on each layer; each is a run in the tracking store.

    `mlflow run . -P config=... -P model_name=... -P layers=... -P set=... -P output_dir=...` takes
    the same options; an empty value means unset. Exits 1 if health.on_failure stopped a layer.
    """
    overrides: dict[str, Any] = {
        key: value
        for key, value in {
            "model.name": model_name,
            "model.layers": layers,
            "output.dir": output_dir,
            "output.pt": pt,
        }.items()
        if value
    }
    _stop_cleanly()
    try:
        settings = load_settings(config or "sae_balanced.yaml", overrides | parse_set(set_))
        _train(settings, experiment_name or None, tracking_uri or None)
    except UserError as error:
        _tag_launcher(error)
        raise


def _train(settings: Any, experiment_name: str | None, tracking_uri: str | None) -> None:
    from sae_mlflow.reporting.display import Display
    from sae_mlflow.reporting.stopwatch import Stopwatch

    clock = Stopwatch()
    with clock.stage("imports"):
        from sae_mlflow.pipeline import run_training
        from sae_mlflow.reporting.layer_table import COLUMNS

    display = Display()
    training = run_training(
        settings, display, experiment_name=experiment_name, tracking_uri=tracking_uri, clock=clock
    )
    display.table(settings.model.name, COLUMNS, [row.cells() for row in training.rows])
    for line in training.store.next_steps(training.experiment, training.experiment_id):
        display.say(line)
    if any(row.stopped for row in training.rows):
        raise typer.Exit(EXIT_SOME_STOPPED)


def _stop_cleanly() -> None:
    """Make SIGTERM end a training like Ctrl-C, and let what comes after not cut its clean-up off.

    `mlflow run` passes Ctrl-C on as SIGINT and, at once, SIGTERM.
    """

    def stop(_signal: int, _frame: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


def _tag_launcher(error: UserError) -> None:
    """Leave the reason on the run that `mlflow run` made, which MLflow itself only marks FAILED."""
    if "MLFLOW_RUN_ID" not in os.environ:
        return
    say(f"error: {error}", sys.stderr)  # before mlflow's slow import
    from sae_mlflow.tracking.launcher import tag_launcher

    tag_launcher({"sae.failure": str(error)})
    raise SystemExit(2)
