"""What a delivery tells a person, in whose terminal nothing can go wrong for it."""

import logging
from collections.abc import Callable
from pathlib import Path

from sae_mlflow.tracking.operations import Operation
from sae_mlflow.tracking.reach import hide_password

log = logging.getLogger(__name__)


class Notices:
    """About one store."""

    def __init__(self, uri: str, folder: Path, warn: Callable[[str], None]) -> None:
        """
        Args:
            folder: the journal's.
        """
        self._store = f"The tracking store {hide_password(uri)}"
        self._folder, self._warn = folder, warn

    def say(self, text: str) -> None:
        try:
            self._warn(text)
        except Exception as error:  # a terminal that has gone must not end a delivery
            log.debug("Couldn't say %r: %s", text, error)

    def away(self, reason: str) -> None:
        self.say(
            f"{self._store} is out of reach: {reason}. What is logged is kept in {self._folder} "
            "and delivered when it is back."
        )

    def back(self, n: int) -> None:
        self.say(f"{self._store} is back: {n} entries are on their way to it.")

    def refused(self, operation: Operation, reason: str) -> None:
        what = f"{operation.kind} of run {operation.run_id}"
        self.say(f"{self._store} refuses {what}: {reason}. It is left out.")

    def stuck(self, operation: Operation, reason: str) -> None:
        what = f"{operation.kind} of run {operation.run_id}"
        self.say(f"{self._store} doesn't take {what} now: {reason}. It is tried again.")

    def gone(self, run_id: str, reason: str, n: int) -> None:
        self.say(f"Run {run_id} is gone: {reason}. What is logged to it is left out ({n}).")
