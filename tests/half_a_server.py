"""A tracking server, as far as a delivery needs one, whose artifacts are apart from its API."""

import json
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class HalfAServer:
    """All of it is taken, but what one says that it isn't."""

    def __init__(self) -> None:
        self.artifact_status = 200
        """What an artifact is answered with, after `artifact_seconds`."""
        self.artifact_seconds = 0.0
        self.api_status: dict[str, int] = {}
        """What a part of the API is answered with, where not with 200: `{"runs/create": 503}`."""
        self.log: list[tuple[str, object]] = []
        """What it was asked for and took, in order: `("PUT sae/weights", ...)`."""
        self.refused: list[str] = []
        """Artifacts that it was asked for and didn't take, in order."""
        self.uri = ""
        self.run_id = uuid.uuid4().hex
        """Of the one run; MLflow remembers where the artifacts of an id are."""
        self.tags: dict[str, str] = {}
        """The run's."""

    @property
    def artifacts(self) -> list[str]:
        return [what for what, _ in self.log if what.startswith(("PUT", "DELETE"))]

    @property
    def updates(self) -> list[object]:
        return [body for what, body in self.log if what == "runs/update"]

    @property
    def metrics(self) -> list[tuple[str, int]]:
        batches = [body for what, body in self.log if what == "runs/log-batch"]
        return [(m["key"], m["step"]) for body in batches for m in body.get("metrics", [])]


@contextmanager
def half_a_server() -> Iterator[HalfAServer]:
    """Serves one run."""
    state = HalfAServer()

    class Answers(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            place = self.path.partition("?")[0].removeprefix("/api/2.0/")
            if "mlflow-artifacts/" in place and self.command in ("PUT", "DELETE"):
                self._artifact(f"{self.command} {place.partition('/1/artifacts/')[2]}")
                return
            place = place.removeprefix("mlflow/")
            if place in state.api_status:
                self._send(state.api_status[place], {})
                return
            if self.command == "POST" and body:
                state.log.append((place, json.loads(body)))
            self._send(200, {"run": _run(state)} if place.startswith("runs/") else {})

        do_GET = do_POST = do_PUT = do_DELETE = answer

        def _artifact(self, what: str) -> None:
            time.sleep(state.artifact_seconds)
            if state.artifact_status == 200:
                state.log.append((what, None))
            else:
                state.refused.append(what)
            self._send(state.artifact_status, {})

        def _send(self, status: int, content: dict) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # whoever asked didn't wait for the answer

    server = Server(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    state.uri = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


def _run(state: HalfAServer) -> dict:
    info = {
        "run_id": state.run_id,
        "run_uuid": state.run_id,
        "experiment_id": "1",
        "status": "RUNNING",
        "lifecycle_stage": "active",
        "artifact_uri": "mlflow-artifacts:/1/artifacts",
    }
    tags = [{"key": key, "value": value} for key, value in state.tags.items()]
    return {"info": info, "data": {"tags": tags}, "inputs": {}}
