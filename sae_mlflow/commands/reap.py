"""`sae-mlflow reap`: runs that say RUNNING though their process is gone are closed."""

from typing import Annotated

import typer

from sae_mlflow.commands.cli import TRACKING_URI
from sae_mlflow.terminal import say


def reap_command(
    experiment: Annotated[str, typer.Option(metavar="NAME", help="MLflow experiment.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list them; change nothing.")
    ] = False,
    stale_minutes: Annotated[
        float,
        typer.Option(
            min=2,
            help="On another host, a training without a sign of life for so long counts as gone.",
        ),
    ] = 15.0,
    tracking_uri: Annotated[str | None, TRACKING_URI] = None,
) -> None:
    """Close the runs of trainings that died.

    They are KILLED then, and keep all that they have. A run has died if its process isn't on this
    host any more, or, of another host, if its heartbeat (one a minute) is stale. Each start of
    `train` does the same in its experiment.
    """
    from sae_mlflow.runs.reaping import dead_runs, reap, told, unrecorded_runs
    from sae_mlflow.tracking.store import existing_store

    store = existing_store(tracking_uri)
    experiment_id = store.find_experiment(experiment)
    find = dead_runs if dry_run else reap
    found = find(store, experiment_id, stale_minutes * 60)
    for dead in found:
        say(f"{'dead' if dry_run else 'KILLED'}  {told(dead)}")
    for run in unrecorded_runs(store, experiment_id):
        say(
            f"left    {run.name} ({run.run_id}): it says RUNNING, but not which process has it. "
            "If none does, set its status in the MLflow UI."
        )
    verb = "would be closed" if dry_run else "closed"
    say(f"{len(found)} {'run' if len(found) == 1 else 'runs'} {verb} in {experiment}")
