"""Client of the paid model: passes chats on, whole and as streams. Nothing that its server sends is trusted."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2

from tunesmith.data.documents.document import one_line
from tunesmith.data.tokenization.messages import joined
from tunesmith.data.tokenization.tool_calls import STRICT_JSON
from tunesmith.errors import DataError, TunesmithError
from tunesmith.inference.openai_client import CONNECT, MOST_BYTES, Endpoint, check, is_local
from tunesmith.inference.serving.backends.external import lines_of

KEY = "TUNESMITH_SHADOW_KEY"  # environment variable
MOST_TOKENS = 10**8  # that an answer can claim
OURS = (401, 403, 404)  # statuses that are about our key and address, not about the request of the client


class PaidError(TunesmithError):
    """The paid model did not answer; `status` is the one for the client."""

    def __init__(self, problem: str, fix: str, *, status: int = 502, retry_after: str = "") -> None:
        super().__init__(f"paid model: {problem}; {fix}")
        self.status, self.retry_after = status, retry_after


def _no_chat() -> PaidError:
    """Return the error of a malformed answer; a new one, since an exception keeps the frames that it passes."""
    return PaidError("the answer is not a chat completion", "check its address")


@dataclass(slots=True)
class PaidAnswer:
    """The answer of the paid model, so far."""

    parts: list[str] = field(default_factory=list)  # of the text
    calls: dict[int, dict[str, str]] = field(default_factory=dict)  # name and arguments by index
    tokens: tuple[int, int] | None = None  # in and out, if the server counts them
    finished: bool = False
    body: dict[str, Any] = field(default_factory=dict)  # of an answer that is not streamed

    @property
    def text(self) -> str:
        """The text without tool calls."""
        return "".join(self.parts).strip()

    @property
    def whole(self) -> str:
        """The text and the tool calls, as one text."""
        calls = [
            f'{{"name": {json.dumps(call["name"])}, "arguments": {call["arguments"]}}}' for call in self.calls.values()
        ]
        return "\n".join(filter(None, (self.text, *calls)))

    def add(self, body: Mapping[str, Any], part: str) -> None:
        """Add a body or a chunk, whose text is in `part`: message or delta. Raises PaidError if it is malformed."""
        try:
            usage = body.get("usage") or {}
            counts: tuple[Any, Any] = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
            if all(type(count) is int and 0 <= count <= MOST_TOKENS for count in counts):
                self.tokens = counts
            for choice in body["choices"][:1]:
                message = choice.get(part) or {}
                self.parts.append(str(joined(message.get("content")) or ""))
                self.finished = self.finished or bool(choice.get("finish_reason"))
                for place, call in enumerate(message.get("tool_calls") or ()):
                    kept = self.calls.setdefault(int(call.get("index", place)), {"name": "", "arguments": ""})
                    for key in kept:
                        kept[key] += call["function"].get(key) or ""
        except (KeyError, TypeError, ValueError, AttributeError):
            raise _no_chat() from None


class PaidModel:
    """A model on a server. The key is sent to this server only, and is in no message.

    Args:
        endpoint: address, model and key.
        seconds: limit of one answer.
        offline: allow only servers on this machine.
        plain_http: allow http to other machines.

    Raises:
        DataError: the address is invalid or not allowed.
    """

    def __init__(self, endpoint: Endpoint, *, seconds: float, offline: bool = False, plain_http: bool = False) -> None:
        check(endpoint, offline=offline, key_name=KEY)
        local = is_local(endpoint.url)
        if endpoint.url.lower().startswith("http:") and not local and not plain_http:
            fix = "write https, or allow it by --shadow-http"
            raise DataError(f"{endpoint.url}: chats would be sent unencrypted over http; {fix}")
        self.endpoint, self.seconds = endpoint, seconds
        timeout = httpx2.Timeout(seconds, connect=CONNECT)
        self._client = httpx2.AsyncClient(timeout=timeout, follow_redirects=False, trust_env=not local)

    async def answer(self, body: Mapping[str, Any]) -> PaidAnswer:
        """Return the answer to the body of a chat completion; raise PaidError."""
        answer = PaidAnswer()
        async with self._response(body) as response:
            answer.body = _object("".join([part async for part in self._bounded(response)]))
        answer.add(answer.body, "message")
        if not answer.parts:
            raise _no_chat()
        return answer

    async def stream(self, body: Mapping[str, Any], answer: PaidAnswer) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the chunks of a streamed answer and add each to `answer`; raise PaidError, also if its end is missing.

        Close it (`aclosing`) if it is not read to the end, so that the server stops.
        """
        async with self._response(body) as response, aclosing(lines_of(self._bounded(response))) as lines:
            async for line in lines:
                data = line.removeprefix("data:").strip()
                if data == "[DONE]":
                    break
                if line.startswith("data:"):
                    chunk = _object(data)
                    answer.add(chunk, "delta")
                    yield chunk
        if not answer.finished:
            raise PaidError("the answer has no end", "send the request again")

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    @asynccontextmanager
    async def _response(self, body: Mapping[str, Any]) -> AsyncIterator[httpx2.Response]:
        """Send a body with our key and no header of the client; turn failures into PaidError."""
        url = f"{self.endpoint.url.rstrip('/')}/chat/completions"
        headers = {"Content-Type": "application/json"}
        if self.endpoint.key:
            headers["Authorization"] = f"Bearer {self.endpoint.key}"
        # As ASCII, because a client may have sent half of a surrogate pair, which UTF-8 does not have.
        sent = json.dumps({**body, "model": self.endpoint.model}).encode("ascii")
        try:
            async with self._client.stream("POST", url, content=sent, headers=headers) as response:
                if response.status_code != 200:
                    raise self._refused(response, "".join([part async for part in self._bounded(response)]))
                yield response
        except (httpx2.TimeoutException, TimeoutError):
            raise PaidError(f"no answer within {self.seconds:.0f} s", "send the request again", status=504) from None
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
            raise PaidError(f"cannot be reached ({type(error).__name__})", "send the request again later") from None

    async def _bounded(self, response: httpx2.Response) -> AsyncIterator[str]:
        """Yield the content within the limits of size and time, however slowly it comes."""
        size, until = 0, time.monotonic() + self.seconds
        async for part in response.aiter_text():
            size += len(part)
            if size > MOST_BYTES:
                raise PaidError(f"answer larger than {MOST_BYTES // 2**20} MiB", "lower max_tokens")
            if time.monotonic() > until:
                raise TimeoutError
            yield part

    def _refused(self, response: httpx2.Response, content: str) -> PaidError:
        status = response.status_code
        if status in OURS or not 400 <= status < 500:
            fix = f"the operator checks {KEY}, address and model" if status in OURS else "send the request again later"
            return PaidError(f"refused with {status}", fix)
        try:
            reason = one_line(str(json.loads(content)["error"]["message"]).replace(self.endpoint.key or "\0", "<key>"))
        except (ValueError, KeyError, TypeError, RecursionError):
            reason = "no reason"
        after = response.headers.get("retry-after", "")[:40] if status == 429 else ""
        fix = "retry later" if status == 429 else "change the request"
        return PaidError(f"refused with {status} ({reason[:200]})", fix, status=status, retry_after=after)


def _object(content: str) -> dict[str, Any]:
    try:
        value = STRICT_JSON.decode(content)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or not isinstance(value.get("choices"), list):
        raise _no_chat()
    return value
