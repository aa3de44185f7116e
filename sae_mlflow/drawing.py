"""Pictures to PNG files, in two processes where there are many."""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from sae_mlflow.pictures import Picture
from sae_mlflow.whole_file import whole_file

if TYPE_CHECKING:  # matplotlib and seaborn take seconds to import
    from matplotlib.figure import Figure

# A process takes about 2.5 s to import seaborn; this many pictures take longer than that.
_MANY = 12
_PROCESSES = 2


def draw(picture: Picture) -> Path:
    """Draw one picture; its file is there whole, or not at all.

    Raises:
        UserError: the file can't be written.
    """
    from sae_mlflow.looks import DPI, theme

    figure = _figure(picture)
    with whole_file(picture.path) as temporary, theme():
        figure.savefig(temporary, dpi=DPI)
    return picture.path


def draw_all(pictures: Sequence[Picture]) -> Iterator[Path]:
    """Draw pictures, handing out each file in turn as soon as it is there."""
    processes = min(_PROCESSES, os.cpu_count() or 1)
    if len(pictures) < _MANY or processes < 2:
        yield from map(draw, pictures)
        return
    # spawned, not forked: MLflow has threads running here, whose locks a fork would copy
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield from pool.map(draw, pictures)
    finally:
        pool.shutdown(cancel_futures=True)


def _figure(picture: Picture) -> "Figure":
    from sae_mlflow import figures

    match picture.kind:
        case "training_history":
            return figures.training_history(picture.table, picture.note)
        case "single_metric":
            return figures.single_metric(picture.table, picture.metric, picture.note)
        case "all_layers":
            return figures.all_layers(picture.table, picture.metric, picture.note)
