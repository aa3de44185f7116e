"""Several trainings that log into one new store at once, and which of their values it lacks."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from faults.outages import each_once, written
from faults.tiny import tiny_data
from sae_mlflow.config import Settings

Query = Callable[[str], list[tuple]]

_GIVE_UP_SECONDS = 500
_TRAIN_AT_ONCE = """
import os, sys, time, traceback
from sae_mlflow.config_load import load_settings
from sae_mlflow.pipeline import run_training
from sae_mlflow.reporting.display import Display

config, uri, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
start = time.time() + 1
children = []
for seed in range(n):  # forked, so that they begin together and import once
    child = os.fork()
    if child:
        children.append(child)
        continue
    time.sleep(max(0, start - time.time()))
    status = 1
    try:
        own = {"seed": seed, "output.dir": f"results{seed}"}
        run_training(load_settings(config, own), Display(), tracking_uri=uri)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)
statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
sys.exit(max(statuses))
"""


@dataclass
class Written:
    """What stands in the store: an epoch's values by seed, run, metric and step; runs by status."""

    values: dict[tuple, float]
    statuses: dict[str, int]
    expected: dict[tuple, float]

    @property
    def lost(self) -> int:
        """Values that aren't there, or are others."""
        return sum(self.values.get(key) != value for key, value in self.expected.items())


def write_at_once(
    folder: Path, settings: Settings, uri: str, writers: int, query: Query
) -> Written:
    """Train with as many seeds at once, each in a process of its own.

    Args:
        settings: of a training on one layer, with nothing in `output.dir`.
        query: asks the store's own database.
    """
    config = folder / "training.yaml"
    config.write_text(yaml.safe_dump(settings.model_dump(mode="json")), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", _TRAIN_AT_ONCE, str(config), uri, str(writers)],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_GIVE_UP_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    values = each_once(
        query(
            "SELECT p.value, r.name, m.key, m.step, m.value FROM metrics m "
            "JOIN runs r USING (run_uuid) JOIN params p USING (run_uuid) WHERE p.key = 'seed'"
        )
    )
    statuses = dict(query("SELECT status, COUNT(*) FROM runs GROUP BY status"))
    expected = {
        (str(seed), *key): value
        for seed in range(writers)
        for key, value in written(folder / f"results{seed}").items()
    }
    return Written(values, statuses, expected)


def writer_data(model: Path, text: Path) -> dict[str, Any]:
    """Settings of one layer that is logged often and not drawn."""
    return tiny_data(model, text) | {
        "model": {"name": str(model), "layers": [1], "device": "cpu"},
        "train": {"batch_tokens": 128, "epochs": 6, "log_every_tokens": 1000},
        "plots": {"after_training": False, "live": False},
        "evaluate": {"after_training": False},
    }
