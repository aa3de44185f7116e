"""Whether a tracking store can be reached, known in seconds: MLflow's client tries for minutes."""

import getpass
import hashlib
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from ssl import SSLError
from urllib.error import HTTPError
from urllib.parse import parse_qs, urlsplit, urlunsplit
from urllib.request import urlopen

from filelock import FileLock

from sae_mlflow.errors import OutOfReach, UserError
from sae_mlflow.secrets import remember, without_secrets

_PROBE_SECONDS = 5.0
_OPENED_WITHIN_SECONDS = 300.0
_QUICK = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
_SQLITE_HEADER = b"SQLite format 3\0"
_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


def check_reachable(uri: str) -> None:
    """Raise OutOfReach where nothing can answer at a tracking URI.

    An HTTP store is asked for its health, a database server for a connection, and a SQLite file
    for a folder that it can be written in. Other kinds (Databricks, plug-ins, a database's socket
    on this machine) are left to MLflow.
    """
    remember(uri)
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError:  # whose text quotes a piece of what may be a password
        raise UserError(
            f"The tracking store's address {without_secrets(uri)} can't be read. In a user's name "
            "or password, write : / ? # [ ] @ as %3A %2F %3F %23 %5B %5D %40."
        ) from None
    scheme = parts.scheme.split("+")[0]
    if scheme in {"http", "https"}:
        _check_http(uri)
    elif scheme == "sqlite":
        _check_sqlite(uri)
    elif scheme in _DATABASE_PORTS and parts.hostname and "host" not in parse_qs(parts.query):
        _check_port(uri, parts.hostname, port or _DATABASE_PORTS[scheme])


def check_there(uri: str) -> None:
    """Raise a UserError where a SQLite file would first have to be made, as a training does."""
    file = _sqlite_file(uri)
    if file is not None and file.parent.is_dir() and not file.exists():
        raise UserError(
            f"There is no store {file.absolute()}. Start this where you trained, or name the store "
            "with --tracking-uri or MLFLOW_TRACKING_URI."
        )


@contextmanager
def opening(uri: str) -> Iterator[None]:
    """One process of this machine at a time opens a database: the first makes its tables, and two
    that make them at once both fail."""
    if urlsplit(uri).scheme in {"http", "https"}:
        yield
        return
    key = hashlib.sha256(without_user(uri).encode()).hexdigest()[:16]
    lock = Path(tempfile.gettempdir()) / f"sae_mlflow-{getpass.getuser()}-{key}.lock"
    with FileLock(lock, timeout=_OPENED_WITHIN_SECONDS):
        yield


def answer_quickly() -> None:
    """Have MLflow's client in this process give up after a second try, not after minutes.

    For what only reads, and asks again anyway.
    """
    for name, value in _QUICK.items():
        os.environ.setdefault(name, value)


def hide_password(uri: str) -> str:
    """A URI as it may be shown: `postgresql://me:secret@host/db` -> `postgresql://me:***@host/db`."""
    return hide_password_in(uri, uri)


def hide_password_in(text: str, uri: str) -> str:
    """A text that may quote a URI, without the URI's password."""
    remember(uri)
    return without_secrets(text)


def without_user(uri: str) -> str:
    """A URI without its user and password."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _check_http(uri: str) -> None:
    bare = without_user(uri)  # urllib would take them for a part of the host's name
    try:
        with urlopen(f"{bare.rstrip('/')}/health", timeout=_PROBE_SECONDS):
            return
    except HTTPError:
        return  # something answers; whether it lets us in is for MLflow to say
    except (OSError, ValueError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, SSLError):
            return  # MLflow, which has settings for that, may trust it
        raise _unreachable(uri, reason, "Start it, or correct the address.") from None


def _check_port(uri: str, host: str, port: int) -> None:
    try:
        socket.create_connection((host, port), timeout=_PROBE_SECONDS).close()
    except OSError as error:
        raise _unreachable(uri, error, "Start the database, or correct the address.") from None


def _check_sqlite(uri: str) -> None:
    file = _sqlite_file(uri)
    if file is None:
        return
    folder = file.parent
    if not folder.is_dir():
        raise _unreachable(uri, f"there is no folder {folder}", "Make it, or correct the path.")
    if not os.access(file if file.exists() else folder, os.W_OK):
        raise _unreachable(uri, f"{file} can't be written", "Choose a place that can.")
    if file.is_dir():
        raise _unreachable(uri, f"{file} is a folder", "Name a file.")
    if file.exists() and _head(file) not in {b"", _SQLITE_HEADER}:
        raise _unreachable(uri, f"{file} is not a SQLite database", "Name another file.")


def _sqlite_file(uri: str) -> Path | None:
    """None of another store, or of one in memory."""
    scheme, _, path = uri.partition(":///")
    path = path.split("?")[0]
    return Path(path) if path and scheme.split("+")[0] == "sqlite" else None


def _head(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(len(_SQLITE_HEADER))


def _unreachable(uri: str, reason: object, fix: str) -> OutOfReach:
    why = hide_password_in(str(reason), uri)
    return OutOfReach(
        f"The tracking store {hide_password(uri)} can't be reached: {why}. {fix} "
        "(It comes from --tracking-uri or MLFLOW_TRACKING_URI.)"
    )
