"""`sae-mlflow checkpoints`: what interrupted trainings left on this machine."""

import os
import signal
import threading
import time
from contextlib import contextmanager

import pytest
import torch
from faults.killed_trainings import Home, killed_data
from faults.moments import in_an_epoch, there

from sae_mlflow.checkpoint import checkpoints, remove_checkpoints, save_checkpoint
from sae_mlflow.commands.checkpoints import checkpoints_list
from sae_mlflow.disk import Pruned, Pruning
from sae_mlflow.errors import UserError
from sae_mlflow.runs.kept import list_kept, prune_kept
from sae_mlflow.runs.lock import LOOK_SECONDS, hold, is_held, let_go

DAY = 86_400
ALL = Pruning(everything=True)
LAYER, PARENT = "a" * 32, "b" * 32
TENSORS = {"a": torch.zeros(4)}
FACTS = {"lock": PARENT, "model": "m", "layer": "l", "trainer": {"epoch": 1, "steps_done": 2}}


@contextmanager
def meanwhile(do):
    """Something that is done again and again in another thread."""
    done = threading.Event()

    def again():
        while not done.is_set():
            do()

    thread = threading.Thread(target=again)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.fixture
def home(tmp_path, tiny_model, text_file):
    data = killed_data(tiny_model, text_file)
    data["train"]["epochs"] = 2000
    return Home.make(tmp_path / "home", data)


def said(home, *words, status=0):
    """What the command says, alone."""
    before = len(home.said) if (home.folder / "log").exists() else 0
    process = home.command("checkpoints", *words)
    process.join(60)
    assert process.exitcode == status, home.said
    return home.said[before:]


def folders(home):
    return [folder.name for folder in home.files("state/checkpoints/*") if folder.is_dir()]


def test_a_training_under_way_keeps_its_own_and_one_that_was_killed_gives_them_up(home):
    training = home.start()
    moment = in_an_epoch(2, 0)
    while not moment(home):
        assert training.is_alive(), home.said
        time.sleep(0.01)
    os.kill(training.pid, signal.SIGSTOP)
    try:
        (run_id,) = folders(home)
        listed = said(home, "list")
        assert listed.startswith(run_id) and "tiny-llama  layer1  epoch " in listed
        assert "being trained\n1 run, " in listed
        assert f"left    {run_id}: it is being trained\nfreed 0" in said(home, "prune", "--all")
        assert folders(home) == [run_id]
    finally:
        os.kill(training.pid, signal.SIGKILL)
        os.kill(training.pid, signal.SIGCONT)
        training.join()
    assert "being trained" not in said(home, "list")
    freed = said(home, "prune", run_id)
    assert freed.startswith("freed ") and not freed.startswith("freed 0")
    assert folders(home) == [] and said(home, "list") == "0 runs, 0 B\n"
    again = home.start("--set", "train.epochs=2", "--resume", "auto")
    again.join(60)
    assert again.exitcode == 0, home.said


def test_the_old_are_told_from_the_new_and_a_damaged_one_is_named(home):
    home.kill(in_an_epoch(2, 0))
    (old,) = folders(home)
    home.kill(in_an_epoch(2, 0))
    (new,) = set(folders(home)) - {old}
    for file in home.files(f"state/checkpoints/{old}/*"):
        file.write_bytes(b"rubbish")
        os.utime(file, (time.time() - 8 * DAY,) * 2)
    first, second, last = said(home, "list").splitlines()
    assert first.startswith(new) and second.startswith(old) and last.startswith("2 runs, ")
    assert "it isn't a checkpoint" in second
    assert "freed 0" in said(home, "prune", "--older-than-days", "9")
    said(home, "prune", "--older-than-days", "7")
    assert folders(home) == [new]


@pytest.mark.parametrize(
    "words, error",
    [
        (["prune"], "error: Nothing was chosen. Give runs"),
        (["prune", "nothing"], "error: No checkpoints of run 'nothing' in "),
        (["prune", "../../home"], "error: No checkpoints of run '../../home' in "),
    ],
)
def test_what_is_not_there_is_said(home, words, error):
    assert said(home, *words, status=2).startswith(error)


def test_another_folder_is_named(home):
    home.kill(there("elsewhere/*/*.safetensors"), "--set", "checkpoint.dir=elsewhere")
    assert said(home, "list") == "0 runs, 0 B\n"
    assert "tiny-llama  layer1  epoch" in said(home, "list", "--dir", "elsewhere")


def test_a_list_is_made_while_a_training_saves_and_ends(tmp_path):
    def train():
        for _ in range(4):
            save_checkpoint(tmp_path / LAYER, TENSORS, FACTS)
        remove_checkpoints(tmp_path / LAYER)

    seen = set()
    end = time.monotonic() + 1.5
    with meanwhile(train):
        while time.monotonic() < end:
            seen |= {kept.about for kept in list_kept(tmp_path)}
    assert "m  l  epoch 1, step 2" in seen
    assert seen <= {"m  l  epoch 1, step 2", "no whole checkpoint"}


def test_only_folders_of_runs_are_pruned_and_what_was_deleted_is_counted(tmp_path):
    saved = [save_checkpoint(tmp_path / n, TENSORS, FACTS) for n in (LAYER, f"{LAYER}-pending")]
    size = sum(path.stat().st_size for path in saved)
    for name in ("films/iso.part", "mymodel/00001.safetensors", "A" * 32 + "/00001.safetensors"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("mine")
    note = tmp_path / LAYER / "notes.txt"
    note.write_text("mine, too")
    assert {kept.run_id for kept in list_kept(tmp_path)} == {LAYER, f"{LAYER}-pending"}
    assert prune_kept(tmp_path, ALL) == Pruned(size, {})
    assert note.exists() and len([*tmp_path.glob("*/*")]) == 4
    with pytest.raises(UserError, match="No checkpoints of run 'films'"):
        prune_kept(tmp_path, Pruning(["films"]))


def test_a_damaged_newest_one_hides_no_training(tmp_path):
    """An older one says whose it is; where none does, it may be anybody's who trains."""
    older, newer = (save_checkpoint(tmp_path / LAYER, TENSORS, FACTS) for _ in range(2))
    newer.write_bytes(b"rubbish")
    other = hold(tmp_path, "c" * 32)
    lock = hold(tmp_path, PARENT)
    assert prune_kept(tmp_path, ALL) == Pruned(0, {LAYER: "it is being trained"})
    let_go(lock)
    older.write_bytes(b"rubbish")
    assert prune_kept(tmp_path, ALL) == Pruned(0, {LAYER: "it is being trained"})
    let_go(other)
    assert prune_kept(tmp_path, ALL) == Pruned(2 * len(b"rubbish"), {})


def test_a_training_that_begins_while_somebody_looks_has_its_run(tmp_path):
    (tmp_path / f"{PARENT}.lock").touch()
    with meanwhile(lambda: is_held(tmp_path, PARENT)):
        for _ in range(100):
            hold(tmp_path, PARENT).release()
            assert not is_held(tmp_path, PARENT, LOOK_SECONDS)


def test_what_is_pruned_is_trained_by_nobody_meanwhile(tmp_path):
    """Each training that begins finds all of its checkpoints, or none."""
    with meanwhile(lambda: prune_kept(tmp_path, ALL)):
        for _ in range(50):
            lock = hold(tmp_path, PARENT)
            for _ in range(2):
                save_checkpoint(tmp_path / LAYER, TENSORS, FACTS)
            assert len(checkpoints(tmp_path / LAYER)) == 2
            let_go(lock)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^--dir: there is no folder .*gone\. Name the one of"):
        checkpoints_list(f"{tmp_path}/gone")
