"""The command line, `sae-mlflow` or `python -m sae_mlflow`: its commands under their names."""

from typing import Annotated

import typer

import sae_mlflow
from sae_mlflow.commands import cache, checkpoints
from sae_mlflow.commands.cli import make_app, run_cli
from sae_mlflow.commands.evaluate import evaluate_command
from sae_mlflow.commands.export import export_command
from sae_mlflow.commands.export_tensorboard import export_tensorboard_command
from sae_mlflow.commands.health import health_command
from sae_mlflow.commands.plot import plot_command
from sae_mlflow.commands.reap import reap_command
from sae_mlflow.commands.registry import promote_command, register_command
from sae_mlflow.commands.report import report_command
from sae_mlflow.commands.settings import settings_command
from sae_mlflow.commands.sync import sync_command
from sae_mlflow.commands.train import train_command
from sae_mlflow.commands.watch import watch_command

app = make_app()


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"sae-mlflow {sae_mlflow.__version__}")
        raise typer.Exit


@app.callback(help="Sparse autoencoders on language-model activations, kept as MLflow runs.")
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Say the version."),
    ] = False,
) -> None: ...


app.command("train")(train_command)
app.command("plot")(plot_command)
app.command("watch")(watch_command)
app.command("health")(health_command)
app.command("reap")(reap_command)
app.command("report")(report_command)
app.command("evaluate")(evaluate_command)
app.command("export")(export_command)
app.command("export-tensorboard")(export_tensorboard_command)
app.command("register")(register_command)
app.command("promote")(promote_command)
app.command("sync")(sync_command)
app.command("settings")(settings_command)
app.add_typer(cache.app, name="cache")
app.add_typer(checkpoints.app, name="checkpoints")


def main() -> None:
    run_cli(app)


if __name__ == "__main__":
    main()
