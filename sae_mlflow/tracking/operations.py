"""What is done to a run, as plain data that can be kept, and done again without doing it twice.

Each carries the time at which it was made, so that to repeat it changes nothing: metrics of the
same time, step and value stand once; params, tags, inputs and artifacts replace themselves. Only a
run that is made again would be another one: its tag `sae.journal_id` finds the first.
"""

import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal, get_args

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag, ViewType
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient
from mlflow.utils import mlflow_tags

from sae_mlflow.disk import is_full
from sae_mlflow.secrets import without_secrets
from sae_mlflow.tracking.contents import FAILURE_TAG, FINISHED, RUNNING

JOURNAL_ID = "sae.journal_id"
TASK: Final = "task"
"""Kind of an operation that isn't the store's: something to do once the store holds its data."""
ArtifactKind = Literal["file", "folder", "text", "remove"]
ARTIFACT_KINDS = frozenset(get_args(ArtifactKind))
"""Kinds that need the place of a run's artifacts as well as the store."""
RunKind = Literal["create", "resume", "status", "params", "metrics", "tags", "data_set"]
Kind = ArtifactKind | RunKind | Literal["task"]
"""Of an operation; a journal of another version may hold others."""

_PENDING = re.compile(r"[0-9a-f]{32}-pending")
_BATCH_LIMIT = 100  # params and tags that one log_batch takes


@dataclass(frozen=True)
class Operation:
    """One thing to do to a run."""

    kind: Kind
    run_id: str
    """Of a run that the store hasn't made yet, its pending id."""
    body: Mapping[str, Any] = field(default_factory=dict)
    """Its facts, in JSON's types."""
    source: Path | None = None
    """The file or folder that it logs."""


def new_pending_id() -> str:
    """Stands for a run's id until the store has given one."""
    return f"{uuid.uuid4().hex}-pending"


def now() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)


def with_texts(operation: Operation, change: Callable[[str], str]) -> Operation:
    """An operation with every text in it changed."""

    def changed(value: Any) -> Any:
        if isinstance(value, str):
            return change(value)
        if isinstance(value, Mapping):
            return {key: changed(each) for key, each in value.items()}
        return [changed(each) for each in value] if isinstance(value, list | tuple) else value

    body = changed(operation.body)
    return Operation(operation.kind, change(operation.run_id), body, operation.source)


def with_real_ids(text: str, ids: Mapping[str, str]) -> str:
    """A text with the ids that the store has given in the place of pending ones."""
    return _PENDING.sub(lambda found: ids.get(found[0], found[0]), text)


def is_pending(run_id: str) -> bool:
    return _PENDING.fullmatch(run_id) is not None


def has_pending(operation: Operation) -> bool:
    """Whether a run that it needs isn't made yet: its own, or the parent of one that it makes."""
    if operation.kind != "create":
        return is_pending(operation.run_id)
    return any(is_pending(value) for value in operation.body["tags"].values())


def apply(client: MlflowClient, operation: Operation, *, again: bool = False) -> str | None:
    """Do it; of a run that is made its id.

    Args:
        again: it may have been done before.
    """
    run_id, body = operation.run_id, operation.body
    match operation.kind:
        case "create":
            return _create(client, operation, again)
        case "params":
            params = [Param(key, value) for key, value in body["params"].items()]
            for start in range(0, len(params), _BATCH_LIMIT):
                client.log_batch(run_id, params=params[start : start + _BATCH_LIMIT])
        case "metrics":
            metrics = [Metric(key, value, at, step) for key, value, at, step in body["metrics"]]
            client.log_batch(run_id, metrics=metrics)
        case "tags":
            client.log_batch(run_id, tags=[RunTag(k, v) for k, v in body["tags"].items()])
        case "data_set":
            context = InputTag(mlflow_tags.MLFLOW_DATASET_CONTEXT, "training")
            client.log_inputs(run_id, [DatasetInput(Dataset(**body), [context])])
        case "file" | "folder":
            assert operation.source is not None
            for file, folder in files_of(operation.source, body["folder"]):
                _log_file(client, run_id, file, folder)
        case "text":
            with TemporaryDirectory() as scratch:
                file = Path(scratch) / PurePosixPath(body["file"]).name
                file.write_text(without_secrets(body["text"]), encoding="utf-8")
                folder = str(PurePosixPath(body["file"]).parent)
                _log_file(client, run_id, file, None if folder == "." else folder)
        case "remove":
            with suppress(FileNotFoundError):
                _artifacts_of(client, run_id).delete_artifacts(body["path"])
        case "resume":
            # whose it is first: one that says RUNNING and names a dead process is closed by others
            if tags := body.get("tags"):
                client.log_batch(run_id, tags=[RunTag(k, v) for k, v in tags.items()])
            _forget_failure(client, run_id)
            client.update_run(run_id, status=RUNNING)
        case "status":
            if body["status"] == FINISHED:  # another host may have taken it for dead meanwhile
                _forget_failure(client, run_id)
            client.set_terminated(run_id, body["status"], body["at"])
        case _:
            raise AssertionError(operation.kind)
    return None


def _create(client: MlflowClient, operation: Operation, again: bool) -> str:
    body, tag = operation.body, {}
    if is_pending(operation.run_id):
        tag = {JOURNAL_ID: operation.run_id}
    if tag and again:
        where = f"tags.`{JOURNAL_ID}` = '{operation.run_id}'"
        found = client.search_runs([body["experiment_id"]], where, ViewType.ALL, max_results=1)
        if found:
            return str(found[0].info.run_id)
    run = client.create_run(body["experiment_id"], body["at"], {**body["tags"], **tag})
    return str(run.info.run_id)


def _forget_failure(client: MlflowClient, run_id: str) -> None:
    if FAILURE_TAG in client.get_run(run_id).data.tags:
        client.delete_tag(run_id, FAILURE_TAG)


def files_of(source: Path, folder: str | None) -> Iterator[tuple[Path, str | None]]:
    """A file, or each in a folder, with the folder of the run that it goes to."""
    if source.is_file():
        yield source, folder
        return
    for file in sorted(each for each in source.rglob("*") if each.is_file()):
        inner = PurePosixPath(folder or "", *file.relative_to(source).parent.parts)
        yield file, None if str(inner) == "." else str(inner)


def _log_file(client: MlflowClient, run_id: str, file: Path, folder: str | None) -> None:
    """Whole or not at all: what a full disk cuts off is taken back."""
    try:
        client.log_artifact(run_id, str(file), folder)
    except OSError as error:
        if is_full(error):
            _artifacts_of(client, run_id).delete_artifacts(
                str(PurePosixPath(folder or "") / file.name)
            )
        raise


def _artifacts_of(client: MlflowClient, run_id: str) -> ArtifactRepository:
    place = client.get_run(run_id).info.artifact_uri
    return get_artifact_repository(place, tracking_uri=client.tracking_uri)
