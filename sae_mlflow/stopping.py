"""Ctrl-C and SIGTERM: they end a training between two steps, never within one."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A signal asked for the end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_status(self) -> int:
        """As shells count: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self.number


class Stopping:
    """Until it listens, signals do what they did before."""

    def __init__(self) -> None:
        self._number: int | None = None
        self._signals: tuple[int, ...] = ()
        self._deferred = False

    def listen(self, *signals: int) -> None:
        """Turn the first of the signals (both, unless one is named) into `Stopped`; what comes
        later can't cut off what is done because of it (`mlflow run` passes Ctrl-C on as SIGINT and,
        at once, SIGTERM)."""
        self._signals = signals or _SIGNALS
        for number in self._signals:
            signal.signal(number, self._take)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """What is done within is done whole; `check` comes after it."""
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = before

    def check(self) -> None:
        """Raise Stopped where a signal came meanwhile: deferred, or in a destructor, where Python
        drops what is raised."""
        if self._number is not None:
            raise Stopped(self._number)

    def _take(self, number: int, _frame: FrameType | None) -> None:
        for each in self._signals:
            signal.signal(each, signal.SIG_IGN)
        self._number = number
        if not self._deferred:
            raise Stopped(number)
