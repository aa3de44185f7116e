"""What a dead process couldn't deliver does nothing to a run that another has gone on with."""

import sqlite3
import subprocess
import sys

import pytest

from sae_mlflow.reporting.display import Display
from sae_mlflow.runs.delivery import deliver_leftovers
from sae_mlflow.tracking.process import process_tags
from sae_mlflow.tracking.store import Store

KILLED = """
import sys
from sae_mlflow.tracking.journalled import JournalledStore
from sae_mlflow.tracking.process import process_tags

store = JournalledStore(sys.argv[1], print)
experiment = store.experiment_id("tiny")
ours = store.open_run(experiment, "ours", {"sae.role": "layer", **process_tags()})
theirs = store.open_run(experiment, "theirs", {"sae.role": "layer", **process_tags()})
assert store.flush()
print("opened", ours.run_id, theirs.run_id, flush=True)
input()
for run in (ours, theirs):
    run.log_metrics(1, {"fvu": 0.5})
    run.fail("interrupted", "KILLED")
print("logged", flush=True)
input()
"""


@pytest.fixture
def uri(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return f"sqlite:///{tmp_path}/mlflow.db"


def test_what_a_dead_process_left_of_a_run_that_goes_on_is_left_out_and_said(uri, tmp_path, capsys):
    """The store is locked while it logs, and it is killed; one of its runs is taken up before what
    it left is delivered."""
    command = [sys.executable, "-c", KILLED, uri]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        _, left, taken = process.stdout.readline().split()
        lock = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
        lock.execute("BEGIN EXCLUSIVE")
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "logged\n"
        process.kill()
        lock.execute("ROLLBACK")
        lock.close()
    store = Store(uri)
    store.resume_run(store.run(taken)).tag(process_tags())
    store.reopen(taken).log_metrics(1, {"fvu": 0.25})

    delivered, waiting = deliver_leftovers(store, Display())

    assert delivered >= 3 and waiting == 0
    row = store.run(left)
    assert (row.status, row.tags["sae.failure"]) == ("KILLED", "interrupted")
    row = store.run(taken)
    assert row.status == "RUNNING" and "sae.failure" not in row.tags
    assert [value for _, value, _ in store.timed_history(taken, "fvu")] == [0.25]
    said = " ".join(capsys.readouterr().out.split())
    assert f"3 entries of run {taken} are left out: another process has gone on with it." in said
