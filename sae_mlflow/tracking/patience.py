"""How long to wait for a store that takes its time: as long as it answers."""

import time

from sae_mlflow.errors import OutOfReach
from sae_mlflow.tracking.reach import check_reachable

_ASKED_AFTER_SECONDS = 5.0  # and again
_PAUSE_SECONDS = 1.0  # where there is no limit


class Pause:
    """Between two tries: each time twice as long, up to a limit."""

    def __init__(self, first: float, longest: float) -> None:
        self.seconds = self._first = first
        self._longest = longest

    def lengthen(self) -> None:
        self.seconds = min(2 * self.seconds, self._longest)

    def reset(self) -> None:
        self.seconds = self._first


class Patience:
    """One wait for a store to take what it is sent."""

    def __init__(self, uri: str, limit: float | None) -> None:
        """
        Args:
            limit: seconds in all; unset means as long as it answers: a large file on a slow way
                takes hours, and a call that hangs ends by MLflow's own timeouts.
        """
        self._uri, self._limit = uri, limit
        self._started = self._asked = time.monotonic()
        self._progress: int | None = None

    def pause(self, busy_since: float) -> float:
        """Seconds to wait before it makes sense to ask whether it is over; none left below 0.

        Args:
            busy_since: when what is being done was begun; 0 where nothing is.
        """
        if self._limit is None:
            return _PAUSE_SECONDS
        now = time.monotonic()
        return min(self._started, busy_since or now) + self._limit - now

    def is_over(self, progress: int, busy_since: float) -> bool:
        """Whether there is no sense in waiting on; may ask the store, so no lock should be held.

        Args:
            progress: rises with each thing that is done.
            busy_since: as for `pause`.
        """
        if self._limit is not None:
            return self.pause(busy_since) <= 0
        now = time.monotonic()
        if progress != self._progress:
            self._progress, self._asked = progress, now
        if now - self._asked < _ASKED_AFTER_SECONDS:
            return False
        self._asked = now
        try:
            check_reachable(self._uri)
        except OutOfReach:
            return True
        return False
