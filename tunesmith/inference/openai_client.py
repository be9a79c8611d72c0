"""Client for OpenAI-compatible servers: concurrent requests, retries when the server is busy, no redirects."""

from __future__ import annotations

import ipaddress
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

from tunesmith.data.documents.document import one_line
from tunesmith.data.documents.synthetic_rows import Answer
from tunesmith.data.tokenization.messages import Message, joined
from tunesmith.errors import DataError
from tunesmith.models.generation.sampling import Reply, Sampling
from tunesmith.progress import track

if TYPE_CHECKING:
    import httpx2

MAX_CONCURRENT_REQUESTS = 4
TRIES = 5
MAX_WAIT_SECONDS = 60.0  # between two tries
CONNECT = 10.0  # seconds
READ = 300.0  # seconds
MOST_BYTES = 8 * 2**20  # of one response
AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)  # statuses that are retried
FIXES = {
    401: "set the key in TUNESMITH_API_KEY",
    403: "set the key in TUNESMITH_API_KEY, or request access",
    404: "check that the address ends in /v1, and the name of the model",
    429: "wait, or send fewer requests",
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server, the model to request from it, and the sampling options.

    Example: `Endpoint("http://127.0.0.1:8000/v1", model="llama-3", temperature=0)`.
    """

    url: str  # base URL, usually ends in /v1
    model: str = ""  # empty: the only model that the server lists
    key: str = field(default="", repr=False)  # bearer token
    temperature: float = 0.7
    max_tokens: int = 1024  # of one completion
    seed: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)  # further keys of each request
    naming: str = "--writer-name"  # the option or recipe key that selects the model, for error messages
    pause: Callable[[float], None] = time.sleep  # seconds


def check(endpoint: Endpoint, *, offline: bool, key_name: str = "TUNESMITH_API_KEY") -> None:
    """Check that requests may be sent to an address.

    Args:
        endpoint: the server.
        offline: allow only servers on this machine.
        key_name: the environment variable of the key, for error messages.

    Raises:
        DataError: the URL is invalid, contains a password, is remote while offline, or would send a key over http.
    """
    parts = _parts(endpoint.url)
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        raise DataError(f"{endpoint.url}: invalid server address; write http://HOST:PORT/v1")
    if parts.username or parts.password:
        raise DataError(f"{parts.hostname}: the address contains a password; set the key in {key_name}")
    if is_local(endpoint.url):
        return
    if offline:
        raise DataError(f"{endpoint.url}: not on this machine, but --offline forbids network access; drop --offline")
    if endpoint.key and parts.scheme == "http":
        raise DataError(f"{endpoint.url}: the key would be sent unencrypted over http; write https")


def _parts(url: str) -> SplitResult | None:
    """Return the components of a URL, or None if it is invalid."""
    try:
        parts = urlsplit(url)
        return parts if parts.port != 0 else None
    except ValueError:
        return None


def is_local(url: str) -> bool:
    """Return whether a URL refers to this machine."""
    parts = _parts(url)
    return parts is not None and is_loopback(parts.hostname or "")


def is_loopback(host: str) -> bool:
    """Return whether a host name or IP address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def ask_endpoint(
    endpoint: Endpoint, questions: Sequence[Sequence[Message]], *, offline: bool = False
) -> Iterator[tuple[int, Answer]]:
    """Send prompts to the server, `MAX_CONCURRENT_REQUESTS` at a time.

    Args:
        endpoint: the server, model and sampling options.
        questions: one list of messages per prompt.
        offline: allow only servers on this machine.

    Yields:
        The index of a prompt and its answer, in the order of completion.

    Raises:
        DataError: the server cannot be reached, refuses a request or returns something else than an answer.
    """
    check(endpoint, offline=offline)
    with client_of(endpoint) as client:
        model = endpoint.model or _only_model(client, endpoint)
        with ThreadPoolExecutor(MAX_CONCURRENT_REQUESTS) as threads:
            waiting = {
                threads.submit(_answer, client, endpoint, model, question): index
                for index, question in enumerate(questions)
            }
            try:
                for done in track(as_completed(waiting), "waiting for answers", unit="answers", total=len(waiting)):
                    yield waiting[done], done.result()
            finally:
                threads.shutdown(wait=False, cancel_futures=True)


def only_model(endpoint: Endpoint, *, offline: bool = False) -> str:
    """Return the name of the only model of the server; raise DataError if it has none or several."""
    check(endpoint, offline=offline)
    with client_of(endpoint) as client:
        return _only_model(client, endpoint)


def reach(endpoint: Endpoint, *, offline: bool = False) -> None:
    """Check that a server responds, with any status; raise DataError if it cannot be reached."""
    import httpx2

    check(endpoint, offline=offline)
    with client_of(endpoint) as client:
        try:
            exchange(client, endpoint, "models", None)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise DataError(f"{endpoint.url}: {_unreached(error)}") from None


def _unreached(error: Exception) -> str:
    return f"cannot be reached ({type(error).__name__}: {one_line(str(error))[:120]}); start it, or check the address"


def client_of(endpoint: Endpoint) -> httpx2.Client:
    """Return a client for a server; close it after use."""
    import httpx2

    timeout = httpx2.Timeout(READ, connect=CONNECT)
    # Proxy settings of the environment apply to remote servers only.
    return httpx2.Client(timeout=timeout, follow_redirects=False, trust_env=not is_local(endpoint.url))


def _only_model(client: httpx2.Client, endpoint: Endpoint) -> str:
    data = request_json(client, endpoint, "models", None).get("data")
    models = data if isinstance(data, list) else []
    names = [one_line(str(model["id"])) for model in models if isinstance(model, dict) and "id" in model]
    if len(names) != 1:
        shown = ", ".join(names[:10]) or "none"
        raise DataError(f"{endpoint.url}: expected one model, found {shown}; name one with {endpoint.naming}")
    return names[0]


def _answer(client: httpx2.Client, endpoint: Endpoint, model: str, question: Sequence[Message]) -> Answer:
    response = request_json(
        client,
        endpoint,
        "chat/completions",
        {
            "model": model,
            "messages": [{"role": message.role, "content": message.content} for message in question],
            "temperature": endpoint.temperature,
            "max_tokens": endpoint.max_tokens,
            "seed": endpoint.seed,
            "stream": False,
            **endpoint.extra,
        },
    )
    try:
        choice = response["choices"][0]
        text = joined(choice["message"]["content"])
    except (KeyError, IndexError, TypeError):
        raise DataError(f"{endpoint.url}: response without choices; check that it is OpenAI-compatible") from None
    if not isinstance(text, str | None):
        raise DataError(f"{endpoint.url}: expected text as content, got {type(text).__name__}; use another model")
    thoughts = choice["message"].get("reasoning_content") or choice["message"].get("reasoning")
    thoughts = thoughts if isinstance(thoughts, str) else ""
    return Answer(text or "", choice.get("finish_reason") != "length", thoughts)


def request_json(client: httpx2.Client, endpoint: Endpoint, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
    """Return the JSON response; a busy or failing server is retried with exponential backoff."""
    import httpx2

    problem = ""
    for attempt in range(TRIES):
        wait = 2.0**attempt
        try:
            status, headers, text = exchange(client, endpoint, path, body)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            problem = _unreached(error)
            if isinstance(error, httpx2.ConnectError) and is_local(endpoint.url):
                break  # no process listens on this local port, so waiting is pointless
        else:
            if status == 200:
                response = _json_object(text, endpoint)
                # Gateways send errors with status 200 and the real status in the body.
                error_body = response.get("error")
                code = error_body.get("code") if isinstance(error_body, dict) else None
                if code not in AGAIN:
                    return response
                status = code
            reason = one_line(text)[:160]
            fix = FIXES.get(status, "check the log of the server")
            problem = f"refused with {status}{f' ({reason})' if reason else ''}; {fix}"
            if status not in AGAIN:
                break
            with suppress(TypeError, ValueError):  # no Retry-After, or one that is a date
                wait = min(MAX_WAIT_SECONDS, max(0.0, float(headers.get("retry-after"))))
        if attempt + 1 < TRIES:
            endpoint.pause(wait)
    raise DataError(f"{endpoint.url}: {problem}")


def exchange(client: httpx2.Client, endpoint: Endpoint, path: str, body: dict[str, Any] | None) -> tuple[int, Any, str]:
    """Return status, headers and text of one response of bounded size; raise httpx2.HTTPError if there is none.

    Args:
        client: a client of `client_of`.
        endpoint: the server.
        path: appended to its URL.
        body: sent as JSON; None sends a GET request.
    """
    headers = {"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
    url = f"{endpoint.url.rstrip('/')}/{path}"
    data = b""
    with client.stream("GET" if body is None else "POST", url, json=body, headers=headers) as response:
        for part in response.iter_bytes():
            data += part
            if len(data) > MOST_BYTES:
                raise DataError(f"{endpoint.url}: response larger than {MOST_BYTES // 2**20} MiB; check the server")
        return response.status_code, response.headers, data.decode("utf-8", errors="replace")


def _json_object(text: str, endpoint: Endpoint) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise DataError(f"{endpoint.url}: the response is not a JSON object; check that the address ends in /v1")
    return value


@dataclass(frozen=True, slots=True)
class Remote:
    """A model on a server. Token counts in its replies are 0, because servers do not report them reliably."""

    url: str
    model: str = ""
    key: str = ""
    offline: bool = False

    def named(self) -> Remote:
        """Check the connection and resolve the name of the model.

        Returns:
            A copy with the model name.

        Raises:
            DataError: the server cannot be reached, or no name was given and it does not list exactly one model.
        """
        endpoint = self._endpoint(Sampling())
        if self.model:
            reach(endpoint, offline=self.offline)
            return self
        return replace(self, model=only_model(endpoint, offline=self.offline))

    def reply(self, messages: Sequence[Message], *, sampling: Sampling) -> Reply:
        """Return the completion of one chat."""
        return self.replies([messages], sampling=sampling)[0]

    def replies(self, batch: Sequence[Sequence[Message]], *, sampling: Sampling) -> list[Reply]:
        """Return the completion of each chat, in order; raise DataError if the server fails."""
        answers = dict(ask_endpoint(self._endpoint(sampling), batch, offline=self.offline))
        return [Reply(answers[i].text.strip(), 0, 0, answers[i].finished) for i in range(len(batch))]

    def _endpoint(self, sampling: Sampling) -> Endpoint:
        return Endpoint(
            self.url,
            self.model,
            self.key,
            sampling.temperature,
            sampling.max_new_tokens,
            sampling.seed,
            naming="its name after the address: URL#MODEL",
        )
