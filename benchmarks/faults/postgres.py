"""A real PostgreSQL on loopback, in a temporary folder, that can be stopped, killed and started.

Debian's package `postgresql` has to be there.
"""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
_STARTS_WITHIN_SECONDS = 60


class Postgres:
    """A cluster of its own; the same data after each start."""

    def __init__(self) -> None:
        assert PROGRAMS, "needs Debian's package `postgresql`"
        self._bin = PROGRAMS[-1].parent
        # in /tmp itself: pytest's folders are closed to other users, and initdb refuses root
        self.folder = Path(tempfile.mkdtemp(prefix="sae_mlflow-postgres-"))
        self._as_user: dict[str, Any] = {}
        if os.geteuid() == 0:
            group = pwd.getpwnam("nobody").pw_gid
            self._as_user = {"user": "nobody", "group": group, "extra_groups": []}
            shutil.chown(self.folder, "nobody")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"postgresql+psycopg2://sae:s3cret@127.0.0.1:{self.port}/postgres"
        self._process: subprocess.Popen | None = None
        password = self.folder / "password"
        password.write_text("s3cret")
        password.chmod(0o644)
        self._run("initdb", "-D", "data", "-U", "sae", "-A", "md5", "--pwfile=password", "-N")

    def start(self) -> None:
        log = (self.folder / "log").open("a")
        options = f"-p {self.port} -h 127.0.0.1 -k {self.folder}"
        self._process = subprocess.Popen(
            [self._bin / "postgres", "-D", "data", *options.split(), "-c", "fsync=off"],
            cwd=self.folder,
            **self._as_user,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        log.close()
        for _ in range(_STARTS_WITHIN_SECONDS * 10):
            if self._answers():
                return
            time.sleep(0.1)
        raise AssertionError((self.folder / "log").read_text())

    def stop(self) -> None:
        """As an administrator does: connections are cut, and what was committed is on disk."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """As a crash does: it recovers at the next start."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._end(signal.SIGKILL)
        (self.folder / "data" / "postmaster.pid").unlink(missing_ok=True)

    def remove(self) -> None:
        if self._process is not None:
            self.stop()
        shutil.rmtree(self.folder)

    def query(self, statement: str) -> list[tuple]:
        """Rows straight out of the database."""
        import psycopg2

        connection = psycopg2.connect(self.uri.replace("+psycopg2", ""))
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return cursor.fetchall()
        finally:
            connection.close()

    def _end(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(timeout=30)
        self._process = None

    def _answers(self) -> bool:
        done = self._run("pg_isready", "-h", "127.0.0.1", "-p", str(self.port), check=False)
        return done.returncode == 0

    def _run(self, program: str, *options: str, check: bool = True) -> subprocess.CompletedProcess:
        return subprocess.run(
            [self._bin / program, *options],
            cwd=self.folder,
            **self._as_user,
            capture_output=True,
            check=check,
        )
