"""What the page of judgements asks of the server, without a browser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.annotation.voting import item
from tests.web.conftest import SCRIPT, Ask, asking
from tunesmith.annotation.items import OWN
from tunesmith.annotation.pair_judging import WHAT, PairSession
from tunesmith.annotation.vote_store import VoteStore
from tunesmith.web.pages.feedback import feedback_app
from tunesmith.web.pages.markdown import render

ANA = {"rater": "Ana", "tab": "tab-aaaa"}


@pytest.fixture
def work(tmp_path: Path) -> PairSession:
    items = [item(n, f"one {n}", f"two {n}", by=("runs/secret-a", "runs/secret-b")) for n in range(3)]
    return PairSession(items, VoteStore(tmp_path / "votes.db", what=WHAT))


@pytest.fixture
def ask(work: PairSession) -> Ask:
    return asking(feedback_app(work))


def test_nothing_that_the_browser_gets_tells_who_gave_an_answer(ask: Ask):
    _, state = ask("/api/next", **ANA)
    for _ in range(3):
        assert "secret" not in json.dumps(state)
        _, state = ask("/api/vote", **ANA, item=state["item"]["key"], choice="left", seconds=1.5)
    assert state["item"] is None
    assert state["progress"]["judged"] == 3
    assert "secret" not in json.dumps(state)


def test_an_own_answer_is_kept_with_its_seconds(ask: Ask, work: PairSession):
    _, state = ask("/api/next", **ANA)
    ask("/api/vote", **ANA, item=state["item"]["key"], choice="own", text=" mine \ud83d", seconds=2.345)
    (vote,) = work.assignment.votes.standing()
    left = work.shown(vote.item, "Ana")[0]
    assert vote.body == {"label": OWN, "text": "mine ?", "left": left, "seconds": 2.35}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"choice": "first"}, "is not a choice"),
        ({"choice": "good"}, "is not a choice"),
        ({"choice": "own", "text": " "}, "empty"),
        ({"item": "0123456789ab"}, "not one of these"),
        ({"rater": ""}, "name"),
        ({"rater": "\u200d"}, "your name: write 1 to 40 visible characters"),
        ({"rater": "A\u202ea"}, "your name: write 1 to 40 visible characters"),
        ({"text": 3}, "text"),
        ({"seconds": float("nan")}, "seconds"),
        ({"seconds": -1}, "seconds"),
    ],
)
def test_a_bad_request_is_told_and_changes_nothing(ask: Ask, work: PairSession, change: dict[str, Any], word: str):
    _, state = ask("/api/next", **ANA)
    before = work.store.since()
    status, answer = ask("/api/vote", **{**ANA, "item": state["item"]["key"], "choice": "left", **change})
    assert status == 422
    assert word in answer["detail"]
    assert work.store.since() == before


def test_markdown_becomes_plain_values_and_html_stays_text():
    assert render("a **b**\nc") == [
        {"tag": "p", "parts": ["a ", {"tag": "strong", "parts": ["b"]}, "", {"tag": "br", "parts": []}, "c"]}
    ]
    assert render("- x\n- y") == [
        {"tag": "ul", "parts": [{"tag": "li", "parts": ["x"]}, {"tag": "li", "parts": ["y"]}]}
    ]
    assert render(SCRIPT) == [{"tag": "p", "parts": [SCRIPT]}]
    table = "|a|b|\n|-|-|\n|3|4|5|6|"
    assert render(table) == [{"tag": "pre", "parts": [table]}]  # else 5 and 6 would be hidden
    assert render("0.") == [{"tag": "ol", "parts": [{"tag": "li", "parts": []}], "start": 0}]
    assert render("2. y") == [{"tag": "ol", "parts": [{"tag": "li", "parts": ["y"]}], "start": 2}]
    assert render("[k](http://a.example) ![i](http://b.example/y.png) <http://c.example>") == [
        {
            "tag": "p",
            "parts": ["k", " (http://a.example)", " ", "i", " (http://b.example/y.png)", " ", "http://c.example"],
        }
    ]
    assert render("`<b>`\n\n```\n<i>\n```")[1] == {"tag": "pre", "parts": [{"tag": "code", "parts": ["<i>\n"]}]}


@pytest.mark.parametrize("text", ["> " * 5000 + "x", "*" * 5000 + "x", "[" * 5000 + "x", "- " * 3000 + "x", "[x]: /y"])
def test_no_word_of_an_answer_is_hidden_however_it_is_marked(text: str):
    assert "x" in json.dumps(render(text))


@pytest.mark.parametrize(
    "text",
    [
        "word " * 30 + "\n\n" + "> " * 25 + "secret nested",
        "many words " * 90 + "\n\n|a|\n|-|\n|b|secret|",
        "```secret of python\nprint()\n```",
        "many words " * 90 + '\n\n[a](http://b.example "secret") ![i](/i.png "of mine")',
    ],
)
def test_of_a_long_answer_too_nothing_is_hidden(text: str):
    shown = json.dumps(render(text))
    assert all(word in shown for word in set(re.findall(r"\w+", text)))


def test_the_words_of_a_fence_stand_before_its_code():
    named = {"tag": "em", "parts": ["python"]}
    code = {"tag": "code", "parts": ["x\n"]}
    assert render("```python\nx\n```") == [{"tag": "pre", "parts": [named, {"tag": "br", "parts": []}, code]}]


def test_an_address_beyond_english_is_shown_as_it_was_written():
    assert render("[k](http://b\u00fccher.example/\u00e9)") == [
        {"tag": "p", "parts": ["k", " (http://b\u00fccher.example/\u00e9)"]}
    ]


@pytest.mark.parametrize("name", ["\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\U0001f469\u200d\U0001f52c"])
def test_names_with_joined_letters_and_pictures_are_taken(name: str, ask: Ask):
    status, state = ask("/api/next", rater=name, tab="tab-aaaa")
    assert status == 200
    _, state = ask("/api/vote", rater=name, tab="tab-aaaa", item=state["item"]["key"], choice="left")
    assert state["progress"]["people"] == {name: 1}
