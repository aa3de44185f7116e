"""A layer's training history while it trains: drawn again every so often, at an epoch's end."""

import time

from sae_mlflow.plots.runs import draw_live
from sae_mlflow.runs.guards import drawing
from sae_mlflow.runs.training import Training
from sae_mlflow.tracking.open_run import OpenRun
from sae_mlflow.tracking.refusals import is_away

_STORE_WITHIN_SECONDS = 2.0  # a step never waits longer for a picture


class LivePicture:
    """Draws `training_history.png` from the store, each time also for the UI's image slider.

    That opens at step 0 and shows nothing where no image is, so the first drawing stands there too.
    """

    def __init__(self, training: Training, run: OpenRun, label: str) -> None:
        self._training = training
        self._run = run
        self._label = label
        self._drawn = False
        self._last = time.monotonic()

    def epoch(self, epoch: int) -> None:
        """An epoch has ended, and is on its way to the store; where that is away, the next picture
        shows it."""
        plots, epochs = self._training.settings.plots, self._training.settings.train.epochs
        early = time.monotonic() - self._last < plots.live_seconds
        if not plots.live or early or (plots.after_training and epoch == epochs):
            return
        with self._training.clock.stage("live"), drawing(self._training.display, self._label):
            try:
                self._draw(epoch)
            except Exception as error:
                if not is_away(error):
                    raise
        self._last = time.monotonic()

    def _draw(self, epoch: int) -> None:
        store = self._training.store
        if store.flush(_STORE_WITHIN_SECONDS):
            draw_live(store, self._run.run_id, self.slider_steps(epoch), self._training.pictures)
            self._drawn = True

    def slider_steps(self, epoch: int) -> tuple[int, ...]:
        """Where on the slider a picture of the epochs so far stands."""
        if not self._training.settings.plots.live:
            return ()
        return (epoch,) if self._drawn else (0, epoch)
