"""Clients that send much, slowly or never: the others are answered, and the log stays short."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

# A server of the package in a process of its own, over an app of a few lines; limits of time are made short.
SERVER = """
import socket, sys
from tunesmith.web import connections
from tunesmith.web.security import RequestPolicy
from tunesmith.web.server import serve

connections.HEAD_SECONDS, connections.READ_SECONDS = 1.0, 1.0

async def app(scope, receive, send):
    body = (await receive())["body"] or b"ok"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})

with socket.create_server(("127.0.0.1", 0)) as sock:
    print(sock.getsockname()[1], flush=True)
    serve(app, sock, token=sys.argv[1], policy=RequestPolicy(own_header=False, most_bytes=2**19))
"""
POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: "
# Seconds in which another client has its answer. A machine that tests and trains at once is slow, not stalled.
PATIENCE = 0.2


@dataclass
class Stalled:
    """A server and how it is reached."""

    port: int
    log: Path

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def seconds(self, probes: int = 20) -> list[float]:
        """How long a client without part in anything waits for its answer, on connections of its own, in order."""
        taken = []
        for _ in range(probes):
            start = time.perf_counter()
            found = httpx2.get(f"http://127.0.0.1:{self.port}/health", timeout=10)
            taken.append(time.perf_counter() - start)
            assert (found.status_code, found.text) == (200, "ok")
        return sorted(taken)


@contextmanager
def serving(folder: Path, token: str = "") -> Iterator[Stalled]:
    log = folder / "log"
    with log.open("w") as stderr:
        command = [sys.executable, "-c", SERVER, token]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
        with process:
            assert process.stdout is not None
            try:
                yield Stalled(int(process.stdout.readline()), log)
            finally:
                process.kill()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stalled]:
    with serving(tmp_path_factory.mktemp("stalled")) as made:
        yield made


@contextmanager
def many(server: Stalled, count: int, begin: bytes) -> Iterator[list[socket.socket]]:
    """Connections that have sent the beginning of a request."""
    with ExitStack() as stack:
        opened = []
        for _ in range(count):
            opened.append(stack.enter_context(server.connect()))
            with suppress(OSError):  # closed already, for the sake of a later one
                opened[-1].sendall(begin)
        yield opened


def answer(sock: socket.socket) -> bytes:
    """The whole answer to one request."""
    text = b""
    while b"\r\n\r\n" not in text:
        text += sock.recv(65536)
    head, _, body = text.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split()[0])
    while len(body) < length:
        body += sock.recv(65536)
    return head + body


def ended(sock: socket.socket, within: float) -> bool:
    """Whether the server closes a connection in time; what it says before is read."""
    sock.settimeout(within)
    try:
        while sock.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def flood(server: Stalled, begin: bytes, size: int) -> int:
    """Send up to `size` bytes behind a beginning; how many the server takes."""
    taken = 0
    with server.connect() as sock, suppress(OSError):
        sock.sendall(begin)
        while taken < size:
            taken += sock.send(b"a" * 65536)
    return taken


@pytest.mark.parametrize("begin", [b"GET /health HTTP/1.1\r\nx-long: ", b"GET /", b"GET", b""], ids=repr)
def test_a_head_without_end_is_cut_off(server: Stalled, begin: bytes):
    assert flood(server, begin, 300 * 2**20) < 8 * 2**20
    assert server.seconds(3)[-1] < 1


def test_a_head_within_the_limit_is_answered(server: Stalled):
    headers = {f"x-{number}": "a" * 1000 for number in range(28)}
    assert httpx2.get(f"http://127.0.0.1:{server.port}/health", headers=headers).status_code == 200
    assert httpx2.get(f"http://127.0.0.1:{server.port}/{'a' * 20_000}").status_code == 200


@pytest.mark.parametrize("begin", [b"", b"G", b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n"], ids=repr)
def test_a_head_that_does_not_come_is_given_up(server: Stalled, begin: bytes):
    with server.connect() as sock:
        sock.sendall(begin)
        assert ended(sock, 8)


def test_a_head_that_comes_letter_by_letter_is_given_up_too_also_the_second_on_a_connection(server: Stalled):
    whole = b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
    for first in (b"", whole):
        with server.connect() as sock:
            sock.sendall(first)
            began = time.monotonic()
            with suppress(OSError):
                while time.monotonic() - began < 8:
                    sock.sendall(b"G")
                    time.sleep(0.1)
            assert time.monotonic() - began < 8


def test_an_answer_that_is_not_read_is_given_up(server: Stalled):
    body = b"a" * 400_000
    with server.connect() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with suppress(OSError):
            for _ in range(40):
                sock.sendall(POST + b"400000\r\n\r\n" + body)
        time.sleep(2)
        assert ended(sock, 8)


def test_others_are_answered_while_many_connections_stay_half_open(server: Stalled):
    with many(server, 700, b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n"):
        assert server.seconds()[10] < PATIENCE


def test_others_are_answered_while_many_bodies_do_not_come(server: Stalled):
    with many(server, 700, POST + b"400\r\n\r\n{"):
        assert server.seconds()[10] < PATIENCE


def test_a_slow_body_that_comes_in_time_is_answered(server: Stalled):
    with server.connect() as sock:
        sock.sendall(POST + b"6\r\n\r\n")
        for letter in b"123456":
            time.sleep(0.3)  # in all longer than a head may take
            sock.sendall(bytes([letter]))
        assert answer(sock).endswith(b"123456")


@pytest.mark.slow
def test_health_is_answered_within_a_fifth_of_a_second_under_all_of_it_at_once(tmp_path: Path):
    with serving(tmp_path) as server:
        running = threading.Event()
        running.set()

        def again(attack: Callable[[], object]) -> None:
            while running.is_set():
                attack()

        attacks = [lambda: flood(server, b"GET / HTTP/1.1\r\nx-long: ", 300 * 2**20), lambda: dribble(server, 100)]
        threads = [threading.Thread(target=again, args=(attack,)) for attack in attacks]
        with many(server, 5000, b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n"):
            for thread in threads:
                thread.start()
            try:
                taken = server.seconds(200)
            finally:
                running.clear()
                for thread in threads:
                    thread.join()
        assert taken[190] < PATIENCE, (taken[100], taken[-1])
        assert server.log.read_text() == ""


def dribble(server: Stalled, count: int) -> None:
    """Bodies that come a letter at a time."""
    with many(server, count, POST + b"400\r\n\r\n") as slow:
        for _ in range(10):
            for sock in slow:
                with suppress(OSError):
                    sock.sendall(b" ")
            time.sleep(0.05)


# ------------------------------------------------------------------ requests that are not what they seem


ODD = [
    b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),  # a client that expects TLS
    b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\nnonsense\r\n\r\n",
    POST + b"2\r\ncontent-length: 3\r\n\r\n{}",
    b"POST / HTTP/1.1\r\nhost: 127.0.0.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    b"POST / HTTP/1.1\r\nhost: 127.0.0.1\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab",
    b"GET http://evil.example/ HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
]
UPGRADE = (
    b"GET /v1/chat HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


def test_no_odd_request_and_no_client_that_leaves_puts_a_line_into_the_log(tmp_path: Path):
    with serving(tmp_path) as server:
        for odd in ODD:
            for leaving in (False, True):
                with server.connect() as sock, suppress(OSError):
                    sock.sendall(odd)
                    if not leaving:
                        sock.settimeout(0.3)
                        sock.recv(65536)
        for count in (2, 50):  # pipelined requests of a client that leaves
            for _ in range(10):
                with server.connect() as sock, suppress(OSError):
                    sock.sendall((POST + b"2\r\n\r\n{}") * count)
                    sock.recv(1)
        assert server.seconds(5)
        assert server.log.read_text() == ""


def test_a_websocket_is_refused_and_not_before_its_token_was_checked(tmp_path: Path):
    with serving(tmp_path, "t0ken-t0ken-t0ken-t0ken") as server:
        for more, status in ((b"", b"401"), (b"authorization: Bearer t0ken-t0ken-t0ken-t0ken\r\n", b"400")):
            with server.connect() as sock:
                sock.sendall(UPGRADE + more + b"\r\n")
                said = answer(sock)
            assert said.split(b" ", 2)[1] == status
        assert b"WebSockets are not supported; send plain HTTP requests" in said
        assert server.log.read_text() == ""
