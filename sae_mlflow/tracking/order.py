"""Which of a run's operations may overtake an earlier one that the store doesn't take now.

Whatever passes, the run ends up as if all had been done in order: metrics carry their own time and
pass everything, a sign of life passes a file; a later value of a tag doesn't pass an earlier one,
nor a file one of the same path; and the run's status passes nothing, since a run that says how it
ended is whole.
"""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from sae_mlflow.tracking.contents import FAILURE_TAG
from sae_mlflow.tracking.operations import ARTIFACT_KINDS, Operation

_STATUS_KINDS = {"status", "resume"}


def may_overtake(later: Operation, earlier: Operation) -> bool:
    """Both of the same run, which the store has."""
    kinds = {later.kind, earlier.kind}
    if later.kind in _STATUS_KINDS:
        return False
    if earlier.kind in _STATUS_KINDS:  # which take away why the run failed
        return later.kind != "tags" or FAILURE_TAG not in _tags(later)
    if kinds == {"tags"}:
        return not _tags(later).keys() & _tags(earlier).keys()
    if kinds <= ARTIFACT_KINDS:
        return not (_is_within(later, earlier) or _is_within(earlier, later))
    return True


def makes_needless(later: Operation, earlier: Operation) -> bool:
    """Whether nothing is left of an earlier operation of the same run once a later one is done."""
    return later.kind == "remove" and earlier.kind in ARTIFACT_KINDS and _is_within(earlier, later)


def _tags(operation: Operation) -> Mapping[str, Any]:
    return operation.body["tags"]


def _is_within(inner: Operation, outer: Operation) -> bool:
    return _place(inner).is_relative_to(_place(outer))


def _place(operation: Operation) -> PurePosixPath:
    """The file or folder of the run that an operation on its artifacts changes."""
    body = operation.body
    match operation.kind:
        case "file":
            assert operation.source is not None
            return PurePosixPath(body["folder"] or "", operation.source.name)
        case "folder":
            return PurePosixPath(body["folder"] or "")
        case "text":
            return PurePosixPath(body["file"])
        case _:
            return PurePosixPath(body["path"])
