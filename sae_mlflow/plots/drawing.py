"""Pictures and pages to files, in two processes where that is quicker."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sae_mlflow.plots.compare.pages import ComparisonPage
from sae_mlflow.plots.pages import Page
from sae_mlflow.plots.pictures import Picture
from sae_mlflow.whole_file import whole_file

if TYPE_CHECKING:  # matplotlib and seaborn take seconds to import
    from matplotlib.figure import Figure

Drawable = Picture | Page | ComparisonPage

PROCESSES = min(2, os.cpu_count() or 1)

# A process takes about 2.5 s to import seaborn; this many pictures take longer than that.
MANY = 12


def draw(picture: Drawable) -> list[Path]:
    """Draw one picture or page; each of its files is there whole, or not at all.

    Raises:
        UserError: a file can't be written.
    """
    if isinstance(picture, Page):
        from sae_mlflow.plots.interactive import write_page

        return [write_page(picture)]
    if isinstance(picture, ComparisonPage):
        from sae_mlflow.plots.compare.page_content import write_comparison

        return [write_comparison(picture)]
    from sae_mlflow.plots.formats import save

    figure = _figure(picture)
    for file in picture.files:
        with whole_file(file) as temporary:
            save(figure, picture.style, temporary)
    return picture.files


def draw_all(
    pictures: Sequence[Drawable], pool: ProcessPoolExecutor | None = None
) -> Generator[list[Path], None, None]:
    """Draw pictures, handing out each one's files in turn as soon as they are there.

    Args:
        pool: of `drawing_processes`; without one, many pictures start one.
    """
    if pool is None and len(pictures) >= MANY and PROCESSES > 1:
        with drawing_processes() as own:
            yield from draw_all(pictures, own)
        return
    done = 0
    if pool is not None:
        try:
            for files in pool.map(draw, pictures):
                yield files
                done += 1
        except BrokenProcessPool:
            # short of memory, or called from a script without `if __name__ == "__main__"`,
            # which a spawned process would run again
            pass
    yield from map(draw, pictures[done:])


@contextmanager
def drawing_processes() -> Iterator[ProcessPoolExecutor | None]:
    """Processes that draw, importing what they need while this one does something else.

    None where there is only one processor. When the block is left they end at once.
    """
    if PROCESSES < 2:
        yield None
        return
    # spawned, not forked: MLflow has threads running here, whose locks a fork would copy
    pool = ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn"))
    others = set(multiprocessing.active_children())
    with _interrupts_ignored():
        for _ in range(PROCESSES):
            pool.submit(_import_libraries)
    try:
        yield pool
    finally:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Processes started within leave Ctrl-C to this one; theirs would only be more tracebacks."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _import_libraries() -> None:
    import sae_mlflow.plots.figures  # noqa: F401


def _figure(picture: Picture) -> "Figure":
    from sae_mlflow.plots import figures

    table, metric, note, style = picture.table, picture.metric, picture.note, picture.style
    match picture.kind:
        case "training_history":
            return figures.training_history(table, note, style, picture.marks)
        case "single_metric":
            return figures.single_metric(table, metric, note, style, picture.marks)
        case "all_layers":
            return figures.all_layers(table, metric, note, style, picture.left_out)
        case _:
            from sae_mlflow.plots.compare.figures import comparison

            return comparison(picture)
