"""What is lost when trainings are killed, stores go away, many write at once, or inputs are bad.

Real processes, servers and files (`faults/`); `reliability.md` is what it prints. Exits 1 if
anything was lost. PostgreSQL has to be there (Debian's package), and takes no root: it runs as
`nobody` where we are.
"""

import argparse
import os
import random
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from faults.bad_inputs import bad_inputs
from faults.killed_trainings import Home, assert_the_same, killed_data
from faults.many_writers import Query, write_at_once, writer_data
from faults.moments import LATE_MOMENTS, Moment, ten_moments
from faults.outages import (
    HOWS,
    STAGES,
    TrainingProcess,
    assert_complete,
    away,
    delivered,
    in_database,
    outage_data,
    synced,
    undisturbed,
)
from faults.postgres import Postgres
from faults.spoiled import Spoiled
from faults.tiny import make_model, make_text
from faults.tracking_server import TrackingServer

from sae_mlflow.config import Settings
from sae_mlflow.tracking.store import Store


@dataclass(frozen=True)
class Size:
    """How much of each."""

    rounds_of_kills: int
    stages: tuple[str, ...]
    hows: tuple[str, ...]
    seconds_away: float
    writers: tuple[int, ...]
    inputs_a_kind: int


SHORT = Size(1, (STAGES[0], STAGES[-1]), HOWS[1:], 3, (8,), 5)
LONG = Size(10, STAGES, HOWS, 30, (8, 16), 40)


@dataclass
class Found:
    """A table, and what went wrong, a line each."""

    head: tuple[str, ...]
    rows: list[tuple] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @contextmanager
    def noting(self, what: str) -> Iterator[None]:
        """An assertion that fails is a fault, and the rest is still measured."""
        outcome = "well"
        try:
            yield
        except AssertionError as error:
            outcome = f"FAULT: {str(error)[:2000]}"
            self.faults.append(f"{what}: {str(error)[:2000]}")
        print(f"{what}: {outcome}", flush=True)

    def markdown(self) -> str:
        rows = [self.head, *([":--"] + ["--:"] * (len(self.head) - 1),), *self.rows]
        return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def kills(size: Size, folder: Path) -> Found:
    """SIGKILL at seeded moments. A kill is survived if the training that went on after it ends with
    the weights, metrics and history of one that nobody disturbed, bit for bit."""
    data = killed_data(*_model_and_text(folder))
    whole = Home.make(folder / "whole", data)
    whole.train()
    found, tried, survived = Found(("killed in", "kills", "survived")), Counter(), Counter()
    for n in range(size.rounds_of_kills):
        moments = ten_moments(random.Random(20 + n), whole)
        for name, some in ("early", moments), ("late", list(LATE_MOMENTS.items())):
            home = Home.make(folder / f"{name}{n}", data)
            killed = _killed(home, some)
            tried += killed
            with found.noting(f"kills, round {n + 1}, {name}"):
                home.train("--resume", "auto", status=0 if home.unfinished else 2)
                assert_the_same(home, whole)
                survived += killed
    found.rows = [(name, n, survived[name]) for name, n in tried.items()]
    found.rows.append(("**all**", tried.total(), survived.total()))
    return found


def _killed(home: Home, moments: list[tuple[str, Moment]]) -> Counter[str]:
    """The moments at which it could be killed; it may be done before."""
    killed = Counter()
    for name, moment in moments:
        killed[name] += home.kill(moment, "--resume", "auto") == -9
    return killed


def outages(size: Size, folder: Path) -> Found:
    """A server over PostgreSQL goes away while a training runs, and comes back.

    Delivered is what stands in the database of what the same training logs undisturbed, each value
    once; those that the training also wrote to files have to be the same to the bit.
    """
    model, text = _model_and_text(folder)
    found = Found(("store", "from", "seconds away", "values logged", "delivered"))
    with _server(folder) as (server, database):
        expected: dict[tuple, float] = {}
        for stage, how in product(size.stages, size.hows):
            place = folder / f"{stage} {how}".replace("/", "")
            place.mkdir()
            data = outage_data(model, text, f"{stage} {how}", place / "results")
            settings = Settings.model_validate(data)
            expected = expected or undisturbed(settings, folder)
            training = TrainingProcess(place, settings, server.uri)
            with found.noting(f"outage, {how} at {stage!r}"):
                seconds = away(training, server, database, stage, how, size.seconds_away)
                assert training.end() == 0, training.output
                synced(server.uri, place)
                there = in_database(database.query, settings.experiment)
                n = delivered(there.metrics, expected, place / "results")
                said = " ".join(stage.rstrip("/").split())
                found.rows.append((how, f"`{said}`", round(seconds), len(expected), n))
                assert_complete(there, expected, place / "results", Store(server.uri))
    return found


@contextmanager
def _server(folder: Path) -> Iterator[tuple[TrackingServer, Postgres]]:
    with _postgres() as database:
        (folder / "server").mkdir()
        server = TrackingServer(folder / "server", database.uri)
        server.start()
        try:
            yield server, database
        finally:
            server.stop()


@contextmanager
def _postgres() -> Iterator[Postgres]:
    database = Postgres()
    database.start()
    try:
        yield database
    finally:
        database.remove()


def writers(size: Size, folder: Path) -> Found:
    """Trainings that begin at once and log into one store that is new."""
    data = writer_data(*_model_and_text(folder))
    found = Found(("store", "writers at once", "values written", "lost", "runs failed"))
    for n, kind in product(size.writers, ("SQLite", "PostgreSQL")):
        place = folder / f"{kind}{n}"
        place.mkdir()
        with found.noting(f"{n} writers, {kind}"), _new_store(kind, place) as (uri, query):
            made = write_at_once(place, Settings.model_validate(data), uri, n, query)
            failed = 2 * n - made.statuses.get("FINISHED", 0)
            found.rows.append((kind, n, len(made.values), made.lost, failed))
            assert made.expected and not made.lost and not failed
            seeds = Counter(seed for seed, *_ in made.values)
            assert len(seeds) == n and len(set(seeds.values())) == 1, seeds
    return found


@contextmanager
def _new_store(kind: str, folder: Path) -> Iterator[tuple[str, Query]]:
    if kind == "PostgreSQL":
        with _postgres() as database:
            yield database.uri, database.query
        return
    file = folder / "store.db"

    def query(statement: str) -> list[tuple]:
        with closing(sqlite3.connect(file)) as connection:
            return connection.execute(statement).fetchall()

    yield f"sqlite:///{file}", query


def inputs(size: Size, folder: Path) -> Found:
    """Each bad input is refused in one sentence, or gone on without, which is said where a checksum
    could tell; a payload would leave a file."""
    spoiled = Spoiled(folder / "spoiled")
    found = Found(("input", "tried", "refused", "gone on", "tracebacks", "payloads run"))
    answers = []
    for bad in bad_inputs(spoiled, size.inputs_a_kind):
        answer = spoiled.answer(bad)
        answers.append(answer)
        if answer.fault:
            found.faults.append(
                f"{bad.kind}, {bad.what}, {' '.join(bad.words)}: {answer.fault}\n{answer.said}"
            )
    for kind in dict.fromkeys(answer.bad.kind for answer in answers):
        some = [answer for answer in answers if answer.bad.kind == kind]
        refused = sum(answer.status in (1, 2) for answer in some)
        tracebacks = sum(answer.traceback for answer in some)
        ran = sum(answer.payload_ran for answer in some)
        on = len(some) - refused - tracebacks
        found.rows.append((kind, len(some), refused, on, tracebacks, ran))
    totals = [sum(column) for column in list(zip(*found.rows, strict=True))[1:]]
    found.rows.append(("**all**", *totals))
    return found


def _model_and_text(folder: Path) -> tuple[Path, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    return make_model(folder / "tiny-llama"), make_text(folder / "tiny.txt")


PARTS: dict[str, Callable[[Size, Path], Found]] = {
    "kills": kills,
    "outages": outages,
    "writers": writers,
    "inputs": inputs,
}


def report(found: dict[str, Found], size: Size, seconds: float) -> str:
    """`reliability.md`."""
    words = "" if size == LONG else " --short"
    lines = [
        "# Reliability",
        f"Made by `python benchmarks/reliability.py{words}` in {seconds / 60:.0f} minutes on "
        f"{os.cpu_count()} cores.",
    ]
    for name, part in found.items():
        doc = " ".join((PARTS[name].__doc__ or "").split())
        lines += [f"## {name.capitalize()}", doc, part.markdown()]
        lines += [f"- {fault}" for fault in part.faults]
    return "\n\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="minutes instead of an hour")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--output", type=Path, help="write the tables here, too")
    args = parser.parse_args()
    size, started = SHORT if args.short else LONG, time.monotonic()
    output = args.output and args.output.absolute()
    with tempfile.TemporaryDirectory(prefix="sae_mlflow-reliability-") as scratch:
        home = Path(scratch)
        os.chdir(home)
        os.environ |= {"SAE_MLFLOW_CACHE": f"{home}/cache", "SAE_MLFLOW_STATE": f"{home}/state"}
        found = {name: PARTS[name](size, home / name) for name in args.only}
        os.chdir("/")
    text = report(found, size, time.monotonic() - started)
    print(text)
    if output:
        output.write_text(text)
    sys.exit(any(part.faults for part in found.values()))


if __name__ == "__main__":
    main()
