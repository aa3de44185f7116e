"""Pictures of runs: queried from the store, drawn, and logged to the run that holds their data.

A layer's pictures go to its run. What several runs share goes to their parent where they have one
in common, and else to the model's comparison run.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from sae_mlflow import naming
from sae_mlflow.errors import known
from sae_mlflow.history import REQUIRED_KEYS
from sae_mlflow.plots import frames
from sae_mlflow.plots.choice import Choice, chosen_rows
from sae_mlflow.plots.compare.pages import comparison_pages
from sae_mlflow.plots.compare.plan import Compared, comparisons
from sae_mlflow.plots.drawing import Drawable
from sae_mlflow.plots.homes import ALL_MODELS, Homes
from sae_mlflow.plots.jobs import Job, carry_out, jobs_of
from sae_mlflow.plots.left_out import left_out, unfinished
from sae_mlflow.plots.marks import NO_MARKS, health_note, marks_of
from sae_mlflow.plots.pages import all_layers_page, layer_page, run_links
from sae_mlflow.plots.pictures import (
    OVERLAY_METRICS,
    distinct,
    layer_pictures,
    overlay_pictures,
    stem,
)
from sae_mlflow.terminal import warn
from sae_mlflow.tracking.contents import FINISHED, RunRow
from sae_mlflow.tracking.trainings import finished_rows

if TYPE_CHECKING:
    from sae_mlflow.tracking.store import Store


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
    row = store.run(run_id)
    choice = choice or Choice()
    table = frames.run_table(store, [[row]], _metrics([row], choice, choice.interactive == "all"))
    homes = Homes(store, row.experiment_id)
    history, *others = _layer_jobs(store, table, [[row]], homes, choice)
    history = replace(history, slider_steps=tuple(slider_steps))
    return list(carry_out(store, [history, *others]))


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
    row = store.run(run_id)
    table = frames.run_table(store, [[row]], REQUIRED_KEYS)
    choice = replace(choice or Choice(), output_dir=None, interactive="none")
    history, *_ = _layer_jobs(store, table, [[row]], Homes(store, row.experiment_id), choice)
    return list(carry_out(store, [replace(history, slider_steps=tuple(slider_steps))]))


def draw_parent(store: "Store", parent_run_id: str, choice: Choice | None = None) -> list[str]:
    """Draw a training's cross-layer pictures, as `draw_layer_run` does a layer's.

    They go to the parent run; there are none where no layer has finished.
    """
    parent = store.run(parent_run_id)
    choice = choice or Choice()
    every = store.layer_runs(parent.experiment_id, parent_id=parent_run_id, finished=False)
    rows = [row for row in every if row.status == FINISHED]
    grouped = frames.groups(rows, "all")
    table = frames.run_table(store, grouped, _metrics(rows, choice, choice.interactive != "none"))
    homes = Homes(store, parent.experiment_id)
    lost = unfinished(every, choice)
    return list(carry_out(store, _overlay_jobs(store, table, grouped, homes, choice, lost)))


def draw_experiments(
    store: "Store",
    experiments: Sequence[str],
    choice: Choice,
    pool: ProcessPoolExecutor | None = None,
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
    experiments = list(dict.fromkeys(experiments))
    ids = [store.find_experiment(name) for name in experiments]
    rows, lost = [], []
    for name, experiment_id in zip(experiments, ids, strict=True):
        finished = finished_rows(store, name, experiment_id, choice.filter)
        every = store.layer_runs(experiment_id, finished=False, also=choice.filter)
        named = name if len(experiments) > 1 else ""
        rows += frames.among_others(finished, named)
        lost += frames.among_others(unfinished(every, choice), named)
    rows = chosen_rows(rows, known(map(repr, experiments)), choice)
    grouped = frames.groups(rows, choice.runs)
    pages = choice.interactive == "all" or (choice.interactive == "parent" and choice.comparison)
    table = frames.run_table(store, grouped, _metrics(rows, choice, pages))
    homes = Homes(store, ids[0]) if choice.log else None
    jobs = _layer_jobs(store, table, grouped, homes, choice)
    if choice.comparison:
        jobs += _overlay_jobs(store, table, grouped, homes, choice, lost)
        jobs += _comparison_jobs(store, rows, homes, choice, lost)
    if said := left_out(lost, rows):
        warn(said)
    yield from carry_out(store, jobs, pool)


def _metrics(rows: Sequence[RunRow], choice: Choice, pages: bool) -> list[str]:
    """What is read of runs: what pictures show, and for pages all that there is."""
    pictured = [choice.metric] if choice.metric else REQUIRED_KEYS
    return list(dict.fromkeys([*pictured, *(frames.per_epoch(rows) if pages else ())]))


def _layer_jobs(
    store: "Store",
    table: pd.DataFrame,
    grouped: Sequence[Sequence[RunRow]],
    homes: Homes | None,
    choice: Choice,
) -> list[Job]:
    jobs = []
    labels = frames.setting_labels(grouped)
    names = [stem(g[0].model, g[0].layer, s) for g, s in zip(grouped, labels, strict=True)]
    for group, unique in zip(grouped, distinct(names), strict=True):
        mine = table[table["run_id"].isin([row.run_id for row in group])]
        drawn = mine[mine["metric"].isin([choice.metric] if choice.metric else REQUIRED_KEYS)]
        # in its own run a picture has the plain name; elsewhere it may meet other settings'
        name = stem(group[0].model, group[0].layer) if len(group) == 1 else unique
        note, folder = frames.describe(group), _folder(choice, group[0])
        marks = marks_of(group[0].tags) if len(group) == 1 else NO_MARKS
        pictures: list[Drawable] = [
            *layer_pictures(drawn, Path(), name, choice.metric, note, marks)
        ]
        copies: list[Drawable] = [*layer_pictures(drawn, folder, unique, choice.metric)]
        if choice.interactive == "all":
            links, health = run_links(store, group), health_note(marks, {})
            said = " · ".join(filter(None, (note, health)))
            pictures.append(layer_page(mine, Path(), name, choice.metric, said, links))
            copies.append(layer_page(mine, folder, unique))
        home = homes.of(group) if homes else None
        jobs += jobs_of(pictures, copies, home, choice)
    return jobs


def _overlay_jobs(
    store: "Store",
    table: pd.DataFrame,
    grouped: Sequence[Sequence[RunRow]],
    homes: Homes | None,
    choice: Choice,
    lost: Sequence[RunRow],
) -> list[Job]:
    jobs = []
    metrics = [choice.metric] if choice.metric else OVERLAY_METRICS
    models = list(dict.fromkeys(group[0].model for group in grouped))
    for model, name in zip(models, distinct(map(stem, models)), strict=True):
        rows = [row for group in grouped for row in group if row.model == model]
        mine = table[table["model"] == model]
        drawn = mine[mine["metric"].isin(metrics)]
        note, folder = frames.describe(rows), _folder(choice, rows[0])
        said = left_out([row for row in lost if row.model == model], rows)
        overlays = overlay_pictures(drawn, Path(), name, metrics, note)
        pictures: list[Drawable] = [replace(each, left_out=said) for each in overlays]
        copies: list[Drawable] = [*overlay_pictures(drawn, folder, name, metrics)]
        if choice.interactive != "none":
            links = run_links(store, rows)
            note = " · ".join(filter(None, (note, said)))
            pictures.append(all_layers_page(mine, Path(), name, choice.metric, note, links))
            copies.append(all_layers_page(mine, folder, name))
        home = homes.shared(rows) if homes else None
        jobs += jobs_of(pictures, copies, home, choice)
    return jobs


def _comparison_jobs(
    store: "Store",
    rows: Sequence[RunRow],
    homes: Homes | None,
    choice: Choice,
    lost: Sequence[RunRow],
) -> list[Job]:
    """Of all runs; they go where all belong together."""
    compared = Compared(store, frames.groups(rows, "all"), choice.metric)
    said = left_out(lost, rows)
    drawn = [replace(picture, left_out=said) for picture in comparisons(compared)]
    if not drawn:
        return []
    pictures: list[Drawable] = [*drawn]
    if choice.interactive != "none":
        pictures += comparison_pages(drawn, run_links(store, compared.rows))
    home = homes.shared(compared.rows) if homes else None
    several = len(compared.models) > 1
    folder = naming.sanitise(ALL_MODELS) if several else naming.sanitise(compared.models[0])
    root = (choice.output_dir or Path()) / folder / naming.PLOTS_FOLDER
    copies = [picture.at(root / picture.path.name) for picture in pictures]
    return jobs_of(pictures, copies, home, choice)


def _folder(choice: Choice, row: RunRow) -> Path:
    return (choice.output_dir or Path()) / naming.sanitise(row.model) / naming.PLOTS_FOLDER
