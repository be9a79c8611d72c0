"""The studio's app without a browser: errors in one line, what it keeps, models that are unloaded, damaged loops."""

from __future__ import annotations

import errno
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from tests.served import await_here
from tests.web.conftest import asking
from tunesmith.errors import TunesmithError
from tunesmith.web.studio.app import make_studio
from tunesmith.web.studio.jobs import COMMAND, OUTPUT, STATE, Job, State, process_mark
from tunesmith.web.studio.playground import Playground, _refusal
from tunesmith.web.studio.screen import Studio
from tunesmith.web.studio.ship import USUAL, Ship
from tunesmith.web.studio.workspace import Workspace


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x.db"), 422, "x.db: cannot be written .* free some space"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x.db"), 422, "No such file .*x.db"),
        (KeyError("rows"), 500, "KeyError: .*the log of the server"),
    ],
)
def test_an_error_of_a_screen_is_shown_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, message: str
):
    def fail(_: Any) -> None:
        raise error

    monkeypatch.setattr(Workspace, "recipes", fail)
    app = make_studio(tmp_path)

    async def calm(*parts: Any) -> None:
        try:
            await app(*parts)
        except KeyError:  # goes on to the server, which logs it
            assert status == 500

    found = asking(calm)("/tune")
    assert found[0] == status
    shown = next(line for line in found[1].splitlines() if 'class="problem"' in line)
    assert re.search(message, shown)


def test_what_a_studio_keeps_is_readable_by_its_owner_only(tmp_path: Path):
    (tmp_path / ".studio").mkdir(mode=0o755)
    with Workspace(tmp_path).held():
        assert (tmp_path / ".studio").stat().st_mode & 0o777 == 0o700


def test_a_name_with_a_null_byte_is_refused(tmp_path: Path):
    with pytest.raises(TunesmithError, match="not in"):
        Workspace(tmp_path).path("a\0b")


def running_job(folder: Path, words: list[str], subject: str, output: object) -> Job:
    """A job whose process is this one."""
    folder.mkdir(parents=True)
    command = {"words": words, "cwd": str(folder), "subject": subject, "queued": False}
    state = {"name": "running", "runner": process_mark(), "started": time.time(), "ended": 0, "code": None}
    for name, value in ((COMMAND, command), (STATE, state), (OUTPUT, output)):
        folder.joinpath(name).write_text(json.dumps(value), "utf-8")
    return Job(folder)


def test_models_are_no_longer_loaded_once_their_server_is_asked_to_stop(tmp_path: Path):
    playground = Playground(Studio(tmp_path))
    words = ["serve", "runs/a"]
    job = running_job(tmp_path / ".studio/jobs/1", words, "playground", {"url": "http://127.0.0.1:9/v1"})
    assert playground._serving() == job
    playground._stop()
    assert job.is_active  # until the server has ended
    assert playground._serving() is None


def test_a_damaged_loop_is_named_and_the_others_are_shown(tmp_path: Path):
    for name, text in (("good", "model: m\ndata: {train: a.jsonl}\nobjective: preference\n"), ("torn", "model: [")):
        tmp_path.joinpath("loops", name).mkdir(parents=True)
        tmp_path.joinpath("loops", name, "recipe.yaml").write_text(text, "utf-8")
    status, page = asking(make_studio(tmp_path))("/people")
    assert status == 200
    assert "loops/torn/recipe.yaml" in page.split('id="loop-torn"')[1].split("</section>")[0]
    assert "Round 1" in page.split('id="loop-good"')[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n "error": {\n  "message": "too long",\n  "code": 400\n }\n}', "too long"),  # OpenAI, on several lines
        ('{"error": "no such model"}', "no such model"),  # Ollama
        ('{"object": "error", "message": "busy"}', "busy"),  # older vLLM
        ('{"detail": [1]}', '{"detail": [1]}'),
        ("<html>\n<b>Bad\ngateway</b>", "<html> <b>Bad gateway</b>"),
        ("", "the server of the models rejected the request (502)"),
    ],
)
def test_an_error_of_another_server_reaches_the_page_as_one_line(text: str, message: str):
    assert json.loads(_refusal(502, text)) == {"error": {"message": message}}
    assert b"\n" not in _refusal(502, text)


class Request:
    """A request of a page that was closed, or waits."""

    def __init__(self, *, closed: bool) -> None:
        self._closed = closed

    async def is_disconnected(self) -> bool:
        return self._closed


@pytest.mark.parametrize("closed", [True, False])
def test_a_question_to_a_comparison_is_no_job_for_good_and_ends_with_its_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: bool
):
    studio = Studio(tmp_path)
    answer = {"answer": "yes"}
    job = running_job(tmp_path / ".studio/jobs/1", ["ask", "comparisons/a"], "playground", answer)
    stops: list[Job] = []
    states = iter([True, False, False])
    monkeypatch.setattr(Job, "is_active", property(lambda _: next(states)))
    monkeypatch.setattr(Job, "stop", lambda asked: stops.append(asked))
    monkeypatch.setattr(studio, "start", lambda *_, **__: job)
    reply = await_here(Playground(studio)._arm({"text": "is it?", "model": "a"}, Request(closed=closed)))
    assert json.loads(reply.body) == answer
    assert stops == [job] * closed
    assert list(studio.jobs) == []
    assert job.state().name == "lost"  # for whoever has listed it before


def test_the_code_of_clients_is_made_again_only_for_another_address(tmp_path: Path):
    ship = Ship(Studio(tmp_path))
    assert ship._clients("talk", shown=USUAL).status_code == 204
    with pytest.raises(TunesmithError, match="no such run"):
        ship._clients("talk")


@pytest.mark.parametrize("verdict", ["tuned", "base"])
def test_the_verdict_of_verify_is_shown_with_the_answers_that_differ(tmp_path: Path, verdict: str):
    other = {"where": "a:1", "prompt": "<b>hi</b>", "expected": "yes", "base": "no", "found": "no"}
    result = {"target": "runs/a", "verdict": verdict, "sentence": f"{verdict}: 3 of 4", "differences": [other]}
    job = running_job(tmp_path / "1", ["verify", "runs/a"], "runs/a", result)
    State("finished", runner=process_mark(), started=1.0, ended=2.0, code=1).write(tmp_path / "1")
    page = Ship(Studio(tmp_path)).follow(job).body.decode()
    assert f"<b>runs/a</b>: {verdict}: 3 of 4" in page
    assert ('class="problem"' in page) is (verdict != "tuned")
    assert "&lt;b&gt;hi&lt;/b&gt;" in page
