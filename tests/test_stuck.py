"""What a server doesn't take though it answers: what waits with it, and what goes on."""

import os
import time

import pytest
from half_a_server import half_a_server

from sae_mlflow.commands.health import health_command
from sae_mlflow.errors import UserError
from sae_mlflow.tracking.journalled import JournalledStore
from sae_mlflow.tracking.patience import Patience
from sae_mlflow.tracking.store import Store


@pytest.fixture
def server():
    with half_a_server() as server:
        yield server


@pytest.fixture
def said():
    return []


@pytest.fixture
def store(server, said, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "weights").write_bytes(b"weights")
    store = JournalledStore(server.uri, said.append)
    yield store
    store.close()


@pytest.mark.parametrize("status", [500, 502, 503, 429, 401, 403])
def test_an_artifact_that_a_server_does_not_take_lets_the_metrics_pass(
    status, server, store, said, tmp_path
):
    """A full artifact disk is a 500; a proxy that closes one path alone a 403."""
    server.artifact_status = status
    run = store.reopen(server.run_id)
    run.log_file(tmp_path / "weights", "sae")
    run.log_metrics(1, {"fvu": 0.5})
    assert store.flush()
    assert server.metrics == [("fvu", 1)]
    [line] = said
    assert "doesn't take file of run" in line and str(status) in line
    server.artifact_status = 200
    assert store.wait(10) and store.waiting == 0
    assert server.artifacts == ["PUT sae/weights"]


@pytest.mark.parametrize("status", [500, 403])
def test_what_a_command_cannot_log_is_said_with_what_to_do_instead(
    status, server, tmp_path, monkeypatch
):
    """The server answers: that it doesn't would be untrue."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    server.artifact_status, server.tags = status, {"sae.role": "layer"}
    (tmp_path / "fvu.png").write_bytes(b"png")
    store, run_id = Store(server.uri), server.run_id
    said = f"can't be logged to run {run_id}: .*{status}.* See that its artifact location"
    with pytest.raises(UserError, match=f"^The plots {said} .*--output-dir DIR"):
        store.log_plots(run_id, tmp_path)
    with pytest.raises(UserError, match=f"^report.html {said} .*--output FILE"):
        store.log_page(run_id, "<p>", "report.html")
    with pytest.raises(UserError, match=f"^health.json {said} .*look only, with --no-log"):
        health_command(run=run_id, tracking_uri=server.uri)


def test_an_upload_that_nobody_answers_lets_the_metrics_pass(
    server, store, said, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    server.artifact_seconds = 2
    run = store.reopen(server.run_id)
    run.log_file(tmp_path / "weights", "sae")
    run.log_metrics(1, {"fvu": 0.5})
    assert store.flush()
    assert server.metrics == [("fvu", 1)] and "doesn't take file" in said[0]


def test_a_run_says_how_it_ended_once_it_is_whole(server, store, tmp_path):
    server.artifact_status = 500
    run = store.reopen(server.run_id)
    run.log_file(tmp_path / "weights", "sae")
    run.finish()
    run.log_metrics(1, {"fvu": 0.5})
    run.tag({"sae.heartbeat": "now"})
    assert store.flush() and server.metrics == [("fvu", 1)]
    batches = [body for what, body in server.log if what == "runs/log-batch"]
    tags = [tag["key"] for body in batches for tag in body.get("tags", [])]
    assert tags == ["sae.heartbeat"] and server.updates == []
    server.artifact_status = 200
    assert store.wait(10) and store.waiting == 0
    done = [what for what, _ in server.log if not what.endswith("/search")]
    assert done[-2:] == ["PUT sae/weights", "runs/update"]


def test_what_is_removed_later_is_not_delivered_any_more(server, store, tmp_path):
    """Else a checkpoint would land in the run that has ended."""
    server.artifact_status = 500
    run = store.reopen(server.run_id)
    run.log_file(tmp_path / "weights", "checkpoint")
    run.log_file(tmp_path / "weights", "sae")
    run.remove_artifacts("checkpoint")
    run.finish()
    assert store.flush()
    server.artifact_status = 200
    assert store.wait(10) and store.waiting == 0
    assert server.artifacts == ["PUT sae/weights", "DELETE checkpoint"]
    assert len(server.updates) == 1


def test_a_file_that_is_not_taken_is_tried_ever_less_often(server, tmp_path, monkeypatch):
    monkeypatch.setattr("sae_mlflow.tracking.delivery._STUCK_PAUSE_SECONDS", (0.1, 300))
    (tmp_path / "weights").write_bytes(b"weights")
    server.artifact_status = 500
    store = JournalledStore(server.uri, print)
    store.reopen(server.run_id).log_file(tmp_path / "weights", "sae")
    assert store.flush()
    time.sleep(3)
    assert 5 <= len(server.refused) <= 8
    store.close()


def test_what_waits_for_a_run_that_cannot_be_made_costs_no_time_and_no_word(server, store, said):
    server.api_status["runs/create"] = 418
    started = time.monotonic()
    run = store.open_run("1", "r", {})
    child = store.open_run("1", "child", {}, run)
    for epoch in range(1, 21):
        run.log_params({f"a{epoch}": 1})
        child.log_metrics(epoch, {"fvu": 0.5})
    assert store.flush() and store.waiting == 42
    assert time.monotonic() - started < 3
    [line] = said
    assert "doesn't take create of run" in line
    del server.api_status["runs/create"]
    assert store.wait(10) and store.waiting == 0 and len(server.metrics) == 20


def test_a_slow_disk_keeps_no_step_waiting(server, store, said, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: time.sleep(0.5))
    server.api_status["runs/log-batch"] = 503
    run = store.reopen(server.run_id)
    run.log_metrics(0, {"fvu": 0.5})
    while not said:
        time.sleep(0.01)
    assert "out of reach" in said[0]
    started = time.monotonic()
    for epoch in range(1, 21):
        run.log_metrics(epoch, {"fvu": 0.5})
        time.sleep(0.01)
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("error", [OSError("no quota left"), RuntimeError("what nobody expects")])
def test_nothing_that_goes_wrong_ends_the_delivery(error, server, tmp_path, monkeypatch):
    """Neither a disk, nor a terminal that has gone."""

    def fails(_):
        raise error

    store = JournalledStore(server.uri, fails)
    server.api_status["runs/log-batch"] = 503
    run = store.reopen(server.run_id)
    run.log_metrics(1, {"fvu": 0.5})
    monkeypatch.setattr(os, "fsync", fails)
    time.sleep(1)
    del server.api_status["runs/log-batch"]
    run.log_metrics(2, {"fvu": 0.5})
    monkeypatch.setattr(os, "fsync", lambda _: None)
    assert store.wait(10)
    assert server.metrics == [("fvu", 1), ("fvu", 2)]
    store.close()


def test_a_call_of_more_than_ten_minutes_is_waited_for_while_the_store_answers(monkeypatch):
    """A large file on a slow way."""
    began = time.monotonic()
    with half_a_server() as server:
        patience = Patience(server.uri, None)
        assert not patience.is_over(0, began)
        monkeypatch.setattr(time, "monotonic", lambda: began + 700)
        assert not patience.is_over(0, began)
    monkeypatch.setattr(time, "monotonic", lambda: began + 800)
    assert patience.is_over(0, began)
