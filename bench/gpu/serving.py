"""Clients of a server with OpenAI's API: ours, vLLM or SGLang alone, or ours in front of them."""

from __future__ import annotations

import asyncio
import random
import sys
from typing import Any

from bench.gpu.job import Job
from bench.serve.clients import asked, free_port, started

CLIENTS = {1: 16, 8: 64, 64: 512, 256: 1024}  # clients, and answers they wait for in all


def prompts(job: Job, count: int, seed: int) -> list[str]:
    """Random words, so that no cache of prefixes helps."""
    chance = random.Random(seed)
    words = ["fox", "battery", "review", "capital", "answer", "phone", "France", "word"]
    return [" ".join(chance.choices(words, k=job.prompt // 2)) for _ in range(count)]


def clients_of(job: Job, url: str) -> list[dict[str, Any]]:
    """Answers per second and waiting times at each number of clients."""
    import httpx2

    names = [model["id"] for model in httpx2.get(f"{url}/v1/models").json()["data"]]
    found = []
    for clients, count in ({2: 4} if job.steps < 10 else CLIENTS).items():
        asyncio.run(asked(url, prompts(job, clients, 0), clients=clients, names=names))  # warm
        times, seconds, tokens = asyncio.run(asked(url, prompts(job, count, 1), clients=clients, names=names))
        times.sort()
        found.append(
            {
                "clients": clients,
                "models": len(names),
                "answers_per_second": count / seconds,
                "tokens_per_second": tokens / seconds,
                "p50": times[len(times) // 2],
                "p95": times[min(len(times) - 1, int(0.95 * len(times)))],
            }
        )
    return found


def measure(job: Job, *, url: str) -> list[dict[str, Any]]:
    """The figures of a server that runs already, or of our own."""
    if url:
        return clients_of(job, url.rstrip("/").removesuffix("/v1"))
    port = free_port()
    command = [sys.executable, "-m", "tunesmith", "serve", job.model, "--port", str(port)]
    with started(command, port, "/health") as own:
        return clients_of(job, own)
