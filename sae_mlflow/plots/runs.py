"""Pictures and pages of runs: queried from the store, drawn, and logged to the runs they are of.

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
from sae_mlflow.history import REQUIRED_KEYS
from sae_mlflow.plots.choice import Choice, Interactive, chosen_rows, finished_rows
from sae_mlflow.plots.drawing import Drawable, draw_all
from sae_mlflow.plots.homes import Homes
from sae_mlflow.plots.pages import all_layers_page, layer_page, run_links
from sae_mlflow.plots.pictures import (
    OVERLAY_METRICS,
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


@dataclass(frozen=True)
class _Job:
    picture: Drawable
    home: str | None
    """The run that it is logged to; None logs it nowhere."""
    copy: Path | None = None
    """The file that it also becomes."""
    slider_steps: tuple[int, ...] = ()
    """Where it stands on the slider of the UI's image panel; nowhere for most pictures."""


def draw_layer_run(
    store: "Store",
    run_id: str,
    output_dir: Path | None = None,
    slider_steps: Sequence[int] = (),
    interactive: Interactive = "parent",
) -> list[str]:
    """Draw a layer's two pictures from the store and log them to its run.

    Args:
        output_dir: also write `{output_dir}/{model}/training_plots/`.
        slider_steps: where the training history stands on the slider of the UI's image panel.
        interactive: `all` makes the layer's page too.

    Returns:
        Their addresses, `runs:/ID/training_plots/...`, and the files' paths; none for what has
        no data.
    """
    from sae_mlflow.plots import frames

    row = store.run(run_id)
    choice = Choice(output_dir=output_dir, interactive=interactive)
    table = frames.run_table(store, [[row]], _metrics([row], choice, interactive == "all"))
    homes = Homes(store, row.experiment_id)
    history, *others = _layer_jobs(store, table, [[row]], homes, choice)
    history = replace(history, slider_steps=tuple(slider_steps))
    return list(_carry_out(store, [history, *others]))


def draw_live(store: "Store", run_id: str, slider_steps: Sequence[int]) -> list[str]:
    """Draw a layer's training history as far as it has come, also for the UI's image slider.

    Args:
        slider_steps: where on it.

    Returns:
        Its address, `runs:/ID/training_plots/...`.
    """
    from sae_mlflow.plots import frames

    row = store.run(run_id)
    table = frames.run_table(store, [[row]], REQUIRED_KEYS)
    homes = Homes(store, row.experiment_id)
    history, *_ = _layer_jobs(store, table, [[row]], homes, Choice(interactive="none"))
    return list(_carry_out(store, [replace(history, slider_steps=tuple(slider_steps))]))


def draw_parent(
    store: "Store",
    parent_run_id: str,
    output_dir: Path | None = None,
    interactive: Interactive = "parent",
) -> list[str]:
    """Draw a training's cross-layer pictures, as `draw_layer_run` does a layer's.

    They go to the parent run; there are none where no layer has finished.

    Args:
        interactive: `none` leaves the page of all layers out.
    """
    from sae_mlflow.plots import frames

    parent = store.run(parent_run_id)
    rows = store.layer_runs(parent.experiment_id, parent_id=parent_run_id)
    grouped = frames.groups(rows, "all")
    choice = Choice(output_dir=output_dir, interactive=interactive)
    table = frames.run_table(store, grouped, _metrics(rows, choice, interactive != "none"))
    homes = Homes(store, parent.experiment_id)
    return list(_carry_out(store, _overlay_jobs(store, table, grouped, homes, choice)))


def draw_experiment(
    store: "Store", experiment: str, choice: Choice, pool: "ProcessPoolExecutor | None" = None
) -> Iterator[str]:
    """Draw what is chosen of an experiment; yields each artifact's address and file's path.

    Args:
        pool: of `drawing.drawing_processes`, so that they start while the store is read.

    Raises:
        UserError: there is no such experiment, it has no (finished) SAE runs, nothing in it is
            what was chosen, or a place can't be written.
    """
    from sae_mlflow.plots import frames

    experiment_id = store.find_experiment(experiment)
    rows = chosen_rows(finished_rows(store, experiment, experiment_id), experiment, choice)
    grouped = frames.groups(rows, choice.runs)
    pages = choice.interactive == "all" or (choice.interactive == "parent" and choice.comparison)
    table = frames.run_table(store, grouped, _metrics(rows, choice, pages))
    homes = Homes(store, experiment_id) if choice.log else None
    jobs = _layer_jobs(store, table, grouped, homes, choice)
    if choice.comparison:
        jobs += _overlay_jobs(store, table, grouped, homes, choice)
    yield from _carry_out(store, jobs, pool)


def _metrics(rows: Sequence["RunRow"], choice: Choice, pages: bool) -> list[str]:
    """What is read of runs: what pictures show, and for pages all that there is."""
    from sae_mlflow.plots import frames

    pictured = [choice.metric] if choice.metric else REQUIRED_KEYS
    return list(dict.fromkeys([*pictured, *(frames.per_epoch(rows) if pages else ())]))


def _layer_jobs(
    store: "Store",
    table: "pd.DataFrame",
    grouped: Sequence[Sequence["RunRow"]],
    homes: Homes | None,
    choice: Choice,
) -> list[_Job]:
    from sae_mlflow.plots import frames

    jobs = []
    labels = frames.setting_labels(grouped)
    names = [stem(g[0].model, g[0].layer, s) for g, s in zip(grouped, labels, strict=True)]
    for group, unique in zip(grouped, distinct(names), strict=True):
        mine = table[table["run_id"].isin([row.run_id for row in group])]
        drawn = mine[mine["metric"].isin([choice.metric] if choice.metric else REQUIRED_KEYS)]
        # in its own run a picture has the plain name; elsewhere it may meet other settings'
        name = stem(group[0].model, group[0].layer) if len(group) == 1 else unique
        note, folder = frames.describe(group), _folder(choice, group[0])
        pictures: list[Drawable] = [*layer_pictures(drawn, Path(), name, choice.metric, note)]
        copies: list[Drawable] = [*layer_pictures(drawn, folder, unique, choice.metric)]
        if choice.interactive == "all":
            links = run_links(store, group)
            pictures.append(layer_page(mine, Path(), name, choice.metric, note, links))
            copies.append(layer_page(mine, folder, unique))
        home = homes.of(group) if homes else None
        jobs += _jobs(pictures, copies, home, choice)
    return jobs


def _overlay_jobs(
    store: "Store",
    table: "pd.DataFrame",
    grouped: Sequence[Sequence["RunRow"]],
    homes: Homes | None,
    choice: Choice,
) -> list[_Job]:
    from sae_mlflow.plots import frames

    jobs = []
    metrics = [choice.metric] if choice.metric else OVERLAY_METRICS
    models = list(dict.fromkeys(group[0].model for group in grouped))
    for model, name in zip(models, distinct(map(stem, models)), strict=True):
        rows = [row for group in grouped for row in group if row.model == model]
        mine = table[table["model"] == model]
        drawn = mine[mine["metric"].isin(metrics)]
        note, folder = frames.describe(rows), _folder(choice, rows[0])
        pictures: list[Drawable] = [*overlay_pictures(drawn, Path(), name, metrics, note)]
        copies: list[Drawable] = [*overlay_pictures(drawn, folder, name, metrics)]
        if choice.interactive != "none":
            links = run_links(store, rows)
            pictures.append(all_layers_page(mine, Path(), name, choice.metric, note, links))
            copies.append(all_layers_page(mine, folder, name))
        home = homes.shared(rows) if homes else None
        jobs += _jobs(pictures, copies, home, choice)
    return jobs


def _folder(choice: Choice, row: "RunRow") -> Path:
    return (choice.output_dir or Path()) / naming.sanitise(row.model) / naming.PLOTS_FOLDER


def _jobs(
    pictures: Sequence[Drawable], copies: Sequence[Drawable], home: str | None, choice: Choice
) -> list[_Job]:
    return [
        _Job(picture, home, copy.path if choice.output_dir else None)
        for picture, copy in zip(pictures, copies, strict=True)
    ]


def _carry_out(
    store: "Store", jobs: Sequence[_Job], pool: "ProcessPoolExecutor | None" = None
) -> Iterator[str]:
    """Draw what has data; log and copy a run's pictures as soon as they are there."""
    for job in jobs:
        if not job.picture.has_data:
            what = job.picture.metric or "training metrics"
            _warn(f"{job.picture.path.name} isn't drawn: no {what} in the store.")
    with_data = [job for job in jobs if job.picture.has_data]
    by_home = [(home, list(group)) for home, group in groupby(with_data, lambda job: job.home)]
    with TemporaryDirectory(prefix="sae_mlflow-") as scratch:
        folders = [Path(scratch) / str(n) for n in range(len(by_home))]
        pictures = [
            job.picture.at(folder / job.picture.path.name)
            for folder, (_, group) in zip(folders, by_home, strict=True)
            for job in group
        ]
        # closed, so that no process goes on drawing into a folder that is gone
        with closing(draw_all(pictures, pool)) as drawn:
            for folder, (home, group) in zip(folders, by_home, strict=True):
                for job, picture in zip(group, drawn, strict=False):  # the rest is for the next
                    if job.copy:
                        yield _copy(picture, job.copy)
                    if home and job.slider_steps:
                        store.log_image(home, picture, job.picture.kind, job.slider_steps)
                if home:
                    yield from _log(store, home, folder)


def _copy(picture: Path, to: Path) -> str:
    with whole_file(to) as temporary:
        shutil.copyfile(picture, temporary)
    return str(to)


def _log(store: "Store", run_id: str, folder: Path) -> list[str]:
    addresses = store.log_plots(run_id, folder)
    if addresses is None:
        names = ", ".join(sorted(file.name for file in folder.iterdir()))
        _warn(f"not logged: {names}: run {run_id} has been deleted.")
    return addresses or []


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)
