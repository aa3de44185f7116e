"""A server whose artifacts can't be had, though its API answers: what waits, and what goes on."""

import pytest
from half_a_server import half_a_server

from sae_mlflow.tracking.journalled import JournalledStore


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
    assert store.flush() and store.away == ""
    assert server.metrics == [("fvu", 1)]
    [line] = said
    assert "doesn't take file of run" in line and str(status) in line
    server.artifact_status = 200
    assert store.wait(10) and store.waiting == 0
    assert server.artifacts == ["PUT sae/weights"]


def test_an_upload_that_nobody_answers_lets_the_metrics_pass(
    server, store, said, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    server.artifact_seconds = 2
    run = store.reopen(server.run_id)
    run.log_file(tmp_path / "weights", "sae")
    run.log_metrics(1, {"fvu": 0.5})
    assert store.flush() and store.away == ""
    assert server.metrics == [("fvu", 1)] and "doesn't take file" in said[0]
