"""`sae-mlflow watch`: where trainings stand, read from the store until they end."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from sae_mlflow.commands.cli import TRACKING_URI
from sae_mlflow.errors import OutOfReach, UserError

if TYPE_CHECKING:  # rich takes a tenth of a second to import, mlflow two
    from rich.console import Console

    from sae_mlflow.tracking.store import Store
    from sae_mlflow.watching.state import TrainingState, Watch

EXIT_SOME_FAILED = 1


def watch_command(
    experiment: Annotated[
        str | None, typer.Option(help="Watch all trainings of this MLflow experiment that run.")
    ] = None,
    run: Annotated[
        str | None, typer.Option(help="Watch this run alone: a training's parent, or a layer.")
    ] = None,
    every: Annotated[
        float, typer.Option(min=0.1, help="Seconds between two looks into the store.")
    ] = 2.0,
    tracking_uri: Annotated[str | None, TRACKING_URI] = None,
) -> None:
    """Show where trainings stand, layer by layer, until they end; from any machine.

    Reads the tracking store alone. A store that is out of reach for a while is waited for. Where
    none runs, the newest training is shown as it ended. Exits 1 if a training failed.
    """
    if bool(run) == bool(experiment):
        raise UserError("Give one of --experiment NAME and --run ID.")
    from rich.console import Console

    from sae_mlflow.tracking.reach import answer_quickly
    from sae_mlflow.tracking.store import Store
    from sae_mlflow.watching.state import Watch

    answer_quickly()
    store = Store(tracking_uri or None)
    watch = Watch(store, experiment, run)
    trainings = _follow(store, watch, Console(highlight=False), every)
    if any(training.status in ("FAILED", "KILLED") for training in trainings):
        raise typer.Exit(EXIT_SOME_FAILED)


def _follow(
    store: "Store", watch: "Watch", console: "Console", every: float
) -> "list[TrainingState]":
    """Show every change until all trainings have ended; where they stood then."""
    from rich.live import Live

    from sae_mlflow.watching.table import news, tables

    trainings: list[TrainingState] = []
    note = ""
    with Live(console=console, auto_refresh=False, transient=False) as live:
        while True:
            before, trouble = trainings, note
            try:
                trainings, note = watch.look(), ""
            except OutOfReach as error:
                note = f"{error} Trying again every {every:g} s."
            if console.is_terminal:
                addresses = [store.address(t.experiment_id, t.run_id) for t in trainings]
                live.update(tables(trainings, addresses, note, console.width), refresh=True)
            else:
                for line in [note] * (note != trouble) if note else news(before, trainings):
                    console.print(line, markup=False, soft_wrap=True)
            if not note and not any(training.is_running for training in trainings):
                return trainings
            time.sleep(every)
