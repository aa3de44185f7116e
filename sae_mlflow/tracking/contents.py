"""What stands in the store, in plain types: roles, folders, and a run as a query finds it.

The contract is the README's "What stands in the store". Nothing here imports `mlflow`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sae_mlflow.terminal import plain

ROLE_TAG = "sae.role"
ROLE_SWEEP = "sweep"
ROLE_LAYER = "layer"
ROLE_COMPARISON = "comparison"

RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"
"""A run's statuses, in MLflow's words."""

FAILURE_TAG = "sae.failure"
"""Why a run ended before its time."""

SAE_FOLDER = "sae"
EVALUATION_FOLDER = "evaluation"
DENSITY_TABLE = "density.csv"
"""How often latents fire, in the evaluation's folder."""
CHECKPOINT_FOLDER = "checkpoint"
"""The state of a training that is under way, where `checkpoint.log` asks for it."""
CONFIG_FILE = "config.yaml"
"""Of a parent: all settings of its training."""
DERIVED_PARAM = "derived"
"""Of a layer: which of its params nobody set, with commas between."""

WITHIN_EPOCH = "within_epoch"
"""Metrics below it are of a part of an epoch, and their steps are training tokens."""

BEST_METRICS = ("best_val_fvu", "best_epoch")
"""Of the epochs so far."""
EVALUATED = "evaluation_tokens"
"""Stands in a run once all of its evaluation does."""
EVALUATION_METRICS = (
    *("ce_loss_original", "ce_loss_spliced", "ce_loss_zero_ablated", "ce_loss_recovered"),
    *("kl_divergence", "latents_over_1_percent", "latents_over_10_percent"),
    *("latents_dead_fraction", "decoder_max_cosine", "encoder_decoder_cosine", EVALUATED),
)

DIGEST_LENGTH = 16
"""Characters of a data set's digest that are kept."""
SHORT_ID = 8
"""Characters of a run's id that tell runs apart."""


def ui_page(experiment_id: str, run_id: str | None = None) -> str:
    """The page of a run, or of an experiment's runs, relative to the MLflow UI's address.

    Without the query the UI opens a view for traces, in which training runs can't be seen.
    """
    run = f"/{run_id}" if run_id else ""
    return f"#/experiments/{experiment_id}/runs{run}?workflowType=machine_learning"


def within_epoch(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics of a part of an epoch, under their own keys."""
    return {f"{WITHIN_EPOCH}/{key}": value for key, value in metrics.items()}


@dataclass(frozen=True)
class RunRow:
    """One run as a query found it; others may have written it, so its names are made plain."""

    run_id: str
    name: str
    experiment_id: str
    parent_id: str | None
    status: str
    start_time: int
    """Milliseconds since 1970."""
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    """Each metric's last value."""
    tags: Mapping[str, str]

    @property
    def role(self) -> str:
        return plain(self.tags.get(ROLE_TAG, ""))

    @property
    def model(self) -> str:
        return plain(self.tags.get("sae.model", ""))

    @property
    def layer(self) -> str:
        return plain(self.tags.get("sae.layer", ""))

    @property
    def architecture(self) -> str:
        return plain(self.tags.get("sae.architecture", ""))
