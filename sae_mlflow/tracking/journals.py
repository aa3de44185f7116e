"""Where journals are: one folder for each store, one in it for each process."""

import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from filelock import Timeout

from sae_mlflow.folders import STATE_VARIABLE, make_folder, state_folder
from sae_mlflow.secrets import HIDDEN, without_secrets
from sae_mlflow.tracking.journal import Journal
from sae_mlflow.tracking.process import process_tags
from sae_mlflow.tracking.reach import hide_password, without_user
from sae_mlflow.whole_file import whole_file

_STORE_FILE = "store.json"


def new_journal(uri: str) -> Journal:
    """This process's, for a store.

    Raises:
        UserError: there is no place for it.
    """
    folder = _store_folder(uri)
    make_folder(folder, STATE_VARIABLE)
    with suppress(OSError):  # somebody else's, that may be written
        folder.parent.chmod(0o700)  # what is trained on, and how, is the user's own
    if not (folder / _STORE_FILE).exists():
        with whole_file(folder / _STORE_FILE) as file:
            file.write_text(json.dumps({"store": hide_password(_whole(uri))}), encoding="utf-8")
    started = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    name = f"{started}-{time.time_ns()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    journal = Journal(folder / name)
    journal.sign(process_tags())
    return journal


def leftovers(uri: str) -> Iterator[Journal]:
    """The journals of a store whose processes have ended, oldest first.

    Whoever takes one closes it before the next.
    """
    for folder in _processes(_store_folder(uri)):
        try:
            journal = Journal(folder)
        except Timeout:  # in use
            continue
        yield journal


def in_use(uri: str) -> int:
    """How many processes train into a store now."""
    return sum(_is_held(folder) for folder in _processes(_store_folder(uri)))


def others(uri: str) -> Iterator[tuple[str, int]]:
    """The address of each other store for which something waits, and how many entries do."""
    root, own = _root(), _store_folder(uri)
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        if folder != own and (folder / _STORE_FILE).is_file():
            shown = json.loads((folder / _STORE_FILE).read_text(encoding="utf-8"))["store"]
            if waiting := sum(map(_waiting, _processes(folder))):
                yield shown, waiting


def _root() -> Path:
    return state_folder() / "journal"


def _whole(uri: str) -> str:
    """An address that means the same in any folder."""
    scheme, is_file, path = uri.partition(":///")
    return f"{scheme}:///{Path(path).absolute()}" if is_file and scheme == "sqlite" else uri


def _store_folder(uri: str) -> Path:
    parts = urlsplit(without_user(_whole(uri)))
    scheme = parts.scheme.split("+")[0]  # without the driver
    query = urlencode(sorted(each for each in parse_qsl(parts.query) if _says_where(*each)))
    bare = urlunsplit((scheme, parts.netloc, parts.path.rstrip("/"), query, ""))
    return _root() / hashlib.sha256(bare.encode()).hexdigest()[:16]


def _says_where(key: str, _: str) -> bool:
    """Whether a part of an address's query isn't about who one is: `?host=/run/postgresql`."""
    return key.lower() not in {"user", "username"} and HIDDEN not in without_secrets(f"?{key}=0")


def _processes(store: Path) -> list[Path]:
    return sorted(each for each in store.iterdir() if each.is_dir()) if store.is_dir() else []


def _waiting(folder: Path) -> int:
    """Entries of a process that has ended; of one that lives 0, since it delivers them itself."""
    try:
        journal = Journal(folder)
    except Timeout:
        return 0
    try:
        return len(journal.waiting())
    finally:
        journal.close()


def _is_held(folder: Path) -> bool:
    try:
        Journal(folder).close()
    except Timeout:
        return True
    return False
