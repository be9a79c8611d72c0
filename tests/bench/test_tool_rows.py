"""The rows of the tool calls: every call follows from its question, and the wordings of both halves differ."""

from __future__ import annotations

import json

from bench.tools import ASK_FACT, SECTIONS, Answered, Package, Writer, asked_of
from tunesmith.data.audit.row_view import view
from tunesmith.data.readers.row import Row

PACKAGES = [
    Package(
        f"package-{i}",
        {
            "package": f"package-{i}",
            "section": SECTIONS[i % len(SECTIONS)],
            "version": f"1.{i}-1",
            "homepage": f"https://example.org/{i}" if i % 3 else "(none)",
            "synopsis": f"reader for files of kind{i} in several formats",
        },
    )
    for i in range(60)
]


def test_the_arguments_of_every_call_are_in_its_question_and_its_result_is_in_the_records():
    columns = {"messages": "messages", "tools": "tools"}
    rows = list(Writer(PACKAGES, test=False).rows(200))
    assert {kind for row in rows for kind in view(Row("t:1", row), columns).calls} == set()
    for row in rows:
        asked = " ".join(turn["content"] for turn in row["messages"] if turn["role"] == "user")
        for turn in row["messages"]:
            for call in turn.get("tool_calls", ()):
                arguments = json.loads(call["function"]["arguments"])
                for name in [arguments[key] for key in ("name", "section") if key in arguments]:
                    assert name in asked
                assert all(name in asked for name in arguments.get("names", ()))
                assert arguments.get("filter", {}).get("word", "") in asked
        called = any(turn.get("tool_calls") for turn in row["messages"])
        assert called != row["kind"].startswith("no call")
        assert asked_of(row)[-1]["role"] == "user"


def test_the_same_seed_writes_the_same_rows_and_no_wording_is_in_both_halves():
    train, again, test = ([*Writer(PACKAGES, test=half).rows(100)] for half in (False, False, True))
    assert train == again
    assert {row["messages"][0]["content"] for row in train} != {row["messages"][0]["content"] for row in test}
    for own, others in ASK_FACT.values():
        assert not set(own) & set(others)


def test_an_answer_of_the_api_is_compared_by_the_values_of_its_arguments():
    call = {"function": {"name": "f", "arguments": '{"b": 1, "a": [2]}'}}
    same = {"function": {"name": "f", "arguments": '{"a":[2],"b":1}'}}
    assert Answered.of({"content": None, "tool_calls": [call]}) == Answered.of({"content": "", "tool_calls": [same]})
    assert Answered.of({"content": "Hi."}) == Answered("Hi.", ())
