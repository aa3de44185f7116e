"""Tells a store, in order and once, what its journal holds: one thread, so that no step waits.

Whatever the store does not take now stays in the journal: for the same thread when the store is
back, or for another process (`sae-mlflow sync`).
"""

import threading
import time
from collections.abc import Callable, Sequence

from mlflow.tracking import MlflowClient

from sae_mlflow.tracking.backlog import Backlog
from sae_mlflow.tracking.courier import Courier, Report, together
from sae_mlflow.tracking.journal import Entry, Journal
from sae_mlflow.tracking.operations import Operation, apply, with_texts
from sae_mlflow.tracking.patience import Patience
from sae_mlflow.tracking.reach import hide_password, hide_password_in
from sae_mlflow.tracking.refusals import Outcome

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.25, 5.0
_STUCK_PAUSE_SECONDS = 5.0
_TRIES = 3  # of what the store doesn't take though it answers, before it lets others pass
_AT_ONCE = 200  # entries that are looked at to be delivered as one


class Delivery:
    """The way from a training to its store: nothing in here raises because of the store."""

    def __init__(
        self, client: MlflowClient, uri: str, journal: Journal, warn: Callable[[str], None]
    ) -> None:
        """
        Args:
            journal: what is in it already may have been delivered before.
            warn: takes what a person should know; called from the delivering thread.
        """
        self._uri, self._journal, self._warn = uri, journal, warn
        self._store = f"The tracking store {hide_password(uri)}"
        self._client, self._courier = client, Courier(client, uri)
        self.backlog = Backlog(journal, warn)
        self._changed = self.backlog.changed
        self._repeated = {entry.number for entry in self.backlog.queue}
        """Entries that may have been delivered before."""
        self._tries: dict[int, int] = {}
        """How often the store didn't take an entry though it answered."""
        self.delivered = 0
        self.away = ""
        """Why the store is out of reach; empty while it isn't."""
        self._pause, self._next_try, self._next_aside = _FIRST_PAUSE_SECONDS, 0.0, 0.0
        self._busy_since = 0.0
        """When the call that is under way began; 0 where none is."""
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="delivery", daemon=True)
        self._thread.start()

    # -- for the training -------------------------------------------------------------------------

    def do(self, operation: Operation) -> None:
        """Put it into the journal, from where it is delivered; after `close` nothing is taken."""
        if not self._closing:
            self.backlog.add(with_texts(operation, lambda text: hide_password_in(text, self._uri)))

    def at_once(self, operation: Operation) -> None:
        apply(self._client, operation)

    def real_id(self, run_id: str) -> str:
        return self.backlog.real_id(run_id)

    def flush(self, limit: float | None = None) -> bool:
        """Wait until all is delivered, but what the store doesn't take; False where it is away.

        Args:
            limit: at most so many seconds; unset means as long as the store gets on with it.
        """
        with self._changed:
            patience = Patience(self._uri, limit)
            while self.backlog.queue:
                began = self._busy_since or time.monotonic()
                if self.away or not patience.goes_on(self._changed, self.delivered, began):
                    return False
            return not self.away

    def wait(self, seconds: float) -> bool:
        """Wait so long for the store to be back and have all that it takes; whether it has."""
        end = time.monotonic() + seconds
        with self._changed:
            self._next_aside = 0.0
            self._changed.notify_all()
            while self.backlog.queue or self.backlog.aside:
                left = end - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            return not self.backlog.queue

    def close(self) -> None:
        """Deliver no more; what is left stays in the journal."""
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._changed.notify_all()
        # a call that hangs is left to end with the process; its entry still waits
        self._thread.join(timeout=_FIRST_PAUSE_SECONDS)
        self._journal.close()

    # -- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (batch := self._next_batch()):
                    if self._closing:
                        return
                    self._idle()
                again = any(entry.number in self._repeated for entry in batch)
                operations = [self.backlog.real(entry.operation) for entry in batch]
                self._busy_since = time.monotonic()
            report = self._courier.deliver(operations, again=again)
            with self._changed:
                self._busy_since = 0.0
                if self._closing:
                    return
                self._settle(batch, report)
                self._changed.notify_all()
            self.backlog.write_again()

    def _idle(self) -> None:
        """Until there is something to do; meanwhile what waits gets onto the disk itself."""
        if self.away:
            self._journal.to_disk()
        times = [self._next_try] if self.backlog.queue else []
        times += [self._next_aside] if self.backlog.aside else []
        pause = max(min(times) - time.monotonic(), 0.01) if times else None
        self._changed.wait(pause)

    def _next_batch(self) -> list[Entry]:
        now, backlog = time.monotonic(), self.backlog
        if backlog.aside and not self.away and now >= self._next_aside:
            backlog.bring_back()
        if self._closing or not backlog.queue or now < self._next_try:
            return []
        if backlog.queue[0].number in self._tries:
            return backlog.queue[:1]
        first = backlog.queue[:_AT_ONCE]
        return first[: together([entry.operation for entry in first])]

    def _settle(self, batch: Sequence[Entry], report: Report) -> None:
        if report.outcome is Outcome.AWAY:
            self._stay_away(batch, report.reason)
            return
        if self.away:
            n = len(self.backlog.queue)
            self._warn(f"{self._store} is back: {n} entries are on their way to it.")
        self.away, self._pause, self._next_try = "", _FIRST_PAUSE_SECONDS, 0.0
        match report.outcome:
            case Outcome.DELIVERED:
                self.delivered += len(batch)
                self.backlog.remove(batch, report.ids)
            case Outcome.GONE:
                self._leave_out_run(batch[0], report.reason)
            case Outcome.REFUSED if len(batch) == 1:
                self._leave_out(batch[0], report.reason)
            case _:
                self._try_again(batch, report.reason)

    def _stay_away(self, batch: Sequence[Entry], reason: str) -> None:
        if not self.away:
            self._warn(
                f"{self._store} is out of reach: {reason}. What is logged is kept in "
                f"{self._journal.folder} and delivered when it is back."
            )
        self.away = reason
        self._repeated |= {entry.number for entry in batch}
        self._next_try = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE_SECONDS)

    def _leave_out(self, entry: Entry, reason: str) -> None:
        operation = self.backlog.real(entry.operation)
        self._warn(
            f"{self._store} refuses {operation.kind} of run {operation.run_id}: {reason}. "
            "It is left out."
        )
        self.backlog.remove([entry])
        if operation.kind == "create":
            self._leave_out_run(entry, reason)

    def _leave_out_run(self, entry: Entry, reason: str) -> None:
        run_id = self.real_id(entry.operation.run_id)
        n = self.backlog.remove_run(entry.operation.run_id)
        self._warn(f"Run {run_id} is gone: {reason}. What is logged to it is left out ({n}).")

    def _try_again(self, batch: Sequence[Entry], reason: str) -> None:
        """One by one; what still isn't taken steps aside, so that the others go on."""
        self._repeated |= {entry.number for entry in batch}
        for entry in batch:
            self._tries.setdefault(entry.number, 0)
        if len(batch) > 1:
            return
        [entry] = batch
        self._tries[entry.number] += 1
        self._next_try = time.monotonic() + _FIRST_PAUSE_SECONDS
        if self._tries[entry.number] < _TRIES:
            return
        if self._tries[entry.number] == _TRIES:
            run_id = self.real_id(entry.operation.run_id)
            what = f"{entry.operation.kind} of run {run_id}"
            self._warn(f"{self._store} doesn't take {what} now: {reason}. It is tried again.")
        self.backlog.put_aside(entry)
        self._next_try, self._next_aside = 0.0, time.monotonic() + _STUCK_PAUSE_SECONDS
