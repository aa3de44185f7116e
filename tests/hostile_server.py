"""A tracking server, as far as a download needs one, that lists an artifact under any name."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

RUN_ID = "0" * 32


@contextmanager
def hostile_server(name: str) -> Iterator[str]:
    """Serves one run, whose folder `sae` holds one file of the given name; gives the address."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            place = self.path.partition("?")[0]
            if place.endswith("/runs/get"):
                info = {
                    "run_id": RUN_ID,
                    "run_uuid": RUN_ID,
                    "experiment_id": "1",
                    "status": "FINISHED",
                    "lifecycle_stage": "active",
                    "artifact_uri": "mlflow-artifacts:/1/artifacts",
                }
                self._give({"run": {"info": info, "data": {}, "inputs": {}}})
            elif place.endswith("/mlflow-artifacts/artifacts"):
                listed = [{"path": name, "is_dir": False, "file_size": 5}]
                self._give({"files": listed if "escape" not in self.path else []})
            elif "/mlflow-artifacts/artifacts/" in place:
                self._send(b"owned", "application/octet-stream")
            else:
                self._give({})

        do_POST = do_GET

        def _give(self, content: dict) -> None:
            self._send(json.dumps(content).encode(), "application/json")

        def _send(self, body: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
