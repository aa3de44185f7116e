"""Inputs that are wrong on purpose, each given to the command that meets it, and what it says.

Everything that a user, a disk or somebody else may spoil: settings, options, the LM's files, texts,
cached activations, checkpoints, journals, SAEs, histories, the store itself. The same ones each
time, by a seed.
"""

import json
import pickle
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from faults.killed_trainings import Home, in_an_epoch
from faults.tiny import make_model, make_text, tiny_data
from sae_mlflow.config import setting_docs

COMMAND_WITHIN_SECONDS = 120
NONSENSE = ({"a": [1]}, "nonsense?", -7, [[]])
OPTIONS = (
    "plot --experiment nowhere",
    "plot --experiment tiny --layers 3-",
    "plot --experiment tiny --metric nothing",
    "plot --experiment tiny --format bmp",
    "plot --experiment tiny --style nowhere.yaml",
    "plot --experiment tiny --model-name ../../etc",
    "plot --experiment tiny --filter params.`",
    "plot --experiment tiny --filter metrics.val_fvu<'0'OR'1'='1'",
    "plot --history-file nowhere.json",
    "plot --history-file tiny.yaml",
    "plot --sae-dir nowhere",
    "plot --experiment tiny --tracking-uri nonsense://x",
    "plot --experiment tiny --tracking-uri sqlite:////nowhere/x.db",
    "plot --experiment tiny --tracking-uri http://127.0.0.1:9",
    "health --experiment nowhere",
    "health --run ../../etc/passwd",
    "health",
    "report --experiment nowhere",
    "report --run 0123456789abcdef0123456789abcdef",
    "report --experiment tiny --output /proc/nowhere/x.html",
    "watch --run nothing",
    "watch --experiment nowhere",
    "watch --experiment tiny --every 0",
    "evaluate --run nothing",
    "evaluate --experiment tiny --tokens 0",
    "evaluate --experiment nowhere --latent x",
    "export --run nothing --format sae_lens --output out",
    "export --run nothing --format nonsense --output out",
    "export --model models:/nothing@best --format pt --output out",
    "export --model runs:/x --format pt --output out",
    "export-tensorboard --experiment nowhere --output out",
    "register --run nothing",
    "promote --experiment tiny --max-l0 nonsense",
    "promote --experiment nowhere --max-l0 nan",
    "reap --experiment nowhere",
    "reap --experiment tiny --stale-minutes 0",
    "sync --tracking-uri nonsense://x",
    "cache verify nothing",
    "train --config nowhere.yaml",
    "train --config ../../etc/passwd",
    "train --config tiny.yaml --layers 99",
    "train --config tiny.yaml --layers layers.1.nothing",
    "train --config tiny.yaml --model-name nowhere/at-all",
    "train --config tiny.yaml --resume 0123456789abcdef0123456789abcdef",
    "train --config tiny.yaml --set sae.k=999999",
    "train --config tiny.yaml --set sae.q=1",
    "train --config tiny.yaml --set sae.k",
    "train --config tiny.yaml --tracking-uri http://127.0.0.1:9",
    "nonsense",
)


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
_WORDS = {
    "activations": ("train --config tiny.yaml", "cache verify"),
    "checkpoint": ("train --config tiny.yaml --set train.epochs=20 --resume auto",),
    "journal": ("sync",),
    "SAE": (
        "export --run RUN_ID --format sae_lens --output out",
        "evaluate --run RUN_ID",
        "register --run RUN_ID",
    ),
    "history": ("plot --sae-dir results",),
    "language model": ("train --config tiny.yaml", "evaluate --run RUN_ID"),
    "text": ("train --config tiny.yaml",),
    "store": (
        "plot --experiment tiny",
        "health --experiment tiny",
        "report --experiment tiny",
        "watch --experiment tiny",
        "train --config tiny.yaml",
    ),
}
_CHECKED = {"activations", "checkpoint", "SAE"}


def bad_inputs(spoiled: Spoiled, a_kind: int) -> Iterator[BadInput]:
    """So many of each kind, except where there are no more."""
    rng = random.Random(6)
    options = [BadInput("option", words, words.split()) for words in OPTIONS]
    yield from rng.sample(options, min(a_kind, len(options)))
    configs = [*_wrong_settings(), *(_garbage(rng, n) for n in range(a_kind))]
    yield from rng.sample(configs, min(a_kind * 2, len(configs)))
    for kind, words in _WORDS.items():
        files = spoiled.files(kind)
        assert files, f"a home has no file of kind {kind}"
        for n in range(a_kind):
            yield _damaged(rng, kind, files[n % len(files)], words[n % len(words)])


def _wrong_settings() -> Iterator[BadInput]:
    """Each setting there is, with each value that it can't have."""
    for key, _, _ in setting_docs():
        for value in NONSENSE:
            section, _, name = key.rpartition(".")
            tree = {section: {name: value}} if section else {name: value}
            text = yaml.safe_dump({"extends": "tiny.yaml"} | tree)
            yield _config(f"{key} = {value}", text)


def _garbage(rng: random.Random, n: int) -> BadInput:
    pieces = [*"abx01.-:,[]{}&*!?|>'\"#% \n\t", "sae", "model", "!!", "&a", "*a", ": ", "\n- "]
    return _config(f"text {n}", "".join(rng.choices(pieces, k=rng.randint(1, 60))))


def _config(what: str, text: str) -> BadInput:
    return BadInput(
        "config",
        what,
        ["train", "--config", "bad.yaml"],
        lambda folder: (folder / "bad.yaml").write_text(text),
    )


def _damaged(rng: random.Random, kind: str, path: Path, words: str) -> BadInput:
    how = rng.choice(["bit", "bit", "cut", "zeros", "insert", "empty", "text", "gone", "pickle"])
    place, bit = rng.random(), rng.randrange(8)

    def spoil(folder: Path) -> None:
        file = folder / path
        if how == "gone":
            file.unlink()
        else:
            file.write_bytes(_changed(file.read_bytes(), how, place, bit, folder / "pwned"))

    # nothing is decided by meta.json; without its newest checkpoint a layer has an older one
    untold = path.name == "meta.json" or (kind == "checkpoint" and how == "gone")
    return BadInput(
        kind, f"{path}: {how} at {place:.3f}", words.split(), spoil, kind in _CHECKED and not untold
    )


def _changed(whole: bytes, how: str, place: float, bit: int, pwned: Path) -> bytes:
    at = int(place * len(whole))
    match how:
        case "bit":
            return whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]
        case "cut":
            return whole[:at]
        case "zeros":
            return whole[:at] + bytes(min(64, len(whole) - at)) + whole[at + 64 :]
        case "insert":
            return whole[:at] + b"\xff{'" + whole[at:]
        case "empty":
            return b""
        case "text":
            return b"nonsense\n" * 40
        case _:
            return pickle.dumps(_Payload(pwned))


class _Payload:
    """Leaves a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self):
        return Path.touch, (self._file,)
