"""What a store has yet to take, in order: on disk in the journal, and in memory for who delivers.

Where the journal's disk has no room, entries are in memory alone until there is, and whoever logs a
file waits.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace

from sae_mlflow.tracking.journal import Entry, Journal
from sae_mlflow.tracking.operations import (
    TASK,
    Operation,
    has_pending,
    is_pending,
    with_real_ids,
    with_texts,
)
from sae_mlflow.tracking.order import makes_needless, may_overtake
from sae_mlflow.tracking.refusals import no_room

_ROOM_PAUSE_SECONDS = 1.0
_SAID_AGAIN_SECONDS = 60.0


class Backlog:
    """All of one journal: what is queued, in order, what is put aside, and tasks.

    Any thread may ask and add; who waits for a change, or does several things as one, holds
    `changed`.
    """

    def __init__(self, journal: Journal, warn: Callable[[str], None]) -> None:
        self._journal, self._warn = journal, warn
        self.changed = threading.Condition()
        left = journal.waiting()
        self._queue = [entry for entry in left if entry.operation.kind != TASK]
        self._aside: list[Entry] = []
        self._tasks = [entry for entry in left if entry.operation.kind == TASK]
        self._unwritten: list[Entry] = []
        self._writing_again = threading.Lock()
        self._said_full = -_SAID_AGAIN_SECONDS
        self._gone: set[str] = set()

    def add(self, operation: Operation) -> None:
        """Put it into the journal and at the queue's end; a file it logs may go once it's there."""
        if self.is_gone(operation.run_id):
            return
        entry = self._journal.entry(operation)
        try:
            entry = self._journal.write(entry)
        except OSError as error:
            self._say_full(error, operation)
            with self.changed:
                self._unwritten.append(entry)
                self._enqueue(entry)
            if operation.source is not None:
                self.wait_for_room(entry)
            return
        with self.changed:
            self._enqueue(entry)

    def real_id(self, run_id: str) -> str:
        return self._journal.ids.get(run_id, run_id)

    def real(self, operation: Operation) -> Operation:
        """With the ids that the store has given, in its texts as well."""
        return with_texts(operation, lambda text: with_real_ids(text, self._journal.ids))

    @property
    def n_queued(self) -> int:
        """Entries to be delivered."""
        with self.changed:
            return len(self._queue)

    @property
    def n_aside(self) -> int:
        """Entries that the store doesn't take though it answers."""
        with self.changed:
            return len(self._aside)

    def first(self, n: int) -> list[Entry]:
        """As many of those to be delivered."""
        with self.changed:
            return self._queue[:n]

    @property
    def waiting(self) -> int:
        """Entries of either kind, and tasks."""
        with self.changed:
            return len(self._queue) + len(self._aside) + len(self._tasks)

    def open_tasks(self) -> list[Entry]:
        """What is done, by another, once the store holds its data; with the ids it has given."""
        with self.changed:
            return [replace(task, operation=self.real(task.operation)) for task in self._tasks]

    def remove(self, entries: Iterable[Entry], ids: Mapping[str, str] | None = None) -> None:
        """They are done, or never will be.

        Args:
            ids: what the store has given for pending ones.
        """
        entries = list(entries)
        numbers = {entry.number for entry in entries}
        with self.changed:
            self._queue = [entry for entry in self._queue if entry.number not in numbers]
            self._aside = [entry for entry in self._aside if entry.number not in numbers]
            self._tasks = [entry for entry in self._tasks if entry.number not in numbers]
            self._unwritten = [each for each in self._unwritten if each.number not in numbers]
            self._journal.done(entries, ids)

    # -- what the store doesn't take; with `changed` held -----------------------------------------

    def remove_run(self, run_id: str) -> int:
        """A run takes no more: how many entries that leaves out."""
        self._gone |= {run_id, self.real_id(run_id)}
        every = [*self._queue, *self._aside, *self._tasks]
        mine = [entry for entry in every if self.is_gone(entry.operation.run_id)]
        self.remove(mine)
        return len(mine)

    def is_gone(self, run_id: str) -> bool:
        return self.real_id(run_id) in self._gone

    def put_aside(self, entry: Entry) -> None:
        self._queue = [each for each in self._queue if each.number != entry.number]
        self._aside.append(entry)

    def let_pass(self) -> None:
        """Put aside, too, what may not be done before something that was put aside."""
        n = 0
        while n < len(self._queue) and self._has_to_wait(self._queue[n]):
            self._aside.append(self._queue[n])
            n += 1
        self._queue = self._queue[n:]
        if n:
            self.changed.notify_all()

    def _has_to_wait(self, entry: Entry) -> bool:
        operation = entry.operation
        if operation.kind == "create":
            return has_pending(self.real(operation))
        run_id = self.real_id(operation.run_id)
        if is_pending(run_id):
            return True
        earlier = [e for e in self._aside if self.real_id(e.operation.run_id) == run_id]
        needless = [each for each in earlier if makes_needless(operation, each.operation)]
        if needless:
            self.remove(needless)
        left = [each for each in earlier if each not in needless]
        return not all(may_overtake(operation, each.operation) for each in left)

    def bring_back(self) -> None:
        """What was put aside is in its place again."""
        self._queue = sorted([*self._aside, *self._queue], key=lambda entry: entry.number)
        self._aside = []

    def _enqueue(self, entry: Entry) -> None:
        (self._tasks if entry.operation.kind == TASK else self._queue).append(entry)
        self.changed.notify_all()

    # -- a disk without room ----------------------------------------------------------------------

    def wait_for_room(self, entry: Entry | None = None) -> None:
        """Until an entry, or every one, is on disk or delivered."""
        while True:
            with self.changed:
                missing = [e for e in self._unwritten if entry is None or e.number == entry.number]
                if not missing:
                    return
                self.changed.wait(_ROOM_PAUSE_SECONDS)
            self.write_again()

    def write_again(self) -> None:
        """Write what the disk had no room for, as far as it has now."""
        if not self._unwritten or not self._writing_again.acquire(blocking=False):
            return
        try:
            for entry in list(self._unwritten):
                with suppress(FileNotFoundError):  # delivered meanwhile, and its file has gone
                    self._exchange(entry, self._journal.write(entry))
        except OSError as error:
            self._say_full(error, entry.operation)
        finally:
            self._writing_again.release()

    def _exchange(self, entry: Entry, written: Entry) -> None:
        def changed(entries: list[Entry]) -> list[Entry]:
            return [written if each.number == entry.number else each for each in entries]

        with self.changed:
            if all(each.number != entry.number for each in self._unwritten):
                self._journal.done([written])  # delivered meanwhile
            self._unwritten = [e for e in self._unwritten if e.number != entry.number]
            self._queue, self._aside = changed(self._queue), changed(self._aside)
            self._tasks = changed(self._tasks)
            self.changed.notify_all()

    def _say_full(self, error: OSError, operation: Operation) -> None:
        if time.monotonic() - self._said_full < _SAID_AGAIN_SECONDS:
            return
        self._said_full = time.monotonic()
        where = no_room(error, operation, self._journal.folder)
        self._warn(
            f"The journal can't be written: {where}. Make room; until then what is logged is in "
            "memory alone, and files are waited with. SAE_MLFLOW_STATE names another place."
        )
