"""A training's end: what the store hasn't got yet is waited for, and else said."""

from collections.abc import Iterator
from contextlib import contextmanager

from sae_mlflow.errors import UserError
from sae_mlflow.reporting.display import Display
from sae_mlflow.runs.later import catch_up, say_waiting
from sae_mlflow.tracking.journalled import JournalledStore
from sae_mlflow.tracking.journals import leftovers
from sae_mlflow.tracking.store import Store
from sae_mlflow.tracking.taken_over import leave_out

_AFTER_AN_ERROR_SECONDS = 5.0


@contextmanager
def delivered(store: JournalledStore, display: Display, seconds: float) -> Iterator[None]:
    """Wait so long, at the end, for what was logged within to be delivered.

    After an error or an interruption only shortly, and neither for room nor for pictures that were
    put off: something may be about to kill the process.
    """
    try:
        yield
    except BaseException:
        _end(store, display, min(seconds, _AFTER_AN_ERROR_SECONDS), in_haste=True)
        raise
    store.hold()
    _end(store, display, seconds)


def deliver_leftovers(store: Store, display: Display) -> tuple[int, int]:
    """Deliver what trainings that have ended left for a store, and make up for what they put off.

    Returns:
        How many entries were delivered, and how many still wait.
    """
    delivered, waiting = 0, 0
    for journal in leftovers(store.uri):
        if journal.damaged:
            display.warn(f"{journal.folder}: {journal.damaged} entries can't be read any more.")
        try:
            left_out = leave_out(journal, store)
            theirs = JournalledStore(store.uri, display.warn, journal)
        except UserError:
            journal.close()
            raise
        for run_id, n in left_out.items():
            display.warn(
                f"{n} entries of run {run_id} are left out: another process has gone on with it."
            )
        try:
            theirs.flush()
            delivered += theirs.delivered + catch_up(theirs, display.say, display.warn)
            waiting += theirs.waiting
        finally:
            theirs.close()
    return delivered, waiting


def _end(store: JournalledStore, display: Display, seconds: float, in_haste: bool = False) -> None:
    try:
        if not store.flush(seconds if in_haste else None):
            say_waiting(store, display, seconds)
        if store.wait(seconds) and not in_haste:
            catch_up(store, display.say, display.warn)
        if store.waiting:
            display.warn(
                f"{store.waiting} entries wait for the tracking store {store.shown_uri}, in "
                f"{store.journal.folder}. Deliver them when it is back: sae-mlflow sync"
            )
    finally:
        store.close()
