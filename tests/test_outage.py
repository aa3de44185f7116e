"""The store goes away while a real training runs: a real server over a real PostgreSQL.

What the training itself wrote to plain files, and what one that nothing happened to logs, is held
against the rows of the database.
"""

import re
import signal
import sqlite3

import pytest
from faults.outages import (
    OUTAGE_EPOCHS,
    TrainingProcess,
    assert_complete,
    each_once,
    in_database,
    outage_data,
    refused_port,
    synced,
    undisturbed,
)
from faults.tracking_server import TrackingServer

from sae_mlflow.config import Settings
from sae_mlflow.config_set import parse_set
from sae_mlflow.errors import OutOfReach, UserError
from sae_mlflow.pipeline import run_training
from sae_mlflow.reporting.display import Display
from sae_mlflow.tracking.journalled import JournalledStore
from sae_mlflow.tracking.store import Store

SECRET = "hunter2"


@pytest.fixture(scope="module")
def server(postgres, tmp_path_factory):
    server = TrackingServer(tmp_path_factory.mktemp("server"), postgres.uri)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def settings(tiny_model, text_file, tmp_path):
    def make(experiment, *overrides):
        data = outage_data(tiny_model, text_file, experiment, tmp_path / "results")
        for key, value in parse_set(" ".join(overrides)).items():
            section, name = key.split(".")
            data.setdefault(section, {})[name] = value
        return Settings.model_validate(data)

    return make


def test_what_is_logged_while_the_store_is_away_is_delivered_in_order_and_once(
    settings, server, postgres, tmp_path, own_state, one_thread
):
    """The database restarts in the first layer; in the second the server hangs and then restarts;
    at the end it is dead."""
    ours = settings("outage", "evaluate.after_training=false", "tracking.wait_seconds=2")
    uri = server.uri.replace("http://", f"http://me:{SECRET}@")
    training = TrainingProcess(tmp_path, ours, uri)
    training.until("layer1  epoch 4/")
    postgres.stop()
    training.until("is out of reach")
    postgres.start()
    training.until("is back")
    training.until("layer2  epoch 4/")
    with server.hanging():
        training.until("layer2  epoch 12/")
        server.stop(signal.SIGTERM)
    training.until("layer2  epoch 14/")
    with training.paused():
        server.start()
    training.until("layer3  epoch 10/")
    server.stop(signal.SIGKILL)
    assert training.end() == 0, training.output
    assert re.search(r"\d+ entries wait for the tracking store .* sae-mlflow sync", training.output)
    kept = [file.read_bytes() for file in own_state.rglob("*") if file.is_file()]
    assert len(kept) > 3 and SECRET not in training.output
    assert not any(SECRET.encode() in text for text in kept)

    assert "can't be reached" in synced(uri, tmp_path, status=2)
    server.start()
    assert re.search(r"[1-9]\d* entries delivered", synced(uri, tmp_path))
    assert not [file for file in own_state.rglob("*") if file.name == "entries"]
    assert "\n0 entries delivered" in "\n" + synced(uri, tmp_path)
    found = in_database(postgres.query, "outage")
    assert_complete(found, undisturbed(ours, tmp_path), tmp_path / "results", Store(server.uri))


@pytest.mark.parametrize("what", ["the server", "its database"])
def test_an_artifact_that_cannot_be_had_now_is_told_from_one_that_is_not_there(
    what, server, postgres, tmp_path, monkeypatch
):
    """MLflow takes both for a wrong path; what can't be had now is waited for."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # as a training sets it
    store = Store(server.uri)
    run = store.open_run(store.experiment_id("artifacts"), "r", {})
    run.log_text("text", "folder/file.txt")
    source = f"runs:/{run.run_id}/folder"
    assert (store.download(source, tmp_path) / "file.txt").read_text() == "text"
    with pytest.raises(UserError, match="can't be read") as error:
        store.download(f"runs:/{run.run_id}/nothing", tmp_path)
    assert not isinstance(error.value, OutOfReach)
    server.stop() if what == "the server" else postgres.kill()
    with pytest.raises(OutOfReach):
        store.download(source, tmp_path)
    server.start() if what == "the server" else postgres.start()


def test_a_server_that_cannot_write_artifacts_still_gets_the_metrics(server, postgres, tmp_path):
    """Its artifacts' folder is a file meanwhile: what it answers then, a full disk is answered with
    as well."""
    said = []
    place = server.folder / "artifacts"
    place.rename(place.with_name("elsewhere")) if place.exists() else None
    place.write_text("")
    store = JournalledStore(server.uri, said.append)
    run = store.open_run(store.experiment_id("no artifacts"), "r", {})
    run.log_text("text", "folder/file.txt")
    run.log_metrics(1, {"fvu": 0.5})
    assert store.flush() and "doesn't take text of run" in said[0] and "500" in said[0]
    assert Store(server.uri).run(run.run_id).metrics == {"fvu": 0.5}
    place.unlink()
    assert store.wait(20) and store.waiting == 0
    assert store.artifacts(run.run_id, "folder") == ["folder/file.txt"]
    store.close()


def test_a_store_that_is_away_when_a_training_starts_is_bad_input(settings, tmp_path):
    training = TrainingProcess(tmp_path, settings("x"), f"http://127.0.0.1:{refused_port()}")
    assert training.end() == 2
    assert "error: The tracking store" in training.output and "Traceback" not in training.output


def test_what_a_killed_training_left_is_delivered_by_the_next_into_its_store(
    settings, tmp_path, own_state, one_thread
):
    """Killed while another process locks the store's file."""
    file = tmp_path / "mlflow.db"
    training = TrainingProcess(tmp_path, settings("killed"), f"sqlite:///{file}")
    training.until("layer1  epoch 4/")
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    training.until(f"layer1  epoch {OUTAGE_EPOCHS}/")
    training.kill()
    other.execute("ROLLBACK")
    said = synced(f"sqlite:///{tmp_path}/another.db", tmp_path)
    assert re.search(rf"\d+ entries wait for sqlite:///{file}: give it with --tracking-uri", said)

    after = settings("after", "train.epochs=1", "model.layers=1", "plots.after_training=false")
    run_training(after, Display(), tracking_uri=f"sqlite:///{file}")
    query = (
        "SELECT r.name, r.status, m.step, m.value FROM metrics m JOIN runs r USING (run_uuid) "
        "JOIN experiments e USING (experiment_id) WHERE e.name = 'killed' AND m.key = 'total_loss'"
    )
    found = each_once(other.execute(query).fetchall())
    other.close()
    steps = {(name, step) for name, _, step in found}
    assert {("tiny-llama_layer1", epoch) for epoch in range(1, OUTAGE_EPOCHS + 1)} <= steps
    assert not [file for file in own_state.rglob("*") if file.name == "entries"]
