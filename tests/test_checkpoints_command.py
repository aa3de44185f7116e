"""`sae-mlflow checkpoints`: what interrupted trainings left on this machine."""

import os
import signal
import time

import pytest
from faults.killed_trainings import Home, killed_data
from faults.moments import in_an_epoch, there

DAY = 86_400


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
        assert "being trained\n1 runs, " in listed
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
