"""Thoughts of a completion apart from its answer, whatever tokens their marks are cut into."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.bases import template
from tests.data.test_thinking import FAMILIES, templates
from tests.thinking import ANSWER, KIND, THOUGHTS, UNFINISHED, WHOLE, dictate, ids_of
from tunesmith.inference.serving.live_answer import ActiveRequest, CompletionChunk
from tunesmith.models.generation.generate import Piece, stream_pieces
from tunesmith.models.generation.sampling import Sampling
from tunesmith.models.generation.thoughts import ThoughtSplitter

SPLITTER = ThoughtSplitter(template(KIND))


def test_thoughts_and_answer_are_apart():
    assert SPLITTER.split(WHOLE) == (THOUGHTS, ANSWER)
    assert SPLITTER.split(ANSWER) == ("", ANSWER)
    assert SPLITTER.split(UNFINISHED) == (THOUGHTS, "")


def test_a_prompt_that_opens_the_thoughts_is_continued_within_them():
    opened = ThoughtSplitter(template(KIND), open=True)
    assert opened.split(WHOLE.removeprefix("<think>\n")) == (THOUGHTS, ANSWER)
    assert opened.split(THOUGHTS) == (THOUGHTS, "")
    assert not opened.ended("")
    assert SPLITTER.ended("")


@pytest.mark.parametrize("open_", [False, True])
def test_what_is_ready_only_grows_wherever_the_text_is_cut(open_: bool):
    splitter = ThoughtSplitter(template(KIND), open=open_)
    text = WHOLE.removeprefix("<think>\n") if open_ else WHOLE
    sent = ["", ""]
    for end in range(1, len(text) + 1):
        for part, ready in enumerate(splitter.ready(text[:end])):
            ready = ready.strip()
            assert ready.startswith(sent[part]) or len(ready) <= len(sent[part]), (text[:end], ready)
            sent[part] = max(sent[part], ready, key=len)
    assert sent == [THOUGHTS, ANSWER]


@pytest.mark.parametrize("cut", range(len("</think>")))
def test_the_beginning_of_a_mark_is_held_back(cut: int):
    assert SPLITTER.ready(f"<think>\n{THOUGHTS}\n{'</think>'[:cut]}") == (THOUGHTS, "")


def test_a_less_than_sign_in_an_answer_is_not_held_back_for_long():
    assert SPLITTER.ready("a < b")[1] == "a < b"
    assert SPLITTER.ready("a <b")[1].strip() == "a"
    assert SPLITTER.ready("a <b>c d")[1] == "a <b>c d"


def test_tokens_of_thoughts_are_counted_with_their_marks():
    ids = ids_of(WHOLE, end=False)
    count = SPLITTER.thought_tokens(ids)
    head = SPLITTER.decode(ids[:count])
    assert head.endswith("</think>")
    assert THOUGHTS in head
    assert SPLITTER.thought_tokens(ids_of(ANSWER, end=False)) == 0
    unfinished = ids_of(UNFINISHED, end=False)
    assert SPLITTER.thought_tokens(unfinished) == len(unfinished)
    assert SPLITTER.thought_tokens([]) == 0


def test_a_model_without_thoughts_has_answers_alone():
    plain = ThoughtSplitter.of(template("llama"), thinking=None)
    assert plain.split(WHOLE) == ("", WHOLE)
    assert plain.ready("a <") == ("", "a <")
    assert plain.thought_tokens([5, 6]) == 0
    assert plain.ended("<think>")


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_streams_its_thoughts_and_its_answer_and_no_mark(name: str):
    family = FAMILIES[name]
    form = templates(name)[0]
    splitter = ThoughtSplitter.of(form, thinking=True)
    text = family.thoughts + "Four, of course."
    sent = ["", ""]
    for end in range(1, len(text) + 1):
        for part, ready in enumerate(splitter.ready(text[:end])):
            ready = ready.strip()
            assert ready.startswith(sent[part]) or len(ready) <= len(sent[part]), (text[:end], ready)
            sent[part] = max(sent[part], ready, key=len)
    thoughts, answer = splitter.split(text)
    assert (thoughts, answer) == ("two and two", "Four, of course.")
    assert thoughts == sent[0]
    assert answer.startswith(sent[1])  # the rest is sent at the end


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_counts_the_tokens_of_its_thoughts(name: str):
    form = templates(name)[0]
    splitter = ThoughtSplitter.of(form, thinking=True)
    ids = form.tokenizer(FAMILIES[name].thoughts + "Four.", add_special_tokens=False)["input_ids"]
    count = splitter.thought_tokens(ids)
    assert 0 < count < len(ids)
    assert "two and two" in splitter.decode(ids[:count])
    assert splitter.split(splitter.decode(ids)) == ("two and two", "Four.")
    assert splitter.ended(splitter.decode(ids[:count]))
    assert not splitter.ended(splitter.decode(ids[: count - 1]))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("stray\n</think>\n\nanswer", "stray\n\n\nanswer"),
        ("one</think>two</think>", "onetwo"),
        ("</think>\n\nanswer", "answer"),
        (WHOLE, ANSWER),
    ],
)
def test_a_block_that_nothing_opened_stays_in_the_answer_streamed_and_whole(
    text: str, answer: str, monkeypatch: pytest.MonkeyPatch
):
    assert SPLITTER.split(text) == (THOUGHTS if text == WHOLE else "", answer)
    ids = ids_of(text)
    dictate(monkeypatch, ids)
    streamed = stream_pieces(Any, [5], sampling=Sampling(max_new_tokens=99), splitter=SPLITTER)  # type: ignore[arg-type]
    told: list[CompletionChunk] = []
    run: Any = SimpleNamespace(model=SimpleNamespace(template=template(KIND)), virtual=0)
    served = ActiveRequest(run, [5], Sampling(max_new_tokens=99), told.append, in_pieces=True, splitter=SPLITTER)
    assert [served.take(token) for token in ids].index(True) == len(ids) - 1
    pieces: list[list[Piece] | list[CompletionChunk]] = [list(streamed), told]
    for found in pieces:
        assert "".join(piece.text for piece in found) == answer
        assert "".join(piece.thoughts for piece in found) == SPLITTER.split(text)[0]
