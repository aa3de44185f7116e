"""`sae-mlflow report`: one page about an experiment, to be passed on and printed."""

from pathlib import Path
from typing import Annotated

import typer

from sae_mlflow.commands.cli import TRACKING_URI
from sae_mlflow.errors import UserError
from sae_mlflow.folders import user_path
from sae_mlflow.plots.drawing import drawing_processes
from sae_mlflow.plots.homes import Homes
from sae_mlflow.plots.style import load_style
from sae_mlflow.terminal import say
from sae_mlflow.whole_file import check_file, whole_file

ARTIFACT = "report/report.html"


def report_command(
    experiment: Annotated[
        str | None, typer.Option(help="All SAE runs of this MLflow experiment.")
    ] = None,
    run: Annotated[
        str | None, typer.Option(help="Only those of this parent run.", metavar="PARENT_ID")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="(Also) write the page here.", metavar="FILE")
    ] = None,
    log: Annotated[
        bool, typer.Option("--log/--no-log", help="Log the page into the parent run.")
    ] = True,
    style: Annotated[
        str | None,
        typer.Option(
            help="How it looks: a style file of plots, or default, paper, dark or talk.",
            metavar="FILE|NAME",
        ),
    ] = None,
    tracking_uri: Annotated[str | None, TRACKING_URI] = None,
) -> None:
    """Make one page of an experiment.

    Layers with final figures and health, findings, plots, settings, runs; in HTML. It loads nothing
    and prints well. It goes to the parent run, or to the experiment's comparison run where its
    layers have several. Prints the address and the path that it made.
    """
    if not experiment and not run:
        raise UserError("Give --experiment NAME, or --run PARENT_ID.")
    if not log and output is None:
        raise UserError("--no-log without --output FILE would leave no report. Add the latter.")
    if output is not None:
        check_file(output := user_path(output))
    look = load_style(style or None)
    with drawing_processes() as pool:
        from sae_mlflow.report.build import report_html
        from sae_mlflow.report.contents import rows_of
        from sae_mlflow.tracking.store import existing_store

        store = existing_store(tracking_uri)
        rows = rows_of(store, experiment or None, run or None)
        experiment_id = rows[0].experiment_id
        page = report_html(store, store.experiment_name(experiment_id), rows, look, pool)
    if output is not None:
        with whole_file(output) as temporary:
            temporary.write_text(page, encoding="utf-8", newline="\n")
        say(output)
    if log:
        home = run or Homes(store, experiment_id).shared(rows)
        say(store.log_page(home, page, ARTIFACT))
