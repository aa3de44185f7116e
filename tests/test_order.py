"""Which of a run's operations passes an earlier one that the store doesn't take now."""

from pathlib import Path

import pytest

from sae_mlflow.tracking.operations import Operation
from sae_mlflow.tracking.order import makes_needless, may_overtake


def tags(**values):
    return Operation("tags", "r", {"tags": values})


def file(folder, name="1"):
    return Operation("file", "r", {"folder": folder}, Path("/kept") / name)


def remove(path):
    return Operation("remove", "r", {"path": path})


METRICS = Operation("metrics", "r", {"metrics": [["fvu", 0.5, 7, 1]]})
PARAMS = Operation("params", "r", {"params": {"a": "1"}})
SAE = Operation("folder", "r", {"folder": "sae"}, Path("/kept/sae"))
ALL = Operation("folder", "r", {"folder": None}, Path("/kept/all"))
TEXT = Operation("text", "r", {"file": "sae/cfg.json", "text": "{}"})
FINISHED = Operation("status", "r", {"status": "FINISHED", "at": 5})
RESUME = Operation("resume", "r")
FAILURE = Operation("tags", "r", {"tags": {"sae.failure": "why"}})


@pytest.mark.parametrize(
    ("later", "earlier"),
    [
        *((METRICS, each) for each in (PARAMS, SAE, FINISHED, RESUME, tags(a="1"))),
        (tags(heartbeat="2"), SAE),
        (tags(heartbeat="2"), RESUME),
        (tags(heartbeat="2"), tags(note="1")),
        (SAE, file("checkpoint")),
        (SAE, FINISHED),
        (remove("checkpoint/1"), file("checkpoint", "2")),
        (PARAMS, SAE),
    ],
)
def test_what_changes_nothing_of_an_earlier_one_passes_it(later, earlier):
    assert may_overtake(later, earlier)


@pytest.mark.parametrize(
    ("later", "earlier"),
    [
        *((FINISHED, each) for each in (METRICS, PARAMS, SAE, RESUME, tags(a="1"), remove("x"))),
        *((RESUME, each) for each in (FINISHED, FAILURE)),
        (FAILURE, RESUME),
        (tags(note="2", a="1"), tags(note="1")),
        (TEXT, SAE),
        (SAE, TEXT),
        (ALL, SAE),
        (SAE, ALL),
        (SAE, remove("sae")),
        (remove("checkpoint"), file("checkpoint")),
        (file(None, "sae"), TEXT),
    ],
)
def test_what_would_be_undone_by_an_earlier_one_waits(later, earlier):
    assert not may_overtake(later, earlier)


def test_what_is_removed_later_is_needless():
    assert makes_needless(remove("checkpoint"), file("checkpoint", "1"))
    assert makes_needless(remove("checkpoint/1"), file("checkpoint", "1"))
    assert makes_needless(remove("sae"), SAE) and makes_needless(remove("sae"), TEXT)
    assert not makes_needless(remove("checkpoint/1"), file("checkpoint", "10"))
    assert not makes_needless(remove("sae"), ALL)
    assert not makes_needless(remove("sae"), tags(sae="1"))
    assert not makes_needless(SAE, SAE)
