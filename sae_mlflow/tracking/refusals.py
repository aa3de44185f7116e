"""What a call that failed means: that the store is away, that it refuses for good, or neither."""

import json
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Any

import requests
from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INVALID_PARAMETER_VALUE,
    PERMISSION_DENIED,
    REQUEST_LIMIT_EXCEEDED,
    RESOURCE_ALREADY_EXISTS,
    RESOURCE_DOES_NOT_EXIST,
    TEMPORARILY_UNAVAILABLE,
    UNAUTHENTICATED,
    ErrorCode,
)
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from sae_mlflow.disk import free_bytes, in_units, is_full
from sae_mlflow.errors import OutOfReach
from sae_mlflow.tracking.operations import ARTIFACT_KINDS, Operation, files_of
from sae_mlflow.tracking.reach import check_reachable, hide_password_in


class Outcome(Enum):
    """What became of an operation."""

    DELIVERED = "delivered"
    AWAY = "away"
    """The store is out of reach, or lets nobody in: it waits, and all behind it."""
    REFUSED = "refused"
    """The store will never take it."""
    GONE = "gone"
    """Its run has been deleted: nor will the store take anything else of that run."""
    STUCK = "stuck"
    """The store answers, but this can't be had now: its artifacts' disk is full, or closed."""


# 401 and 403 as well: a password that has changed is put right, and nothing was lost
_AWAY = {TEMPORARILY_UNAVAILABLE, REQUEST_LIMIT_EXCEEDED, UNAUTHENTICATED, PERMISSION_DENIED}
_REFUSED = {INVALID_PARAMETER_VALUE, RESOURCE_ALREADY_EXISTS}
_AWAY_STATUSES = {401, 403, 407, 408, 429, 502, 503, 504}
_REFUSED_STATUSES = {400, 404, 405, 413, 414, 422}


def is_away(error: BaseException) -> bool:
    """Whether an error says that the store is out of reach now."""
    if isinstance(error, MlflowException):
        return error.error_code in _names(_AWAY) or _is_of_http(error)
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code in _AWAY_STATUSES
    kinds = (OutOfReach, requests.RequestException, SQLAlchemyError, ConnectionError, TimeoutError)
    return isinstance(error, kinds)


def judge(client: MlflowClient, uri: str, operation: Operation, error: Exception) -> Outcome:
    """What a failed operation's error means, asking the store where the error alone can't say.

    Over HTTP, artifacts may be out of reach though the store isn't: their disk is full, a proxy
    closes their path, or they are too large for it.
    """
    if is_away(error) and not (operation.kind in ARTIFACT_KINDS and _is_of_http(error)):
        return Outcome.AWAY
    if operation.source is not None and not operation.source.exists():
        return Outcome.REFUSED  # a file that went before there was room for a copy
    try:
        check_reachable(uri)
        client.search_experiments(max_results=1)
        if operation.kind != "create" and not can_be_written(client, operation.run_id):
            return Outcome.GONE
    except Exception:  # whatever it is, the store doesn't answer as one does
        return Outcome.AWAY
    return Outcome.REFUSED if _is_refusal(error) else Outcome.STUCK


def can_be_written(client: MlflowClient, run_id: str) -> bool:
    """Whether a run exists, and hasn't been deleted."""
    try:
        return client.get_run(run_id).info.lifecycle_stage == LifecycleStage.ACTIVE
    except MlflowException as error:
        if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            return False
        raise


def reason(error: BaseException, uri: str, operation: Operation | None = None) -> str:
    """Why, in a line; of a disk that is full, how much is needed and how much is free."""
    if isinstance(error, OSError) and is_full(error) and operation is not None:
        place = Path(error.filename2 or error.filename or ".").parent
        return no_room(error, operation, place)
    while cause := error.__cause__ or error.__context__:  # MLflow's own words quote all of them
        error = cause
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return hide_password_in(lines[0], uri)


def no_room(error: OSError, operation: Operation, folder: Path) -> str:
    """That a disk has no room for an operation, with sizes."""
    needed = in_units(_size(operation))
    free = in_units(free_bytes(folder))
    return f"{error.strerror} in {folder}: {needed} to write, {free} free"


def _size(operation: Operation) -> int:
    if operation.source is None:
        return len(json.dumps(operation.body))
    return sum(file.stat().st_size for file, _ in files_of(operation.source, None))


def _is_of_http(error: BaseException) -> bool:
    """Whether a request came to nothing, or to a server that lets one not in."""
    if getattr(error, "error_code", None) in _names({UNAUTHENTICATED, PERMISSION_DENIED}):
        return True
    said = (error, error.__cause__, error.__context__)
    return any(isinstance(each, requests.RequestException) for each in said)


def _names(codes: Iterable[Any]) -> set[str]:
    return {ErrorCode.Name(code) for code in codes}


def _is_refusal(error: Exception) -> bool:
    if isinstance(error, MlflowException):
        return error.error_code in _names(_REFUSED)
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code in _REFUSED_STATUSES
    return False
