"""Trainings in processes of their own that are killed, and what is left of them.

They are forked off a server that has imported everything: a start takes a tenth of a second.
"""

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file

from faults.tiny import tiny_data
from sae_mlflow.tracking.store import Store

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        *("sae_mlflow.pipeline", "sae_mlflow.__main__", "sae_mlflow.plots.density_figure"),
        *("mlflow.store.tracking.sqlalchemy_store", "mlflow.store.db.utils", "alembic"),
        *("transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto"),
        *(
            "transformers.models.auto.tokenization_auto",
            "transformers.tokenization_utils_tokenizers",
        ),
    ]
)
GIVE_UP_SECONDS = 120
CLOCK = ("tokens_per_second", "within_epoch/tokens_per_second")


def _main(home: str, words: list[str], environment: dict[str, str]) -> None:
    os.chdir(home)
    os.environ.update(environment)
    log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    sys.argv = ["sae-mlflow", *words]
    import torch

    from sae_mlflow.__main__ import main

    torch.set_num_threads(1)
    main()


@dataclass
class Home:
    """A folder with a config, and all that trainings of it leave: store, cache, checkpoints."""

    folder: Path

    @classmethod
    def make(cls, folder: Path, data: dict) -> "Home":
        folder.mkdir(parents=True)
        (folder / "tiny.yaml").write_text(yaml.safe_dump(data))
        return cls(folder)

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.folder}/mlflow.db"

    @property
    def store(self) -> Store:
        return Store(self.uri)

    @property
    def said(self) -> str:
        return (self.folder / "log").read_text()

    def start(self, *words: str) -> multiprocessing.Process:
        """A training of the config."""
        return self.command("train", "--config", "tiny.yaml", *words)

    def command(self, *words: str) -> multiprocessing.Process:
        """`sae-mlflow` with these words and our store; what it says is in `said`."""
        environment = {
            "SAE_MLFLOW_CACHE": str(self.folder / "cache"),
            "SAE_MLFLOW_STATE": str(self.folder / "state"),
            "MLFLOW_TRACKING_URI": self.uri,
            "HF_HUB_OFFLINE": "1",
            "PYTHONUNBUFFERED": "1",
        }
        process = _SERVER.Process(target=_main, args=(str(self.folder), list(words), environment))
        process.start()
        return process

    def train(self, *words: str, status: int = 0) -> None:
        process = self.start(*words)
        process.join(GIVE_UP_SECONDS)
        assert process.exitcode == status, self.said

    def kill(
        self, moment: Callable[["Home"], bool], *words: str, number: int = signal.SIGKILL
    ) -> int | None:
        """Start a training and send it a signal at a moment; its exit status, 0 where it was done
        before."""
        process = self.start(*words)
        give_up = time.monotonic() + GIVE_UP_SECONDS
        while process.is_alive() and not moment(self):
            if time.monotonic() > give_up:
                process.kill()
                raise AssertionError(f"the moment never came:\n{self.said}")
            time.sleep(0.0005)
        if process.is_alive():
            os.kill(process.pid, number)
        process.join(GIVE_UP_SECONDS)
        return process.exitcode

    # -- what is left -------------------------------------------------------------------------

    def files(self, pattern: str) -> list[Path]:
        return sorted(self.folder.glob(pattern))

    @property
    def unfinished(self) -> bool:
        return any(row.status != "FINISHED" for row in self.rows())

    def rows(self):
        """Every run there is."""
        store = self.store
        return list(store._search(store.find_experiment("tiny"), ""))

    def layers(self):
        """The layers' runs by their labels; there is one of each."""
        rows = [row for row in self.rows() if row.tags.get("sae.role") == "layer"]
        assert len({row.layer for row in rows}) == len(rows)
        return {row.layer: row for row in rows}

    def entries(self, run_id: str, times: bool = False) -> dict[str, list[tuple]]:
        """All that stands of each metric, the clock's own apart: what stands twice is there twice.

        Args:
            times: with when it was made.
        """
        client = self.store._client
        return {
            key: sorted(
                (e.step, e.value, e.timestamp) if times else (e.step, e.value)
                for e in client.get_metric_history(run_id, key)
            )
            for key in client.get_run(run_id).data.metrics
            if key not in CLOCK
        }

    def weights(self, run_id: str) -> dict[str, bytes]:
        (file,) = self.files(f"mlruns/*/{run_id}/artifacts/sae/sae_weights.safetensors")
        return {name: value.numpy().tobytes() for name, value in load_file(file).items()}

    def history(self, run_id: str) -> dict[str, list]:
        (file,) = self.files(f"mlruns/*/{run_id}/artifacts/*_training_history.json")
        history = json.loads(file.read_text())
        return {key: values for key, values in history.items() if key not in CLOCK}


def assert_the_same(home: Home, whole: Home) -> None:
    """Nothing tells an interrupted training from one that wasn't, to the bit, but times."""
    assert {row.status for row in home.rows()} == {"FINISHED"}, home.said
    assert len(home.rows()) == len(whole.rows())
    assert not any("sae.failure" in row.tags for row in home.rows())
    layers, expected = home.layers(), whole.layers()
    assert layers.keys() == expected.keys()
    for label, row in layers.items():
        other = expected[label]
        assert home.weights(row.run_id) == whole.weights(other.run_id), label
        assert home.entries(row.run_id) == whole.entries(other.run_id), label
        assert home.history(row.run_id) == whole.history(other.run_id), label
        assert row.params == other.params
        health = ("sae.health", "sae.health.reasons")
        assert [row.tags[tag] for tag in health] == [other.tags[tag] for tag in health]
    assert not home.files("state/checkpoints/*"), "what has finished needs no checkpoint"


def killed_data(model: Path, text: Path) -> dict[str, Any]:
    """Settings: epochs of 28 steps, in parts of 8, with checkpoints every 50 ms."""
    return tiny_data(model, text) | {
        "experiment": "tiny",
        "sae": {"k": 4, "d_sae": 256},
        "train": {
            "batch_tokens": 128,
            "epochs": 8,
            "log_every_tokens": 1024,
            "resample_at": [0.3, 0.55],
            "dead_after_tokens": 1500,
        },
        "checkpoint": {"every_seconds": 0.05},
        "plots": {"after_training": False, "live": False},
        "evaluate": {"tokens": 128},
    }
