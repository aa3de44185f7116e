"""How long to wait for a store that takes its time: as long as it gets on, and answers."""

import threading
import time

from sae_mlflow.errors import OutOfReach
from sae_mlflow.tracking.reach import check_reachable

_ASKED_AFTER_SECONDS = 5.0
_LONGEST_SECONDS = 60.0  # without anything done


class Patience:
    """One wait."""

    def __init__(self, uri: str, limit: float | None) -> None:
        """
        Args:
            limit: seconds in all; unset means as long as it gets on.
        """
        self._uri, self._limit = uri, limit
        self._started = self._since = time.monotonic()
        self._asked = False
        self._progress: int | None = None

    def goes_on(self, changed: threading.Condition, progress: int) -> bool:
        """Wait for a change; False once there is no sense in it.

        Args:
            progress: rises with each thing that is done.
        """
        now = time.monotonic()
        if progress != self._progress:
            self._progress, self._since, self._asked = progress, now, False
        if self._limit is not None:
            left = self._started + self._limit - now
            return left > 0 and (changed.wait(left) or True)
        waited = now - self._since
        if waited > _LONGEST_SECONDS or (waited > _ASKED_AFTER_SECONDS and self._is_dead(changed)):
            return False
        changed.wait(1.0)
        return True

    def _is_dead(self, changed: threading.Condition) -> bool:
        if self._asked:
            return False
        self._asked = True
        changed.release()
        try:
            check_reachable(self._uri)
        except OutOfReach:
            return True
        finally:
            changed.acquire()
        return False
