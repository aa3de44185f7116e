"""Where journals are: each store's own, wherever and by whom it is used."""

import subprocess

import pytest
from faults.full_disk import small_disk

from sae_mlflow.errors import UserError
from sae_mlflow.tracking.journals import leftovers, new_journal, others
from sae_mlflow.tracking.operations import Operation


def write(journal, n):
    journal.write(journal.entry(Operation("tags", "r", {"tags": {"n": str(n)}})))


def numbers(journal):
    return [entry.operation.body["tags"]["n"] for entry in journal.waiting()]


def test_a_stores_journals_are_found_whatever_its_user_and_password(tmp_path):
    new = new_journal("postgresql://me:secret@host/db")
    write(new, 1)
    new.close()
    for uri in ("postgresql://me:changed@host/db", "postgresql+psycopg2://you@host/db"):
        [found] = leftovers(uri)
        assert numbers(found) == ["1"]
        found.close()
    assert list(leftovers("postgresql://me:secret@other/db")) == []
    [(address, waiting)] = others("postgresql://me:secret@other/db")
    assert (address, waiting) == ("postgresql://me:***@host/db", 1)


def test_a_sqlite_store_is_the_same_from_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    journal = new_journal("sqlite:///mlflow.db")
    write(journal, 1)
    journal.close()
    [found] = leftovers(f"sqlite:///{tmp_path}/mlflow.db")
    assert numbers(found) == ["1"]


def test_databases_of_one_name_behind_two_sockets_have_a_journal_each(tmp_path):
    new = new_journal("postgresql://me:secret@/mlflow?host=/a&password=secret")
    write(new, 1)
    new.close()
    assert list(leftovers("postgresql:///mlflow?host=/b")) == []
    [found] = leftovers("postgresql+psycopg2://you@/mlflow?password=changed&host=/a")
    assert numbers(found) == ["1"]
    found.close()


@pytest.mark.parametrize("opens", [new_journal, lambda uri: next(leftovers(uri))])
def test_a_folder_that_cannot_be_written_is_bad_input(opens, tmp_path, monkeypatch):
    with small_disk(tmp_path / "disk", 2) as disk:
        monkeypatch.setenv("SAE_MLFLOW_STATE", str(disk))
        left = new_journal("http://host")
        write(left, 1)
        left.close()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(UserError, match="Point SAE_MLFLOW_STATE at a folder"):
            opens("http://host")
