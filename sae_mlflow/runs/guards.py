"""What an error costs: a run that says so, or a warning alone."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from sae_mlflow.errors import UserError
from sae_mlflow.reporting.display import Display
from sae_mlflow.runs.heartbeat import heartbeat
from sae_mlflow.stopping import Stopping
from sae_mlflow.tracking.contents import KILLED
from sae_mlflow.tracking.open_run import OpenRun


@contextmanager
def recorded(opened: Callable[[], OpenRun], stopping: Stopping) -> Iterator[OpenRun]:
    """Open a run, and close it as what it came to: finished, failed with the reason in a tag, or
    interrupted.

    No run is left that says RUNNING for ever: a signal that comes while it is opened is for
    `stopping.check`, which who gets it calls first; and one whose process is killed has a heartbeat
    that stops (`runs.heartbeat`).
    """
    run: OpenRun | None = None
    try:
        with stopping.deferred():
            run = opened()
        with heartbeat(run):
            yield run
    except KeyboardInterrupt:
        if run is not None:
            run.fail("interrupted", KILLED)
        raise
    except Exception as error:
        if run is not None:
            run.fail(str(error) or type(error).__name__)
        raise
    run.finish()


def drawing(display: Display, what: str) -> AbstractContextManager[None]:
    return optional(display, f"The plots of {what} weren't drawn")


@contextmanager
def optional(display: Display, trouble: str) -> Iterator[None]:
    """What is done after training costs a warning where it fails, never the training."""
    try:
        yield
    except Exception as error:
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        display.warn(f"{trouble}: {kind}{error}")
