"""The tracking store on a real SQLite file: the contract of what stands in it, and no entry."""

import socket
import sqlite3
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from sae_mlflow.errors import UserError
from sae_mlflow.tracking.launcher import launched_experiment_id, launched_run
from sae_mlflow.tracking.reach import check_reachable, hide_password, hide_password_in
from sae_mlflow.tracking.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    return Store(f"sqlite:///{folder / 'mlflow.db'}")


@pytest.fixture
def experiment(store, request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where artifacts land
    return store.experiment_id(request.node.name)


def test_epochs_are_steps_counted_from_one_and_there_at_once(store, experiment):
    run = store.open_run(experiment, "r", {"sae.role": "layer"})
    run.log_metrics(1, {"fvu": 0.5, "l0_norm": 32})
    assert list(store.history(run.run_id, ["fvu"])) == [("fvu", 1, 0.5)]
    run.log_metrics(2, {"fvu": 0.25, "l0_norm": 31})
    assert list(store.history(run.run_id, ["l0_norm", "fvu", "missing"])) == [
        ("l0_norm", 1, 32.0),
        ("l0_norm", 2, 31.0),
        ("fvu", 1, 0.5),
        ("fvu", 2, 0.25),
    ]


def test_of_an_epoch_logged_twice_the_last_counts(store, experiment):
    run = store.open_run(experiment, "r", {})
    run.log_metrics(1, {"fvu": 0.5})
    time.sleep(0.002)  # MLflow keeps both where the milliseconds differ
    run.log_metrics(1, {"fvu": 0.4})
    assert list(store.history(run.run_id, ["fvu"])) == [("fvu", 1, 0.4)]


def test_layer_runs_are_nested_found_by_query_and_newest_first(store, experiment):
    parent = store.open_run(experiment, "sweep", {"sae.role": "sweep"})
    for layer in (9, 10):
        tags = {"sae.role": "layer", "sae.model": "a/b", "sae.layer": f"layer{layer}"}
        run = store.open_run(experiment, f"b_layer{layer}", tags, parent)
        run.log_params({"sae.k": 32, "model.revision": None, "some.list": (1, 2)})
        run.finish()
        time.sleep(0.002)
    store.open_run(experiment, "open", {"sae.role": "layer"}, parent)
    rows = store.layer_runs(experiment, parent_id=parent.run_id)
    assert [row.layer for row in rows] == ["layer10", "layer9"]
    assert {row.parent_id for row in rows} == {parent.run_id}
    assert rows[0].model == "a/b" and rows[0].status == "FINISHED"
    assert rows[0].params == {"sae.k": "32", "model.revision": "", "some.list": "1,2"}
    assert len(store.layer_runs(experiment, finished=False)) == 3


def test_more_params_than_one_request_takes_are_all_logged(store, experiment):
    run = store.open_run(experiment, "r", {})
    run.log_params({f"p{i}": i for i in range(250)})
    assert len(store.run(run.run_id).params) == 250


def test_a_failed_run_says_why(store, experiment):
    run = store.open_run(experiment, "r", {})
    run.fail("no text")
    row = store.run(run.run_id)
    assert (row.status, row.tags["sae.failure"]) == ("FAILED", "no text")


def test_a_description_that_is_too_long_ends_with_a_line_that_says_so(store, experiment):
    run = store.open_run(experiment, "r", {})
    run.describe("a line\n" * 3000)
    note = store.run(run.run_id).tags["mlflow.note.content"]
    assert len(note) <= 8000 and note.endswith("(cut here: a description holds 8,000 characters)")


def test_the_data_set_is_an_input_of_the_run(store, experiment):
    run = store.open_run(experiment, "r", {})
    run.log_data_set("wiki", "ab" * 32, {"text": "wiki", "tokens": 100})
    inputs = store._client.get_run(run.run_id).inputs.dataset_inputs
    assert [(i.dataset.name, i.dataset.digest) for i in inputs] == [("wiki", "ab" * 8)]
    assert inputs[0].tags[0].value == "training"


def test_artifacts_come_back_by_their_address(store, experiment, tmp_path):
    run = store.open_run(experiment, "r", {})
    run.log_text("seed: 0", "config.yaml")
    assert store.download(f"runs:/{run.run_id}/config.yaml", tmp_path).read_text() == "seed: 0"
    with pytest.raises(UserError, match="can't be read"):
        store.download(f"runs:/{run.run_id}/nothing", tmp_path)


def test_a_models_comparison_run_is_made_once(store, experiment):
    one = store.comparison_run(experiment, "a/b")
    assert store.comparison_run(experiment, "a/b").run_id == one.run_id
    assert store.comparison_run(experiment, "c").run_id != one.run_id


def test_an_unknown_experiment_is_refused_with_the_names_there_are(store, experiment, request):
    with pytest.raises(UserError, match=rf"No experiment 'nope' in .*{request.node.name}"):
        store.find_experiment("nope")


def test_a_deleted_experiment_is_not_written_to(store):
    deleted = store.experiment_id("gone")
    store._client.delete_experiment(deleted)
    with pytest.raises(UserError, match=f"mlflow experiments restore -x {deleted}"):
        store.experiment_id("gone")


def test_the_address_opens_the_page_that_shows_training_runs(store):
    server = Store.__new__(Store)
    server.uri = "http://host:5000/"
    page = "http://host:5000/#/experiments/3/runs"
    assert server.address("3") == f"{page}?workflowType=machine_learning"
    assert server.address("3", "abc") == f"{page}/abc?workflowType=machine_learning"


def test_experiment_zero_from_mlflow_run_means_that_no_name_was_given(monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "abc")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")
    assert launched_experiment_id() is None
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "7")
    assert launched_experiment_id() == "7"


def test_a_launchers_run_that_is_not_there_is_said(store, monkeypatch):
    assert launched_run(store) is None
    monkeypatch.setenv("MLFLOW_RUN_ID", "abc")
    with pytest.raises(UserError, match="MLFLOW_RUN_ID names run abc, which isn't in"):
        launched_run(store)


def refused_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def answering(said):
    """A port of this machine that says the same to whoever asks once."""

    def answer():
        with listener.accept()[0] as asked:
            asked.recv(1000)
            asked.sendall(said)

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(timeout=5)


@pytest.mark.parametrize("scheme", ["http", "postgresql", "mysql+pymysql"])
def test_a_store_that_nobody_serves_is_said_at_once(scheme):
    started = time.monotonic()
    with pytest.raises(UserError, match="can't be reached: .*MLFLOW_TRACKING_URI"):
        Store(f"{scheme}://127.0.0.1:{refused_port()}/x")
    assert time.monotonic() - started < 2


def test_a_server_that_never_answers_is_given_up_on(monkeypatch):
    monkeypatch.setattr("sae_mlflow.tracking.reach._PROBE_SECONDS", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(UserError, match="can't be reached"):
            check_reachable(f"http://127.0.0.1:{silent.getsockname()[1]}")


@pytest.mark.parametrize("user", ["", "me:secret@"])
def test_a_server_that_wants_a_password_counts_as_reached(user):
    class Refuses(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(401)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Refuses)
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    check_reachable(f"http://{user}127.0.0.1:{server.server_port}")
    thread.join()
    server.server_close()


@pytest.mark.parametrize("said", [b"SSH-2.0-OpenSSH_9.2\r\n", b"", b"+PONG\r\n"])
def test_what_speaks_no_http_is_no_store(said):
    with answering(said) as port, pytest.raises(UserError, match="can't be reached"):
        check_reachable(f"http://127.0.0.1:{port}")


def test_a_certificate_is_for_mlflow_to_judge():
    """It knows settings by which one is trusted."""
    with answering(b"no certificate") as port:
        check_reachable(f"https://127.0.0.1:{port}")


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://u:p@/db?host=/cloudsql/project",
        "postgresql:///db",
        "postgresql://127.0.0.1:{port}/db?host=/cloudsql/project",
        "mysql+pymysql://u:p@/db?unix_socket=/run/mysql",
    ],
)
def test_a_database_behind_a_socket_of_this_machine_is_left_to_mlflow(uri):
    check_reachable(uri.format(port=refused_port()))


def test_a_sqlite_store_needs_a_folder_and_a_database(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        Store(f"sqlite:///{tmp_path}/none/mlflow.db")
    (tmp_path / "text.db").write_text("this is no database")
    with pytest.raises(UserError, match="is not a SQLite database"):
        Store(f"sqlite:///{tmp_path}/text.db")
    with pytest.raises(UserError, match="is a folder"):
        Store(f"sqlite:///{tmp_path}")
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        other.execute("INSERT INTO alembic_version VALUES ('ffff')")
    with pytest.raises(UserError, match="can't be opened"):
        Store(f"sqlite:///{tmp_path}/other.db")


def test_a_folder_is_no_store_any_more(tmp_path):
    with pytest.raises(UserError) as error:
        Store(f"{tmp_path}/runs")
    assert str(error.value) == (
        f"The tracking store {tmp_path}/runs is a folder of files, which MLflow no longer writes. "
        "Name a database: sqlite:///mlflow.db, for example (MLflow reads the folder still with "
        "MLFLOW_ALLOW_FILE_STORE=true)."
    )


def test_passwords_are_not_shown():
    uri = "postgresql://me:secret@host:5432/db"
    assert hide_password(uri) == "postgresql://me:***@host:5432/db"
    assert hide_password("sqlite:///x.db") == "sqlite:///x.db"
    said = hide_password_in(f"{uri}/runs failed", uri)
    assert said == "postgresql://me:***@host:5432/db/runs failed"
