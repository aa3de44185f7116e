"""Trainings that are really killed, and go on: nothing is missing, nothing twice, every bit is the
one of a training that nobody disturbed."""

import os
import re
import shlex
import signal
import time
from contextlib import suppress

import pytest
import torch
from faults.full_disk import small_disk
from faults.killed_trainings import Home, assert_the_same, killed_data
from faults.moments import in_an_epoch

from sae_mlflow.checkpoint import read_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def data(tiny_model, text_file):
    return killed_data(tiny_model, text_file)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data):
    """A training that nobody disturbed."""
    home = Home.make(tmp_path_factory.mktemp("whole") / "home", data)
    home.train()
    return home


@pytest.fixture
def home(tmp_path, data):
    return Home.make(tmp_path / "home", data)


def parent_of(home):
    (row,) = (row for row in home.rows() if row.tags.get("sae.role") == "sweep")
    return row


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_first_and_says_how_it_goes_on(number, status, home, whole):
    """A second one doesn't cut that off."""
    batches = 0
    for _ in range(5):  # it may come between two epochs, where nothing is left to be saved
        saved = read_checkpoint(stopped_by(number, status, home)).facts["trainer"]
        if batches := saved["batches"]:
            break
    assert batches, "saved within an epoch"
    hint = re.findall(r"To go on from here: sae-mlflow train (.*)", home.said)[-1]
    assert hint.endswith(f"--resume {parent_of(home).run_id}")
    words = shlex.split(hint)
    home.train(*words[words.index("--set") :])
    assert f"goes on in epoch {saved['epoch']}, after step {saved['steps_done']}" in home.said
    assert_the_same(home, whole)


def stopped_by(number, status, home):
    """The checkpoint of a training that saves nothing else within an epoch."""
    process = home.start("--set", "checkpoint.every_seconds=1000", "--resume", "auto")
    wait_for(in_an_epoch(1, 0.03), home)
    os.kill(process.pid, number)
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == status, home.said
    last = [row for row in home.rows() if row.status != "FINISHED"]
    assert {row.status for row in last} == {"KILLED"}
    assert {row.tags["sae.failure"] for row in last} == {"interrupted"}
    return max(home.files("state/checkpoints/*/*.safetensors"), key=by_number)


def by_number(file):
    return int(file.stem)


def wait_for(moment, home):
    give_up = time.monotonic() + 120
    while not moment(home):
        assert time.monotonic() < give_up, home.said
        time.sleep(0.001)


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def test_a_damaged_checkpoint_is_named_and_the_one_before_taken_or_else_the_layer_starts_afresh(
    home, whole
):
    assert home.kill(in_an_epoch(3, 0), "--resume", "auto") == -9
    files = sorted(home.files("state/checkpoints/*/*.safetensors"), key=by_number)
    older, damaged = files[-2:]  # a third one waited for being removed, perhaps
    flip_a_bit(damaged)
    saved = read_checkpoint(older)
    poisoned = saved.tensors | {"sae.W_dec": saved.tensors["sae.W_dec"] * torch.nan}
    no_numbers = save_checkpoint(older.parent, poisoned, saved.facts)
    save_checkpoint_again(older, saved)  # the third newest, which saving removed
    assert home.kill(in_an_epoch(1, 0), "--resume", "auto") == -9
    for file, reason in (no_numbers, "its weights are no numbers"), (damaged, "checksum"):
        (line,) = (line for line in home.said.splitlines() if f"{file} is not gone on" in line)
        assert line.startswith("warning: ") and reason in line
    step = saved.facts["trainer"]["steps_done"]
    assert (
        f"layer1 goes on in epoch {saved.facts['trainer']['epoch']}, after step {step}" in home.said
    )
    for file in home.files("state/checkpoints/*/*.safetensors"):
        file.write_bytes(file.read_bytes()[:-100])
    home.train("--resume", "auto")
    assert "warning: layer1 starts afresh: there is no checkpoint of it that is whole" in home.said
    assert_the_same(home, whole)


def save_checkpoint_again(file, saved):
    elsewhere = save_checkpoint(file.parent / "again", saved.tensors, saved.facts)
    elsewhere.rename(file)
    file.with_name("again").rmdir()


def test_a_full_disk_costs_a_warning_and_no_checkpoint_that_was_there(home, whole, tmp_path):
    with small_disk(tmp_path / "disk", megabytes=2) as disk:
        words = ("--resume", "auto", "--set", f"checkpoint.dir={disk}")
        process = home.start(*words)
        files = lambda: sorted(disk.glob("*/*.safetensors"), key=by_number)  # noqa: E731
        wait_for(lambda _: len(files()) == 2, home)
        filler = disk / "filler"
        fill(filler)
        wait_for(lambda home: "can't be written" in home.said, home)
        time.sleep(0.3)  # many more that can't
        assert process.is_alive(), home.said
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        (line,) = (line for line in home.said.splitlines() if "can't be written" in line)
        assert re.search(
            r"warning: layer\d: its checkpoint \(\d.* [kM]B\) can't be written to .*: the disk is "
            r"full \(.*B free\)\. The training goes on, and tries again\. The last one stays: ",
            line,
        )
        read_checkpoint(files()[-1])
        assert not [*disk.glob("*/*.part")]
        filler.unlink()
        home.train(*words)
        assert_the_same(home, whole)


def fill(file):
    with file.open("wb", buffering=0) as filler, suppress(OSError):
        while True:
            filler.write(bytes(1024))
