"""The control of shuffled answers, in which nothing true is left, and the base's ability, kept in the cache."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.bases import base, template
from tests.pipelines.conftest import recipe, reviews
from tunesmith.config import Retention
from tunesmith.data.examples.types import Chat
from tunesmith.data.tokenization.messages import Message
from tunesmith.data.tokenization.tool_calls import Call
from tunesmith.evaluation import diagnostics as worth
from tunesmith.evaluation.diagnostics import _shuffled, general_window, shuffled_labels
from tunesmith.evaluation.retention import GeneralAbility
from tunesmith.models.kept_answers import kept_answers
from tunesmith.models.policy import Policy
from tunesmith.techniques import Lora, Prompt
from tunesmith.training.prepare import prepare


def called(number: int) -> Message:
    return Message("assistant", "", (Call("look", json.dumps({"at": number})),))


def calling(number: int, *, calls: int = 1) -> Chat:
    """A chat that calls a tool, is told something by it and says so."""
    asked = [Message("user", f"q{number}", tools="[]")]
    for call in range(calls):
        asked += [called(10 * number + call), Message("tool", f"r{number}")]
    return Chat(f"rows:{number}", (*asked, Message("assistant", f"a{number}")), reference_index=-3)


def test_shuffled_chats_hold_no_call_and_no_answer_of_their_own():
    chats = [calling(number) for number in range(8)]
    dealt = _shuffled(chats, random.Random(3))
    for whole in ("calls", "content"):
        judged = [getattr(one.messages[at], whole) for one in dealt for at in (-3,)]
        assert sorted(map(str, judged)) == sorted(str(getattr(one.messages[-3], whole)) for one in chats)
    moved = [(one.messages[-3].calls != own.messages[-3].calls) for one, own in zip(dealt, chats, strict=True)]
    answers = [(one.messages[-1].content != own.messages[-1].content) for one, own in zip(dealt, chats, strict=True)]
    assert moved == answers
    assert sum(moved) >= 6
    assert [one.messages[0] for one in dealt] == [own.messages[0] for own in chats]
    assert [one.messages[2] for one in dealt] == [own.messages[2] for own in chats]


def test_thoughts_move_with_their_answer():
    turns = [
        (Message("user", f"q{number}"), Message("assistant", f"a{number}", thoughts=f"so a{number}"))
        for number in range(8)
    ]
    chats = [Chat(f"rows:{number}", turn) for number, turn in enumerate(turns)]
    answers = [chat.messages[-1] for chat in _shuffled(chats, random.Random(3))]
    assert all(answer.thoughts == f"so {answer.content}" for answer in answers)
    assert [answer.content for answer in answers] != [chat.messages[-1].content for chat in chats]


def test_every_answer_of_a_chat_with_many_turns_is_shuffled():
    chats = [
        Chat(f"rows:{n}", tuple(Message(("user", "assistant")[i % 2], f"{n}.{i}") for i in range(6))) for n in range(6)
    ]
    dealt = _shuffled(chats, random.Random(1))
    for one, own in zip(dealt, chats, strict=True):
        givers = {m.content[0] for m in one.messages if m.role == "assistant"}
        assert len(givers) == 1
        assert [m.content[1:] for m in one.messages] == [m.content[1:] for m in own.messages]
    assert sum(one != own for one, own in zip(dealt, chats, strict=True)) >= 4


def test_calls_stand_where_calls_stood_though_chats_differ_in_their_number():
    chats = [
        calling(0),
        calling(1, calls=2),
        calling(2, calls=3),
        Chat("rows:3", calling(3).messages[::3], reference_index=-1),
    ]
    dealt = _shuffled(chats, random.Random(0))
    for one, own in zip(dealt, chats, strict=True):
        assert [bool(m.calls) for m in one.messages] == [bool(m.calls) for m in own.messages]


def test_general_ability_is_kept_apart_where_texts_are_read_otherwise(kept: Path, monkeypatch: pytest.MonkeyPatch):
    measured: list[int] = []

    def measure(made: Any, form: Any, window: int, extent: Retention) -> GeneralAbility:
        measured.append(window)
        return GeneralAbility(1.0, [True])

    monkeypatch.setattr(worth, "measure", measure)
    for kind, words in (("gemma", "gemma"), ("llama", "llama"), ("llama", "gemma"), ("gemma", "gemma")):
        prepared = SimpleNamespace(
            base=base(kind), template=template(words), recipe=SimpleNamespace(technique=Lora(), retention=Retention())
        )
        made = Policy.over(prepared.base.network, family="decoder")
        made.kept = kept_answers(prepared.base.network)
        assert worth.base_general_ability(prepared, made) == GeneralAbility(1.0, [True])  # type: ignore[arg-type]
    assert len(measured) == 3


@pytest.mark.parametrize(
    ("positions", "virtual", "window"), [(0, 20, 256), (256, 0, 255), (256, 20, 235), (2048, 20, 256)]
)
def test_windows_of_general_text_leave_room_for_virtual_tokens(positions: int, virtual: int, window: int):
    network = SimpleNamespace(config=SimpleNamespace(to_dict=lambda: {"n_positions": positions}))
    technique = Prompt(tokens=virtual) if virtual else Lora()
    prepared = SimpleNamespace(
        base=SimpleNamespace(network=network), template=template("gemma"), recipe=SimpleNamespace(technique=technique)
    )
    assert general_window(prepared) == window


@pytest.mark.usefixtures("small_world")
def test_a_control_may_fail_to_learn(tmp_path: Path):
    own = prepare(recipe(tmp_path, reviews(), "bert"), on_event=lambda event: None, offline=True)
    assert own.recipe.schedule.probe
    assert not shuffled_labels(own).recipe.schedule.probe
