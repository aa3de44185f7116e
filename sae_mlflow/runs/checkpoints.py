"""A layer's checkpoints: when they are written, what they hold, and which one is gone on from."""

import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sae_mlflow.activations.layer import LayerActivations
from sae_mlflow.checkpoint import (
    KEPT,
    Damaged,
    checkpoints,
    read_checkpoint,
    remove_checkpoints,
    save_checkpoint,
    size_of,
)
from sae_mlflow.config import Settings
from sae_mlflow.disk import free_bytes, in_units, is_full
from sae_mlflow.errors import OutOfReach, UserError
from sae_mlflow.folders import STATE_VARIABLE, make_folder, own_checkpoints_folder, user_path
from sae_mlflow.naming import run_folder
from sae_mlflow.runs.conditions import check_data, data_of, machine_of, other_machine
from sae_mlflow.runs.guards import optional
from sae_mlflow.runs.numbers import differing, number_settings
from sae_mlflow.runs.training import Training
from sae_mlflow.tracking.contents import CHECKPOINT_FOLDER, RunRow
from sae_mlflow.tracking.open_run import OpenRun
from sae_mlflow.tracking.operations import JOURNAL_ID, is_pending
from sae_mlflow.train import Trainer
from sae_mlflow.train_state import TrainerState, Unfit, is_finite, restore, state_of

_KEPT_WEIGHTS = "good."


def checkpoints_folder(settings: Settings) -> Path:
    """Where the folders of all runs are, made where it isn't there.

    Raises:
        UserError: it can't be made.
    """
    if settings.checkpoint.dir is None:
        return make_folder(own_checkpoints_folder(), STATE_VARIABLE)
    return make_folder(user_path(settings.checkpoint.dir).absolute(), "checkpoint.dir")


@dataclass(frozen=True)
class Resumed:
    """What was found of a layer beside its trainer's state, which is in the trainer by then."""

    log: Mapping[str, Any]
    """Of the `Logbook`."""
    good: dict[str, Tensor]
    """Of its `LayerHealth`."""


class Checkpoints:
    """Those of one layer's run, beside the store."""

    def __init__(
        self, training: Training, run: OpenRun, trainer: Trainer, acts: LayerActivations
    ) -> None:
        self._training = training
        self._run = run
        self._trainer = trainer
        self._acts = acts
        earlier = training.earlier.get(acts.site.label)
        self._folder = _folder_of(checkpoints_folder(training.settings), run.run_id, earlier)
        self._last = time.monotonic()
        self._warned = False
        self._in_run = [] if earlier is None else self._logged()
        """Artifacts of the run, the newest last."""
        self._passed_over: list[Path | str] = []

    @property
    def due(self) -> bool:
        """Whether the last one is older than `checkpoint.every_seconds`."""
        return time.monotonic() - self._last >= self._training.settings.checkpoint.every_seconds

    def write(self, log: Mapping[str, Any], good: Mapping[str, Tensor]) -> None:
        """Save everything; what can't be written costs a warning, said once, and the next time it
        is tried again.

        Args:
            log: of the `Logbook`.
            good: of the `LayerHealth`.
        """
        self._last = time.monotonic()
        label = self._acts.site.label
        if not is_finite(self._trainer.sae):
            # what was saved before may still be of use
            self._warn(f"{label} isn't saved any more: its weights are no numbers.")
            return
        state = state_of(self._trainer)
        tensors = state.tensors | {_KEPT_WEIGHTS + name: value for name, value in good.items()}
        facts = {
            "lock": self._training.lock,
            "model": self._training.settings.model.label,
            "layer": label,
            "settings": number_settings(self._training.settings),
            "data": data_of(self._acts),
            "machine": machine_of(self._trainer),
            "trainer": state.numbers,
            "log": log,
        }
        try:
            with self._training.clock.stage("checkpoint"):
                useless = [place for place in self._passed_over if isinstance(place, Path)]
                path = save_checkpoint(self._folder, tensors, facts, useless)
        except OSError as error:
            self._warn(self._unwritten(error, size_of(tensors)))
            return
        self._warned = False
        if self._training.settings.checkpoint.log:
            self._log(path)
        self._passed_over.clear()

    def restore(self) -> Resumed | None:
        """Put the newest state that is whole into the trainer; None where there is none.

        Raises:
            UserError: the activations aren't those that it was trained on.
        """
        display = self._training.display
        with tempfile.TemporaryDirectory() as scratch:
            for place in self._places():
                try:
                    path = self._fetched(place, Path(scratch))
                    saved = read_checkpoint(path)
                    if found := differing(self._training.settings, saved.facts["settings"]):
                        raise Damaged(f"it was made with other settings: {'; '.join(found)}")
                    check_data(self._acts, saved.facts["data"], display.warn)
                    restore(self._trainer, TrainerState(saved.tensors, saved.facts["trainer"]))
                except (Damaged, Unfit) as error:
                    display.warn(f"{place} is not gone on from: {error}.")
                    self._passed_over.append(place)
                    continue
                if path != place:  # so that numbers go on from it
                    with suppress(OSError):
                        self._folder.mkdir(parents=True, exist_ok=True)
                        shutil.move(path, self._folder / path.name)
                others = other_machine(self._trainer, saved.facts["machine"])
                if others:
                    display.warn(f"{self._acts.site.label} {others}")
                return Resumed(saved.facts["log"], _good(saved.tensors))
        return None

    def remove(self) -> None:
        """The run has what came of it."""
        remove_checkpoints(self._folder)
        if self._in_run:
            self._run.remove_artifacts(CHECKPOINT_FOLDER)

    def _places(self) -> list[Path | str]:
        """All there are, the newest first: files here, and artifacts of the run by their paths."""
        files: dict[str, Path | str] = {path.name: path for path in checkpoints(self._folder)}
        logged = {artifact.rpartition("/")[2]: artifact for artifact in self._in_run}
        newest_first = sorted({*files, *logged}, reverse=True)
        return [each for n in newest_first for each in (files.get(n), logged.get(n)) if each]

    def _logged(self) -> list[str]:
        label = self._acts.site.label
        with optional(self._training.display, f"{label}'s run can't be asked for checkpoints"):
            return sorted(self._training.store.artifacts(self._run.run_id, CHECKPOINT_FOLDER))
        return []

    def _fetched(self, place: Path | str, scratch: Path) -> Path:
        if isinstance(place, Path):
            return place
        try:
            return self._training.store.download(f"runs:/{self._run.run_id}/{place}", scratch)
        except OutOfReach:  # what is in it may be whole
            raise
        except UserError as error:
            raise Damaged(str(error).removesuffix(".")) from None

    def _log(self, path: Path) -> None:
        self._run.log_file(path, CHECKPOINT_FOLDER)
        useless = [place for place in self._in_run if place in self._passed_over]
        useful = [place for place in self._in_run if place not in useless]
        self._in_run = [*useful, f"{CHECKPOINT_FOLDER}/{path.name}"]
        for place in [*useless, *self._in_run[:-KEPT]]:
            self._run.remove_artifacts(place)
        del self._in_run[:-KEPT]

    def _unwritten(self, error: OSError, n_bytes: int) -> str:
        reason = error.strerror
        if is_full(error):
            reason = f"the disk is full ({in_units(free_bytes(self._folder))} free)"
        last = checkpoints(self._folder)
        kept = f"The last one stays: {last[0]}." if last else "There is none yet."
        return (
            f"{self._acts.site.label}: its checkpoint ({in_units(n_bytes)}) can't be written to "
            f"{self._folder}: {reason}. The training goes on, and tries again. {kept} Make room, "
            "or point checkpoint.dir at another disk."
        )

    def _warn(self, text: str) -> None:
        """Once, until it went well again."""
        if not self._warned:
            self._training.display.warn(text)
        self._warned = True


def remove_finished(training: Training, row: RunRow) -> None:
    """Those of a run that was killed after it had finished, and before they were removed."""
    remove_checkpoints(_folder_of(checkpoints_folder(training.settings), row.run_id, row))
    with optional(training.display, f"{row.layer}'s run may still hold checkpoints"):
        if training.store.artifacts(row.run_id, CHECKPOINT_FOLDER):
            training.store.reopen(row.run_id).remove_artifacts(CHECKPOINT_FOLDER)


def _folder_of(root: Path, run_id: str, earlier: RunRow | None) -> Path:
    """A run's, under the pending id that it had where its real one came too late."""
    pending = "" if earlier is None else earlier.tags.get(JOURNAL_ID, "")  # anybody may write it
    if is_pending(pending) and (root / pending).is_dir():
        return root / pending
    return root / run_folder(run_id)


def _good(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(_KEPT_WEIGHTS): value
        for name, value in tensors.items()
        if name.startswith(_KEPT_WEIGHTS)
    }
