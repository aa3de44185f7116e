"""One run that is being written to: params, metrics, artifacts, tags, and how it ended."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient
from mlflow.utils import mlflow_tags

from sae_mlflow.tracking.contents import DIGEST_LENGTH, FAILURE_TAG, within_epoch

_NOTE_LIMIT = 8_000  # MLflow cuts a longer tag without a word
_BATCH_LIMIT = 100  # params and tags that one log_batch takes


class OpenRun:
    """One run that is being written to."""

    def __init__(self, client: MlflowClient, run: Run) -> None:
        self._client = client
        self.run_id: str = run.info.run_id
        self.experiment_id: str = run.info.experiment_id
        self.name: str = run.info.run_name or ""

    def log_params(self, params: Mapping[str, object]) -> None:
        entries = [Param(key, param_text(value)) for key, value in params.items()]
        for start in range(0, len(entries), _BATCH_LIMIT):
            self._client.log_batch(self.run_id, params=entries[start : start + _BATCH_LIMIT])

    def log_epoch(
        self, epoch: int, metrics: Mapping[str, float], made_at: int | None = None
    ) -> None:
        """One value per metric, step = epoch (from 1); visible in the UI at once.

        Args:
            made_at: milliseconds since 1970, now by default. What is logged again with the time and
                value that it had stands there once.
        """
        at = int(time.time() * 1000) if made_at is None else made_at
        entries = [Metric(key, float(value), at, epoch) for key, value in metrics.items()]
        self._client.log_batch(self.run_id, metrics=entries)

    def log_within_epoch(
        self, tokens: int, metrics: Mapping[str, float], made_at: int | None = None
    ) -> None:
        """Metrics of a part of an epoch, under keys of their own; step = training tokens."""
        self.log_epoch(tokens, within_epoch(metrics), made_at)

    def log_file(self, path: Path, folder: str | None = None) -> None:
        self._client.log_artifact(self.run_id, str(path), folder)

    def log_folder(self, path: Path, folder: str | None = None) -> None:
        self._client.log_artifacts(self.run_id, str(path), folder)

    def remove_artifacts(self, path: str) -> None:
        """Delete a folder of its artifacts, or one of them."""
        place = self._client.get_run(self.run_id).info.artifact_uri
        repository = get_artifact_repository(place, tracking_uri=self._client.tracking_uri)
        repository.delete_artifacts(path)

    def log_text(self, text: str, file: str) -> None:
        self._client.log_text(self.run_id, text, file)

    def log_data_set(self, name: str, digest: str, source: Mapping[str, object]) -> None:
        """The text that was trained on, as an MLflow input of the run."""
        data_set = Dataset(
            name=name,
            digest=digest[:DIGEST_LENGTH],
            source_type="sae_mlflow",
            source=json.dumps(source),
            profile=json.dumps({k: v for k, v in source.items() if isinstance(v, int)}),
        )
        context = InputTag(mlflow_tags.MLFLOW_DATASET_CONTEXT, "training")
        self._client.log_inputs(self.run_id, [DatasetInput(data_set, [context])])

    def tag(self, tags: Mapping[str, str]) -> None:
        self._client.log_batch(self.run_id, tags=[RunTag(k, v) for k, v in tags.items()])

    def describe(self, markdown: str) -> None:
        """The description shown above the run; what is too long ends with a line that says so."""
        if len(markdown) > _NOTE_LIMIT:
            end = "\n\n(cut here: a description holds 8,000 characters)"
            lines = markdown[: _NOTE_LIMIT - len(end)].rsplit("\n", 1)[0]
            markdown = lines + end
        self.tag({mlflow_tags.MLFLOW_RUN_NOTE: markdown})

    def finish(self, status: str = "FINISHED") -> None:
        """Close the run: `FINISHED`, `FAILED` or `KILLED`."""
        self._client.set_terminated(self.run_id, status)

    def fail(self, reason: str, status: str = "FAILED") -> None:
        self.tag({FAILURE_TAG: reason[:5_000]})
        self.finish(status)


def param_text(value: object) -> str:
    """A setting as it stands in a run's params."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return "" if value is None else str(value)
