"""A watch's page on loopback: three paths, to be read by browsers on this machine alone.

Any web page can have a browser send requests here. So a request has to name this server (a
foreign name that leads here, as in DNS rebinding, is refused), can change nothing, and its answer
is readable to this page alone.
"""

import errno
import socketserver
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from sae_mlflow.errors import UserError
from sae_mlflow.watching.board import NOTHING, Answer, Board

LOOPBACK = "127.0.0.1"
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Of every answer, beside its own content policy."""


@contextmanager
def serving(board: Board, port: int | None) -> Iterator[str]:
    """Serve a board while the block runs; gives the page's address.

    Args:
        port: None takes a free one.

    Raises:
        UserError: the port can't be had.
    """
    try:
        server = _Server(board, port or 0)
    except (OSError, OverflowError) as error:
        in_use = getattr(error, "errno", None) == errno.EADDRINUSE
        reason = "is in use" if in_use else f"can't be opened: {error}"
        raise UserError(
            f"Port {port} of {LOOPBACK} {reason}. Choose another with --port, or leave it out "
            "for a free one."
        ) from None
    with server:
        threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
        try:
            yield f"http://{LOOPBACK}:{server.server_port}/"
        finally:
            server.shutdown()


class _Server(ThreadingHTTPServer):
    block_on_close = False  # a browser that keeps a connection open keeps no command alive

    def __init__(self, board: Board, port: int) -> None:
        self.board = board
        super().__init__((LOOPBACK, port), _Handler)
        self.own_names = {f"{name}:{self.server_port}" for name in (LOOPBACK, "localhost")}

    def server_bind(self) -> None:
        """Without the look-up of this machine's name, which can take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = LOOPBACK, self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away while it is answered is nothing to tell of."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "sae-mlflow", ""
    timeout = 10.0  # seconds for a request to come in
    policy = NOTHING

    def do_GET(self) -> None:
        if self._names_this_server():
            answer = self.server.board.answers.get(self.path)
            if answer is None:
                self._refuse(HTTPStatus.NOT_FOUND)
            else:
                self._give(answer)

    do_HEAD = do_GET

    def _only_read(self) -> None:
        if self._names_this_server():
            self._refuse(HTTPStatus.METHOD_NOT_ALLOWED, Allow="GET, HEAD")

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _only_read

    def _names_this_server(self) -> bool:
        hosts = self.headers.get_all("Host", [])
        if len(hosts) == 1 and hosts[0].strip().lower() in self.server.own_names:
            return True
        self._refuse(HTTPStatus.MISDIRECTED_REQUEST)
        return False

    def _give(self, answer: Answer) -> None:
        self.policy = answer.policy
        has_it = self.headers.get("If-None-Match") == answer.tag
        self.send_response(HTTPStatus.NOT_MODIFIED if has_it else HTTPStatus.OK)
        self.send_header("ETag", answer.tag)
        if not has_it:
            self.send_header("Content-Type", answer.kind)
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if not has_it:
            self.wfile.write(answer.body)
        self.server.board.taken(answer.tag)

    def _refuse(self, status: HTTPStatus, **headers: str) -> None:
        body = f"{status.value} {status.phrase}\n".encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", self.policy)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal shows the trainings."""
