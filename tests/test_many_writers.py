"""Eight trainings at once into one new store: no value is lost, and no run fails."""

import sqlite3
from types import SimpleNamespace

import pytest
from faults.many_writers import write_at_once

WRITERS = 8
EPOCHS = 6


@pytest.fixture
def sqlite(tmp_path):
    file = tmp_path / "many.db"

    def query(statement):
        with sqlite3.connect(file) as connection:
            return connection.execute(statement).fetchall()

    return SimpleNamespace(uri=f"sqlite:///{file}", query=query)


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_eight_trainings_at_once_lose_nothing(kind, request, tiny_settings, tmp_path, own_state):
    store = request.getfixturevalue(kind)
    settings = tiny_settings(
        *(f"train.epochs={EPOCHS}", "train.log_every_tokens=1000", "plots.after_training=false"),
        *("plots.live=false", "evaluate.after_training=false", "model.layers=1"),
    )
    found = write_at_once(tmp_path, settings, store.uri, WRITERS, store.query)
    assert found.lost == 0 and len(found.expected) > WRITERS * 7 * EPOCHS
    assert found.statuses == {"FINISHED": WRITERS * 2}
    assert not [file for file in own_state.rglob("*") if file.name == "entries"]
    seeds = [seed for seed, *_ in found.values]
    assert len({seeds.count(str(seed)) for seed in range(WRITERS)}) == 1
    assert seeds.count("0") > 14 * EPOCHS
