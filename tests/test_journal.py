"""The journal: what is kept on disk, in order, once, and whole, and what becomes of it."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
from faults.full_disk import small_disk
from filelock import Timeout

from sae_mlflow.tracking.backlog import Backlog
from sae_mlflow.tracking.journal import Journal
from sae_mlflow.tracking.operations import Operation


def tags(n):
    return Operation("tags", "r", {"tags": {"n": str(n)}})


def numbers(journal):
    return [entry.operation.body["tags"]["n"] for entry in journal.waiting()]


def write(journal, *ns):
    return [journal.write(journal.entry(tags(n))) for n in ns]


def fill(disk):
    (disk / "filler").write_bytes(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize))


def after_a_kill(journal, place):
    """What the next process finds."""
    return Journal(shutil.copytree(journal.folder, place))


def test_what_isnt_delivered_is_there_for_the_next_process_in_order(tmp_path):
    journal = Journal(tmp_path / "j")
    first, *_ = write(journal, 1, 2, 3)
    journal.done([first])
    journal.close()
    again = Journal(tmp_path / "j")
    assert numbers(again) == ["2", "3"]
    write(again, 4)
    assert numbers(again) == ["2", "3", "4"]


def test_a_journal_of_which_all_is_delivered_leaves_no_trace(tmp_path):
    journal = Journal(tmp_path / "j")
    journal.done(write(journal, 1, 2))
    journal.close()
    assert list(tmp_path.iterdir()) == []


def test_a_long_training_whose_store_takes_everything_keeps_nothing(tmp_path):
    journal = Journal(tmp_path / "j")
    for n in range(3000):
        journal.done(write(journal, n))
    assert (journal.folder / "entries").stat().st_size < 70_000


def test_two_processes_never_have_the_same_journal(tmp_path):
    journal = Journal(tmp_path / "j")
    write(journal, 1)
    with pytest.raises(Timeout):
        Journal(tmp_path / "j")
    journal.close()
    assert numbers(Journal(tmp_path / "j")) == ["1"]


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_a_line_that_a_kill_cut_off_is_left_out_and_the_next_is_whole(tmp_path, cut):
    journal = Journal(tmp_path / "j")
    write(journal, 1, 2)
    journal.close()
    entries = tmp_path / "j" / "entries"
    whole = entries.read_bytes()
    entries.write_bytes(whole[:-cut])
    again = Journal(tmp_path / "j")
    # of the newline alone nothing hangs
    assert numbers(again) == (["1", "2"] if cut == 1 else ["1"])
    write(again, 3)
    again.close()
    assert numbers(Journal(tmp_path / "j"))[-1] == "3"


def test_a_line_that_the_disk_has_spoilt_is_counted_and_the_others_stand(tmp_path):
    journal = Journal(tmp_path / "j")
    write(journal, 1, 2, 3)
    journal.close()
    entries = tmp_path / "j" / "entries"
    entries.write_bytes(entries.read_bytes().replace(b'"n": "2"', b'"n": "7"'))
    again = Journal(tmp_path / "j")
    assert numbers(again) == ["1", "3"] and again.damaged == 1


def test_what_is_logged_is_kept_beside_though_its_folder_goes(tmp_path):
    source = tmp_path / "scratch" / "sae"
    (source / "inner").mkdir(parents=True)
    (source / "cfg.json").write_text("{}")
    (source / "inner" / "weights").write_bytes(b"12345")
    journal = Journal(tmp_path / "j")
    journal.write(journal.entry(Operation("folder", "r", {"folder": "sae"}, source)))
    (source / "cfg.json").unlink()
    (source / "inner" / "weights").unlink()
    [entry] = journal.waiting()
    kept = entry.operation.source
    assert (kept / "cfg.json").read_text() == "{}"
    assert (kept / "inner" / "weights").read_bytes() == b"12345"
    journal.done([entry])
    assert not kept.exists()


def test_on_a_full_disk_nothing_is_torn_and_it_goes_on_after_room_is_made(tmp_path):
    (tmp_path / "weights").write_bytes(os.urandom(3_000_000))
    weights = Operation("file", "r", {"folder": None}, tmp_path / "weights")
    with small_disk(tmp_path / "disk", 2) as disk:
        journal = Journal(disk / "j")
        write(journal, 1)
        with pytest.raises(OSError, match="No space left"):
            journal.write(journal.entry(weights))
        assert numbers(journal) == ["1"] and not list(disk.glob("j/files/*"))
        fill(disk)
        with pytest.raises(OSError, match="No space left"):
            for n in range(1000):
                write(journal, "x" * n)
        (disk / "filler").unlink()
        kept = numbers(journal)
        write(journal, 2)
        journal.close()
        assert numbers(Journal(disk / "j")) == [*kept, "2"]


def test_a_delivery_that_could_not_be_noted_is_noted_with_the_next(tmp_path):
    """Else an old entry would be delivered once more, over a newer one."""
    with small_disk(tmp_path / "disk", 2) as disk:
        journal = Journal(disk / "j")
        first, second, _ = write(journal, 1, 2, 3)
        fill(disk)
        journal.done([first], {"a-pending": "a"})
        (disk / "filler").unlink()
        journal.done([second])
        found = after_a_kill(journal, tmp_path / "killed")
        assert numbers(found) == ["3"] and found.ids == {"a-pending": "a"}


def test_the_ids_that_a_store_has_given_outlive_the_entries(tmp_path):
    journal = Journal(tmp_path / "j")
    journal.done(write(journal, 0), {"a-pending": "a"})
    for n in range(2000):
        journal.done(write(journal, n))
    assert after_a_kill(journal, tmp_path / "killed").ids == {"a-pending": "a"}


def test_of_an_entry_without_room_no_file_stays(tmp_path):
    with small_disk(tmp_path / "disk", 2) as disk:
        journal = Journal(disk / "j")
        (disk / "weights").write_bytes(b"12345")
        fill(disk)
        body = {"folder": "x" * 100_000}  # the file itself is only linked to
        with pytest.raises(OSError, match="No space left"):
            journal.write(journal.entry(Operation("file", "r", body, disk / "weights")))
        assert list(disk.glob("j/files/*")) == []


def test_a_file_that_has_gone_keeps_nothing_behind_it_off_the_disk(tmp_path):
    with small_disk(tmp_path / "disk", 2) as disk:
        backlog = Backlog(journal := Journal(disk / "j"), print)
        (tmp_path / "weights").write_bytes(b"12345")
        fill(disk)
        weights = Operation("file", "r", {"folder": None}, tmp_path / "weights")
        logging = threading.Thread(target=backlog.add, args=[weights], daemon=True)
        logging.start()
        while not backlog.n_queued:
            time.sleep(0.01)
        backlog.add(tags(1))
        (tmp_path / "weights").unlink()
        (disk / "filler").unlink()
        until = time.monotonic() + 30
        while numbers(journal) != ["1"]:  # where the logging thread is at it, this one leaves it so
            assert time.monotonic() < until
            backlog.write_again()
            time.sleep(0.01)
        backlog.remove(backlog.first(1))
        logging.join(timeout=5)
        assert not logging.is_alive()


KILLED_WHILE_IT_WRITES = """
import sys
from pathlib import Path
from sae_mlflow.errors import UserError
from sae_mlflow.tracking.backlog import Backlog
from sae_mlflow.tracking.journal import Journal
from sae_mlflow.tracking.operations import Operation
journal = Journal(Path(sys.argv[1]))
print("ready", flush=True)
n = 0
while True:
    journal.write(journal.entry(Operation("tags", "r", {"tags": {"n": str(n), "x": "y" * n}})))
    print(n, flush=True)
    n += 1
"""


def test_a_process_killed_while_it_writes_loses_nothing_that_was_written(tmp_path):
    command = [sys.executable, "-c", KILLED_WHILE_IT_WRITES, str(tmp_path / "j")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
        said = [int(line) for line in process.stdout.read().split("\n")[:-1]]
    kept = [int(n) for n in numbers(Journal(tmp_path / "j"))]
    assert len(said) > 10 and kept[: len(said)] == said
    assert len(kept) - len(said) <= 1  # one may have been written and not yet said
