"""One run that is being written to: params, metrics, artifacts, tags, and how it ended."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from mlflow.tracking import MlflowClient
from mlflow.utils import mlflow_tags

from sae_mlflow.tracking.contents import DIGEST_LENGTH, FAILED, FAILURE_TAG, FINISHED
from sae_mlflow.tracking.operations import Kind, Operation, apply, is_pending, now

_NOTE_LIMIT = 8_000  # MLflow cuts a longer tag without a word


class Outlet(Protocol):
    """Where operations go."""

    def do(self, operation: Operation) -> None: ...

    def at_once(self, operation: Operation) -> None:
        """Do it before all that waits; whatever the store raises is raised."""

    def real_id(self, run_id: str) -> str:
        """A run's id in the store; the pending one while it has none."""


class Direct:
    """Does them at once."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client
        self._ids: dict[str, str] = {}

    def do(self, operation: Operation) -> None:
        made = apply(self._client, operation)
        if made is not None:
            self._ids[operation.run_id] = made

    at_once = do

    def real_id(self, run_id: str) -> str:
        return self._ids.get(run_id, run_id)


class OpenRun:
    """One run that is being written to."""

    def __init__(self, outlet: Outlet, run_id: str, experiment_id: str, name: str) -> None:
        self._outlet = outlet
        self.first_id = run_id
        self.experiment_id = experiment_id
        self.name = name

    @property
    def run_id(self) -> str:
        """A pending one while the store hasn't made the run."""
        return self._outlet.real_id(self.first_id)

    def log_params(self, params: Mapping[str, object]) -> None:
        self._do("params", params={key: param_text(value) for key, value in params.items()})

    def log_metrics(
        self, step: int, metrics: Mapping[str, float], made_at: int | None = None
    ) -> None:
        """One value per metric, visible in the UI at once.

        Args:
            step: the epoch, from 1; of metrics of a part of an epoch, training tokens.
            made_at: when they were, in milliseconds since 1970; unset means now. Logged again
                with the same, they stand once.
        """
        at = now() if made_at is None else made_at
        self._do("metrics", metrics=[(key, float(v), at, step) for key, v in metrics.items()])

    def log_file(self, path: Path, folder: str | None = None) -> None:
        self._do("file", path, folder=folder)

    def log_folder(self, path: Path, folder: str | None = None) -> None:
        self._do("folder", path, folder=folder)

    def remove_artifacts(self, path: str) -> None:
        """Delete a folder of its artifacts, or one of them."""
        self._do("remove", path=path)

    def log_text(self, text: str, file: str) -> None:
        self._do("text", text=text, file=file)

    def log_data_set(self, name: str, digest: str, source: Mapping[str, object]) -> None:
        """The text that was trained on, as an MLflow input of the run."""
        self._do(
            "data_set",
            name=name,
            digest=digest[:DIGEST_LENGTH],
            source_type="sae_mlflow",
            source=json.dumps(source),
            profile=json.dumps({k: v for k, v in source.items() if isinstance(v, int)}),
        )

    def tag(self, tags: Mapping[str, str]) -> None:
        self._do("tags", tags=dict(tags))

    def tag_at_once(self, tags: Mapping[str, str]) -> None:
        """The same past all that waits to be delivered; nothing where the run has no id yet."""
        if not is_pending(self.run_id):
            self._outlet.at_once(Operation("tags", self.run_id, {"tags": dict(tags)}))

    def describe(self, markdown: str) -> None:
        """The description shown above the run; what is too long ends with a line that says so."""
        if len(markdown) > _NOTE_LIMIT:
            end = "\n\n(cut here: a description holds 8,000 characters)"
            lines = markdown[: _NOTE_LIMIT - len(end)].rsplit("\n", 1)[0]
            markdown = lines + end
        self.tag({mlflow_tags.MLFLOW_RUN_NOTE: markdown})

    def finish(self, status: str = FINISHED, at: int | None = None) -> None:
        """Close the run: `FINISHED`, `FAILED` or `KILLED`.

        Args:
            at: when it ended, in milliseconds since 1970; unset means now.
        """
        self._do("status", status=status, at=now() if at is None else at)

    def fail(self, reason: str, status: str = FAILED) -> None:
        self.tag({FAILURE_TAG: reason[:5_000]})
        self.finish(status)

    def _do(self, kind: Kind, source: Path | None = None, /, **body: Any) -> None:
        self._outlet.do(Operation(kind, self.run_id, body, source))


def param_text(value: object) -> str:
    """A setting as it stands in a run's params."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return "" if value is None else str(value)
