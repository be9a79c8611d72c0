"""A server in a process of its own, and the clients that ask it."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench.serve.made import ROOT, SECOND_OF, TOKENS, questions


@contextmanager
def started(command: list[str], port: int, ready: str) -> Iterator[str]:
    """A server in a process of its own, and its address."""
    url = f"http://127.0.0.1:{port}"
    import httpx2

    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        until = time.monotonic() + 180
        while True:
            if process.poll() is not None or time.monotonic() > until:
                process.kill()
                raise SystemExit(
                    f"{command[:4]} did not start:\n{(process.stderr.read() if process.stderr else '')[-2000:]}"
                )
            try:
                if httpx2.get(f"{url}{ready}", timeout=5).status_code == 200:
                    break
            except httpx2.TransportError:
                time.sleep(0.5)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


async def asked(url: str, texts: list[str], *, clients: int, names: list[str]) -> tuple[list[float], float, int]:
    """Seconds of each answer, seconds of all, tokens of all; each client asks again when it was answered."""
    import httpx2

    left, times, tokens = list(enumerate(texts)), [], 0
    limits = httpx2.Limits(max_connections=clients)

    async def client(http: httpx2.AsyncClient) -> None:
        nonlocal tokens
        while left:
            number, text = left.pop()
            body = {
                "model": names[number % len(names)],
                "messages": [{"role": "user", "content": text}],
                "max_tokens": TOKENS,
                "temperature": 0,
            }
            began = time.perf_counter()
            answer = await http.post(f"{url}/v1/chat/completions", json=body)
            answer.raise_for_status()
            times.append(time.perf_counter() - began)
            tokens += answer.json()["usage"]["completion_tokens"]

    async with httpx2.AsyncClient(timeout=600, limits=limits) as http:
        began = time.perf_counter()
        await asyncio.gather(*(client(http) for _ in range(clients)))
        return times, time.perf_counter() - began, tokens


def race(url: str, names: list[str]) -> dict[str, Any]:
    """All numbers of clients, one after another, each with questions of its own."""
    found, skip = {}, 200
    asyncio.run(asked(url, questions(2, 0), clients=1, names=names[:1]))  # warm
    for clients, count in SECOND_OF.items():
        texts = questions(count, skip)
        skip += count
        times, seconds, tokens = asyncio.run(asked(url, texts, clients=int(clients), names=names))
        times.sort()
        found[clients] = {
            "answers": count / seconds,
            "p50": times[len(times) // 2],
            "p95": times[min(len(times) - 1, int(0.95 * len(times)))],
            "tokens": tokens,
        }
        print(clients, found[clients], flush=True)
    return found
