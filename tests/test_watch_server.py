"""The watch's page against what no browser sends, and at another address than loopback."""

import http.client
import socket
import time
from urllib.parse import urlsplit

import pytest
from plot_store import new_experiment
from running_trainings import log, open_layer, open_parent

from sae_mlflow.errors import UserError
from sae_mlflow.tracking.store import Store
from sae_mlflow.watching.board import PAGE, STATE, Board
from sae_mlflow.watching.server import _MOST_CONNECTIONS, serving
from sae_mlflow.watching.state import Watch


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    store = Store(f"sqlite:///{tmp_path_factory.mktemp('watched')}/mlflow.db")
    new_experiment(store, "x")
    log(open_layer(store, open_parent(store, "x", "9"), "layer9"), 1, 0.5)
    board = Board(store, "x")
    board.read(Watch(store, "x").look())
    return board


def raw(address: str, request: bytes) -> bytes:
    """Everything that comes back until the server ends the connection."""
    parts = urlsplit(address)
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as connection:
        connection.sendall(request)
        answer = b""
        while piece := connection.recv(65_536):
            answer += piece
    return answer


def status_of(address: str, host: str, path: str = STATE) -> int:
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=20)
    connection.request("GET", path, headers={"Host": host})
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", b"414"),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", b"431"),
        (b"GET / HTTP/1.1\r\nHost: " + b"a" * 70_000 + b"\r\n\r\n", b"431"),
        (b"GET / HTTP/9.9\r\n\r\n", b"505"),
        (b"<script>alert(1)</script> / HTTP/1.1\r\nHost: x\r\n\r\n", b"501"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
    ],
)
def test_what_no_browser_sends_gets_an_error_that_has_the_policy_too(board, request_, status):
    with serving(board, None) as address:
        answer = raw(address, request_)
        assert status in answer[:400]
        assert b"<script" not in answer and b"layer9" not in answer
        if answer.startswith(b"HTTP/"):
            head = answer.partition(b"\r\n\r\n")[0]
            for name in (b"Content-Security-Policy: default-src 'none'", b"nosniff", b"no-store"):
                assert name in head
        assert status_of(address, urlsplit(address).netloc) == 200, "it goes on"


def test_connections_that_only_wait_do_not_pile_up(board):
    """More than it takes at once are closed, and it answers again when they have gone."""
    with serving(board, None) as address:
        parts = urlsplit(address)
        waiting = []
        for _ in range(_MOST_CONNECTIONS + 20):
            waiting.append(socket.create_connection((parts.hostname, parts.port), timeout=20))
        closed = sum(_is_closed(connection) for connection in waiting[_MOST_CONNECTIONS:])
        assert closed == 20
        for connection in waiting:
            connection.close()
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                assert status_of(address, parts.netloc) == 200
                break
            except (ConnectionError, http.client.HTTPException):
                time.sleep(0.1)
        else:
            raise AssertionError("it never answered again")


def _is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def test_elsewhere_it_answers_to_that_address_and_the_names_that_are_given(board):
    with serving(board, None, "127.0.0.2", ("Watch.Example",)) as address:
        port = urlsplit(address).port
        assert address == f"http://127.0.0.2:{port}/"
        for host in (f"127.0.0.2:{port}", f"watch.example:{port}"):
            assert status_of(address, host, PAGE) == 200
        for host in (f"127.0.0.1:{port}", f"evil.example:{port}", "watch.example"):
            assert status_of(address, host, PAGE) == 421


def test_at_every_address_it_answers_to_given_names_alone(board):
    with pytest.raises(UserError, match="--allow-host NAME"), serving(board, None, "0.0.0.0"):
        pass
    with serving(board, None, "0.0.0.0", ("watch.example",)) as address:
        port = urlsplit(address).port
        local = f"http://127.0.0.1:{port}/"
        assert status_of(local, f"watch.example:{port}") == 200
        for host in (f"127.0.0.1:{port}", f"0.0.0.0:{port}", f"localhost:{port}"):
            assert status_of(local, host) == 421


def test_at_port_80_browsers_name_no_port(board):
    try:
        with serving(board, 80, "127.0.0.80", ("watch.example",)) as address:
            for host in ("127.0.0.80", "watch.example", "127.0.0.80:80"):
                assert status_of(address, host, PAGE) == 200
            for host in ("127.0.0.81", "evil.example", "127.0.0.80:81"):
                assert status_of(address, host, PAGE) == 421
    except UserError as error:
        pytest.skip(str(error))  # only some may listen there


def test_a_host_is_an_address(board):
    for host in ("localhost", "example.com", "", "127.0.0.1:80", "a b"):
        with pytest.raises(UserError, match="in numbers"), serving(board, None, host):
            pass


def test_an_address_of_another_machine_is_refused(board):
    with (
        pytest.raises(UserError, match=r"^--host '192\.0\.2\.1' is no address of this machine"),
        serving(board, None, "192.0.2.1"),
    ):
        pass
