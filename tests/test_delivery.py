"""What a training logs gets into a real store in order and once, whatever comes between."""

import os
import sqlite3
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from faults.full_disk import small_disk
from faults.outages import each_once
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from PIL import Image

from sae_mlflow.errors import UserError
from sae_mlflow.tracking.journal import Journal
from sae_mlflow.tracking.journalled import JournalledStore
from sae_mlflow.tracking.operations import Operation, apply, new_pending_id, now
from sae_mlflow.tracking.refusals import is_away
from sae_mlflow.tracking.store import Store


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"
    Store(uri)
    return uri


@pytest.fixture
def said():
    return []


@pytest.fixture
def store(uri, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where artifacts land
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    store = JournalledStore(uri, said.append)
    yield store
    store.close()


@pytest.fixture
def experiment(store, request):
    return store.experiment_id(request.node.name)


def database(store):
    return sqlite3.connect(store.uri.removeprefix("sqlite:///"))


def metrics(store, run_id):
    """Straight out of the database, where nothing stands twice."""
    query = "SELECT key, step, value FROM metrics WHERE run_uuid = ?"
    with database(store) as connection:
        return each_once(connection.execute(query, [run_id]).fetchall())


def test_what_is_logged_is_there_once_it_is_flushed_and_no_journal_is_left(store, experiment):
    run = store.open_run(experiment, "r", {"sae.role": "layer"})
    run.log_params({"a": 1})
    for epoch in range(1, 51):
        run.log_metrics(epoch, {"fvu": 1 / epoch, "l0_norm": 32})
    run.log_text("seed: 0", "config.yaml")
    run.finish()
    assert store.flush() and store.waiting == 0
    row = store.run(run.run_id)
    assert (row.status, row.params, row.tags["sae.role"]) == ("FINISHED", {"a": "1"}, "layer")
    assert len(metrics(store, run.run_id)) == 100
    store.close()
    assert not store.journal.folder.exists()


def test_a_metric_is_in_the_store_as_soon_as_without_a_journal(store, experiment):
    """Bounded by what a person looking at the UI would see: a second."""
    run = store.open_run(experiment, "r", {})
    run.log_metrics(1, {"fvu": 0.5})
    started = time.monotonic()
    while not metrics(store, run.run_id):
        assert time.monotonic() - started < 1
        time.sleep(0.005)


def test_to_do_everything_again_changes_nothing(store, experiment, tmp_path):
    """As after a kill between a delivery and the journal's note of it."""
    (tmp_path / "file.txt").write_text("a")
    name = new_pending_id()
    body = {"experiment_id": experiment, "at": now(), "tags": {"mlflow.runName": "r"}}
    create = Operation("create", name, body)
    run_id = apply(store._client, create)
    assert apply(store._client, create, again=True) == run_id
    data_set = {"name": "wiki", "digest": "ab", "source_type": "s", "source": "{}", "profile": "{}"}
    operations = [
        Operation("params", run_id, {"params": {"a": "1"}}),
        Operation(
            "metrics", run_id, {"metrics": [["fvu", 0.5, 7, 1], ["fvu", float("nan"), 7, 2]]}
        ),
        Operation("tags", run_id, {"tags": {"t": "1"}}),
        Operation("data_set", run_id, data_set),
        Operation("text", run_id, {"text": "t", "file": "notes/t.txt"}),
        Operation("file", run_id, {"folder": None}, tmp_path / "file.txt"),
        Operation("status", run_id, {"status": "FINISHED", "at": 5}),
    ]
    for _ in range(2):
        for operation in operations:
            apply(store._client, operation, again=True)
        found = store._client.get_run(run_id)
        assert len(found.inputs.dataset_inputs) == 1 and found.data.params == {"a": "1"}
        assert (found.info.status, found.info.end_time) == ("FINISHED", 5)
        assert len(metrics(store, run_id)) == 2
        assert [f.path for f in store._client.list_artifacts(run_id, "notes")] == ["notes/t.txt"]
    assert len(store.layer_runs(experiment, finished=False)) == 0
    assert len(list(store._search(experiment, ""))) == 1


def test_an_image_that_is_shown_again_stands_on_the_slider_once(store, experiment, tmp_path):
    run = store.open_run(experiment, "r", {})
    Image.new("RGB", (8, 8)).save(tmp_path / "p.png")
    for steps in ((0, 4), (0, 4), (4, 8)):
        store.log_image(run.run_id, tmp_path / "p.png", "history", steps)
    files = [file.path for file in store._client.list_artifacts(run.run_id, "images")]
    assert sorted(int(f.split("+")[2]) for f in files if f.endswith(".png")) == [0, 4, 8]


def test_a_sqlite_file_that_another_locks_is_waited_for_and_no_step_is(store, experiment, said):
    """MLflow itself waits 20 seconds for the lock, then gives up; so does not the journal."""
    run = store.open_run(experiment, "r", {})
    other = database(store)
    other.execute("BEGIN EXCLUSIVE")
    started = time.monotonic()
    for epoch in range(1, 201):
        run.log_metrics(epoch, {"fvu": 1 / epoch})
    second = store.open_run(experiment, "second", {}, run)
    second.log_metrics(1, {"fvu": 0.25})
    second.describe(f"see {second.run_id}")
    assert time.monotonic() - started < 8  # of which 5 for the second run's id
    assert second.run_id.endswith("-pending")
    time.sleep(max(0, 21 - (time.monotonic() - started)))
    assert "out of reach" in said[0] and "locked" in said[0]
    other.rollback()
    other.close()
    assert store.wait(60)
    assert metrics(store, run.run_id) == {("fvu", n): 1 / n for n in range(1, 201)}
    row = store.run(second.run_id)
    assert row.parent_id == run.run_id
    assert row.tags["mlflow.note.content"] == f"see {second.run_id}"
    assert metrics(store, second.run_id) == {("fvu", 1): 0.25}


def test_what_the_store_will_never_take_is_left_out_and_the_rest_goes_on(store, experiment, said):
    run = store.open_run(experiment, "r", {})
    run.log_params({"a": 1})
    run.log_params({"a": 2})
    run.log_metrics(1, {"fvu": 0.5})
    assert store.flush()
    assert store.run(run.run_id).params == {"a": "1"}
    assert metrics(store, run.run_id) == {("fvu", 1): 0.5}
    [line] = said
    assert f"refuses params of run {run.run_id}" in line and "It is left out." in line


def test_a_deleted_runs_entries_are_left_out_and_the_other_runs_go_on(store, experiment, said):
    run, other = (store.open_run(experiment, name, {}) for name in ("r", "other"))
    store._client.delete_run(run.run_id)
    for epoch in range(1, 4):
        run.log_metrics(epoch, {"fvu": 0.5})
        other.log_metrics(epoch, {"fvu": 0.5})
    assert store.flush() and store.waiting == 0
    assert len(metrics(store, other.run_id)) == 3 and metrics(store, run.run_id) == {}
    assert len(said) == 1 and f"Run {run.run_id} is gone" in said[0]


def test_an_artifact_without_room_lets_the_metrics_pass_and_follows_later(
    store, request, said, tmp_path
):
    weights = tmp_path / "sae" / "weights"
    weights.parent.mkdir()
    weights.write_bytes(os.urandom(3_000_000))
    with small_disk(tmp_path / "artifacts", 4) as disk:
        (disk / "filler").write_bytes(bytes(2_000_000))
        experiment = store._client.create_experiment(request.node.name, f"file://{disk}/runs")
        run = store.open_run(experiment, "r", {})
        run.log_folder(weights.parent, "sae")
        run.log_metrics(1, {"fvu": 0.5})
        assert store.flush()
        assert metrics(store, run.run_id) == {("fvu", 1): 0.5}
        [line] = said
        assert "No space left on device" in line and "3.0 MB to write" in line and "free" in line
        assert list(disk.glob("runs/**/weights")) == []  # nothing torn
        (disk / "filler").unlink()
        assert store.wait(20) and store.waiting == 0
        [whole] = disk.glob("runs/**/weights")
        assert whole.read_bytes() == weights.read_bytes()


def test_a_journal_without_room_goes_on_in_memory_and_files_reach_the_store(
    uri, said, tmp_path, monkeypatch
):
    """The store is there: what the journal has no room for is delivered from where it is."""
    with small_disk(tmp_path / "disk", 1) as disk:
        store = JournalledStore(uri, said.append, Journal(disk / "j"))
        monkeypatch.chdir(tmp_path)
        run = store.open_run(store.experiment_id("full journal"), "r", {})
        (disk / "filler").write_bytes(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize))
        (tmp_path / "weights").write_bytes(os.urandom(2_000_000))
        run.log_file(tmp_path / "weights")
        for epoch in range(1, 301):
            run.log_metrics(epoch, {"fvu": 1 / epoch})
        assert store.flush()
        assert len(metrics(store, run.run_id)) == 300
        assert "2.0 MB to write" in said[0] and "Make room" in said[0]
        whole = store.download(f"runs:/{run.run_id}/weights", tmp_path / "found")
        assert whole.read_bytes() == (tmp_path / "weights").read_bytes()
        store.close()


def test_without_room_and_without_a_store_a_file_is_waited_with_until_there_is_room(
    uri, said, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with small_disk(tmp_path / "disk", 4) as disk:
        store = JournalledStore(uri, said.append, Journal(disk / "j"))
        run = store.open_run(store.experiment_id("full and away"), "r", {})
        (disk / "filler").write_bytes(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize))
        other = database(store)
        other.execute("BEGIN EXCLUSIVE")
        (tmp_path / "weights").write_bytes(os.urandom(2_000_000))
        run.log_metrics(1, {"fvu": 0.5})
        logging = threading.Thread(target=run.log_file, args=[tmp_path / "weights"])
        logging.start()
        time.sleep(3)
        assert logging.is_alive()
        (disk / "filler").unlink()
        logging.join(timeout=10)
        assert not logging.is_alive()
        assert [each.operation.kind for each in store.journal.waiting()] == ["metrics", "file"]
        other.rollback()
        other.close()
        assert store.wait(40) and store.waiting == 0
        store.close()


@pytest.mark.parametrize(("status", "away"), [(401, True), (403, True), (503, True), (400, False)])
def test_a_server_that_lets_nobody_in_counts_as_away(status, away, store):
    """A password that has changed is put right, and nothing was lost by it."""

    class Refuses(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(status)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Refuses)
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    with pytest.raises(MlflowException) as caught:
        MlflowClient(f"http://127.0.0.1:{server.server_port}").get_run("a" * 32)
    assert is_away(caught.value) == away
    thread.join()
    server.server_close()


def test_a_state_folder_that_cannot_be_written_is_bad_input(uri, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SAE_MLFLOW_STATE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="Point SAE_MLFLOW_STATE at a folder"):
        JournalledStore(uri, print)
