"""What the store takes of a layer's run, taken by TensorBoard as well where that is asked for."""

from collections.abc import Mapping
from pathlib import Path

from sae_mlflow.config import Settings
from sae_mlflow.reporting.display import Display
from sae_mlflow.runs.guards import optional
from sae_mlflow.runs.later import when_reachable
from sae_mlflow.runs.training import Training
from sae_mlflow.tensorboard.events import EventFile, check_installed
from sae_mlflow.tensorboard.export import export_run, run_folder, write_curves, write_results
from sae_mlflow.tracking.open_run import OpenRun
from sae_mlflow.whole_file import check_folder

TENSORBOARD = "tensorboard"


class Mirror:
    """Takes nothing."""

    def log(self, step: int, metrics: Mapping[str, float], made_at: int) -> None:
        """
        Args:
            made_at: milliseconds since 1970.
        """

    def finish(self) -> None: ...


class EventMirror(Mirror):
    """Event files in a folder; one that can't be written costs a warning, never the training."""

    def __init__(self, folder: Path, display: Display) -> None:
        self._folder = folder
        self._display = display
        self._file: EventFile | None = None
        self._trouble = False

    def log(self, step: int, metrics: Mapping[str, float], made_at: int) -> None:
        if self._trouble:
            return
        self._trouble = True
        with optional(self._display, f"TensorBoard's files in {self._folder} aren't complete"):
            self._file = self._file or EventFile(self._folder)
            self._file.scalars(step, metrics, made_at / 1000)
            self._trouble = False

    def finish(self) -> None:
        if self._file is not None:
            self._file.close()


def check_trackers(settings: Settings) -> None:
    """Raise a UserError, before anything is trained, where one can't be had."""
    if TENSORBOARD in settings.trackers:
        check_installed("trackers: [mlflow, tensorboard]")
        check_folder(settings.output.tensorboard_folder, "output.tensorboard_dir")


def open_mirror(training: Training, run: OpenRun, resumed: bool = False) -> Mirror:
    """Of one layer's run.

    Args:
        resumed: the run has metrics already; what was mirrored of them is mirrored anew.
    """
    if TENSORBOARD not in training.settings.trackers:
        return Mirror()
    folder = _folder(training, run.name, run.run_id)
    if resumed:
        with optional(training.display, f"TensorBoard's files in {folder} aren't complete"):
            export_run(training.store, training.store.run(run.run_id), folder)
    return EventMirror(folder, training.display)


def complete_mirrors(training: Training) -> None:
    """Add what is there once all layers are trained and evaluated, out of the store."""
    if TENSORBOARD not in training.settings.trackers:
        return
    with optional(training.display, "TensorBoard's files aren't complete"):
        later = f"sae-mlflow export-tensorboard --experiment {training.experiment.name}"
        when_reachable(training, lambda: _complete(training), later)


def _complete(training: Training) -> None:
    for layer in training.rows:
        row = training.store.run(layer.run_id)
        folder = _folder(training, row.name, row.run_id)
        pending = _folder(training, row.name, training.store.pending_id(row.run_id))
        if pending != folder and pending.exists():  # it was opened while the store was away
            pending.rename(folder)
        if training.old is not None:  # some of it may be there already
            with optional(training.display, f"TensorBoard's files in {folder} aren't complete"):
                export_run(training.store, row, folder)
            continue
        with (
            optional(training.display, f"TensorBoard's files in {folder} aren't complete"),
            EventFile(folder) as events,
        ):
            write_curves(training.store, row, layer.evaluation, events)
            write_results(training.store, row, events)


def _folder(training: Training, run_name: str, run_id: str) -> Path:
    root = training.settings.output.tensorboard_folder
    return run_folder(root, training.experiment.name, run_name, run_id)
