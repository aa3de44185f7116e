"""A sign of life in a run that is being trained: which process has it, and that it is still there.

Whoever finds the run RUNNING can tell by it whether that is so (`runs.reaping`).
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sae_mlflow.tracking.open_run import OpenRun
from sae_mlflow.tracking.process import heartbeat_tags, process_tags

log = logging.getLogger(__name__)

EVERY_SECONDS = 60.0
STALE_SECONDS = 15 * 60.0
"""After so long without a sign, a process on another host counts as gone: fifteen missed."""

_LAST_WORD_SECONDS = 1.0


@contextmanager
def heartbeat(run: OpenRun, every_seconds: float | None = None) -> Iterator[None]:
    """Make a run this process's own, opened just now or taken over, and keep its sign fresh.

    A thread of its own writes it, past what waits to be delivered: an upload that takes long is no
    death. A store that is away costs a sign, never the training: nothing here raises, and the end
    of the block waits for nothing longer than a second.

    Args:
        every_seconds: unset means `EVERY_SECONDS`.
    """
    _quietly(lambda: run.tag(process_tags()))
    ended = threading.Event()
    beating = threading.Thread(
        target=_beat,
        args=(run, ended, every_seconds or EVERY_SECONDS),
        name=f"heartbeat of {run.run_id}",
        daemon=True,  # one that waits for a store doesn't keep the process
    )
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join(_LAST_WORD_SECONDS)


def _beat(run: OpenRun, ended: threading.Event, every_seconds: float) -> None:
    while not ended.wait(every_seconds):
        _quietly(lambda: run.tag_at_once(heartbeat_tags()))


def _quietly(write: Callable[[], None]) -> None:
    try:
        write()
    except Exception as error:  # whatever a store raises: the next sign may come through
        log.debug("No heartbeat: %s", error)
