"""A real Chromium, a page served by a process of its own, and rows to label."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.ports import free_port
from tests.served import await_here

CURE = "apt-get install chromium (.ci/run does it), or set TUNESMITH_NO_BROWSER=1 to leave these tests out on purpose"
SCRIPT = "<script>window.hurt = 1</script><img src=x onerror='window.hurt = 1'>"
WORDS = ("good", "bad")
# Milliseconds: a machine that is busy with training is slow, not wrong.
PATIENCE = 60_000
expect.set_options(timeout=PATIENCE)


def find_chromium() -> str:
    """The system's Chromium. A machine without it fails the test: a page that nobody opened is not tested."""
    if os.environ.get("TUNESMITH_NO_BROWSER") == "1":
        pytest.skip("TUNESMITH_NO_BROWSER=1: the pages are not tested on this machine")
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.fail(f"no Chromium on this machine, and the pages are tested in a real one; {CURE}", pytrace=False)
    return found


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests; in a container of root's it cannot have a sandbox of its own."""
    path = find_chromium()
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=flags)
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A tab in a fresh profile, in which an error of the page's script fails the test."""
    context = browser.new_context(viewport={"width": 1000, "height": 800})
    context.set_default_timeout(PATIENCE)
    opened, errors = context.new_page(), list[str]()
    opened.on("pageerror", lambda error: errors.append(str(error)))
    yield opened
    context.close()
    assert errors == []


def write_rows(path: Path, texts: Sequence[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text, "id": n}) + "\n" for n, text in enumerate(texts)), "utf-8")
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Thirty sentences, the first of which would be a script."""
    return write_rows(tmp_path / "rows.jsonl", [SCRIPT, *(f"phone {n} is {WORDS[n % 2]} enough" for n in range(29))])


class Served:
    """A command that opens a page, in a process of its own, on one port through all its lives."""

    def __init__(self, *words: str) -> None:
        self.port = free_port()
        self._words = words
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it and wait for its address."""
        command = [sys.executable, "-m", "tunesmith", *self._words, "--port", str(self.port), "--json"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        text = line = ""
        while line != "}\n":
            line = self._process.stdout.readline()  # type: ignore[union-attr]
            assert line, "it ended before it served"
            text += line
        self.about: dict[str, Any] = json.loads(text)
        self.url: str = self.about["url"]

    @property
    def pid(self) -> int:
        """Number of its process."""
        assert self._process is not None
        return self._process.pid

    def kill(self, number: int = signal.SIGKILL) -> int:
        """Send a signal and wait for the end; the exit code."""
        assert self._process is not None
        with self._process as process:
            process.send_signal(number)
            return process.wait(timeout=20)


Ask = Callable[..., tuple[int, Any]]


def asking(app: Any) -> Ask:
    """Asks an app: a path and a JSON body, or a GET without one; the status and what was answered."""

    def call(path: str, **body: Any) -> tuple[int, Any]:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "root_path": ""}
        headers = [(b"content-type", b"application/json"), (b"host", b"127.0.0.1")]
        asked = {"method": "POST" if body else "GET", "path": path, "raw_path": path.encode(), "query_string": b""}
        await_here(app({**scope, **asked, "headers": headers, "server": ("127.0.0.1", 80)}, receive, send))
        text = b"".join(part.get("body", b"") for part in sent[1:]).decode()
        kind = dict(sent[0]["headers"]).get(b"content-type", b"").decode()
        return sent[0]["status"], json.loads(text) if kind == "application/json" else text

    return call


Serve = Callable[..., Served]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers, and ends them with the test."""
    started: list[Served] = []

    def start(*words: object) -> Served:
        started.append(Served(*map(str, words)))
        started[-1].start()
        return started[-1]

    yield start
    for one in started:
        one.kill(signal.SIGKILL)


def enter(page: Page, url: str, name: str) -> None:
    """Give a name and wait for the first row."""
    page.goto(url)
    page.get_by_label("Your name").fill(name)
    page.keyboard.press("Enter")
    expect(page.locator("#text")).not_to_be_empty()


def press(page: Page, key: str) -> str:
    """Press a key and wait until the next row is there; the text of the row it was pressed on."""
    before = page.locator("#text").inner_text()
    page.keyboard.press(key)
    expect(page.locator("#text")).not_to_have_text(before, use_inner_text=True)
    return before
