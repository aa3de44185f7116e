"""Trainings that are really killed, and go on: nothing is missing, nothing twice, every bit is the
one of a training that nobody disturbed."""

import random
import time

import pytest
from killed_trainings import Home, assert_the_same

EPOCHS = 12
LAYERS = ["layer1", "layer2"]


@pytest.fixture(scope="module")
def data(tiny_model, text_file):
    """Epochs of 28 steps, in parts of 8, with checkpoints of a megabyte every 50 ms."""
    return {
        "experiment": "tiny",
        "model": {"name": str(tiny_model), "layers": [1, 2], "device": "cpu"},
        "text": {"source": str(text_file), "tokens": 4096, "context": 32},
        "sae": {"k": 4, "d_sae": 512},
        "train": {
            "batch_tokens": 128,
            "epochs": EPOCHS,
            "log_every_tokens": 1024,
            "resample_at": [0.3, 0.55],
            "dead_after_tokens": 1500,
        },
        "checkpoint": {"every_seconds": 0.05},
        "plots": {"after_training": False, "live": False},
        "evaluate": {"tokens": 128},
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data):
    """A training that nobody disturbed."""
    home = Home.make(tmp_path_factory.mktemp("whole") / "home", data)
    home.train()
    return home


@pytest.fixture
def home(tmp_path, data):
    return Home.make(tmp_path / "home", data)


# -- moments: what is watched are the files themselves ---------------------------------------------


def harvested(n_bytes):
    """In harvest, once so many bytes of activations are there."""
    return lambda home: (
        sum(f.stat().st_size for f in home.files("cache/activations/*/*.acts")) > n_bytes
    )


def in_an_epoch(n_new, seconds):
    """So long after a number of new checkpoints."""
    seen: dict[str, float] = {}

    def moment(home):
        now = time.monotonic()
        if "start" not in seen:
            seen["start"] = newest(home)
        if newest(home) >= seen["start"] + n_new:
            seen.setdefault("since", now)
        return now - seen.get("since", now) >= seconds and "since" in seen

    return moment


def newest(home):
    return max((int(f.stem) for f in home.files("state/checkpoints/*/*.safetensors")), default=0)


def writing_a_checkpoint(home):
    return bool(home.files("state/checkpoints/*/*.part"))


def logging(home):
    """SQLite has a journal while a transaction is under way."""
    return (home.folder / "mlflow.db-journal").exists()


def test_killed_at_ten_moments_it_ends_as_if_nobody_had_disturbed_it(home, whole):
    rng = random.Random(20)
    acts_bytes = sum(f.stat().st_size for f in whole.files("cache/activations/*/*.acts"))
    first = [
        harvested(rng.uniform(0, 0.5) * acts_bytes),
        harvested(rng.uniform(0.6, 0.9) * acts_bytes),
    ]
    others = [in_an_epoch(rng.randint(1, 2), rng.uniform(0, 0.05)) for _ in range(4)]
    others += [writing_a_checkpoint] * 2 + [after(1, logging) for _ in range(2)]
    rng.shuffle(others)
    torn = 0
    for moment in [*first, *others]:
        assert home.kill(moment, "--resume", "auto") == -9, home.said
        assert "RUNNING" in {row.status for row in home.rows()}
        torn += writing_a_checkpoint(home)
    assert torn
    home.train("--resume", "auto")
    assert_the_same(home, whole)


def after(n_new, moment):
    """The first time that it is so once a number of new checkpoints is there."""
    begun = in_an_epoch(n_new, 0)
    return lambda home: begun(home) and moment(home)
