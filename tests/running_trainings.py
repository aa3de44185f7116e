"""Runs of trainings that are under way, as a training keeps them up."""

from sae_mlflow.tracking.contents import ROLE_LAYER, ROLE_SWEEP
from sae_mlflow.tracking.open_run import OpenRun
from sae_mlflow.tracking.store import Store


def open_parent(store: Store, experiment: str, layers: str = "9,10", **params: object) -> OpenRun:
    tags = {"sae.role": ROLE_SWEEP, "sae.model": "org/model"}
    run = store.open_run(store.experiment_id(experiment), "sweep", tags)
    run.log_params({"model.layers": layers, "train.epochs": 4} | params)
    return run


def open_layer(store: Store, parent: OpenRun, layer: str, epochs: int = 4) -> OpenRun:
    tags = {"sae.role": ROLE_LAYER, "sae.model": "org/model", "sae.layer": layer}
    run = store.open_run(parent.experiment_id, layer, tags, parent)
    run.log_params({"train.epochs": epochs})
    return run


def log(run: OpenRun, epoch: int, loss: float) -> None:
    figures = {"total_loss": loss, "val_fvu": loss / 2, "l0_norm": 32.0, "dead_fraction": 0.01}
    run.log_metrics(epoch, figures)
