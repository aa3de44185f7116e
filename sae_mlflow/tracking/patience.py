"""How long to wait for a store that takes its time: as long as it answers."""

import threading
import time

from sae_mlflow.errors import OutOfReach
from sae_mlflow.tracking.reach import check_reachable

_ASKED_AFTER_SECONDS = 5.0  # and again


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
    """One wait."""

    def __init__(self, uri: str, limit: float | None) -> None:
        """
        Args:
            limit: seconds in all; unset means as long as it answers: a large file on a slow way
                takes hours, and a call that hangs ends by MLflow's own timeouts.
        """
        self._uri, self._limit = uri, limit
        self._started = self._asked = time.monotonic()
        self._progress: int | None = None

    def goes_on(self, changed: threading.Condition, progress: int, busy_since: float) -> bool:
        """Wait for a change; False once there is no sense in it.

        Args:
            progress: rises with each thing that is done.
            busy_since: when what is being done was begun.
        """
        now = time.monotonic()
        if progress != self._progress:
            self._progress, self._asked = progress, now
        if self._limit is not None:
            left = min(self._started, busy_since) + self._limit - now
            return left > 0 and (changed.wait(left) or True)
        if self._is_dead(changed):
            return False
        changed.wait(1.0)
        return True

    def _is_dead(self, changed: threading.Condition) -> bool:
        if time.monotonic() - self._asked < _ASKED_AFTER_SECONDS:
            return False
        self._asked = time.monotonic()
        changed.release()
        try:
            check_reachable(self._uri)
        except OutOfReach:
            return True
        finally:
            changed.acquire()
        return False
