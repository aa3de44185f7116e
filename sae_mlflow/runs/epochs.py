"""One layer while it trains: begun, or gone on with where it was, and its epochs as they end."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sae_mlflow.activations.layer import LayerActivations
from sae_mlflow.records import EpochRecord, Record, StepRecord, WithinEpochRecord
from sae_mlflow.reporting.display import LayerDisplay
from sae_mlflow.runs.checkpoints import Checkpoints
from sae_mlflow.runs.health import LayerHealth
from sae_mlflow.runs.later import when_reachable
from sae_mlflow.runs.live import LivePicture
from sae_mlflow.runs.logbook import Logbook
from sae_mlflow.runs.mirror import open_mirror
from sae_mlflow.runs.training import Training
from sae_mlflow.sae import SAE
from sae_mlflow.tracking.contents import RunRow
from sae_mlflow.tracking.open_run import OpenRun
from sae_mlflow.train import Trainer, train


@dataclass
class Layer:
    """One layer while it trains, and all that follows it."""

    training: Training
    run: OpenRun
    acts: LayerActivations
    trainer: Trainer
    log: Logbook
    live: LivePicture
    health: LayerHealth
    checkpoints: Checkpoints
    sae: SAE | None = None
    """What is kept of it in the end; None where no epoch of a stopped training was good."""
    _saved: tuple[int, int] = (0, 0)

    def save(self) -> None:
        """Everything up to the last record; once.

        Raises:
            UserError: it was trained on a row that isn't what was written.
        """
        mark = self.trainer.steps_done, len(self.log.records)
        if mark != self._saved:
            self.acts.confirm()
            self.checkpoints.write(self.log.facts(), self.health.good)
        self._saved = mark


def begin(
    training: Training,
    run: OpenRun,
    acts: LayerActivations,
    trainer: Trainer,
    params: Mapping[str, object],
) -> Layer:
    """A layer at its start, or where it was.

    Args:
        params: the run's.
    """
    earlier = training.earlier.get(acts.site.label)
    there = {} if earlier is None else earlier.params
    run.log_params({key: value for key, value in params.items() if key not in there})
    log = Logbook(run, None if earlier is None else _logged(training, earlier))
    live = LivePicture(training, run, acts.site.label)
    health = LayerHealth(training, run, acts.site.label, params, trainer.sae)
    layer = Layer(
        training, run, acts, trainer, log, live, health, Checkpoints(training, run, trainer, acts)
    )
    if earlier is not None:
        _resume(layer)
    log.mirror = open_mirror(training, run, resumed=earlier is not None)
    return layer


def _logged(training: Training, earlier: RunRow) -> dict[str, set[int]]:
    return when_reachable(training, lambda: training.store.logged_steps(earlier))


def _resume(layer: Layer) -> None:
    """Be where the last good checkpoint was, and tell the store what it lacks of the way there."""
    display, label = layer.training.display, layer.acts.site.label
    saved = layer.checkpoints.restore()
    if saved is None:
        display.warn(f"{label} starts afresh: there is no checkpoint of it that is whole")
        return
    layer.log.restore(saved.log)
    for record in layer.log.records:
        layer.log.tell(record)
    so_far = layer.trainer.so_far
    layer.health.resume(layer.log.history, saved.good, at_epochs_end=not so_far.batches)
    display.say(f"{label} goes on in epoch {so_far.epoch}, after step {layer.trainer.steps_done:,}")


def train_epochs(layer: Layer) -> None:
    """Train, with every epoch in the store as soon as it ends, until its health stops it.

    Ctrl-C and SIGTERM end it between two steps, with everything saved.
    """
    training, trainer = layer.training, layer.trainer
    label, epochs = layer.acts.site.label, training.settings.train.epochs
    with training.display.layer(label, epochs, trainer.epoch_tokens) as shown:
        shown.resume(trainer.steps_done * training.settings.train.batch_tokens)
        records = train(trainer, layer.acts, training.settings.seed)
        whole = False
        try:
            while not layer.health.stopped:
                with training.stopping.deferred():
                    whole = False
                    record = _next(layer, records)
                    whole = True
                training.stopping.check()
                if record is None:
                    return
                _show(layer, record, shown)
        except KeyboardInterrupt:
            if whole and trainer.steps_done:
                layer.save()
            raise


def _next(layer: Layer, records: Iterator[Record]) -> Record | None:
    """The next record, written down and, where it is time, saved."""
    with layer.training.clock.stage("train"):
        record = next(records, None)
    layer.training.begun = True
    if isinstance(record, EpochRecord | WithinEpochRecord):
        layer.log.write_down(record)
    if isinstance(record, EpochRecord) or (record is not None and layer.checkpoints.due):
        layer.save()
    return record


def _show(layer: Layer, record: Record, shown: LayerDisplay) -> None:
    match record:
        case StepRecord():
            shown.step(record)
        case WithinEpochRecord():
            with layer.training.clock.stage("log"):
                layer.log.tell(record)
        case EpochRecord():
            with layer.training.clock.stage("log"):
                layer.log.tell(record)
                layer.health.epoch(layer.log.history)
            shown.epoch(record)
            layer.live.epoch(record.epoch)
