"""What a dry run shows: exact text, what is learned in it, and the faults that spoil runs."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.cli.conftest import reviews, write_rows
from tests.tiny import DECODERS, tiny_decoder
from tunesmith.cli.tune_preview import draw, show
from tunesmith.config import Recipe, make_recipe
from tunesmith.data.tokenization.chat_template import Template, Tokens
from tunesmith.data.tokenization.messages import Message
from tunesmith.models.loading.load import load_base
from tunesmith.pipelines.tune import preview as room
from tunesmith.pipelines.tune.preview import Preview, pieces_of, preview


def recipe(model: Path, rows: Path, **more: Any) -> Recipe:
    raw: dict[str, Any] = {
        "model": str(model),
        "data": {"train": str(rows)},
        "machine": {"threads": 1, "dtype": "float32"},
    }
    return make_recipe(raw | {"objective": "classify"} | more, place="test")[0]


def drawn(made: Preview, *, colour: bool = False) -> str:
    screen = Console(file=io.StringIO(), force_terminal=colour, color_system="standard" if colour else None, width=200)
    draw(made, screen)
    return screen.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "reviews.jsonl", reviews())


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    lines = [
        {"prompt": f"number {i}? " + "and so on " * (i // 15 * 30), "answer": f"[red]it is {i}"} for i in range(20)
    ]
    return write_rows(tmp_path / "qa.jsonl", lines)


@pytest.mark.parametrize("kind", DECODERS)
def test_the_pieces_are_the_whole_chat_and_only_the_answer_is_learned(kind: str, tmp_path: Path) -> None:
    base = load_base(str(tiny_decoder(tmp_path / kind, kind)))
    template = Template(base.tokenizer)
    tokens = template.chat([Message("user", "Is it  ¼ good?"), Message("assistant", "Yes, it is.")])
    pieces = list(pieces_of(tokens, template))
    whole = base.tokenizer.decode(tokens.ids, clean_up_tokenization_spaces=False)
    assert "".join(piece.text for piece in pieces) == whole
    learned = [piece.text for piece in pieces if piece.learned]
    assert len(learned) == 1
    assert learned[0].startswith("Yes, it is.")
    assert len(learned[0]) > len("Yes, it is.")


def test_a_label_in_words_is_learned_with_its_end(tiny_llama: Path, rows: Path) -> None:
    made = preview(recipe(tiny_llama, rows), rows=4)
    learned = [[piece.text for piece in row.pieces if piece.learned] for row in made.rows]
    where = [int(row.where.partition(":")[2]) for row in made.rows]
    assert learned == [[("negative", "positive")[line % 2] + "<|im_end|>"] for line in where]
    assert made.facts.bos == "every row begins with exactly one <|im_start|>"
    assert made.facts.end == "the end token is learned in every row: the model learns to stop"
    assert made.problems == ()
    assert 0 < (made.facts.learned_share or 0) < 0.2
    assert made.facts.p50 <= made.facts.p95 <= made.facts.longest


def test_an_encoder_shows_the_label_that_its_head_is_to_say(tiny_bert: Path, rows: Path) -> None:
    made = preview(recipe(tiny_bert, rows))
    assert made.rows[0].label in ("positive", "negative")
    assert not any(piece.learned for piece in made.rows[0].pieces)
    assert (made.facts.end, made.facts.learned_share) == (None, None)
    assert f"label {made.rows[0].label}" in drawn(made)


def test_rows_that_are_cut_are_counted_and_named(tiny_llama: Path, answers: Path) -> None:
    made = preview(recipe(tiny_llama, answers, objective="instruct", data={"train": str(answers), "max_tokens": 64}))
    assert made.facts.truncated.count == len(made.facts.truncated.first) > 0
    assert any("shortened to fit data.max_tokens (64): qa.jsonl:" in fault for fault in made.problems)


def test_only_twenty_places_are_named(tiny_llama: Path, answers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "LISTED", 1)
    made = preview(recipe(tiny_llama, answers, objective="instruct", data={"train": str(answers), "max_tokens": 64}))
    assert any(fault.endswith("and 2 more") or "more" in fault for fault in made.problems)
    assert len(made.facts.truncated.first) == 1 < made.facts.truncated.count


def test_learned_text_stands_in_brackets_or_in_colour(tiny_llama: Path, answers: Path) -> None:
    made = preview(recipe(tiny_llama, answers, objective="instruct"), rows=1)
    plain, coloured = drawn(made), drawn(made, colour=True)
    assert "[[[red]it is" in plain
    assert "<|im_end|>]]" in plain
    assert "[[" not in coloured
    assert "\x1b[1;32m[red]it is" in coloured


def test_the_two_answers_of_a_pair_are_told_apart(tiny_llama: Path, tmp_path: Path) -> None:
    lines = [{"prompt": f"number {i}", "chosen": f"it is {i}", "rejected": f"no idea, {i}"} for i in range(40)]
    pairs = write_rows(tmp_path / "pairs.jsonl", lines)
    made = preview(recipe(tiny_llama, pairs, objective="preference"), rows=1)
    assert [*dict.fromkeys(piece.side for piece in made.rows[0].pieces)] == ["preferred", "other"]
    better, other = drawn(made).split("\nother:\n")
    assert better.splitlines()[1] == "preferred:"
    assert "[[it is" in better
    assert "[[no idea" in other


def test_a_reward_whose_code_has_run_is_named(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "rules.py").write_text("def score(completion):\n    return 1.0\n")
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"number {i}?"} for i in range(12)])
    name = f"{tmp_path}/rules.py:score"
    made = preview(recipe(tiny_llama, prompts, objective={"kind": "rl", "reward": name}))
    assert f"imported to check it, which runs its code: {name}" in drawn(made)


def test_two_beginnings_are_a_fault(tiny_llama: Path) -> None:
    template = Template(load_base(str(tiny_llama)).tokenizer)
    twice = [Tokens([1, 1, 5], [False] * 3), Tokens([1, 5], [False] * 2)]
    assert room.check_beginnings(twice, template).startswith("warning: 1 rows begin with two")


def test_an_answer_without_its_end_is_a_fault(tiny_llama: Path) -> None:
    template = Template(load_base(str(tiny_llama)).tokenizer)
    cut = [Tokens([1, 5, 6], [False, True, True]), Tokens([1, 5, 2], [False, True, True])]
    assert room.check_ends(cut, template).startswith("warning: in 1 of 2 rows")


def test_programs_get_the_same_as_json(tiny_llama: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = argparse.Namespace(json=True, out=Path("runs/x"))
    assert show(preview(recipe(tiny_llama, rows)), args) == 0
    page = json.loads(capsys.readouterr().out)
    assert page["rows"][0]["pieces"][-2]["learned"] is True
    assert page["facts"]["truncated"] == {"count": 0, "first": []}
    assert page["recipe"]["objective"]["labels"] == ["negative", "positive"]


def test_rows_that_the_model_cuts_are_its_own_and_not_the_recipes_fault(tiny_llama: Path, answers: Path) -> None:
    lines = [{"prompt": f"number {i}? " + "and so on " * 400 * (i % 2), "answer": "yes"} for i in range(20)]
    write_rows(answers, lines)
    data = {"train": str(answers), "max_tokens": 2000, "audit": "note"}
    made = preview(recipe(tiny_llama, answers, objective="instruct", data=data))
    longest = made.recipe.data.max_tokens
    assert f"max_tokens lowered to {longest}: the context of {tiny_llama} is shorter" in made.notes
    assert any(f"shortened to fit the {longest} tokens of the context: " in fault for fault in made.problems)
