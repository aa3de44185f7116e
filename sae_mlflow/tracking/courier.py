"""Takes operations to a store, and says what became of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from mlflow.tracking import MlflowClient

from sae_mlflow.tracking.operations import Operation, apply, is_pending
from sae_mlflow.tracking.refusals import Outcome, judge, reason

_METRICS_AT_ONCE = 1_000  # that MLflow takes in one request


@dataclass(frozen=True)
class Report:
    """What became of some operations, which stand or fall together."""

    outcome: Outcome
    reason: str = ""
    ids: Mapping[str, str] = field(default_factory=dict)
    """The id that the store has given to a run."""


class Courier:
    """On the way to one store."""

    def __init__(self, client: MlflowClient, uri: str) -> None:
        self._client = client
        self._uri = uri

    def deliver(self, operations: Sequence[Operation], *, again: bool) -> Report:
        """Do them as one.

        Args:
            operations: one, or as many as `together` says.
            again: they may have been done before.
        """
        operation = operations[0]
        if len(operations) > 1:
            metrics = [each for one in operations for each in one.body["metrics"]]
            operation = replace(operation, body={"metrics": metrics})
        try:
            run_id = apply(self._client, operation, again=again)
        except Exception as error:  # whatever it is, it must not end the delivery
            outcome = judge(self._client, self._uri, operation, error)
            return Report(outcome, reason(error, self._uri, operation))
        named = {operation.run_id: run_id} if run_id and is_pending(operation.run_id) else {}
        return Report(Outcome.DELIVERED, ids=named)


def together(operations: Sequence[Operation]) -> int:
    """How many of the first can be done as one: the metrics of a run, whose backlog would take
    minutes one by one."""
    first, values = operations[0], 0
    for n, operation in enumerate(operations):
        if operation.kind != "metrics" or operation.run_id != first.run_id:
            return max(n, 1)
        values += len(operation.body["metrics"])
        if values > _METRICS_AT_ONCE:
            return max(n, 1)
    return len(operations)
