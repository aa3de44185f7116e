"""Pictures of runs: queried from the store, drawn, and logged to the run that holds their data.

A layer's pictures go to its run. What several runs share goes to their parent where they have one
in common, and else to the model's comparison run.
"""

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from sae_mlflow import naming
from sae_mlflow.errors import known
from sae_mlflow.history import REQUIRED_KEYS
from sae_mlflow.plots.choice import Choice, chosen_rows, finished_rows
from sae_mlflow.plots.drawing import draw_all
from sae_mlflow.plots.marks import NO_MARKS, marks_of
from sae_mlflow.plots.pictures import (
    OVERLAY_METRICS,
    Picture,
    distinct,
    layer_pictures,
    overlay_pictures,
    stem,
)
from sae_mlflow.whole_file import whole_file

if TYPE_CHECKING:  # pandas and mlflow take seconds to import
    from concurrent.futures import ProcessPoolExecutor

    import pandas as pd

    from sae_mlflow.tracking.contents import RunRow
    from sae_mlflow.tracking.store import Store


ALL_MODELS = "all models"
"""In a model's place, of what several share."""


@dataclass(frozen=True)
class _Job:
    picture: Picture
    home: str | None
    """The run that it is logged to; None logs it nowhere."""
    copy: Path | None = None
    """The files that it also becomes, without their ending."""
    slider_steps: tuple[int, ...] = ()
    """Where it stands on the slider of the UI's image panel; nowhere for most pictures."""


def draw_layer_run(
    store: "Store", run_id: str, choice: Choice | None = None, slider_steps: Sequence[int] = ()
) -> list[str]:
    """Draw a layer's two pictures from the store and log them to its run.

    Args:
        choice: how they are drawn, and where files go as well.
        slider_steps: where the training history stands on the slider of the UI's image panel.

    Returns:
        Their addresses, `runs:/ID/training_plots/...`, and the files' paths; none for what has
        no data.
    """
    from sae_mlflow.plots import frames

    row = store.run(run_id)
    table = frames.run_table(store, [[row]], REQUIRED_KEYS)
    homes = _Homes(store, row.experiment_id)
    history, *others = _layer_jobs(table, [[row]], homes, choice or Choice())
    history = replace(history, slider_steps=tuple(slider_steps))
    return list(_carry_out(store, [history, *others]))


def draw_live(
    store: "Store", run_id: str, slider_steps: Sequence[int], choice: Choice | None = None
) -> list[str]:
    """Draw a layer's training history as far as it has come, also for the UI's image slider.

    Args:
        slider_steps: where on it.
        choice: how it is drawn.

    Returns:
        Its address, `runs:/ID/training_plots/...`.
    """
    from sae_mlflow.plots import frames

    row = store.run(run_id)
    table = frames.run_table(store, [[row]], REQUIRED_KEYS)
    choice = replace(choice or Choice(), output_dir=None)
    history, *_ = _layer_jobs(table, [[row]], _Homes(store, row.experiment_id), choice)
    return list(_carry_out(store, [replace(history, slider_steps=tuple(slider_steps))]))


def draw_parent(store: "Store", parent_run_id: str, choice: Choice | None = None) -> list[str]:
    """Draw a training's cross-layer pictures, as `draw_layer_run` does a layer's.

    They go to the parent run; there are none where no layer has finished.
    """
    from sae_mlflow.plots import frames

    parent = store.run(parent_run_id)
    rows = store.layer_runs(parent.experiment_id, parent_id=parent_run_id)
    grouped = frames.groups(rows, "all")
    table = frames.run_table(store, grouped, OVERLAY_METRICS)
    homes = _Homes(store, parent.experiment_id)
    return list(_carry_out(store, _overlay_jobs(table, grouped, homes, choice or Choice())))


def draw_experiments(
    store: "Store",
    experiments: Sequence[str],
    choice: Choice,
    pool: "ProcessPoolExecutor | None" = None,
) -> Iterator[str]:
    """Draw what is chosen of experiments; yields each artifact's address and file's path.

    Runs of several experiments are held against each other as if they were one's. What they share
    goes to a run of the first.

    Args:
        pool: of `drawing.drawing_processes`, so that they start while the store is read.

    Raises:
        UserError: there is no such experiment, it has no (finished) SAE runs, nothing in it is
            what was chosen, or a place can't be written.
    """
    from sae_mlflow.plots import frames

    experiments = list(dict.fromkeys(experiments))
    ids = [store.find_experiment(name) for name in experiments]
    rows = [
        row
        for name, experiment_id in zip(experiments, ids, strict=True)
        for row in _of_experiment(store, name, experiment_id, choice, len(experiments) > 1)
    ]
    rows = chosen_rows(rows, known(map(repr, experiments)), choice)
    grouped = frames.groups(rows, choice.runs)
    table = frames.run_table(store, grouped, [choice.metric] if choice.metric else REQUIRED_KEYS)
    homes = _Homes(store, ids[0]) if choice.log else None
    jobs = _layer_jobs(table, grouped, homes, choice)
    if choice.comparison:
        jobs += _overlay_jobs(table, grouped, homes, choice)
        jobs += _comparison_jobs(store, rows, homes, choice)
    yield from _carry_out(store, jobs, pool)


def _of_experiment(
    store: "Store", name: str, experiment_id: str, choice: Choice, among_others: bool
) -> list["RunRow"]:
    """Finished runs; among those of other experiments, theirs is one of their settings."""
    from sae_mlflow.plots.frames import EXPERIMENT

    rows = finished_rows(store, name, experiment_id, choice.filter)
    if not among_others:
        return rows
    return [replace(row, params={**row.params, EXPERIMENT: name}) for row in rows]


class _Homes:
    """The run that a picture of given runs is logged to."""

    def __init__(self, store: "Store", experiment_id: str) -> None:
        self._store, self._experiment_id = store, experiment_id
        self._comparisons: dict[str, str] = {}
        self._there: dict[str, bool] = {}

    def of(self, rows: Sequence["RunRow"]) -> str:
        """One run's pictures belong to itself."""
        return rows[0].run_id if len(rows) == 1 else self.shared(rows)

    def shared(self, rows: Sequence["RunRow"]) -> str:
        """The parent that all have in common, if it is still there; else the comparison run."""
        parents = {row.parent_id for row in rows}
        parent = parents.pop() if len(parents) == 1 else None
        if parent and parent not in self._there:
            self._there[parent] = self._store.is_there(parent)
        if parent and self._there[parent]:
            return parent
        model = rows[0].model if len({row.model for row in rows}) == 1 else ALL_MODELS
        if model not in self._comparisons:
            run = self._store.comparison_run(self._experiment_id, model)
            self._comparisons[model] = run.run_id
        return self._comparisons[model]


def _layer_jobs(
    table: "pd.DataFrame",
    grouped: Sequence[Sequence["RunRow"]],
    homes: _Homes | None,
    choice: Choice,
) -> list[_Job]:
    from sae_mlflow.plots import frames

    jobs = []
    labels = frames.setting_labels(grouped)
    names = [stem(g[0].model, g[0].layer, s) for g, s in zip(grouped, labels, strict=True)]
    for group, unique in zip(grouped, distinct(names), strict=True):
        mine = table[table["run_id"].isin([row.run_id for row in group])]
        # in its own run a picture has the plain name; elsewhere it may meet other settings'
        name = stem(group[0].model, group[0].layer) if len(group) == 1 else unique
        note = frames.describe(group)
        marks = marks_of(group[0].tags) if len(group) == 1 else NO_MARKS
        pictures = layer_pictures(mine, Path(), name, choice.metric, note, marks)
        copies = layer_pictures(mine, _folder(choice, group[0]), unique, choice.metric)
        home = homes.of(group) if homes else None
        jobs += _jobs(pictures, copies, home, choice)
    return jobs


def _overlay_jobs(
    table: "pd.DataFrame",
    grouped: Sequence[Sequence["RunRow"]],
    homes: _Homes | None,
    choice: Choice,
) -> list[_Job]:
    from sae_mlflow.plots import frames

    jobs = []
    metrics = [choice.metric] if choice.metric else OVERLAY_METRICS
    models = list(dict.fromkeys(group[0].model for group in grouped))
    for model, name in zip(models, distinct(map(stem, models)), strict=True):
        rows = [row for group in grouped for row in group if row.model == model]
        mine = table[(table["model"] == model) & table["metric"].isin(metrics)]
        pictures = overlay_pictures(mine, Path(), name, metrics, frames.describe(rows))
        copies = overlay_pictures(mine, _folder(choice, rows[0]), name, metrics)
        home = homes.shared(rows) if homes else None
        jobs += _jobs(pictures, copies, home, choice)
    return jobs


def _comparison_jobs(
    store: "Store", rows: Sequence["RunRow"], homes: _Homes | None, choice: Choice
) -> list[_Job]:
    """Of all runs; they go where all belong together."""
    from sae_mlflow.plots import frames
    from sae_mlflow.plots.compare.plan import Compared, comparisons

    compared = Compared(store, frames.groups(rows, "all"), choice.metric)
    pictures = comparisons(compared)
    if not pictures:
        return []
    home = homes.shared(compared.rows) if homes else None
    several = len(compared.models) > 1
    folder = naming.sanitise(ALL_MODELS) if several else naming.sanitise(compared.models[0])
    root = (choice.output_dir or Path()) / folder / naming.PLOTS_FOLDER
    copies = [picture.at(root / picture.path.name) for picture in pictures]
    return _jobs(pictures, copies, home, choice)


def _folder(choice: Choice, row: "RunRow") -> Path:
    return (choice.output_dir or Path()) / naming.sanitise(row.model) / naming.PLOTS_FOLDER


def _jobs(
    pictures: Sequence[Picture], copies: Sequence[Picture], home: str | None, choice: Choice
) -> list[_Job]:
    return [
        _Job(
            picture.drawn(choice.style, choice.formats),
            home,
            copy.path if choice.output_dir else None,
        )
        for picture, copy in zip(pictures, copies, strict=True)
    ]


def _carry_out(
    store: "Store", jobs: Sequence[_Job], pool: "ProcessPoolExecutor | None" = None
) -> Iterator[str]:
    """Draw what has data; log and copy a run's pictures as soon as they are there."""
    for job in jobs:
        if not job.picture.has_data:
            what = job.picture.metric or "training metrics"
            _warn(f"{job.picture.files[0].name} isn't drawn: no {what} in the store.")
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


def _with_png(job: _Job) -> Picture:
    """What is to be drawn: the UI's slider takes a PNG, whether or not one is asked for."""
    picture = job.picture
    if not job.slider_steps or "png" in picture.formats:
        return picture
    return replace(picture, formats=(*picture.formats, "png"))


def _show_on_slider(store: "Store", run_id: str, job: _Job, files: Sequence[Path]) -> None:
    png = next(file for file in files if file.suffix == ".png")
    store.log_image(run_id, png, job.picture.kind, job.slider_steps)
    if "png" not in job.picture.formats:
        png.unlink()


def _copy(folder: Path, picture: Picture, to: Path) -> Iterator[str]:
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
        _warn(f"not logged: {names}: run {run_id} has been deleted.")
    return addresses or []


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)
