"""`sae-mlflow sync`: deliver what trainings that have ended couldn't tell their store."""

from typing import Annotated

from sae_mlflow.commands.cli import TRACKING_URI
from sae_mlflow.errors import OutOfReach
from sae_mlflow.terminal import say


def sync_command(tracking_uri: Annotated[str, TRACKING_URI] = "") -> None:
    """Deliver what the store hasn't been told yet.

    What was logged while it was out of reach, in order and once. Pictures and registrations that
    were put off are made up for. What belongs to other stores, and what a training that still runs
    delivers itself, is left alone and said.
    """
    from sae_mlflow.reporting.display import Display
    from sae_mlflow.runs.delivery import deliver_leftovers
    from sae_mlflow.tracking.journals import in_use, others
    from sae_mlflow.tracking.store import Store

    store = Store(tracking_uri or None)
    running = in_use(store.uri)
    delivered, waiting = deliver_leftovers(store, Display())
    say(f"{delivered} entries delivered to {store.shown_uri}")
    if running:
        say(f"left alone: the journals of {running} trainings that still run")
    for address, entries in others(store.uri):
        say(f"{entries} entries wait for {address}: give it with --tracking-uri")
    if waiting:
        raise OutOfReach(
            f"{waiting} entries still wait for {store.shown_uri}. "
            "Run sae-mlflow sync again when it takes them."
        )
