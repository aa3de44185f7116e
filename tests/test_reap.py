"""Runs of trainings that died: found by their process, or by a heartbeat that stopped."""

import ast
import os
import shlex
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from faults.tracking_server import TrackingServer

from sae_mlflow.pipeline import run_training
from sae_mlflow.reporting.display import Display
from sae_mlflow.runs.guards import recorded
from sae_mlflow.runs.heartbeat import heartbeat
from sae_mlflow.runs.reaping import dead_runs, reap
from sae_mlflow.stopping import Stopping
from sae_mlflow.tracking.journalled import JournalledStore
from sae_mlflow.tracking.process import host_id, process_tags
from sae_mlflow.tracking.store import Store

SECONDS = 90


@pytest.fixture
def uri(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where artifacts land
    return f"sqlite:///{tmp_path / 'reap.db'}"


@pytest.fixture
def store(uri):
    return Store(uri)


@pytest.fixture
def experiment(store):
    return store.experiment_id("tiny")


@pytest.fixture
def other_process():
    """A process that is there, until the test ends it."""
    with subprocess.Popen(["sleep", "300"]) as process:
        yield process
        process.kill()


def ticks_since_boot(pid: int) -> float:
    """Linux' own word for when a process started, in seconds."""
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(stat[19]) / os.sysconf("SC_CLK_TCK")


def ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def opened(store, experiment, role="sweep", parent=None, **tags):
    own = {f"sae.{key}": str(value) for key, value in tags.items()}
    all_tags = {"sae.role": role, **process_tags(), **own}
    return store.open_run(experiment, f"a {role}", all_tags, parent)


def kept_by(store, experiment, pid: int, **tags):
    """A run that another process of this host keeps up."""
    return opened(store, experiment, pid=pid, process_started=ticks_since_boot(pid), **tags)


def reaped_ids(store, experiment, **options) -> set[str]:
    return {dead.run.run_id for dead in reap(store, experiment, **options)}


def command(*arguments: str) -> subprocess.CompletedProcess:
    whole = [sys.executable, "-m", "sae_mlflow", *arguments]
    return subprocess.run(whole, capture_output=True, text=True, timeout=SECONDS)


@pytest.fixture
def training_process(tmp_path, uri, tiny_settings):
    """`sae-mlflow train` with more epochs than it will come to, in its second epoch or later."""
    settings = tiny_settings("model.layers=1", "train.epochs=100000", "plots.live=false")
    (tmp_path / "long.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    whole = [*(sys.executable, "-m", "sae_mlflow", "train", "--config", "long.yaml")]
    whole += ["--experiment-name", "tiny", "--tracking-uri", uri]
    with (tmp_path / "log").open("w") as log, subprocess.Popen(whole, stderr=log, stdout=log) as p:
        yield p
        p.kill()


def wait_for_epochs(store, experiment, process, log: Path):
    """The training's parent and layer, once that has two epochs."""
    for _ in range(SECONDS * 10):
        layers = store.layer_runs(experiment, finished=False)
        if layers and len(store.timed_history(layers[0].run_id, "fvu")) > 1:
            return store.run(layers[0].parent_id), layers[0]
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def test_a_training_that_is_killed_is_reaped_and_keeps_what_it_has(
    training_process, store, experiment, uri, tmp_path
):
    parent, layer = wait_for_epochs(store, experiment, training_process, tmp_path / "log")
    assert dead_runs(store, experiment) == reap(store, experiment) == []  # while it lives
    training_process.send_signal(signal.SIGKILL)
    training_process.wait()
    epochs = store.timed_history(layer.run_id, "fvu")
    assert store.run(parent.run_id).status == store.run(layer.run_id).status == "RUNNING"

    reason = f"process {training_process.pid} on {os.uname().nodename} is gone"
    dry = command("reap", "--experiment", "tiny", "--dry-run", "--tracking-uri", uri)
    assert (dry.returncode, dry.stderr) == (0, "")
    assert dry.stdout.splitlines() == [
        f"dead  {parent.name} ({parent.run_id}): {reason}",
        f"dead  {layer.name} ({layer.run_id}): {reason}",
        "2 runs would be closed in tiny",
    ]
    assert store.run(parent.run_id).status == "RUNNING"

    done = command("reap", "--experiment", "tiny", "--tracking-uri", uri)
    assert done.returncode == 0 and done.stdout.endswith("\n2 runs closed in tiny\n")
    for run_id in (parent.run_id, layer.run_id):
        row = store.run(run_id)
        assert (row.status, row.tags["sae.failure"]) == ("KILLED", reason)
    assert store.timed_history(layer.run_id, "fvu") == epochs and len(epochs) > 1
    again = command("reap", "--experiment", "tiny", "--tracking-uri", uri)
    assert again.stdout == "0 runs closed in tiny\n"


def test_each_start_of_a_training_closes_those_that_died(
    store, experiment, uri, tiny_settings, other_process, capsys, one_thread
):
    dead = kept_by(store, experiment, other_process.pid)
    elsewhere = kept_by(store, store.experiment_id("another"), other_process.pid)
    other_process.kill()
    other_process.wait()
    settings = tiny_settings("model.layers=1", "train.epochs=1", "plots.after_training=false")
    training = run_training(settings, Display(), experiment_name="tiny", tracking_uri=uri)
    reason = f"process {other_process.pid} on {os.uname().nodename} is gone"
    assert f"Closed as KILLED: a sweep ({dead.run_id}): {reason}" in capsys.readouterr().out
    assert store.run(dead.run_id).status == "KILLED"
    assert store.run(elsewhere.run_id).status == "RUNNING"  # another experiment's
    layer = store.run(training.rows[0].run_id)
    for run in (layer, store.run(layer.parent_id)):
        assert (run.status, run.tags["sae.pid"]) == ("FINISHED", str(os.getpid()))
        started = float(run.tags["sae.process_started"])
        assert started == pytest.approx(ticks_since_boot(os.getpid()), abs=0.02)


def test_a_living_process_keeps_its_run_whatever_its_heartbeat_says(
    store, experiment, other_process
):
    """A store that was away for a day has no newer one; on the same host that doesn't matter."""
    run = kept_by(store, experiment, other_process.pid, heartbeat=ago(86_400))
    assert reap(store, experiment) == []
    other_process.kill()
    other_process.wait()
    assert reaped_ids(store, experiment) == {run.run_id}


def test_a_pid_that_another_process_has_now_keeps_no_run_alive(store, experiment, other_process):
    started = ticks_since_boot(other_process.pid) - 60
    run = opened(store, experiment, pid=other_process.pid, process_started=started)
    assert reaped_ids(store, experiment) == {run.run_id}
    assert other_process.poll() is None


def test_a_process_that_ended_but_was_not_asked_how_is_gone(store, experiment, other_process):
    run = kept_by(store, experiment, other_process.pid)
    other_process.kill()
    for _ in range(100):  # a zombie: its parent, this test, doesn't wait for it
        if ") Z " in Path(f"/proc/{other_process.pid}/stat").read_text():
            break
        time.sleep(0.05)
    assert reaped_ids(store, experiment) == {run.run_id}


def test_another_users_process_that_proc_hides_is_there(other_process):
    """`unshare` mounts a /proc where each user sees only what is their own."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    tags = process_tags() | {"sae.process_started": str(ticks_since_boot(other_process.pid))}
    code = (
        "import os; from sae_mlflow.tracking.process import why_dead\n"
        "os.setgroups([]), os.setgid(65534), os.setuid(65534)\n"  # its group 0 sees all
        f"assert not os.path.exists('/proc/{other_process.pid}')\n"
        f"for pid in ({other_process.pid}, {dead.pid}):\n"
        f"    print(why_dead({tags} | {{'sae.pid': str(pid)}}, 900))"
    )
    mounted = (
        f"mount -t proc -o hidepid=2 proc /proc && exec {sys.executable} -c {shlex.quote(code)}"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mounted], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines() == [
        "None",
        f"process {dead.pid} on {os.uname().nodename} is gone",
    ], done.stderr


def test_another_hosts_run_is_judged_by_its_heartbeat(store, experiment):
    """Its pid is that of this very process, and of a container with this host's name."""
    elsewhere = {"host": os.uname().nodename, "host_id": "feedfacefeedface"}
    fresh = opened(store, experiment, heartbeat=ago(14 * 60), **elsewhere)
    stale = opened(store, experiment, heartbeat=ago(16 * 60), **elsewhere)
    (dead,) = reap(store, experiment)
    assert dead.run.run_id == stale.run_id
    seen = datetime.now(UTC) - timedelta(minutes=16)
    reason = f"no sign of life from process {os.getpid()} on {os.uname().nodename} since "
    assert dead.reason.startswith(reason + f"{seen:%Y-%m-%d}")
    ended = store._client.get_run(stale.run_id).info.end_time / 1000
    assert ended == pytest.approx(seen.timestamp(), abs=5)
    assert store.run(fresh.run_id).status == "RUNNING"
    assert reaped_ids(store, experiment, stale_seconds=60) == {fresh.run_id}


def test_a_training_that_was_taken_for_dead_says_nothing_of_it_once_it_has_finished(
    store, experiment
):
    """Its store was away for so long that another host saw no sign of life."""
    elsewhere = {"host": "elsewhere", "host_id": "feedfacefeedface"}
    run = opened(store, experiment, heartbeat=ago(16 * 60), **elsewhere)
    assert reaped_ids(store, experiment) == {run.run_id}
    assert "sae.failure" in store.run(run.run_id).tags
    run.finish()
    row = store.run(run.run_id)
    assert row.status == "FINISHED" and "sae.failure" not in row.tags


def test_a_layer_dies_with_its_parent(store, experiment, other_process):
    """Though its own tags name a process that lives: it trains within its parent's."""
    parent = kept_by(store, experiment, other_process.pid)
    running = opened(store, experiment, "layer", parent)
    finished = opened(store, experiment, "layer", parent)
    finished.finish()
    other_process.kill()
    other_process.wait()
    assert reaped_ids(store, experiment) == {parent.run_id, running.run_id}
    assert store.run(running.run_id).tags["sae.failure"] == (
        f"its parent run ended: process {other_process.pid} on {os.uname().nodename} is gone"
    )
    assert store.run(finished.run_id).status == "FINISHED"


def test_a_run_that_names_no_process_is_left_and_named(store, experiment, uri):
    """As version 0.1.0 wrote them: nobody can tell whether it is being trained."""
    run = store.open_run(experiment, "old", {"sae.role": "sweep"})
    done = command("reap", "--experiment", "tiny", "--tracking-uri", uri)
    assert f"left    old ({run.run_id}): it says RUNNING, but not which process" in done.stdout
    assert done.stdout.endswith("0 runs closed in tiny\n")
    assert store.run(run.run_id).status == "RUNNING"


def test_an_experiment_that_is_not_there_is_said(store, experiment, uri):
    done = command("reap", "--experiment", "tinny", "--tracking-uri", uri)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: No experiment 'tinny'") and "tiny" in done.stderr


def test_whoever_trains_a_run_on_has_its_tags(store, experiment, other_process):
    """A training that is resumed: the dead process's run is this one's as soon as it is open."""
    run = kept_by(store, experiment, other_process.pid)
    other_process.kill()
    other_process.wait()
    assert [dead.run.run_id for dead in dead_runs(store, experiment)] == [run.run_id]
    with recorded(lambda: store.reopen(run.run_id), Stopping()):
        assert dead_runs(store, experiment) == []
        assert store.run(run.run_id).tags["sae.pid"] == str(os.getpid())
    assert store.run(run.run_id).status == "FINISHED"


def test_a_run_that_is_taken_up_is_its_new_process_s_as_soon_as_it_says_running(
    store, experiment, other_process
):
    run = kept_by(store, experiment, other_process.pid)
    run.fail("interrupted", "KILLED")
    other_process.kill()
    other_process.wait()
    store.resume_run(store.run(run.run_id))
    row = store.run(run.run_id)
    assert (row.status, row.tags["sae.pid"]) == ("RUNNING", str(os.getpid()))
    assert dead_runs(store, experiment) == []


def test_the_heartbeat_goes_on_while_a_run_is_trained_and_ends_with_it(store, experiment):
    run = opened(store, experiment, heartbeat=ago(3600))
    beats = set()
    with heartbeat(run, every_seconds=0.1):
        for _ in range(60):
            beats.add(store.run(run.run_id).tags["sae.heartbeat"])
            if len(beats) > 2:
                break
            time.sleep(0.1)
    assert len(beats) > 2 and max(beats) <= ago(0)
    last = store.run(run.run_id).tags["sae.heartbeat"]
    time.sleep(1.5)
    assert store.run(run.run_id).tags["sae.heartbeat"] == last


def test_a_sign_of_life_passes_all_that_waits_to_be_delivered(uri, experiment):
    """Else another host would take a training for dead whose upload takes long."""
    journalled = JournalledStore(uri, print)
    try:
        run = opened(journalled, experiment, heartbeat=ago(3600))
        assert journalled.flush()
        for n in range(1000):
            run.tag({"n": str(n)})
        with heartbeat(run, every_seconds=0.05):
            while journalled.run(run.run_id).tags["sae.heartbeat"] < ago(60):
                time.sleep(0.01)
            assert int(journalled.run(run.run_id).tags["n"]) < 999
        assert journalled.flush()
    finally:
        journalled.close()


def test_a_store_that_is_away_costs_a_heartbeat_and_never_the_training(tmp_path):
    """The server stops while the run is trained: nothing raises, and the end waits for nobody."""
    server = TrackingServer(tmp_path)
    server.start()
    try:
        store = Store(server.uri)
        run = opened(store, store.experiment_id("away"))
        with heartbeat(run, every_seconds=0.05):
            server.stop()
            time.sleep(1)
            ending = time.monotonic()
        assert time.monotonic() - ending < 2
    finally:
        server.stop()


def test_this_host_is_the_same_in_all_its_processes_and_no_other():
    code = "from sae_mlflow.tracking.process import host_id; print(host_id())"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == host_id() and len(host_id()) == 16


def test_a_container_with_pids_of_its_own_is_another_host():
    """`unshare` makes one: same kernel, same host name, process 1 of its own."""
    code = "from sae_mlflow.tracking.process import process_tags; print(process_tags())"
    whole = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code]
    there = subprocess.run(whole, capture_output=True, text=True, check=True)
    tags = ast.literal_eval(there.stdout)
    assert tags["sae.pid"] == "1" and tags["sae.host"] == os.uname().nodename
    assert tags["sae.host_id"] != host_id()
