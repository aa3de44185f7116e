"""`sae-mlflow checkpoints list` and `checkpoints prune`: what interrupted trainings left."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from sae_mlflow.commands.cli import make_app
from sae_mlflow.disk import Pruning, in_units
from sae_mlflow.errors import UserError
from sae_mlflow.folders import is_folder, own_checkpoints_folder, user_path
from sae_mlflow.terminal import say

DIR = typer.Option(
    "--dir", help="The folder (checkpoint.dir). [default: the user's own]", metavar="DIR"
)

app = make_app(help="Checkpoints of interrupted trainings.")


@app.command("list")
def checkpoints_list(folder: Annotated[str | None, DIR] = None) -> None:
    """Show them: each is a layer's run that hasn't finished."""
    from sae_mlflow.runs.kept import list_kept

    there = list_kept(_root(folder))
    for kept in there:
        saved = datetime.fromtimestamp(kept.last_saved).strftime("%Y-%m-%d %H:%M")
        state = "  being trained" if kept.in_use else ""
        say(f"{kept.run_id}  {in_units(kept.bytes):>9}  {kept.about}  saved {saved}{state}")
    runs = "1 run" if len(there) == 1 else f"{len(there)} runs"
    say(f"{runs}, {in_units(sum(kept.bytes for kept in there))}")


@app.command("prune")
def checkpoints_prune(
    runs: Annotated[
        list[str] | None, typer.Argument(help="Runs, as `checkpoints list` shows them.")
    ] = None,
    older_than_days: Annotated[
        float | None, typer.Option(min=0, help="Those last saved so many days ago.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    folder: Annotated[str | None, DIR] = None,
) -> None:
    """Delete checkpoints; those layers can only be trained afresh then. What runs is left alone."""
    from sae_mlflow.runs.kept import prune_kept

    choice = Pruning(runs or (), older_than_days, everything)
    if not choice:
        raise UserError(
            "Nothing was chosen. Give runs (`checkpoints list`), --older-than-days or --all."
        )
    for line in prune_kept(_root(folder), choice).lines():
        say(line)


def _root(folder: str | None) -> Path:
    if not folder:
        return own_checkpoints_folder()
    if not is_folder(named := user_path(folder)):
        raise UserError(f"--dir: there is no folder {named}. Name the one of checkpoint.dir.")
    return named.absolute()
