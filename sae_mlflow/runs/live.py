"""A layer's training history while it trains: drawn again every so often, at an epoch's end."""

import time

from sae_mlflow.plots.runs import draw_live
from sae_mlflow.runs.guards import drawing
from sae_mlflow.runs.training import Training


class LivePicture:
    """Draws `training_history.png` from the store, each time also for the UI's image slider.

    That opens at step 0 and shows nothing where no image is, so the first drawing stands there too.
    """

    def __init__(self, training: Training, run_id: str, label: str) -> None:
        self._training = training
        self._run_id = run_id
        self._label = label
        self._drawn = False
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
            self._drawn = True
        self._last = time.monotonic()

    def slider_steps(self, epoch: int) -> tuple[int, ...]:
        """Where on the slider a picture of the epochs so far stands."""
        if not self._training.settings.plots.live:
            return ()
        return (epoch,) if self._drawn else (0, epoch)
