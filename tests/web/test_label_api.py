"""What the page asks of the server, without a browser."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from tests.web.conftest import SCRIPT, Ask, asking
from tunesmith.annotation.labelling import LabelSession
from tunesmith.pipelines.label import open_labelling
from tunesmith.pipelines.requests import LabelRequest
from tunesmith.web.pages.label import label_app

ANA = {"rater": "Ana", "tab": "tab-aaaa"}
FILES = [
    file
    for folder in ("static", "templates", "templates/studio", "templates/studio/results")
    for file in (files("tunesmith.web") / folder).iterdir()
    if file.is_file()
]


@pytest.fixture
def work(rows: Path) -> LabelSession:
    return open_labelling(LabelRequest(str(rows), labels=("good", "bad")), log=print)


@pytest.fixture
def ask(work: LabelSession) -> Ask:
    """Asks the app: a path and a JSON body, or a GET without one."""
    return asking(label_app(work))


def test_a_vote_answers_with_the_next_row_and_how_far_it_is(ask: Ask):
    _, first = ask("/api/next", **ANA)
    status, then = ask("/api/vote", **ANA, item=first["item"]["key"], label="good", seconds=1.234)
    assert status == 200
    assert then["item"]["key"] != first["item"]["key"]
    assert then["progress"]["labelled"] == 1
    assert then["progress"]["labels"] == {"good": 1, "bad": 0}
    assert then["labels"] == ["good", "bad"]
    assert then["undo"]


def test_the_seconds_that_a_vote_took_are_kept(ask: Ask, work: LabelSession):
    _, first = ask("/api/next", **ANA)
    ask("/api/vote", **ANA, item=first["item"]["key"], label="good", seconds=1.234)
    assert work.store.since()[-1].body == {"label": "good", "seconds": 1.23}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"rater": "  "}, "name"),
        ({"rater": "x" * 41}, "name"),
        ({"rater": "a\u0007b"}, "name"),
        ({"tab": "../../x"}, "tab"),
        ({"item": "0123456789ab"}, "not one of these rows"),
        ({"item": "<script>"}, "item"),
        ({"label": ""}, "empty"),
        ({"label": "x" * 61}, "characters, got 61"),
        ({"label": "a\u0000b"}, "control"),
        ({"seconds": "soon"}, "seconds"),
    ],
)
def test_a_bad_request_is_told_and_changes_nothing(ask: Ask, work: LabelSession, change: dict[str, Any], word: str):
    _, first = ask("/api/next", **ANA)
    before = work.store.since()
    status, answer = ask("/api/vote", **{**ANA, "item": first["item"]["key"], "label": "good", **change})
    assert status == 422
    assert word in answer["detail"]
    assert work.store.since() == before


def test_the_export_is_a_file_of_rows(ask: Ask):
    _, first = ask("/api/next", **ANA)
    ask("/api/vote", **ANA, item=first["item"]["key"], label="good")
    status, text = ask("/export.jsonl")
    assert status == 200
    (row,) = [json.loads(line) for line in text.splitlines()]
    assert (row["text"], row["label"]) == (first["item"]["text"], "good")


def test_a_script_travels_as_json_and_never_as_a_page(ask: Ask, work: LabelSession):
    seen = []
    for _ in range(len(work.rows.items)):
        _, state = ask("/api/next", **ANA)
        seen.append(state["item"]["text"])
        ask("/api/vote", **ANA, item=state["item"]["key"], label="good")
    assert SCRIPT in seen
    _, page = ask("/")
    assert SCRIPT not in page


@pytest.mark.parametrize(
    "path", ["/docs", "/openapi.json", "/static/../label.py", "/static/%2e%2e", "/static/nothing.js"]
)
def test_nothing_but_the_page_and_its_files_is_there(ask: Ask, path: str):
    assert ask(path)[0] == 404


def test_every_file_that_a_page_names_is_there_and_none_comes_from_elsewhere(ask: Ask):
    for file in FILES:
        text = file.read_text("utf-8")
        named = re.findall(r"""["'(](/static/[^"')]+)["')]""", text)
        assert [name for name in named if ask(name)[0] != 200] == []
        elsewhere = r"https?://(?!www\.w3\.org|127\.0\.0\.1)[^\s\"'<>]+"
        assert re.findall(elsewhere, text) == []


def test_pages_write_no_markup_from_data():
    for file in FILES:
        if file.name.endswith(".js"):
            assert (
                re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|srcdoc", file.read_text())
                == []
            )
        if file.name.endswith(".html.jinja"):
            # The policy forbids both, and a page that needs them would look right in no browser.
            assert re.findall(r"<script(?![^>]*\bsrc=)|\sstyle=|\son\w+=", file.read_text()) == []
