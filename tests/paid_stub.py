"""A stand-in for a paid OpenAI-compatible server: its answers, delays and failures are those of the test."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Paid:
    """The state of the server; `answer` maps the last user turn to a text, or to the bytes of a whole response."""

    answer: Callable[[str], str | bytes]
    status: int = 200
    seconds: float = 0.0
    dies: bool = False  # in the middle of an answer
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    """POST /v1/chat/completions."""

    def do_POST(self) -> None:
        server: Any = self.server
        paid: Paid = server.paid
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        paid.bodies.append(body)
        paid.headers.append({name.lower(): value for name, value in self.headers.items()})
        time.sleep(paid.seconds)
        if paid.status != 200:
            error = {"message": f"no quota for {self.headers.get('Authorization', '')[7:]}\nat all"}
            return self.send(json.dumps({"error": error}).encode())
        text = paid.answer(body["messages"][-1]["content"])
        if isinstance(text, bytes):
            return self.send(text)
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        head = {"id": "x", "object": "chat.completion", "created": 1, "model": "paid-2026"}
        if not body.get("stream"):
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            return self.send(json.dumps({**head, "choices": [choice], "usage": usage}).encode())
        parts = [{"delta": {"role": "assistant", "content": text[:2]}}, {"delta": {"content": text[2:]}}]
        ends = [{"delta": {}, "finish_reason": "stop"}]
        chunks = [{**head, "choices": [{"index": 0, "finish_reason": None, **part}]} for part in parts + ends]
        if body["stream_options"]["include_usage"]:
            chunks.append({**head, "choices": [], "usage": usage})
        lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
        return self.send("".join([*lines, "data: [DONE]\n\n"]).encode())

    def send(self, content: bytes) -> None:
        server: Any = self.server
        self.send_response(server.paid.status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if server.paid.dies else content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the test's own output is enough."""


@contextmanager
def paid_stub(answer: Callable[[str], str | bytes], **state: Any) -> Iterator[Paid]:
    """A stub on a free port of loopback, ended with the context."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        paid = Paid(answer, url=f"http://127.0.0.1:{server.server_port}/v1", **state)
        server.paid = paid  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield paid
        server.shutdown()
