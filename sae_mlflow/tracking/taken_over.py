"""What a process that has ended left of runs that another one has gone on with: nothing any more.

That one went on from a checkpoint, and has told the store all there was before it. What the dead
process couldn't deliver would now close a run that goes on, or put values into it twice.
"""

from collections import defaultdict
from collections.abc import Mapping

from sae_mlflow.errors import OutOfReach, UserError
from sae_mlflow.tracking.journal import Entry, Journal
from sae_mlflow.tracking.operations import is_pending
from sae_mlflow.tracking.process import IDENTITY_TAGS
from sae_mlflow.tracking.store import Store


def leave_out(journal: Journal, store: Store) -> dict[str, int]:
    """Take such entries out of a journal; how many, by the run.

    Raises:
        OutOfReach: the store doesn't say whose a run is.
    """
    process = journal.process
    if not process:
        return {}
    by_run: dict[str, list[Entry]] = defaultdict(list)
    for entry in journal.waiting():
        run_id = entry.operation.run_id
        by_run[journal.ids.get(run_id, run_id)].append(entry)
    others = {
        run_id: entries
        for run_id, entries in by_run.items()
        if not is_pending(run_id) and _is_anothers(run_id, process, store)
    }
    for entries in others.values():
        journal.done(entries)
    return {run_id: len(entries) for run_id, entries in others.items()}


def _is_anothers(run_id: str, process: Mapping[str, str], store: Store) -> bool:
    try:
        tags = store.find_run(run_id).tags
    except OutOfReach:
        raise
    except UserError:  # it has been deleted, as the delivery says
        return False
    named = [tag for tag in IDENTITY_TAGS if tag in tags]
    return any(tags[tag] != process.get(tag) for tag in named)
