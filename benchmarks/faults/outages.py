"""A training in a process of its own whose store goes away, and what stands in the store then."""

import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from faults.postgres import Postgres
from faults.tiny import tiny_data
from faults.tracking_server import TrackingServer
from sae_mlflow.config import Settings
from sae_mlflow.history import read_history
from sae_mlflow.pipeline import run_training
from sae_mlflow.reporting.display import Display
from sae_mlflow.tracking.store import Store

OUTAGE_EPOCHS = 20
STAGES = ("Reading ", "layer1  epoch 4/", f"layer1  epoch {OUTAGE_EPOCHS}/", "Evaluating on")
HOWS = ("stopped", "killed", "its database crashed")

_WITHIN_SECONDS = 240


class TrainingProcess:
    """`sae-mlflow train` with some settings."""

    def __init__(self, folder: Path, settings: Settings, uri: str) -> None:
        config = folder / "training.yaml"
        config.write_text(yaml.safe_dump(settings.model_dump(mode="json")), encoding="utf-8")
        self._output = folder / "output.txt"
        command = ["train", "--config", str(config), "--tracking-uri", uri]
        with self._output.open("w") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sae_mlflow", *command],
                cwd=folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )

    @property
    def output(self) -> str:
        return self._output.read_text(encoding="utf-8")

    def until(self, text: str) -> None:
        """It has said so."""
        self._until(lambda: text in self.output, f"it never said {text!r}")

    def end(self) -> int:
        """Its exit status."""
        self._until(lambda: self._process.poll() is not None, "it doesn't end")
        return self._process.returncode

    @contextmanager
    def paused(self) -> Iterator[None]:
        """It does nothing meanwhile."""
        self._process.send_signal(signal.SIGSTOP)
        yield
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _until(self, condition: Callable[[], bool], trouble: str) -> None:
        end = time.monotonic() + _WITHIN_SECONDS
        while not condition():
            gone = self._process.poll() is not None and not condition()
            if gone or time.monotonic() > end:
                self._process.kill()
                raise AssertionError(f"{trouble}:\n{self.output}")
            time.sleep(0.05)


def synced(uri: str, folder: Path, status: int = 0) -> str:
    """What `sae-mlflow sync` says."""
    command = [sys.executable, "-m", "sae_mlflow", "sync", "--tracking-uri", uri]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def each_once(rows: list[tuple]) -> dict[tuple, float]:
    """Values by all that stands before them in a row, which no two rows may share.

    Args:
        rows: such as (run, metric, step, value), as a database has them.
    """
    counts = Counter(row[:-1] for row in rows)
    assert [key for key, n in counts.items() if n > 1] == []
    return {row[:-1]: row[-1] for row in rows}


def refused_port() -> int:
    """A port of loopback where nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def away(
    training: TrainingProcess,
    server: TrackingServer,
    database: Postgres,
    stage: str,
    how: str,
    seconds: float,
) -> float:
    """Take the store away from when the training says `stage`; the seconds until it was back."""
    training.until(stage)
    begun = time.monotonic()
    match how:
        case "stopped":
            server.stop(signal.SIGTERM)
        case "killed":
            server.stop(signal.SIGKILL)
        case _:
            database.kill()
    time.sleep(seconds)
    if how.startswith("its"):
        database.start()
    else:
        server.start()
    return time.monotonic() - begun


def in_database(query: Callable[[str], list[tuple]], experiment: str) -> SimpleNamespace:
    """What stands there, by the names of its runs; each metric's step once.

    Args:
        query: asks the store's own database.
    """
    where = f"JOIN experiments e USING (experiment_id) WHERE e.name = '{experiment}'"
    runs = query(f"SELECT r.name, r.status, r.run_uuid FROM runs r {where}")
    assert len({name for name, *_ in runs}) == len(runs)
    where = f"JOIN runs r USING (run_uuid) {where}"
    metrics = query(f"SELECT r.name, m.key, m.step, m.value FROM metrics m {where}")
    tags = query(f"SELECT r.name, t.key, t.value FROM tags t {where}")
    return SimpleNamespace(
        metrics=each_once(metrics),
        tags=each_once(tags),
        status={name: status for name, status, _ in runs},
        run_ids={name: run_id for name, _, run_id in runs},
    )


def outage_data(model: Path, text: Path, experiment: str, results: Path) -> dict[str, Any]:
    """Settings of three layers, with pictures while they train, and plain files too."""
    return tiny_data(model, text) | {
        "experiment": experiment,
        "model": {"name": str(model), "layers": [1, 2, 3], "device": "cpu"},
        "text": {"source": str(text), "tokens": 8192, "context": 32},
        "train": {"batch_tokens": 128, "epochs": OUTAGE_EPOCHS, "log_every_tokens": 2000},
        "plots": {"live_seconds": 1, "interactive": "none"},
        "output": {"dir": str(results)},
    }


def undisturbed(settings: Settings, folder: Path) -> dict[tuple, float]:
    """What a training that nothing happens to logs, by run, metric and step."""
    output = settings.output.model_copy(update={"dir": str(folder / "undisturbed")})
    plain = settings.model_copy(update={"experiment": "undisturbed", "output": output})
    training = run_training(plain, Display(), tracking_uri=f"sqlite:///{folder}/undisturbed.db")
    store, values = training.store, {}
    for row in store.layer_runs(training.experiment.id):
        for key, step, value in store.history(row.run_id, list(row.metrics)):
            values[row.name, key, step] = value
    return values


def written(results: Path) -> dict[tuple, float]:
    """What trainings wrote to plain files, by run, metric and epoch, as a store should have it."""
    values = {}
    for file in results.glob("*/*_training_history.json"):
        run = f"{file.parent.name}_{file.name.removesuffix('_training_history.json')}"
        for metric, each in read_history(file).items():
            values |= {(run, metric, epoch): value for epoch, value in enumerate(each, start=1)}
    return values


def delivered(values: dict[tuple, float], expected: dict[tuple, float], results: Path) -> int:
    """How many of the expected values are there, those in plain files to the bit."""
    exact = written(results)
    there = values.keys() & expected.keys()
    return sum(values[key] == exact.get(key, values[key]) for key in there)


def assert_complete(
    found: SimpleNamespace, expected: dict[tuple, float], results: Path, store: Store
) -> None:
    """The store holds what a training wrote to files, and all that an undisturbed one logs.

    Args:
        found: `in_database`.
        expected: `undisturbed`.
    """
    assert set(found.status.values()) == {"FINISHED"}
    assert found.status.keys() >= {run for run, *_ in expected}
    exact = written(results)
    assert exact and {key: found.metrics.get(key) for key in exact} == exact
    assert set(found.metrics) == set(expected)
    for key, value in expected.items():
        close = math.isclose(found.metrics[key], value, rel_tol=1e-2, abs_tol=1e-4)
        assert close or "per_second" in key[1], (key, found.metrics[key], value)
    parent = min(found.run_ids, key=len)
    _check_pictures(store, found.run_ids, parent)
    note = found.tags[parent, "mlflow.note.content"]
    assert all(run_id in note for name, run_id in found.run_ids.items() if name != parent)
    pending = [key for key, value in found.tags.items() if "-pending" in value]
    assert {key for _, key in pending} <= {"sae.journal_id"}


def _check_pictures(store: Store, run_ids: dict[str, str], parent: str) -> None:
    for name, run_id in run_ids.items():
        there = {file.path for file in store._client.list_artifacts(run_id, "training_plots")}
        assert len(there) == (3 if name == parent else 2), name
        images = [file.path for file in store._client.list_artifacts(run_id, "images")]
        steps = [path.split("+")[2] for path in images if path.endswith(".png")]
        assert len(steps) == len(set(steps)) >= (name != parent)
