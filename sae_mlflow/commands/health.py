"""`sae-mlflow health`: what is wrong with past trainings, by their histories in the store."""

from typing import Annotated

import typer

from sae_mlflow.commands.cli import TRACKING_URI, check_one_of

EXIT_SOME_FAILED = 1
_FILE_WIDTH = 2_000  # columns of a table that goes to a file: no line is broken


def health_command(
    experiment: Annotated[
        str | None, typer.Option(help="All SAE runs of this MLflow experiment.")
    ] = None,
    run: Annotated[
        str | None, typer.Option(help="This run: a layer's, or a parent with all layers.")
    ] = None,
    log: Annotated[
        bool,
        typer.Option("--log/--no-log", help="Leave tags and health.json in the runs."),
    ] = True,
    tracking_uri: Annotated[str | None, TRACKING_URI] = None,
) -> None:
    """Say what is wrong with trainings, by their histories.

    Each run is held against the thresholds (`health.*`) that it was trained with; failed and
    unfinished runs are judged too. Exits 1 if one is failed.
    """
    check_one_of(experiment, run)
    from rich.console import Console

    from sae_mlflow.health.finding import HEALTH_FILE
    from sae_mlflow.health.stored import judge_run, record
    from sae_mlflow.health.table import health_table
    from sae_mlflow.plots.frames import told_apart
    from sae_mlflow.tracking.store import existing_store
    from sae_mlflow.tracking.trainings import rows_of_experiment, rows_of_run

    store = existing_store(tracking_uri)
    rows = rows_of_run(store, run) if run else rows_of_experiment(store, experiment or "")
    judged = [(row, judge_run(store, row)) for row in reversed(rows)]
    apart = told_apart([row for row, _ in judged])
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_FILE_WIDTH)
    console.print(health_table(judged, console.width, not console.is_terminal, apart))
    if log:
        for row, verdict in judged:
            with store.logging_to(row.run_id, HEALTH_FILE, "look only, with --no-log"):
                record(store.reopen(row.run_id), verdict)
    if any(verdict.status == "failed" for _, verdict in judged):
        raise typer.Exit(EXIT_SOME_FAILED)
