"""A run of the store, judged: live or long over."""

from pydantic import ValidationError

from sae_mlflow.config_health import HealthSettings
from sae_mlflow.health.check import check
from sae_mlflow.health.curves import History
from sae_mlflow.health.facts import facts_of
from sae_mlflow.health.finding import HEALTH_FILE, Verdict
from sae_mlflow.tracking.contents import FAILURE_TAG, RunRow
from sae_mlflow.tracking.open_run import OpenRun
from sae_mlflow.tracking.store import Store

READ_METRICS = (
    *("total_loss", "reconstruction_loss", "sparsity_loss", "l0_norm", "val_l0_norm"),
    *("fvu", "val_fvu", "dead_fraction"),
)

_PREFIX = "health."
_MOST_EPOCHS = 1_000_000  # a larger step is none, and a list up to it would take all memory


def judge_run(store: Store, row: RunRow) -> Verdict:
    """A layer run's health, by the thresholds that it was trained with."""
    failure = row.tags.get(FAILURE_TAG, "")
    facts = facts_of(row.params, row.metrics, row.status, failure)
    return check(stored_history(store, row), facts, thresholds_of(row))


def stored_history(store: Store, row: RunRow) -> History:
    """What the checks read of a run's metrics: a value an epoch, None where there is none."""
    there = [metric for metric in READ_METRICS if metric in row.metrics]
    points = [p for p in store.history(row.run_id, there) if 1 <= p[1] <= _MOST_EPOCHS]
    n_epochs = max((epoch for _, epoch, _ in points), default=0)
    history: dict[str, list[float | None]] = {metric: [None] * n_epochs for metric in there}
    for metric, epoch, value in points:
        history[metric][epoch - 1] = value
    return history


def thresholds_of(row: RunRow) -> HealthSettings:
    """Those in a run's params; the defaults where it has none, or none that are understood."""
    params = {
        key.removeprefix(_PREFIX): value
        for key, value in row.params.items()
        if key.startswith(_PREFIX)
    }
    try:
        return HealthSettings.model_validate(params)
    except ValidationError:  # of another version
        return HealthSettings()


def record(run: OpenRun, verdict: Verdict) -> None:
    """Leave a verdict in a run: its tags, and `health.json`."""
    run.tag(verdict.tags)
    run.log_text(verdict.to_json(), HEALTH_FILE)
