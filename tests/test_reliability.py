"""Killed, cut off, many at once, fed with rubbish: nothing is lost. `-m slow` takes an hour."""

import pytest
import reliability
from reliability import LONG, SHORT, Size


@pytest.fixture(params=[SHORT, pytest.param(LONG, marks=pytest.mark.slow)], ids=["short", "long"])
def size(request) -> Size:
    return request.param


def test_a_training_that_is_killed_goes_on_to_the_same_bits(size, tmp_path):
    found = reliability.kills(size, tmp_path / "kills")
    assert found.faults == []
    *moments, (_, tried, survived) = found.rows
    assert survived == tried >= 10 * size.rounds_of_kills
    assert {name for name, *_ in moments} > {"harvest", "epoch", "checkpoint", "log"}


def test_a_store_that_goes_away_loses_nothing(size, tmp_path, postgres, one_thread):
    found = reliability.outages(size, tmp_path / "outages")
    assert found.faults == []
    assert len(found.rows) == len(size.stages) * len(size.hows)
    for _, _, seconds, logged, delivered in found.rows:
        assert seconds >= size.seconds_away and delivered == logged > 1000


def test_many_trainings_at_once_lose_nothing(size, tmp_path, postgres):
    found = reliability.writers(size, tmp_path / "writers")
    assert found.faults == []
    assert [row[:2] for row in found.rows] == [
        (kind, n) for n in size.writers for kind in ("SQLite", "PostgreSQL")
    ]
    assert all(written > n * 14 * 6 for _, n, written, *_ in found.rows)


def test_bad_inputs_are_answered_in_a_sentence(size, tmp_path):
    found = reliability.inputs(size, tmp_path / "inputs")
    assert found.faults == []
    *kinds, (_, tried, refused, _, tracebacks, ran) = found.rows
    assert len(kinds) == 10 and tried >= 10 * size.inputs_a_kind and refused > tried / 2
    assert tracebacks == ran == 0
