"""A training's parent run: which experiment it is in, whose run it is, and what it says."""

from sae_mlflow import naming
from sae_mlflow.config import Settings
from sae_mlflow.reporting.layer_table import launcher_note
from sae_mlflow.text.corpus import Windows
from sae_mlflow.tracking.contents import CONFIG_FILE, ROLE_SWEEP
from sae_mlflow.tracking.launcher import launched_experiment_id, launched_run
from sae_mlflow.tracking.open_run import OpenRun
from sae_mlflow.tracking.store import Store


def choose_experiment(store: Store, settings: Settings, name: str | None) -> tuple[str, str]:
    """The experiment that the runs go to: its name and id.

    `--experiment-name` wins, given to us or to `mlflow run`; else the settings decide.
    """
    launched = launched_experiment_id()
    if name is None and launched is not None:
        return store.experiment_name(launched), launched
    name = name or settings.experiment
    return name, store.experiment_id(name)


def open_parent(store: Store, experiment: str, experiment_id: str, settings: Settings) -> OpenRun:
    """The sweep's run: the one that `mlflow run` made where it is in the right experiment."""
    launcher = launched_run(store)
    tags = {"sae.role": ROLE_SWEEP, "sae.model": settings.model.label}
    if launcher is not None and launcher.experiment_id == experiment_id:
        launcher.tag(tags)
        parent = launcher
    else:
        parent = store.open_run(experiment_id, naming.sanitise(settings.model.label), tags)
        if launcher is not None:
            launcher.describe(launcher_note(experiment_id, parent.run_id, experiment))
    parent.log_params(settings.flat())
    parent.log_text(settings.to_yaml(), CONFIG_FILE)
    return parent


def data_set(windows: Windows) -> tuple[str, str, dict[str, object]]:
    facts: dict[str, object] = {
        "text": windows.source,
        "tokens": windows.n_tokens,
        "train_tokens": int(windows.train.size),
        "held_out_tokens": int(windows.held_out.size),
        "context": windows.context,
    }
    return windows.source[:200], windows.sha256, facts
