"""Tells a store, in order and once, what its journal holds: one thread, so that no step waits.

Whatever the store does not take now stays in the journal: for the same thread when the store is
back, or for another process (`sae-mlflow sync`).
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from mlflow.tracking import MlflowClient

from sae_mlflow.tracking.backlog import Backlog
from sae_mlflow.tracking.courier import Courier, Report, together
from sae_mlflow.tracking.journal import Entry, Journal
from sae_mlflow.tracking.notices import Notices
from sae_mlflow.tracking.operations import Operation, apply, with_texts
from sae_mlflow.tracking.patience import Patience, Pause
from sae_mlflow.tracking.reach import hide_password_in
from sae_mlflow.tracking.refusals import Outcome

_PAUSE_SECONDS = 0.25, 5.0  # the first and the longest, where the store is away
_STUCK_PAUSE_SECONDS = 2.5, 300.0  # where it doesn't take something: all of a file is sent again
_SAVED_AGAIN_SECONDS = 1.0
_LAST_CALL_SECONDS = 0.25
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
        self._uri, self._journal = uri, journal
        self._notices = Notices(uri, journal.folder, warn)
        self._client, self._courier = client, Courier(client, uri)
        self.backlog = Backlog(journal, self._notices.say)
        self._changed = self.backlog.changed
        self._repeated = {entry.number for entry in journal.waiting()}
        """Entries that may have been delivered before."""
        self._tries: dict[int, int] = {}
        """How often the store didn't take an entry though it answered."""
        self.delivered = 0
        self.away = ""
        """Why the store is out of reach; empty while it isn't."""
        self._pause, self._stuck_pause = Pause(*_PAUSE_SECONDS), Pause(*_STUCK_PAUSE_SECONDS)
        self._next_try = self._next_aside = self._next_save = 0.0
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
        patience = Patience(self._uri, limit)
        while True:
            with self._changed:
                pause = patience.pause(self._busy_since)
                if self._changed.wait_for(lambda: self.away or not self.backlog.n_queued, pause):
                    return not self.away
                progress, busy_since = self.delivered, self._busy_since
            if patience.is_over(progress, busy_since):
                return False

    def wait(self, seconds: float) -> bool:
        """Wait so long for the store to be back and have all that it takes; whether it has."""
        end = time.monotonic() + seconds
        with self._changed:
            self._stuck_pause.reset()
            self._next_aside = 0.0
            self._changed.notify_all()
            while self.backlog.n_queued or self.backlog.n_aside:
                left = end - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            return not self.backlog.n_queued

    def close(self) -> None:
        """Deliver no more; what is left stays in the journal."""
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._changed.notify_all()
        # a call that hangs is left to end with the process; its entry still waits
        self._thread.join(timeout=_LAST_CALL_SECONDS)
        self._journal.close()

    # -- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing:
            try:
                self._round()
            except Exception as error:  # whatever it is, what is logged later has to go on
                said = f"{type(error).__name__}: {error}"
                with self._changed:
                    self._busy_since = 0.0
                    if self.backlog.n_queued:
                        self._stay_away(hide_password_in(said, self._uri))
                    self._changed.notify_all()
                    self._changed.wait(_PAUSE_SECONDS[0])

    def _round(self) -> None:
        """Deliver what comes next, or wait for it."""
        self._save()
        with self._changed:
            batch = self._next_batch()
            if not batch:
                self._idle()
                return
            numbers = {entry.number for entry in batch}
            again = not self._repeated.isdisjoint(numbers)
            self._repeated |= numbers
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

    def _save(self) -> None:
        """Have the disk itself hold what waits; nobody else waits for that."""
        now = time.monotonic()
        if (self.away or self.backlog.n_aside) and now >= self._next_save:
            self._next_save = now + _SAVED_AGAIN_SECONDS
            with suppress(OSError):  # a disk without room, of which is told where it is written to
                self._journal.to_disk()

    def _idle(self) -> None:
        """Until there is something to do."""
        if self._closing:
            return
        times = [self._next_try] if self.backlog.n_queued else []
        times += [self._next_aside] if self.backlog.n_aside and not self.away else []
        pause = max(min(times) - time.monotonic(), 0.01) if times else None
        self._changed.wait(pause)

    def _next_batch(self) -> list[Entry]:
        now, backlog = time.monotonic(), self.backlog
        if self._closing or now < self._next_try:
            return []
        if backlog.n_aside and not self.away and now >= self._next_aside:
            backlog.bring_back()
            self._stuck_pause.lengthen()
            self._next_aside = now + self._stuck_pause.seconds
        backlog.let_pass()
        first = backlog.first(_AT_ONCE)
        if not first or first[0].number in self._tries:
            return first[:1]
        return first[: together([entry.operation for entry in first])]

    def _settle(self, batch: Sequence[Entry], report: Report) -> None:
        if report.outcome is Outcome.AWAY:
            self._stay_away(report.reason)
            return
        if self.away:
            self._notices.back(self.backlog.n_queued)
        self.away, self._next_try = "", 0.0
        self._pause.reset()
        match report.outcome:
            case Outcome.DELIVERED:
                self._delivered(batch, report.ids)
            case Outcome.GONE:
                self._leave_out_run(batch[0], report.reason)
            case Outcome.REFUSED if len(batch) == 1:
                self._leave_out(batch[0], report.reason)
            case _:
                self._try_again(batch, report.reason)

    def _delivered(self, batch: Sequence[Entry], ids: Mapping[str, str]) -> None:
        numbers = {entry.number for entry in batch}
        if not numbers.isdisjoint(self._tries):
            self._stuck_pause.reset()  # what was in the way may be gone
        self._repeated -= numbers
        self.delivered += len(batch)
        self.backlog.remove(batch, ids)

    def _stay_away(self, reason: str) -> None:
        if not self.away:
            self._notices.away(reason)
        self.away = reason
        self._next_try = time.monotonic() + self._pause.seconds
        self._pause.lengthen()

    def _leave_out(self, entry: Entry, reason: str) -> None:
        self._notices.refused(self.backlog.real(entry.operation), reason)
        self.backlog.remove([entry])
        if entry.operation.kind == "create":
            self._leave_out_run(entry, reason)

    def _leave_out_run(self, entry: Entry, reason: str) -> None:
        run_id = self.real_id(entry.operation.run_id)
        n = self.backlog.remove_run(entry.operation.run_id)
        self._notices.gone(run_id, reason, n)

    def _try_again(self, batch: Sequence[Entry], reason: str) -> None:
        """One by one; what still isn't taken steps aside, so that the others go on."""
        for entry in batch:
            self._tries.setdefault(entry.number, 0)
        if len(batch) > 1:
            return
        [entry] = batch
        self._tries[entry.number] += 1
        self._next_try = time.monotonic() + _PAUSE_SECONDS[0]
        if self._tries[entry.number] < _TRIES:
            return
        if self._tries[entry.number] == _TRIES:
            self._notices.stuck(self.backlog.real(entry.operation), reason)
        self.backlog.put_aside(entry)
        self._next_try, self._next_aside = 0.0, time.monotonic() + self._stuck_pause.seconds
