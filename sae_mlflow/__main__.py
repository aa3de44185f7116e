"""The command line: `sae-mlflow train`, `plot`, `evaluate`, `cache`, `settings`."""

import os
import signal
import sys
from datetime import datetime
from typing import Annotated, Any

import typer

from sae_mlflow.commands.cli import make_app, run_cli
from sae_mlflow.commands.evaluate import evaluate_command
from sae_mlflow.commands.export import export_command
from sae_mlflow.commands.registry import promote_command, register_command
from sae_mlflow.config import load_settings, parse_set, setting_docs
from sae_mlflow.errors import UserError
from sae_mlflow.plot import plot_command

app = make_app(help="Sparse autoencoders on language-model activations, kept as MLflow runs.")
cache_app = make_app(help="Cached activations of language models.")
app.add_typer(cache_app, name="cache")
app.command("plot")(plot_command)
app.command("evaluate")(evaluate_command)
app.command("export")(export_command)
app.command("register")(register_command)
app.command("promote")(promote_command)


@app.command()
def train(
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
    tracking_uri: Annotated[
        str, typer.Option(help="MLflow tracking store; unset means MLflow's own setting.")
    ] = "",
) -> None:
    """Train an SAE on each layer; each is a run in the tracking store.

    `mlflow run . -P config=... -P model_name=... -P layers=... -P set=... -P output_dir=...` takes
    the same options; an empty value means unset.
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
    print(f"error: {error}", file=sys.stderr, flush=True)  # before mlflow's slow import
    from sae_mlflow.tracking.launcher import tag_launcher

    tag_launcher({"sae.failure": str(error)})
    raise SystemExit(2)


@app.command("settings")
def settings_command() -> None:
    """List every setting with its default and what it means."""
    for key, default, meaning in setting_docs():
        typer.echo(f"{key} = {default}\n    {meaning}")


@cache_app.command("list")
def cache_list() -> None:
    """Show what is cached."""
    from sae_mlflow.activations.cache import in_units, list_cache

    entries = list_cache()
    for entry in entries:
        last_used = datetime.fromtimestamp(entry.last_used).strftime("%Y-%m-%d %H:%M")
        typer.echo(
            f"{entry.key}  {in_units(entry.bytes):>9}  {entry.model}  {entry.text}  "
            f"{entry.tokens:,} tokens  {','.join(entry.hookpoints)}  last used {last_used}"
        )
    typer.echo(f"{len(entries)} entries, {in_units(sum(entry.bytes for entry in entries))}")


@cache_app.command("prune")
def cache_prune(
    keys: Annotated[
        list[str] | None, typer.Argument(help="Keys, as `cache list` shows them.")
    ] = None,
    older_than_days: Annotated[
        float | None, typer.Option(min=0, help="Entries that weren't used for so many days.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All entries.")] = False,
) -> None:
    """Delete cached activations; a training that needs them collects them again."""
    from sae_mlflow.activations.cache import in_units, prune_cache

    if not keys and older_than_days is None and not everything:
        raise UserError("Nothing was chosen. Give keys (`cache list`), --older-than-days or --all.")
    freed = prune_cache(keys=keys or [], older_than_days=older_than_days, everything=everything)
    typer.echo(f"freed {in_units(freed)}")


def main() -> None:
    run_cli(app)


if __name__ == "__main__":
    main()
