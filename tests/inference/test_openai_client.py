"""A server is a responder like any other, but for the probabilities that it does not tell."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import DataError
from tunesmith.inference.openai_client import Remote
from tunesmith.models.generation.sampling import Sampling


class Handler(BaseHTTPRequestHandler):
    """Says the question again, with the settings it was asked by."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = f" {asked['messages'][-1]['content']} {asked['model']} {asked['temperature']} {asked['max_tokens']} "
        page = json.dumps({"choices": [{"message": {"content": text}, "finish_reason": "length"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the test's own output is enough."""


@pytest.fixture
def address() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


def test_a_server_answers_in_order_greedily_and_says_whether_it_ended(address: str):
    batch = [[Message("user", f"question {i}")] for i in range(6)]
    replies = Remote(address, "m").replies(batch, sampling=Sampling(max_new_tokens=9))
    assert [reply.text for reply in replies] == [f"question {i} m 0.0 9" for i in range(6)]
    assert not any(reply.finished for reply in replies)


def test_a_server_elsewhere_is_not_asked_offline():
    with pytest.raises(DataError, match="--offline forbids network access"):
        Remote("https://example.org/v1", "m", offline=True).reply([Message("user", "q")], sampling=Sampling())
