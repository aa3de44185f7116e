"""`sae-mlflow train`: options to settings, a training, and how its end is told."""

import os
import shlex
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from sae_mlflow.commands.cli import TRACKING_URI
from sae_mlflow.config_load import load_settings
from sae_mlflow.config_set import parse_set
from sae_mlflow.errors import UserError
from sae_mlflow.naming import parse_layers
from sae_mlflow.stopping import Stopped, Stopping
from sae_mlflow.terminal import say
from sae_mlflow.tracking.contents import FAILURE_TAG
from sae_mlflow.tracking.reach import hide_password

EXIT_SOME_STOPPED = 1


def train_command(
    context: typer.Context,
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
    resume: Annotated[
        str,
        typer.Option(
            metavar="auto|RUN_ID",
            help="Go on with a training that was interrupted: its parent run, or the newest "
            "unfinished one of the same settings (afresh where there is none).",
        ),
    ] = "",
) -> None:
    """Train an SAE on each layer, a run each.

    `mlflow run . -P config=... -P model_name=... -P layers=... -P set=... -P output_dir=...
    -P resume=...` takes the same options; an empty value means unset. Exits 1 if health.on_failure
    stopped a layer, 130 after Ctrl-C and 143 after SIGTERM.
    """
    given = {
        "model.name": model_name,
        "model.layers": _layers(layers),
        "output.dir": output_dir,
        "output.pt": pt,
    }
    overrides = {key: value for key, value in given.items() if value}
    stopping = Stopping()
    stopping.listen()
    try:
        settings = load_settings(config or "sae_balanced.yaml", overrides | parse_set(set_))
        options = {
            "experiment_name": experiment_name or None,
            "tracking_uri": tracking_uri or None,
            "resume": resume or None,
            "command": without_resume(context),
        }
        _train(settings, stopping, options)
    except UserError as error:
        _tag_launcher(error)
        raise
    except Stopped as stopped:
        raise SystemExit(stopped.exit_status) from None


def _train(settings: Any, stopping: Stopping, options: Mapping[str, Any]) -> None:
    from sae_mlflow.reporting.display import Display
    from sae_mlflow.reporting.stopwatch import Stopwatch

    clock = Stopwatch()
    with clock.stage("imports"):
        from sae_mlflow.pipeline import run_training
        from sae_mlflow.reporting.layer_table import COLUMNS

    display = Display()
    training = run_training(settings, display, clock=clock, stopping=stopping, **options)
    display.table(settings.model.label, COLUMNS, [row.cells() for row in training.rows])
    for line in training.store.next_steps(*training.experiment):
        display.say(line)
    if any(row.stopped for row in training.rows):
        raise typer.Exit(EXIT_SOME_STOPPED)


def _layers(text: str) -> tuple[int | str, ...]:
    try:
        return parse_layers(text) if text else ()
    except ValueError as error:
        raise UserError(f"--layers {text[:100]!r} {error}.") from None


def without_resume(context: typer.Context) -> str:
    """The command line that was given, as it would be typed, but for what it says of resuming, what
    it leaves unset, and a store's password."""
    kept = ["sae-mlflow", "train"]
    for option in context.command.params:
        name, value = str(option.name), context.params.get(str(option.name))
        source = context.get_parameter_source(name)
        given = source is not None and source.name != "DEFAULT"
        if name == "resume" or not value or not given:
            continue
        kept.append(option.opts[0])
        if value is not True:
            kept.append(hide_password(value) if name == "tracking_uri" else value)
    return shlex.join(kept)


def _tag_launcher(error: UserError) -> None:
    """Leave the reason on the run that `mlflow run` made, which MLflow itself only marks FAILED."""
    if "MLFLOW_RUN_ID" not in os.environ:
        return
    say(f"error: {error}", sys.stderr)  # before mlflow's slow import
    from sae_mlflow.tracking.launcher import tag_launcher

    tag_launcher({FAILURE_TAG: str(error)})
    raise SystemExit(2)
