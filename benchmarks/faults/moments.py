"""When a training is killed: what is watched are the files themselves."""

import random
import time
from collections.abc import Callable

from faults.killed_trainings import Home

Moment = Callable[[Home], bool]


def harvested(n_bytes: float) -> Moment:
    """In harvest, once so many bytes of activations are there."""
    return lambda home: acts_bytes(home) > n_bytes


def acts_bytes(home: Home) -> int:
    return sum(f.stat().st_size for f in home.files("cache/activations/*/*.acts"))


def in_an_epoch(n_new: int, seconds: float) -> Moment:
    """So long after a number of new checkpoints."""
    seen: dict[str, float] = {}

    def moment(home: Home) -> bool:
        now = time.monotonic()
        if "start" not in seen:
            seen["start"] = newest(home)
        if newest(home) >= seen["start"] + n_new:
            seen.setdefault("since", now)
        return now - seen.get("since", now) >= seconds and "since" in seen

    return moment


def after(n_new: int, moment: Moment) -> Moment:
    """The first time that it is so once a number of new checkpoints is there."""
    begun = in_an_epoch(n_new, 0)
    return lambda home: begun(home) and moment(home)


def there(pattern: str) -> Moment:
    return lambda home: bool(home.files(pattern))


def newest(home: Home) -> int:
    return max((int(f.stem) for f in home.files("state/checkpoints/*/*.safetensors")), default=0)


def writing_a_checkpoint(home: Home) -> bool:
    return bool(home.files("state/checkpoints/*/*.part"))


def logging(home: Home) -> bool:
    """SQLite has a journal while a transaction is under way."""
    return (home.folder / "mlflow.db-journal").exists()


def ten_moments(rng: random.Random, whole: Home) -> list[tuple[str, Moment]]:
    """Two in harvest; then, in any order, four in epochs, two while a checkpoint is written and two
    while the store is."""
    n = acts_bytes(whole)
    first = [
        ("harvest", harvested(rng.uniform(0, 0.5) * n)),
        ("harvest", harvested(rng.uniform(0.6, 0.9) * n)),
    ]
    others = [("epoch", in_an_epoch(rng.randint(1, 2), rng.uniform(0, 0.05))) for _ in range(4)]
    others += [("checkpoint", writing_a_checkpoint)] * 2
    others += [("log", after(1, logging)) for _ in range(2)]
    rng.shuffle(others)
    return [*first, *others]


RESULTS = "mlruns/*/*/artifacts"
LATE_MOMENTS = {
    "weights logged": there(f"{RESULTS}/sae/sae_weights.safetensors"),
    "evaluated": there(f"{RESULTS}/evaluation/density.csv"),
    "all but closed": there(f"{RESULTS}/seconds_by_stage.json"),
}
"""Once it has trained: while the weights are logged, while layers are evaluated, and before the
parent is closed."""
