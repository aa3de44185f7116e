"""What is made out of the store: at once where it can be reached, else when it is back.

What is put off stands in the journal, for this training or, once that has ended, `sae-mlflow sync`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from sae_mlflow.config import Settings
from sae_mlflow.errors import OutOfReach, UserError
from sae_mlflow.folders import is_file, user_path
from sae_mlflow.plots.runs import draw_layer_run, draw_parent
from sae_mlflow.registry import register_run
from sae_mlflow.reporting.display import Display
from sae_mlflow.runs.outputs import pictures
from sae_mlflow.runs.training import Training
from sae_mlflow.tracking.journalled import JournalledStore, Task
from sae_mlflow.tracking.refusals import is_away

T = TypeVar("T")

_TIMES = 3  # that work is begun whose store goes away meanwhile
_LAYER, _PARENT, _REGISTER = "pictures of a layer", "pictures of all layers", "registration"


def layer_pictures(training: Training, run_id: str, slider_steps: Sequence[int]) -> Task:
    settings = _plot_settings(training.settings)
    return Task(_LAYER, run_id, {"settings": settings, "slider_steps": list(slider_steps)})


def parent_pictures(training: Training, run_id: str) -> Task:
    return Task(_PARENT, run_id, {"settings": _plot_settings(training.settings)})


def registration(run_id: str) -> Task:
    return Task(_REGISTER, run_id, {})


def now_or_later(training: Training, task: Task, folder: Path | None = None) -> list[str]:
    """Do a task, or put it off where the store is away; the addresses of what it has made.

    Args:
        folder: the SAE's files that a registration needs, where they are at hand.

    Raises:
        UserError: it can't be done, now or later.
    """
    store = training.store
    if store.flush():
        try:
            return _do(store, replace(task, run_id=store.real_id(task.run_id)), folder)
        except Exception as error:
            if not is_away(error):
                raise
    store.put_off(task.kind, task.run_id, task.options)
    training.display.warn(f"Put off until the tracking store is back: {task.kind}.")
    return []


def catch_up(
    store: JournalledStore, say: Callable[[str], None], warn: Callable[[str], None]
) -> int:
    """Do what was put off, as far as the store has come back; how many tasks."""
    n_done = 0
    for task in store.tasks():
        if not store.flush():
            break
        try:
            for made in _do(store, task):
                say(f"Made up for: {made}")
            n_done += 1
        except Exception as error:
            if is_away(error):
                break
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            warn(f"What was put off can't be made up for: {task.kind} ({kind}{error})")
        store.task_done(task)
    return n_done


def when_reachable(training: Training, work: Callable[[], T], later: str = "") -> T:
    """What reads the store, once that has everything; again where it goes away meanwhile.

    It is waited for as long as the settings say.

    Args:
        work: may be begun again.
        later: the command that does it later.

    Raises:
        OutOfReach: the store is away still.
    """
    store, seconds = training.store, training.settings.tracking.wait_seconds
    ready = store.flush()
    for _ in range(_TIMES):
        if not ready:
            say_waiting(store, training.display, seconds)
            if not store.wait(seconds):
                break
        settle_ids(training)
        try:
            return work()
        except Exception as error:
            if not is_away(error):
                raise
            ready = False
    hint = f" Do it when that has everything: {later}" if later else ""
    raise OutOfReach(f"The tracking store {store.shown_uri} is out of reach.{hint}")


def say_waiting(store: JournalledStore, display: Display, seconds: float) -> None:
    display.say(f"Waiting up to {seconds:g} s for the tracking store {store.shown_uri}")


def settle_ids(training: Training) -> None:
    """Give the rows the ids that the store has given their runs meanwhile."""
    real_id = training.store.real_id
    training.rows[:] = [replace(row, run_id=real_id(row.run_id)) for row in training.rows]


def _do(store: JournalledStore, task: Task, folder: Path | None = None) -> list[str]:
    """A task's work; the addresses of what it has made."""
    if task.kind == _REGISTER:
        return [register_run(store, task.run_id, folder)[0]]
    choice = pictures(Settings.model_validate(task.options["settings"]))
    if task.kind == _LAYER:
        return draw_layer_run(store, task.run_id, choice, task.options["slider_steps"])
    if task.kind == _PARENT:
        return draw_parent(store, task.run_id, choice)
    raise UserError(f"this version of sae-mlflow knows no {task.kind!r}")


def _plot_settings(settings: Settings) -> dict[str, Any]:
    """What `outputs.pictures` needs to draw as this training does, in any working folder."""
    plots, folder = settings.plots, settings.output.folder
    style = user_path(plots.style)
    if is_file(style):
        plots = plots.model_copy(update={"style": str(style.absolute())})
    output = {"dir": str(folder.absolute()) if folder else None}
    return {"plots": plots.model_dump(mode="json"), "output": output}
