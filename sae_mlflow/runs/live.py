"""A layer's training history while it trains: drawn again every so often, at an epoch's end."""

import re
import time

from sae_mlflow.plots.runs import draw_live
from sae_mlflow.runs.guards import drawing
from sae_mlflow.runs.training import Training
from sae_mlflow.tracking.store import Store


class LivePicture:
    """Draws `training_history.png` from the store, each time also for the UI's image slider.

    That opens at step 0 and shows nothing where no image is, so the first drawing stands there too.
    """

    def __init__(self, training: Training, run_id: str, label: str) -> None:
        self._training = training
        self._run_id = run_id
        self._label = label
        self._there = drawn_at(training.store, run_id) if training.resumed else set()
        """Where on the slider a picture stands."""
        self._last = time.monotonic()

    def epoch(self, epoch: int) -> None:
        """An epoch has ended, and is in the store."""
        plots, epochs = self._training.settings.plots, self._training.settings.train.epochs
        early = time.monotonic() - self._last < plots.live_seconds
        if not plots.live or early or (plots.after_training and epoch == epochs):
            return
        with self._training.clock.stage("live"), drawing(self._training.display, self._label):
            steps = self.slider_steps(epoch)
            draw_live(self._training.store, self._run_id, steps, self._training.pictures)
            self._there |= {*steps}
        self._last = time.monotonic()

    def slider_steps(self, epoch: int) -> tuple[int, ...]:
        """Where on the slider a picture of the epochs so far is to stand."""
        if not self._training.settings.plots.live:
            return ()
        return tuple(step for step in dict.fromkeys((0, epoch)) if step not in self._there)


def drawn_at(store: Store, run_id: str) -> set[int]:
    """The steps at which a run's image slider has a picture."""
    names = (
        re.search(r"[+%]step[+%](\d+)[+%]", file) for file in store.artifacts(run_id, "images")
    )
    return {int(name[1]) for name in names if name}
