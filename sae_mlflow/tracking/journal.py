"""What a store hasn't been told yet, on local disk: a folder for each process that trains.

    journal/{store}/store.json             the store's address, without a password
    journal/{store}/{process}.lock         held while the process lives
    journal/{store}/{process}/entries      an operation a line, each behind its checksum
                             /delivered    the numbers of those that the store has taken
                             /files/{n}    what entry n logs
                             /process.json the process, in the words of its runs' tags

`{store}` is a hash of the address without user, password and driver: who changes those finds it
again.
"""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

from filelock import FileLock, Timeout

from sae_mlflow.errors import UserError
from sae_mlflow.folders import STATE_VARIABLE, make_folder
from sae_mlflow.tracking.journal_lines import Lines
from sae_mlflow.tracking.operations import Operation

_PROCESS_FILE = "process.json"
_KEPT_BYTES = 1 << 16  # of entries that are all delivered, before they are cleared away


@dataclass(frozen=True, eq=False)
class Entry:
    """An operation in its place in the order."""

    number: int
    operation: Operation


class Journal:
    """The entries of one process; whoever opens it holds its lock until `close`."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            UserError: the folder can't be made, or nothing in it.
            Timeout: another process holds it.
        """
        make_folder(folder.parent, STATE_VARIABLE)
        self.folder = folder
        self._lock = FileLock(lock_file(folder), thread_local=False)
        try:
            self._lock.acquire(blocking=False)
            make_folder(folder, STATE_VARIABLE)
            self._entries = Lines(folder / "entries")
            self._delivered = Lines(folder / "delivered")
        except Timeout:
            raise
        except OSError as error:
            self._lock.release()
            raise UserError(
                f"The journal {folder} can't be written: {error.strerror}. "
                f"Point {STATE_VARIABLE} at a folder that can be."
            ) from None
        self._writing = Lock()  # a training writes, and so does its delivery
        self.ids: dict[str, str] = {}
        """Ids that the store has given for pending ones."""
        self._new_ids: dict[str, str] = {}
        """Those of which no note is made yet."""
        self._last = 0
        self._waiting: dict[int, Entry] = {}
        self._not_on_disk: list[Path] = []
        self._unnoted: set[int] = set()
        """Numbers that the store has taken, of which there was no room to make a note."""
        self._read()

    @property
    def process(self) -> dict[str, str]:
        """The tags of the process that wrote it; none of an earlier version's."""
        try:
            found = json.loads((self.folder / _PROCESS_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}

    def sign(self, tags: Mapping[str, str]) -> None:
        """Say whose it is."""
        with suppress(OSError):  # no room: nobody can tell then
            (self.folder / _PROCESS_FILE).write_text(json.dumps(dict(tags)), encoding="utf-8")

    @property
    def damaged(self) -> int:
        """Entries that can't be read."""
        return self._entries.damaged

    def waiting(self) -> list[Entry]:
        """What the store hasn't taken, in order."""
        with self._writing:
            return [self._waiting[number] for number in sorted(self._waiting)]

    def entry(self, operation: Operation) -> Entry:
        """An operation with its place in the order; nothing is written yet."""
        with self._writing:
            self._last += 1
            return Entry(self._last, operation)

    def write(self, entry: Entry) -> Entry:
        """Keep an entry, and a copy of the file or folder that it logs; the entry as it stands.

        Raises:
            OSError: there is no room; nothing of it is left then.
        """
        operation = entry.operation
        if operation.source is not None:
            copy = self._copy(entry.number, operation.source)
            entry = replace(entry, operation=replace(operation, source=copy))
        facts: dict[str, object] = {"n": entry.number, "kind": operation.kind}
        facts |= {"run_id": operation.run_id, "body": operation.body}
        facts["file"] = operation.source and operation.source.name
        with self._writing:
            try:
                self._entries.add(facts)
            except OSError:
                self._remove_files(entry)
                raise
            self._waiting[entry.number] = entry
        return entry

    def done(self, entries: Iterable[Entry], ids: Mapping[str, str] | None = None) -> None:
        """The store has taken these; and the ids that it has given."""
        with self._writing:
            taken = [e for e in entries if self._waiting.pop(e.number, None) is not None]
            self._unnoted |= {entry.number for entry in taken}
            self._new_ids |= ids or {}
            self.ids |= ids or {}
            self._note()
            if not self._waiting and self._entries.size > _KEPT_BYTES:
                self._entries.clear()
                self._delivered.clear()
                self._unnoted.clear()
                self._new_ids = dict(self.ids)  # who writes next may know a run by its pending one
                self._note()
        for entry in taken:
            self._remove_files(entry)

    def _note(self) -> None:
        """What is done, and what couldn't be noted before: alone, an older entry would be delivered
        over a newer one."""
        with suppress(OSError):  # no room: with the next, or delivered once more
            self._delivered.add({"done": sorted(self._unnoted), "ids": self._new_ids})
            self._unnoted, self._new_ids = set(), {}

    def _remove_files(self, entry: Entry) -> None:
        if entry.operation.source is not None:
            shutil.rmtree(self._files(entry.number), ignore_errors=True)

    def to_disk(self) -> None:
        """Have the disk itself hold what was written, should the machine lose its power."""
        with self._writing:
            files, self._not_on_disk = self._not_on_disk, []
        try:
            for file in files:
                with suppress(FileNotFoundError), file.open("rb") as stream:
                    os.fsync(stream.fileno())
        except OSError:
            with self._writing:
                self._not_on_disk += files
            raise
        self._entries.to_disk()

    def close(self) -> None:
        """Let it go; without a trace where nothing waits."""
        if self._unnoted or self._new_ids:
            self._note()
        self._entries.close()
        self._delivered.close()
        if not self._waiting:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.release()
        if not self._waiting:
            lock_file(self.folder).unlink(missing_ok=True)

    def _files(self, number: int) -> Path:
        return self.folder / "files" / str(number)

    def _copy(self, number: int, source: Path) -> Path:
        place = self._files(number)
        files = [each for each in source.rglob("*") if each.is_file()] or [source]
        try:
            for file in files:
                copy = place / source.name / file.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                _link_or_copy(file, copy)
                self._not_on_disk.append(copy)
        except OSError:
            shutil.rmtree(place, ignore_errors=True)
            raise
        return place / source.name

    def _read(self) -> None:
        done: set[int] = set()
        for facts in self._delivered:
            done |= set(facts["done"])
            self.ids |= facts["ids"]
        for facts in self._entries:
            number, name = facts["n"], facts["file"]
            self._last = max(self._last, number)
            if number not in done:
                source = self._files(number) / name if name else None
                operation = Operation(facts["kind"], facts["run_id"], facts["body"], source)
                self._waiting[number] = Entry(number, operation)


def lock_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _link_or_copy(source: Path, to: Path) -> None:
    """On the same disk nothing is copied; what is logged isn't written to again."""
    try:
        os.link(source, to)
    except OSError:
        shutil.copyfile(source, to)
