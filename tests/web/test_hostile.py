"""Two hundred requests that mean harm: none is a 500, the server answers afterwards, and its memory stays level."""

from __future__ import annotations

import json
import os
import random
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from tests.served import LABELS, Served, await_here, save_run, served
from tunesmith.inference.serving.protocol import Limits
from tunesmith.techniques import Lora

COUNT = 200
CHAT, CLASSIFY = "/v1/chat/completions", "/classify"
CLIENT = httpx2.Client(timeout=60)
GOOD: dict[str, Any] = {"model": "one", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
DEEP = "[" * 50_000 + "]" * 50_000

# Bodies that are whole, and which statuses are right.
BODIES: list[tuple[str, bytes, set[int]]] = [
    (CHAT, b"{", {400}),
    (CHAT, b"", {400}),
    (CHAT, b"null", {400}),
    (CHAT, b"\xff\xfe\x00", {400}),
    (CHAT, DEEP.encode(), {400}),
    (CHAT, json.dumps({**GOOD, "messages": []}).encode(), {400}),
    (CHAT, json.dumps({**GOOD, "messages": [{"role": "root", "content": "hi"}]}).encode(), {400}),
    (CHAT, json.dumps({**GOOD, "messages": [{"role": "user", "content": {"a": 1}}]}).encode(), {400}),
    (CHAT, json.dumps({**GOOD, "messages": [{"role": "user", "content": ""}]}).encode(), {400}),
    (CHAT, json.dumps({**GOOD, "messages": GOOD["messages"] * 300}).encode(), {400}),
    (CHAT, json.dumps({**GOOD, "model": "nobody"}).encode(), {404}),
    (CHAT, json.dumps({**GOOD, "model": "../../etc/passwd"}).encode(), {404}),
    (CHAT, json.dumps({**GOOD, "model": "/etc/passwd\x00"}).encode(), {404}),
    (CHAT, json.dumps({**GOOD, "model": "x" * 5000}).encode(), {400}),
    (CHAT, json.dumps({**GOOD, "max_tokens": 10**9}).encode(), {400}),
    (CHAT, json.dumps({**GOOD, "max_tokens": -1}).encode(), {400}),
    (CHAT, json.dumps({**GOOD, "max_tokens": 10**400}).encode(), {400}),
    (CHAT, json.dumps({**GOOD, "temperature": float("inf")}).encode(), {400}),
    (CHAT, json.dumps({**GOOD, "temperature": 99}).encode(), {400}),
    (CHAT, json.dumps({**GOOD, "top_p": 0}).encode(), {400}),
    (CHAT, json.dumps({**GOOD, "n": 1000}).encode(), {400}),
    (CHAT, json.dumps({**GOOD, "stop": ["a"] * 100}).encode(), {400}),
    (CHAT, json.dumps({**GOOD, "stop": ""}).encode(), {400}),
    (CHAT, json.dumps({**GOOD, "stop": "a" * 200}).encode(), {200}),
    (CHAT, json.dumps({**GOOD, "stop": "a" * 201}).encode(), {400}),
    (CHAT, json.dumps({**GOOD, "top_logprobs": 10**6, "logprobs": True}).encode(), {400}),
    (CHAT, json.dumps({**GOOD, "messages": [{"role": "user", "content": "fox " * 100_000}]}).encode(), {400}),
    (CHAT, json.dumps({**GOOD, "messages": [{"role": "user", "content": "<|im_end|>" * 2000}]}).encode(), {200}),
    (CHAT, json.dumps({**GOOD, "messages": [{"role": "user", "content": "\ud800\u0000\u202e"}]}).encode(), {200, 400}),
    (CHAT, json.dumps({**GOOD, "tools": [{"function": {"name": "{{ 7*7 }}"}}]}).encode(), {200, 400}),
    (CHAT, json.dumps({**GOOD, "tools": ["x"] * 500}).encode(), {400}),
    (CHAT, json.dumps({**GOOD, "tools": [{"function": "x"}]}).encode(), {400}),
    (CHAT, json.dumps({**GOOD, "tools": [{"function": None}]}).encode(), {400}),
    (CHAT, json.dumps({**GOOD, "messages": [{"role": "assistant", "tool_calls": [{}]}]}).encode(), {400}),
    (CHAT, json.dumps({**GOOD, "response_format": {"type": "json_schema"}}).encode(), {400}),
    (
        CHAT,
        json.dumps(
            {**GOOD, "response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "http://x/"}}}}
        ).encode(),
        {400},
    ),
    (
        CHAT,
        json.dumps(
            {**GOOD, "response_format": {"type": "json_schema", "json_schema": {"name": "it", "schema": {"$ref": "#"}}}}
        ).encode(),
        {400},
    ),
    (
        CHAT,
        json.dumps(
            {**GOOD, "response_format": {"type": "json_schema", "json_schema": {"schema": {"pattern": "(" * 900}}}}
        ).encode(),
        {200, 400},
    ),
    (CLASSIFY, json.dumps({"model": "one", "input": "hi"}).encode(), {400}),
    (CLASSIFY, json.dumps({"model": "mood", "input": []}).encode(), {400}),
    (CLASSIFY, json.dumps({"model": "mood", "input": ["a"] * 2000}).encode(), {400}),
    ("/v1/embeddings", json.dumps({"model": "one", "input": [1, 2]}).encode(), {400}),
    ("/admin/load", json.dumps({"model": "/etc"}).encode(), {404}),
    ("/admin/load", json.dumps({"path": "/etc"}).encode(), {400}),
    ("/admin/load", b'{"model": "one", "model": "mood"}', {400}),
    (CHAT, b'{"model": "nobody", ' + json.dumps(GOOD).encode()[1:], {400}),
    (CHAT, b'{"a": 1, ' + b", ".join(b'"k%d": 1' % i for i in range(40_000)) + b', "a": 1}', {400}),
    ("/../../etc/passwd", b"{}", {404}),
    ("/v1/%2e%2e/%2e%2e/etc/passwd", b"{}", {404}),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("hostile")
    save_run(folder / "one", Lora(rank=4))
    save_run(folder / "mood", Lora(rank=4), LABELS)
    limits = Limits(rows=4, waiting=16, seconds=20, kept_bytes=2**20)
    with served({"one": [folder / "one"], "mood": [folder / "mood"]}, limits=limits) as found:
        yield found


def send(server: Served, path: str, body: bytes) -> int:
    """A request with its whole body; the status, and what is said is looked through."""
    headers = {"content-type": "application/json"}
    answer = CLIENT.post(f"{server.url}{path}", content=body, headers=headers)
    assert "Traceback" not in answer.text
    assert "site-packages" not in answer.text
    assert "/tmp" not in answer.text
    if answer.status_code >= 400:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    return answer.status_code


def raw(server: Served, text: bytes, *, wait: float = 0.0) -> int:
    """Bytes as they are; the status of what comes back, 0 for a connection that we leave first."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as sock:
        sock.sendall(text)
        if not wait:
            return 0
        sock.settimeout(wait)
        try:
            said = sock.recv(65536)
        except TimeoutError:
            return 0
        return int(said.split()[1]) if said.startswith(b"HTTP/") else 0


def head(length: int, *, more: str = "") -> bytes:
    lines = f"POST {CHAT} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n{more}"
    return f"{lines}content-length: {length}\r\n\r\n".encode()


def attack(server: Served, number: int) -> tuple[str, int]:
    """One of the attacks, by number."""
    chance, kind = random.Random(number), number % 8
    body = json.dumps({**GOOD, "max_tokens": 300, "stream": bool(number & 8)}).encode()
    if kind < 4:
        path, body, right = BODIES[(number // 8 * 4 + kind) % len(BODIES)]
        status = send(server, path, body)
        assert status in right | {429}, (path, body[:200], status)
        return "body", status
    if kind == 4:  # more than may come in, and lengths that lie
        length = chance.choice([600_000, 10**12, -5])
        return "huge", raw(server, head(length) + b"x" * 1000, wait=10)
    if kind == 5:  # gone before, or while, it is answered
        raw(server, head(len(body)) + body[: chance.choice([0, 10, len(body)])])
        return "gone", 0
    if kind == 6:  # slow: a byte now and then, never the end
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as sock:
            sock.sendall(head(100))
            for _ in range(3):
                sock.sendall(b" ")
                time.sleep(0.02)
        return "slow", 0
    more = chance.choice(
        ["transfer-encoding: chunked\r\n", "origin: http://evil.example\r\n", "expect: 100-continue\r\n"]
    )
    return "odd", raw(server, head(len(body), more=more) + body, wait=10)


def test_two_hundred_hostile_requests_leave_the_server_as_it_was(server: Served):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: attack(server, number), range(COUNT, COUNT + 80)))  # libraries and caches fill
        settled(server)
        memory = psutil.Process(os.getpid()).memory_info().rss
        found = Counter(pool.map(lambda number: attack(server, number), range(COUNT)))
    assert sum(found.values()) == COUNT
    assert not [status for _, status in found if status >= 500], found
    assert {status for kind, status in found if kind == "huge"} <= {400, 413}
    settled(server)
    assert psutil.Process(os.getpid()).memory_info().rss - memory < 48 * 2**20
    assert send(server, CHAT, json.dumps(GOOD).encode()) == 200
    assert server.bugs == []


def settled(server: Served) -> None:
    """Wait until nobody is answered any more."""
    until = time.monotonic() + 60
    while server.engine.at_work or server.engine.queued:
        assert time.monotonic() < until, "answers that nobody waits for go on"
        time.sleep(0.05)


def test_every_hostile_body_is_told_what_is_wrong_with_it(server: Served):
    for path, body, right in BODIES:
        assert send(server, path, body) in right, (path, body[:200])


def test_a_repeated_key_is_named_in_a_moment_however_many_others_there_are(server: Served):
    began = time.monotonic()
    for path, body, _ in BODIES:
        if body.startswith((b'{"a": 1, "k0"', b'{"model": "one", "model"')):
            text = CLIENT.post(f"{server.url}{path}", content=body, headers={"content-type": "application/json"}).text
            assert "body: duplicate key " in text
    assert time.monotonic() - began < 3


def test_a_body_that_does_not_come_is_given_up(server: Served, monkeypatch: pytest.MonkeyPatch):
    import asyncio

    from tunesmith.web.openai.app import POLICY
    from tunesmith.web.security import Guard, RequestPolicy

    policy = RequestPolicy(own_header=False, seconds=0.1, refuses=POLICY.refuses)
    sent: list[Any] = []

    async def never() -> Any:
        await asyncio.sleep(5)

    async def send_out(message: Any) -> None:
        sent.append(message)

    async def app(*_: Any) -> None:
        raise AssertionError("a request without its body came through")

    scope = {
        "type": "http",
        "method": "POST",
        "path": CHAT,
        "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json"), (b"content-length", b"9")],
    }
    await_here(Guard(app, policy=policy)(scope, never, send_out))
    assert sent[0]["status"] == 408


def test_nothing_of_the_disk_can_be_reached(server: Served, tmp_path: Path):
    (tmp_path / "secret").write_text("secret")
    for path in ("/static/../api.py", "/.git/config", f"/{tmp_path}/secret", "/v1/models/..%2f..%2fetc"):
        assert httpx2.get(f"{server.url}{path}").status_code == 404
