"""Pictures and pages on their way: drawn, copied, logged to the run that holds their data."""

import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from sae_mlflow.plots.choice import Choice
from sae_mlflow.plots.drawing import Drawable, draw_all
from sae_mlflow.plots.pictures import Picture
from sae_mlflow.terminal import warn
from sae_mlflow.whole_file import whole_file

if TYPE_CHECKING:
    from sae_mlflow.tracking.store import Store


@dataclass(frozen=True)
class Job:
    picture: Drawable
    home: str | None
    """The run that it is logged to; None logs it nowhere."""
    copy: Path | None = None
    """The files that it also becomes, without their ending."""
    slider_steps: tuple[int, ...] = ()
    """Where it stands on the slider of the UI's image panel; nowhere for most pictures."""


def jobs_of(
    pictures: Sequence[Drawable], copies: Sequence[Drawable], home: str | None, choice: Choice
) -> list[Job]:
    return [
        Job(
            picture.drawn(choice.style, choice.formats),
            home,
            copy.path if choice.output_dir else None,
        )
        for picture, copy in zip(pictures, copies, strict=True)
    ]


def carry_out(
    store: "Store", jobs: Sequence[Job], pool: ProcessPoolExecutor | None = None
) -> Iterator[str]:
    """Draw what has data; log and copy a run's pictures as soon as they are there."""
    for job in jobs:
        if not job.picture.has_data:
            what = job.picture.metric or "training metrics"
            warn(f"{job.picture.files[0].name} isn't drawn: no {what} in the store.")
    with_data = [job for job in jobs if job.picture.has_data]
    by_home = [(home, list(group)) for home, group in groupby(with_data, lambda job: job.home)]
    with TemporaryDirectory(prefix="sae_mlflow-") as scratch:
        folders = [Path(scratch) / str(n) for n in range(len(by_home))]
        pictures = [
            _with_png(job).at(folder / job.picture.path.name)
            for folder, (_, group) in zip(folders, by_home, strict=True)
            for job in group
        ]
        # closed, so that no process goes on drawing into a folder that is gone
        with closing(draw_all(pictures, pool)) as drawn:
            for folder, (home, group) in zip(folders, by_home, strict=True):
                for job, files in zip(group, drawn, strict=False):  # the rest is for the next
                    if home and job.slider_steps:
                        _show_on_slider(store, home, job, files)
                    if job.copy:
                        yield from _copy(folder, job.picture, job.copy)
                if home:
                    yield from _log(store, home, folder)


def _with_png(job: Job) -> Drawable:
    """What is to be drawn: the UI's slider takes a PNG, whether or not one is asked for."""
    picture = job.picture
    if not isinstance(picture, Picture) or not job.slider_steps or "png" in picture.formats:
        return picture
    return replace(picture, formats=(*picture.formats, "png"))


def _show_on_slider(store: "Store", run_id: str, job: Job, files: Sequence[Path]) -> None:
    assert isinstance(job.picture, Picture)
    png = next(file for file in files if file.suffix == ".png")
    store.log_image(run_id, png, job.picture.kind, job.slider_steps)
    if "png" not in job.picture.formats:
        png.unlink()


def _copy(folder: Path, picture: Drawable, to: Path) -> Iterator[str]:
    """Copy a picture's files, which were drawn into a folder."""
    for file in picture.at(folder / picture.path.name).files:
        copy = to.with_name(to.name + file.suffix)
        with whole_file(copy) as temporary:
            shutil.copyfile(file, temporary)
        yield str(copy)


def _log(store: "Store", run_id: str, folder: Path) -> list[str]:
    addresses = store.log_plots(run_id, folder)
    if addresses is None:
        names = ", ".join(sorted(file.name for file in folder.iterdir()))
        warn(f"not logged: {names}: run {run_id} has been deleted.")
    return addresses or []
