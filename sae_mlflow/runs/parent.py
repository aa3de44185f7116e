"""A training's parent run: which experiment it is in, whose run it is, and what it says."""

from sae_mlflow import naming
from sae_mlflow.config import Settings
from sae_mlflow.errors import UserError
from sae_mlflow.reporting.layer_table import launcher_note
from sae_mlflow.runs.later import when_reachable
from sae_mlflow.runs.training import Experiment, Training
from sae_mlflow.text.corpus import Windows
from sae_mlflow.tracking.contents import CONFIG_FILE, DIGEST_LENGTH, ROLE_SWEEP, ROLE_TAG
from sae_mlflow.tracking.launcher import launched_experiment_id, launched_run
from sae_mlflow.tracking.open_run import OpenRun
from sae_mlflow.tracking.process import process_tags
from sae_mlflow.tracking.store import Store


def choose_experiment(store: Store, settings: Settings, name: str | None) -> Experiment:
    """The experiment that the runs go to.

    `--experiment-name` wins, given to us or to `mlflow run`; else the settings decide.
    """
    launched = launched_experiment_id()
    if name is None and launched is not None:
        return Experiment(store.experiment_name(launched), launched)
    name = name or settings.experiment
    return Experiment(name, store.experiment_id(name))


def open_parent(training: Training) -> OpenRun:
    """The sweep's run: the one of a training that goes on, or that `mlflow run` made where it is in
    the right experiment, or a new one.

    Nothing is logged to it yet: `log_settings` does that, once something watches over the run.
    """
    store, label = training.store, training.settings.model.label
    tags = {ROLE_TAG: ROLE_SWEEP, "sae.model": label, **process_tags()}
    with training.clock.stage("store"):
        if training.old is not None:
            return store.resume_run(training.old)
        launcher = launched_run(store)
        if launcher is not None and launcher.experiment_id == training.experiment.id:
            launcher.tag(tags)
            return launcher
        return store.open_run(training.experiment.id, naming.sanitise(label), tags)


def log_settings(training: Training, parent: OpenRun) -> None:
    """All settings that aren't there yet; and in a launcher's run that is another one, where the
    training is."""
    old, experiment = training.old, training.experiment
    with training.clock.stage("store"):
        launcher = launched_run(training.store)
        if launcher is not None and launcher.run_id != parent.run_id:
            launcher.describe(launcher_note(experiment.id, parent.run_id, experiment.name))
        there = {} if old is None else old.params
        parent.log_params({k: v for k, v in training.settings.flat().items() if k not in there})
        if old is None or CONFIG_FILE not in training.store.artifacts(parent.run_id):
            parent.log_text(training.settings.to_yaml(), CONFIG_FILE)


def log_text_read(training: Training, parent: OpenRun, windows: Windows) -> None:
    """The text as an MLflow input.

    Raises:
        UserError: it isn't the text that a training which goes on has read.
    """
    if training.old is not None and (was := _text_read_before(training, parent)) is not None:
        if was != windows.sha256[:DIGEST_LENGTH]:
            raise UserError(
                f"{windows.source} has changed since run {parent.run_id} read it. Put the text "
                "back, or train afresh, without --resume."
            )
        return
    facts: dict[str, object] = {
        "text": windows.source,
        "tokens": windows.n_tokens,
        "train_tokens": int(windows.train.size),
        "held_out_tokens": int(windows.held_out.size),
        "context": windows.context,
    }
    parent.log_data_set(windows.source[:200], windows.sha256, facts)


def _text_read_before(training: Training, parent: OpenRun) -> str | None:
    return when_reachable(training, lambda: training.store.data_set_digest(parent.run_id))
