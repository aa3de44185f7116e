"""A store that is written to through a journal: what a training logs survives the store's absence.

Reading goes to the store itself: first see that `flush` says it has everything.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sae_mlflow.tracking.contents import RunRow
from sae_mlflow.tracking.delivery import Delivery
from sae_mlflow.tracking.journal import Entry, Journal
from sae_mlflow.tracking.journals import new_journal
from sae_mlflow.tracking.open_run import Direct, OpenRun
from sae_mlflow.tracking.operations import TASK, Operation
from sae_mlflow.tracking.store import Store

_ID_WITHIN_SECONDS = 5.0
"""So long a training waits for a new run's id before it goes on without."""


_ASKED_EVERY_SECONDS = 0.5


@dataclass(frozen=True)
class Task:
    """Something to do once the store holds what it needs."""

    kind: str
    run_id: str
    options: Mapping[str, Any]
    entry: Entry | None = None


class JournalledStore(Store):
    """What is written to its runs is delivered by a thread, in order and once."""

    def __init__(
        self, uri: str | None, warn: Callable[[str], None], journal: Journal | None = None
    ) -> None:
        """
        Args:
            warn: takes what a person should know, from another thread.
            journal: of a process that has ended, to deliver what it left; else a new one.

        Raises:
            UserError: the store is out of reach, or there is no place for the journal.
        """
        # tried again it is here, where a run that was made isn't made twice, and nothing waits
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
        super().__init__(uri)
        self.journal = journal or new_journal(self.uri)
        self._delivery = Delivery(self._client, self.uri, self.journal, warn)
        self._outlet = self._delivery
        self._opened: dict[str, OpenRun] = {}

    def open_run(
        self, experiment_id: str, name: str, tags: Mapping[str, str], parent: OpenRun | None = None
    ) -> OpenRun:
        run = super().open_run(experiment_id, name, tags, parent)
        self.flush(_ID_WITHIN_SECONDS)
        self._opened[run.run_id] = run
        return run

    def reopen(self, run_id: str) -> OpenRun:
        """As `Store.reopen`; a run of this process is known without asking."""
        for run in self._opened.values():
            if run_id in {run.run_id, run.first_id}:
                return run
        run = super().reopen(run_id)
        self._opened[run_id] = run
        return run

    def resume_run(self, row: RunRow) -> OpenRun:
        run = self._opened[row.run_id] = super().resume_run(row)
        return run

    def real_id(self, run_id: str) -> str:
        return self._delivery.real_id(run_id)

    def pending_id(self, run_id: str) -> str:
        """What stood for a run's id before the store gave it; of another's run its id."""
        given = {real: pending for pending, real in self.journal.ids.items()}
        return given.get(run_id, run_id)

    # -- whether the store has it -----------------------------------------------------------------

    def flush(self, limit: float | None = None) -> bool:
        return self._delivery.flush(limit)

    def wait(self, seconds: float) -> bool:
        """Wait so long for the store to answer and to have all that it takes; whether it has."""
        end = time.monotonic() + seconds
        if not self._delivery.wait(seconds):
            return False
        while not self._answers():
            if time.monotonic() >= end:
                return False
            time.sleep(_ASKED_EVERY_SECONDS)
        return True

    def hold(self) -> None:
        """Wait until nothing that the store doesn't have is in memory alone."""
        self._delivery.backlog.wait_for_room()

    @property
    def waiting(self) -> int:
        """Entries that it hasn't taken, and tasks that aren't done."""
        return self._delivery.backlog.waiting

    @property
    def delivered(self) -> int:
        return self._delivery.delivered

    def close(self) -> None:
        """Deliver no more; what it hasn't taken stays in the journal.

        Who opens a run from now on writes to the store itself.
        """
        self._delivery.close()
        self._outlet = Direct(self._client)
        self._opened.clear()

    # -- what is put off --------------------------------------------------------------------------

    def put_off(self, kind: str, run_id: str, options: Mapping[str, Any]) -> None:
        """Note a task in the journal: for this process, or for `sae-mlflow sync`."""
        self._delivery.do(Operation(TASK, run_id, {"task": kind, "options": options}))

    def tasks(self) -> list[Task]:
        return [_task(entry) for entry in self._delivery.backlog.open_tasks()]

    def task_done(self, task: Task) -> None:
        assert task.entry is not None
        self._delivery.backlog.remove([task.entry])


def _task(entry: Entry) -> Task:
    body = entry.operation.body
    return Task(body["task"], entry.operation.run_id, body["options"], entry)
