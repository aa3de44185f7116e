"""MLflow's client, through which no secret gets into a store: what is written has none.

Not only our own texts: MLflow's automatic tags name the repository that one works in, whose address
may hold a token.
"""

from collections.abc import Sequence
from typing import Any

from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.tracking import MlflowClient

from sae_mlflow.secrets import without_secrets


class Client(MlflowClient):
    def create_run(
        self,
        experiment_id: str,
        start_time: int | None = None,
        tags: dict[str, Any] | None = None,
        run_name: str | None = None,
    ) -> Run:
        shown = {key: without_secrets(str(value)) for key, value in (tags or {}).items()}
        return super().create_run(experiment_id, start_time, shown, run_name)

    def log_batch(
        self,
        run_id: str,
        metrics: Sequence[Metric] = (),
        params: Sequence[Param] = (),
        tags: Sequence[RunTag] = (),
        synchronous: bool | None = None,
    ) -> Any:
        params = [Param(each.key, without_secrets(each.value)) for each in params]
        tags = [RunTag(each.key, without_secrets(each.value)) for each in tags]
        return super().log_batch(
            run_id, metrics=metrics, params=params, tags=tags, synchronous=synchronous
        )

    def log_text(self, run_id: str, text: str, artifact_file: str) -> None:
        super().log_text(run_id, without_secrets(text), artifact_file)
