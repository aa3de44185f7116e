"""Runs out of the store to event files, a folder each."""

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from sae_mlflow import naming
from sae_mlflow.density import read_density_table
from sae_mlflow.history import restored
from sae_mlflow.tensorboard.events import EventFile
from sae_mlflow.tracking.contents import DENSITY_TABLE, EVALUATED, EVALUATION_FOLDER, RunRow
from sae_mlflow.tracking.store import Store
from sae_mlflow.tracking.trainings import rows_of_experiment
from sae_mlflow.whole_file import check_folder

_EVENT_FILES = "events.out.tfevents.*"
_SETTINGS = ("model.name", "sae.", "train.", "text.", "activations.", "d_in", "d_sae", "seed")
FINAL_FIGURES = (
    *("val_fvu", "val_l0_norm", "val_dead_fraction", "val_reconstruction_loss", "best_val_fvu"),
    *("total_loss", "reconstruction_loss", "l0_norm", "dead_fraction", "tokens_per_second"),
    *("ce_loss_recovered", "kl_divergence"),
)
"""What stands beside a run's settings in the table of hyperparameters, as far as it has them."""


def run_folder(root: Path, experiment: str, run_name: str, run_id: str) -> Path:
    """`{root}/{experiment}/{model}_{layer}-{start of the id}`; TensorBoard names the run so."""
    return root / naming.sanitise(experiment) / f"{naming.sanitise(run_name)}-{run_id[:8]}"


def export_experiment(store: Store, experiment: str, root: Path) -> Iterator[Path]:
    """Write every layer run of an experiment, finished or not; yields each run's folder.

    What an earlier export, or the training, left in such a folder is replaced.

    Raises:
        UserError: there is no such experiment, it has no SAE runs, or a folder can't be written.
    """
    for row in reversed(rows_of_experiment(store, experiment)):
        folder = run_folder(root, experiment, row.name, row.run_id)
        export_run(store, row, folder)
        yield folder


def export_run(store: Store, row: RunRow, folder: Path) -> None:
    """One run, in the place of all event files that its folder has.

    Raises:
        UserError: the folder can't be written.
    """
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="sae_mlflow-") as scratch:
        with EventFile(Path(scratch)) as events:
            write_curves(store, row, row.metrics, events)
            write_results(store, row, events)
        for old in folder.glob(_EVENT_FILES):
            old.unlink()
        for made in Path(scratch).glob(_EVENT_FILES):
            shutil.move(made, folder / made.name)


def write_curves(store: Store, row: RunRow, metrics: Iterable[str], events: EventFile) -> None:
    """Some metrics' values, each with its step and its time."""
    for key in sorted(metrics):
        for step, value, milliseconds in store.timed_history(row.run_id, key):
            events.scalars(step, {key: restored(value)}, milliseconds / 1000)


def write_results(store: Store, row: RunRow, events: EventFile) -> None:
    """What is only there at a training's end: densities, and settings with final figures."""
    if EVALUATED in row.metrics:
        epochs = row.params.get("train.epochs", "")
        with TemporaryDirectory(prefix="sae_mlflow-") as scratch:
            place = f"runs:/{row.run_id}/{EVALUATION_FOLDER}/{DENSITY_TABLE}"
            table = read_density_table(store.download(place, Path(scratch)))
        events.density(table, int(epochs) if epochs.isdecimal() else 0)
    params = {key: value for key, value in row.params.items() if key.startswith(_SETTINGS)}
    named = {"model": row.model, "layer": row.layer}
    final = {key: restored(row.metrics[key]) for key in FINAL_FIGURES if key in row.metrics}
    events.settings(named | params, final)
