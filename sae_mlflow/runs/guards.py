"""What an error costs: a run that says so, or a warning alone."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from sae_mlflow.errors import UserError
from sae_mlflow.reporting.display import Display
from sae_mlflow.runs.heartbeat import heartbeat
from sae_mlflow.tracking.contents import KILLED
from sae_mlflow.tracking.open_run import OpenRun


@contextmanager
def recorded(run: OpenRun) -> Iterator[OpenRun]:
    """Close a run as what it came to: finished, failed with the reason in a tag, or interrupted.

    Opened in the `with` itself, before anything is logged to it, no run is left that says RUNNING
    for ever; and one whose process is killed has a heartbeat that stops (`runs.heartbeat`).
    """
    try:
        with heartbeat(run):
            yield run
    except KeyboardInterrupt:
        run.fail("interrupted", KILLED)
        raise
    except Exception as error:
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
