"""What trainings left, spoiled in one place before a command meets it, and what that says."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from faults.killed_trainings import Home
from faults.moments import in_an_epoch
from faults.tiny import make_model, make_text, tiny_data

COMMAND_WITHIN_SECONDS = 120
_HOMES = {"checkpoint": "killed", "journal": "undelivered"}
_FILES = {
    "activations": ("cache/activations/*/*",),
    "checkpoint": ("state/checkpoints/*/*.safetensors",),
    "journal": ("state/journal/**/entries", "state/journal/**/*.json"),
    "SAE": ("mlruns/*/*/artifacts/sae/*",),
    "history": ("results/**/*_training_history.json",),
    "language model": ("model/*",),
    "text": ("text.jsonl",),
    "store": ("mlflow.db",),
}


@dataclass
class BadInput:
    """One, for a home that it is done to first.

    Attributes:
        checked: it has checksums, so that not a bit of it may change without a word.
    """

    kind: str
    what: str
    words: list[str]
    spoil: Callable[[Path], None] = field(default=lambda folder: None)
    checked: bool = False


@dataclass
class Answer:
    """What a command did with a bad input.

    Attributes:
        fault: why that isn't good enough, or nothing.
    """

    bad: BadInput
    status: int | None
    said: str
    payload_ran: bool

    @property
    def traceback(self) -> bool:
        return "Traceback" in self.said or self.status not in (0, 1, 2)

    @property
    def fault(self) -> str:
        said = self.said.lower()
        if self.payload_ran:
            return "its payload ran"
        if self.traceback:
            return f"a traceback, or status {self.status}"
        if self.status == 2 and "error: " not in said:
            return "no error is said"
        if self.bad.checked and not ("warning: " in said or "error: " in said or self.status):
            return "not noticed"
        return ""


class Spoiled:
    """Homes of trainings that have finished, were killed, or have something left to deliver; put
    back as they were before each bad input."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._kept = folder / "kept"
        self.home = Home(folder / "home")
        self._make()

    def answer(self, bad: BadInput) -> Answer:
        self._put_back(_HOMES.get(bad.kind, "finished"))
        bad.spoil(self.home.folder)
        words = [self._run_id() if word == "RUN_ID" else word for word in bad.words]
        (self.home.folder / "log").unlink(missing_ok=True)
        process = self.home.command(*words)
        process.join(COMMAND_WITHIN_SECONDS)
        process.kill()
        process.join()
        ran = (self.home.folder / "pwned").exists()
        return Answer(bad, process.exitcode, self.home.said, ran)

    def files(self, kind: str) -> list[Path]:
        """Those that a kind of input is, by their paths within a home; the newest checkpoint."""
        at = self._kept / _HOMES.get(kind, "finished")
        found = sorted(file for pattern in _FILES[kind] for file in at.glob(pattern))
        files = [file.relative_to(at) for file in found if file.is_file() and file.stat().st_size]
        return files[-1:] if kind == "checkpoint" else files

    def whole(self, kind: str, path: Path) -> bytes:
        """What a file of `files` holds before it is spoiled."""
        return (self._kept / _HOMES.get(kind, "finished") / path).read_bytes()

    def _make(self) -> None:
        folder = self.home.folder
        text = make_text(folder.with_name("text.txt"))
        data = tiny_data(folder / "model", folder / "text.jsonl") | {
            "experiment": "tiny",
            "checkpoint": {"every_seconds": 0.05},
            "plots": {"after_training": False, "live": False},
            "evaluate": {"tokens": 128},
        }
        data["model"]["layers"] = [1]
        Home.make(folder, data)
        make_model(folder / "model")
        lines = (json.dumps({"text": part}) for part in text.read_text().split("\n\n"))
        (folder / "text.jsonl").write_text("\n".join(lines))
        self.home.train("--output-dir", "results")
        self._keep("finished")
        shutil.rmtree(folder / "state")
        self.home.kill(in_an_epoch(2, 0), "--set", "train.epochs=20")
        self._keep("killed")
        self._put_back("finished")
        self._kill_while_the_store_is_locked()
        self._keep("undelivered")

    def _kill_while_the_store_is_locked(self) -> None:
        other = sqlite3.connect(self.home.folder / "mlflow.db", isolation_level=None)
        locked = []

        def moment(home: Home) -> bool:
            if "epoch 6/" in home.said and not locked:
                other.execute("BEGIN EXCLUSIVE")
                locked.append(True)
            return "epoch 30/" in home.said

        quiet = ("--set", "train.epochs=60 tracking.wait_seconds=1")
        self.home.kill(moment, *quiet)
        other.execute("ROLLBACK")
        other.close()

    def _keep(self, name: str) -> None:
        shutil.copytree(self.home.folder, self._kept / name, symlinks=True)

    def _put_back(self, name: str) -> None:
        shutil.rmtree(self.home.folder)
        shutil.copytree(self._kept / name, self.home.folder, symlinks=True)

    def _run_id(self) -> str:
        return next(iter(self.home.layers().values())).run_id
