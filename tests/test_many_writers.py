"""Eight trainings at once into one new store: no value is lost, and no run fails."""

import os
import sqlite3
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml
from outages import each_once
from postgres import Postgres, need_postgres

from sae_mlflow.history import read_history

WRITERS = 8
EPOCHS = 6

TRAIN_AT_ONCE = """
import os, sys, time, traceback
from sae_mlflow.config import load_settings
from sae_mlflow.pipeline import run_training
from sae_mlflow.reporting.display import Display

config, uri, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
start = time.time() + 1
children = []
for seed in range(n):  # forked, so that they begin together and import once
    child = os.fork()
    if child:
        children.append(child)
        continue
    time.sleep(max(0, start - time.time()))
    status = 1
    try:
        own = {"seed": seed, "output.dir": f"results{seed}"}
        run_training(load_settings(config, own), Display(), tracking_uri=uri)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)
statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
sys.exit(max(statuses))
"""


@pytest.fixture(scope="module")
def postgres():
    need_postgres()
    database = Postgres()
    database.start()
    yield SimpleNamespace(uri=database.uri, query=database.query)
    database.remove()


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
        *(f"train.epochs={EPOCHS}", "train.log_every_tokens=1000", "plots.live_seconds=1"),
        *("plots.interactive=none", "evaluate.after_training=false", "model.layers=1"),
    )
    config = tmp_path / "training.yaml"
    config.write_text(yaml.safe_dump(settings.model_dump(mode="json")), encoding="utf-8")
    command = [sys.executable, "-c", TRAIN_AT_ONCE, str(config), store.uri, str(WRITERS)]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert not [file for file in own_state.rglob("*") if file.name == "entries"]
    assert store.query("SELECT status, COUNT(*) FROM runs GROUP BY status") == [
        ("FINISHED", WRITERS * 2)
    ]
    metrics = each_once(
        store.query(
            "SELECT p.value, r.name, m.key, m.step, m.value FROM metrics m "
            "JOIN runs r USING (run_uuid) JOIN params p USING (run_uuid) WHERE p.key = 'seed'"
        )
    )
    for seed in range(WRITERS):
        file = tmp_path / f"results{seed}" / "tiny-llama" / "layer1_training_history.json"
        for key, values in read_history(file).items():
            run = str(seed), "tiny-llama_layer1"
            assert [metrics[*run, key, epoch] for epoch in range(1, EPOCHS + 1)] == values
    counts = {seed: sum(key[0] == str(seed) for key in metrics) for seed in range(WRITERS)}
    assert len(set(counts.values())) == 1 and min(counts.values()) > 14 * EPOCHS
