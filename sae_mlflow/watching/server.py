"""A watch's page: three paths, for browsers of this machine alone unless told otherwise.

Any web page can have a browser send requests here. So a request has to name this server (a
foreign name that leads here, as in DNS rebinding, is refused), can change nothing, and its answer
is readable to this page alone.
"""

import errno
import ipaddress
import socket
import socketserver
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.client import HTTP_PORT
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from sae_mlflow.errors import UserError
from sae_mlflow.watching.board import NOTHING, Answer, Board

LOOPBACK = "127.0.0.1"
_MOST_CONNECTIONS = 64  # at once; a browser has six
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
def serving(
    board: Board, port: int | None, host: str = LOOPBACK, names: Collection[str] = ()
) -> Iterator[str]:
    """Serve a board while the block runs; gives the page's address.

    Args:
        port: None takes a free one.
        host: the address to listen at.
        names: other names that requests may have for it.

    Raises:
        UserError: the host is no address, or can be called by no name; the port can't be had.
    """
    names = _names(host, names)
    try:
        server = _Server(board, port or 0, host, names)
    except (OSError, OverflowError) as error:
        number = getattr(error, "errno", None)
        if number == errno.EADDRNOTAVAIL:
            raise UserError(_foreign(host)) from None
        in_use = number == errno.EADDRINUSE
        reason = "is in use" if in_use else f"can't be opened: {error}"
        raise UserError(
            f"Port {port} of {host} {reason}. Choose another with --port, or leave it out "
            "for a free one."
        ) from None
    with server:
        threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
        try:
            yield f"http://{names[0]}:{server.server_port}/"
        finally:
            server.shutdown()


def _names(host: str, names: Collection[str]) -> list[str]:
    """What requests may call the server, without its port; the first is how we call it."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise UserError(_foreign(host)) from None
    own = f"[{address}]" if address.version == 6 else str(address)
    if not address.is_unspecified:
        return [own, *names, *(["localhost"] if address.is_loopback else [])]
    if not names:
        raise UserError(
            f"--host {host} takes requests at every address of this machine, whatever they call "
            "it. Say which names are right: --allow-host NAME, once for each."
        )
    return [*names]


def _foreign(host: str) -> str:
    return (
        f"--host {host!r} is no address of this machine. Write it in numbers, such as "
        f"{LOOPBACK}, and the names for it as --allow-host NAME."
    )


class _Server(ThreadingHTTPServer):
    block_on_close = False  # a browser that keeps a connection open keeps no command alive

    def __init__(self, board: Board, port: int, host: str, names: Collection[str]) -> None:
        self.board = board
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._free = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        super().__init__((host, port), _Handler)
        self.own_names = {f"{name.lower()}:{self.server_port}" for name in names}
        if self.server_port == HTTP_PORT:  # which browsers leave out
            self.own_names |= {name.lower() for name in names}

    def server_bind(self) -> None:
        """Without the look-up of this machine's name, which can take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a thread of its own, as long as there aren't too many of them."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

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

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class refuses, without quoting it."""
        self.close_connection = True
        self._refuse(HTTPStatus(code))

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", self.policy)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal shows the trainings."""
