"""A real MLflow server on loopback, in a process of its own, that can be stopped and started."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

_STARTS_WITHIN_SECONDS = 90


class TrackingServer:
    """Over a SQLite file in a folder, or another database; the same store after each start."""

    def __init__(self, folder: Path, backend: str | None = None) -> None:
        """
        Args:
            backend: the database's address.
        """
        self.folder = folder
        self._backend = backend or f"sqlite:///{folder}/server.db"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        with (self.folder / "server.log").open("a") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"),
                    *("--port", str(self.port), "--workers", "1"),
                    *("--backend-store-uri", self._backend),
                    *("--artifacts-destination", str(self.folder / "artifacts")),
                ],
                cwd=self.folder,
                # its job runners take most of the time that it needs to start
                env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=log,
                stderr=log,
                start_new_session=True,  # its workers end with it
            )
        for _ in range(_STARTS_WITHIN_SECONDS * 5):
            if self._answers():
                return
            time.sleep(0.2)
        raise AssertionError((self.folder / "server.log").read_text())

    def stop(self, number: int = signal.SIGKILL) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, number)
            os.killpg(self._process.pid, signal.SIGCONT)  # where it was made to hang
            self._process.wait()
            self._process = None

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """It takes connections and answers nobody meanwhile."""
        assert self._process is not None
        group = self._process.pid
        os.killpg(group, signal.SIGSTOP)
        yield
        with suppress(ProcessLookupError):  # killed meanwhile
            os.killpg(group, signal.SIGCONT)

    def _answers(self) -> bool:
        try:
            with urlopen(f"{self.uri}/health", timeout=2):
                return True
        except (URLError, OSError):
            return False
