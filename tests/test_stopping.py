"""A signal at the moments that are hardest to meet: nothing stays open, nothing is lost."""

import os
import signal
from contextlib import contextmanager

import pytest

from sae_mlflow import pipeline
from sae_mlflow.checkpoint import read_facts
from sae_mlflow.pipeline import run_training
from sae_mlflow.reporting.display import Display
from sae_mlflow.runs import layer
from sae_mlflow.stopping import Stopped, Stopping
from sae_mlflow.tracking.journalled import JournalledStore
from sae_mlflow.tracking.store import Store

QUIET = ("plots.after_training=false", "plots.live=false", "evaluate.after_training=false")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def own_signals():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def stopped(tmp_path, monkeypatch, tiny_settings):
    """`stopped(stopping)`: a training that ends by SIGTERM; its store's rows."""
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"

    def run(stopping):
        stopping.listen()
        settings = tiny_settings(*QUIET, "checkpoint.every_seconds=1000")
        with pytest.raises(Stopped):
            run_training(settings, Display(), tracking_uri=uri, stopping=stopping)
        store = Store(uri)
        return list(store._search(store.find_experiment("sae"), ""))

    return run


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("n_runs", [1, 2], ids=["parent", "layer"])
def test_one_that_comes_while_a_run_is_opened_closes_it_and_says_how_to_go_on(
    n_runs, stopped, monkeypatch, capsys
):
    open_run, opened = JournalledStore.open_run, []

    def open_and_terminate(self, *arguments):
        opened.append(open_run(self, *arguments))
        if len(opened) == n_runs:
            terminate()
        return opened[-1]

    monkeypatch.setattr(JournalledStore, "open_run", open_and_terminate)
    rows = stopped(Stopping())
    assert [row.status for row in rows] == ["KILLED"] * n_runs
    assert f"--resume {opened[0].run_id}" in capsys.readouterr().out


class AtTheEdge(Stopping):
    """SIGTERM just before or after what is done whole, at the tenth time."""

    def __init__(self, before: bool) -> None:
        super().__init__()
        self.before, self.n = before, 0

    @contextmanager
    def deferred(self):
        self.n += 1
        if self.before and self.n == 10:
            terminate()
        with super().deferred():
            yield
        if not self.before and self.n == 10:
            terminate()


@pytest.mark.parametrize("before", [True, False])
def test_one_that_comes_between_two_records_saves_the_last(before, stopped, own_state):
    """The first two times are the runs'."""
    assert [row.status for row in stopped(AtTheEdge(before))] == ["KILLED"] * 2
    (saved,) = own_state.glob("checkpoints/*/*.safetensors")
    assert read_facts(saved)["trainer"]["steps_done"] == (7 if before else 8)


class InADestructor(Stopping):
    """Python drops what is raised there."""

    def drop(self):
        class Dropped:
            def __del__(self):
                terminate()
                for _ in range(100):  # the handler is run before this ends
                    pass

        Dropped()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("stage", ["harvest", "plot"])
def test_one_that_came_in_a_destructor_ends_the_training_all_the_same(stage, stopped, monkeypatch):
    stopping = InADestructor()
    module, name = {"harvest": (pipeline, "fill_activations"), "plot": (layer, "_conclude")}[stage]
    before = getattr(module, name)

    def dropped(*arguments):
        if stage == "plot":
            stopping.drop()
            return before(*arguments)
        return (stopping.drop() or each for each in before(*arguments))

    monkeypatch.setattr(module, name, dropped)
    rows = stopped(stopping)
    statuses = sorted(row.status for row in rows)
    assert statuses == (["KILLED"] if stage == "harvest" else ["FINISHED", "KILLED"])
