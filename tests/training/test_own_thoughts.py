"""Thoughts that the base writes itself: kept where they lead to the answer, and not written twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.bases import folder
from tunesmith.config import Recipe, make_recipe
from tunesmith.errors import DataError
from tunesmith.events import Event
from tunesmith.models.generation.generate import AnswerIds
from tunesmith.training import own_thoughts
from tunesmith.training.own_thoughts import with_own_thoughts
from tunesmith.training.prepare import TrainingContext, prepare

COUNT = 20


def recipe(tmp_path: Path, kind: str = "qwen3", thinking: str = "keep") -> Recipe:
    file = tmp_path / "sums.jsonl"
    sums = [{"prompt": f"{i}+1?", "completion": str(i + 1)} for i in range(COUNT)]
    file.write_text("".join(json.dumps(row) + "\n" for row in sums))
    return Recipe.model_validate(
        {
            "model": str(folder(kind)),
            "data": {"train": str(file), "validation": 4, "test": 4},
            "objective": {"kind": "instruct", "metric": "exact_match", "thinking": thinking, "max_new_tokens": 8},
        }
    )


class Base:
    """Answers as a base model would that solves even sums by itself, sums of three with a hint, and no others."""

    def __init__(self, prepared: TrainingContext) -> None:
        self.template = prepared.template
        self.asked = 0

    def _ids(self, text: str, *, finished: bool = True) -> AnswerIds:
        return AnswerIds(self.template.tokenizer(text, add_special_tokens=False)["input_ids"], finished)

    def _number(self, ids: list[int]) -> tuple[str, int]:
        text = str(self.template.tokenizer.decode(ids))
        return text, int(text.split("<|im_start|>user\n")[1].split("+")[0])

    def sample(self, policy: Any, prompts: list[list[int]], *, count: int, **_: Any) -> list[list[AnswerIds]]:
        self.asked += len(prompts)
        result = []
        for ids in prompts:
            text, number = self._number(ids)
            hinted = "expected answer" in text
            block = f"<think>\n{number} and one\n</think>\n\n"
            if hinted:
                good = f"<think>\ncount on from {number}\n</think>\n\n{number + 1}"
                leaking = f"<think>\nthe expected answer helps\n</think>\n\n{number + 1}"
                result.append([self._ids(leaking), *[self._ids(good)] * (count - 1)])
            else:
                right = block + str(number + 1 if number % 2 == 0 else 0)
                unfinished = self._ids("<think>\nendless", finished=False)
                result.append([unfinished, *[self._ids(right)] * (count - 1)])
        return result

    def generate(self, policy: Any, prompts: list[list[int]], **_: Any) -> list[AnswerIds]:
        found = []
        for ids in prompts:
            text, number = self._number(ids)
            assert text.rstrip().endswith("</think>")  # the answer follows finished thoughts
            assert "expected answer" not in text
            leads = f"{number} and one" in text or number % 3 == 0
            found.append(self._ids(str(number + 1) if leads else "9999"))
        return found


@pytest.fixture
def prepared(tmp_path: Path) -> TrainingContext:
    return prepare(recipe(tmp_path), on_event=lambda event: None, offline=True)


def run(prepared: TrainingContext, out: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[TrainingContext, Base]:
    base, events = Base(prepared), list[Event]()
    monkeypatch.setattr(own_thoughts, "sample", base.sample)
    monkeypatch.setattr(own_thoughts, "generate", base.generate)
    return with_own_thoughts(prepared, out, on_event=events.append), base


def test_thoughts_are_kept_where_they_alone_lead_to_the_answer_and_both_positions_are_trained(
    prepared: TrainingContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made, _ = run(prepared, tmp_path / "run", monkeypatch)
    numbers = [int(e.messages[0].content.partition("+")[0]) for e in prepared.loaded.split.train]
    solved = [n for n in numbers if n % 2 == 0 or n % 3 == 0]
    assert len(made.train) == len(prepared.train) + len(solved)
    assert made.train[: len(prepared.train)] == prepared.train  # thinking off
    decode = made.template.tokenizer.decode
    shown = [decode(row.sequences[0].ids) for row in made.train[len(prepared.train) :]]
    learned = [
        decode([i for i, learn in zip(row.sequences[0].ids, row.sequences[0].learn, strict=True) if learn])
        for row in made.train[len(prepared.train) :]
    ]
    expected = [
        f"<think>\n{f'{n} and one' if n % 2 == 0 else f'count on from {n}'}\n</think>\n\n{n + 1}<|im_end|>"
        for n in solved
    ]
    assert learned == expected
    assert not any("expected answer" in text for text in shown)
    hinted = sum(n % 2 == 1 for n in solved)
    assert made.facts.notes[-1].startswith(
        f"the base model's own thoughts lead to the answer in {len(solved)} of {len(numbers)} rows without thoughts "
        f"({len(solved) - hinted} sampled, {hinted} with the answer as a hint)"
    )
    assert made.facts.learned_tokens > prepared.facts.learned_tokens


def test_a_task_of_several_brings_its_further_rows_and_its_note_into_the_run(tmp_path: Path):
    recipe(tmp_path)
    data = {"train": str(tmp_path / "sums.jsonl"), "validation": 4, "test": 4}
    parts = {name: {"objective": {"kind": "instruct"}, "data": data} for name in ("sums", "more")}
    raw = {
        "model": str(folder("qwen3")),
        "data": {"max_tokens": 96},
        "objective": {"kind": "multitask", "tasks": parts},
    }
    whole = prepare(make_recipe(raw, place="test")[0], on_event=lambda event: None, offline=True)
    row, rows = whole.train[0], len(whole.train)
    made = whole.map_tasks(
        lambda name, task: replace(task, train=[*task.train, row]).noted("a note") if name == "more" else task
    )
    assert (len(made.train), made.train[-1]) == (rows + 1, row)
    assert made.facts.notes == (*whole.facts.notes, "more: a note")


def test_a_resumed_run_uses_the_same_thoughts_and_asks_only_for_what_is_missing(
    prepared: TrainingContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(own_thoughts, "ROWS_PER_CALL", 5)
    first, base = run(prepared, tmp_path / "run", monkeypatch)
    assert base.asked > 0
    again, base = run(prepared, tmp_path / "run", monkeypatch)
    assert (base.asked, again.train, again.validation) == (0, first.train, first.validation)
    file = tmp_path / "run" / "thoughts.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:-1]) + lines[-1][:20])  # killed while the last call was written
    resumed, base = run(prepared, tmp_path / "run", monkeypatch)
    assert 0 < base.asked <= 10
    assert resumed.train == first.train


def test_rows_that_need_nothing_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plain = prepare(recipe(tmp_path, thinking="auto"), on_event=lambda event: None, offline=True)
    made, base = run(plain, tmp_path / "run", monkeypatch)
    assert (made, base.asked) == (plain, 0)


def test_a_model_that_cannot_think_is_refused_before_anything_runs(tmp_path: Path):
    with pytest.raises(DataError, match="objective.thinking: keep, but the chat template .* use thinking: drop"):
        prepare(recipe(tmp_path, "llama"), on_event=lambda event: None, offline=True)


@pytest.mark.long
def test_a_random_base_keeps_no_thoughts_and_its_rows_are_trained_with_thinking_off(
    prepared: TrainingContext, tmp_path: Path
):
    made = with_own_thoughts(prepared, tmp_path / "run", on_event=lambda event: None)
    assert made.train == prepared.train
    assert "in 0 of 12 rows without thoughts (0 sampled, 0 with the answer as a hint)" in made.facts.notes[-1]
