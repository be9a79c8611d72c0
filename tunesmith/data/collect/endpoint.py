"""Any OpenAI-compatible server asked for answers: several at a time, again when it is busy, never past its address."""

from __future__ import annotations

import ipaddress
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

from tunesmith.data.collect.document import one_line
from tunesmith.data.collect.written import Answer
from tunesmith.data.examples import Message
from tunesmith.data.turns import joined
from tunesmith.errors import DataError

if TYPE_CHECKING:
    import httpx

AT_ONCE, TRIES, LONGEST_WAIT = 4, 5, 60.0
CONNECT, READ = 10.0, 300.0
MOST_BYTES = 8 * 2**20
AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server's address (such as `http://127.0.0.1:8000/v1`), the model to ask there, and how it answers."""

    url: str
    model: str = ""
    key: str = field(default="", repr=False)
    temperature: float = 0.7
    max_tokens: int = 1024
    seed: int = 0
    naming: str = "--writer-name"  # how the user names a model, for the error that asks for it
    pause: Callable[[float], None] = time.sleep


def check(endpoint: Endpoint, *, offline: bool) -> None:
    """Nothing for an address that may be asked. Raises DataError."""
    parts = _parts(endpoint.url)
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        raise DataError(f"{endpoint.url}: no address of a server; write http://HOST:PORT/v1")
    if parts.username or parts.password:
        raise DataError(f"{parts.hostname}: the address holds a password; give the key in TUNESMITH_API_KEY")
    if is_local(endpoint.url):
        return
    if offline:
        raise DataError(f"{endpoint.url}: not on this machine, and this run may not ask the network; drop --offline")
    if endpoint.key and parts.scheme == "http":
        raise DataError(f"{endpoint.url}: a key over http can be read by others on the way; write https")


def _parts(url: str) -> SplitResult | None:
    """What an address is made of; None where it is none."""
    try:
        found = urlsplit(url)
        return found if found.port != 0 else None
    except ValueError:
        return None


def is_local(url: str) -> bool:
    """Whether an address is on this machine."""
    parts = _parts(url)
    return parts is not None and is_loopback(parts.hostname or "")


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def ask_endpoint(
    endpoint: Endpoint, questions: Sequence[Sequence[Message]], *, offline: bool = False
) -> Iterator[tuple[int, Answer]]:
    """The answers as they come, each with the place of its question. Raises DataError."""
    check(endpoint, offline=offline)
    with _client(endpoint) as client:
        model = endpoint.model or _only_model(client, endpoint)
        with ThreadPoolExecutor(AT_ONCE) as threads:
            waiting = {
                threads.submit(_answer, client, endpoint, model, question): place
                for place, question in enumerate(questions)
            }
            try:
                for done in as_completed(waiting):
                    yield waiting[done], done.result()
            finally:
                threads.shutdown(wait=False, cancel_futures=True)


def only_model(endpoint: Endpoint, *, offline: bool = False) -> str:
    """The one model that the server has. Raises DataError."""
    check(endpoint, offline=offline)
    with _client(endpoint) as client:
        return _only_model(client, endpoint)


def reach(endpoint: Endpoint, *, offline: bool = False) -> None:
    """Nothing for an address where somebody answers, whatever is said there. Raises DataError."""
    import httpx

    check(endpoint, offline=offline)
    with _client(endpoint) as client:
        try:
            _exchange(client, endpoint, "models", None)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise DataError(f"{endpoint.url}: {_unreached(error)}") from None


def _unreached(error: Exception) -> str:
    why = f"{type(error).__name__}: {one_line(str(error))[:120]}"
    return f"cannot be reached ({why}); start it, or check the address"


def _client(endpoint: Endpoint) -> httpx.Client:
    import httpx

    wait = httpx.Timeout(READ, connect=CONNECT)
    # A proxy may stand before the network, never before this machine.
    return httpx.Client(timeout=wait, follow_redirects=False, trust_env=not is_local(endpoint.url))


def _only_model(client: httpx.Client, endpoint: Endpoint) -> str:
    """The one model that the server has."""
    page = _sent(client, endpoint, "models", None)
    data = page.get("data")
    listed = data if isinstance(data, list) else []
    names = [one_line(str(item["id"])) for item in listed if isinstance(item, dict) and "id" in item]
    if len(names) != 1:
        shown = ", ".join(names[:10]) or "none"
        raise DataError(f"{endpoint.url}: its models are {shown}; name one with {endpoint.naming}")
    return names[0]


def _answer(client: httpx.Client, endpoint: Endpoint, model: str, question: Sequence[Message]) -> Answer:
    page = _sent(
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
        },
    )
    try:
        choice = page["choices"][0]
        text = joined(choice["message"]["content"])
    except (KeyError, IndexError, TypeError):
        raise DataError(f"{endpoint.url}: its answer has no choices; check that it is OpenAI-compatible") from None
    if not isinstance(text, str | None):
        raise DataError(f"{endpoint.url}: answers with something other than text; ask another model")
    return Answer(text or "", choice.get("finish_reason") != "length")


def _sent(client: httpx.Client, endpoint: Endpoint, what: str, body: dict[str, Any] | None) -> dict[str, Any]:
    """The server's JSON answer; a busy or failing server is asked again after a while."""
    import httpx

    problem = ""
    for attempt in range(TRIES):
        wait = 2.0**attempt
        try:
            status, headers, text = _exchange(client, endpoint, what, body)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            problem = _unreached(error)
            if isinstance(error, httpx.ConnectError) and is_local(endpoint.url):
                break  # nobody listens on this machine: waiting changes nothing
        else:
            if status == 200:
                page = _json(text, endpoint)
                if (status := _failed(page)) not in AGAIN:
                    return page
            problem = _refusal(status, text)
            if status not in AGAIN:
                break
            wait = _wait(headers.get("retry-after"), wait)
        if attempt + 1 < TRIES:
            endpoint.pause(wait)
    raise DataError(f"{endpoint.url}: {problem}")


def _exchange(client: httpx.Client, endpoint: Endpoint, what: str, body: dict[str, Any] | None) -> tuple[int, Any, str]:
    """Status, headers and text of one answer, no more of it than is bounded."""
    headers = {"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
    url = f"{endpoint.url.rstrip('/')}/{what}"
    data = b""
    with client.stream("GET" if body is None else "POST", url, json=body, headers=headers) as response:
        for part in response.iter_bytes():
            data += part
            if len(data) > MOST_BYTES:
                raise DataError(f"{endpoint.url}: an answer of more than {MOST_BYTES // 2**20} MiB; check the server")
        return response.status_code, response.headers, data.decode("utf-8", errors="replace")


def _json(text: str, endpoint: Endpoint) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise DataError(f"{endpoint.url}: answers with something other than JSON; check that the address ends in /v1")
    return value


def _failed(page: dict[str, Any]) -> int:
    """The status that a page of an error states, as gateways send them with a 200; else 0."""
    error = page.get("error")
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) else 0


CURES = {
    401: "set the key in TUNESMITH_API_KEY",
    403: "set the key in TUNESMITH_API_KEY, or ask for access",
    404: "check that the address ends in /v1, and the name of the model",
    429: "wait, or ask for less",
}


def _refusal(status: int, text: str) -> str:
    """What a server that refuses says, on one line."""
    said = one_line(text)[:160]
    return f"refused with {status}{f' ({said})' if said else ''}; {CURES.get(status, 'see what the server logged')}"


def _wait(asked: str | None, own: float) -> float:
    """Seconds to wait: what the server asks for, within a minute."""
    try:
        return min(LONGEST_WAIT, max(0.0, float(asked))) if asked else own
    except ValueError:
        return own
