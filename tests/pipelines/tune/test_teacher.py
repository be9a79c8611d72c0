"""An encoder learns labels from a decoder: rows without labels are answered, checked, marked, kept and trained on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.bases import folder
from tunesmith.config import Recipe, Teacher
from tunesmith.data.examples.types import LabelledText
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import CheckpointError, DataError, ModelError, RecipeError
from tunesmith.evaluation import teacher
from tunesmith.evaluation.predict import AnswerSet
from tunesmith.events import ignore
from tunesmith.inference.openai_client import Remote
from tunesmith.models.generation.sampling import Reply
from tunesmith.pipelines.tune.tune import tune_recipe
from tunesmith.training.callbacks import Callbacks
from tunesmith.training.prepare import prepare

ANIMALS, TOOLS = ("fox", "dog", "cat", "cow", "hen", "pig"), ("saw", "axe", "pen", "nail", "file", "rope")
TEXTS = {
    f"the {a} and the {b} {n}": label
    for label, words in (("animal", ANIMALS), ("tool", TOOLS))
    for a in words
    for b in words
    for n in (1, 2)
    if a != b
}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    texts = sorted(TEXTS, key=lambda text: hash_of(text))
    gold = [{"text": text, "label": TEXTS[text]} for text in texts[:60]]
    # The last two are copies of rows of the run, one of them perhaps held out.
    more = [{"text": text} for text in [*texts[60:], texts[0], texts[59].upper()]]
    return {"train": str(write(tmp_path / "gold.jsonl", gold)), "rows": str(write(tmp_path / "more.jsonl", more))}


def hash_of(text: str) -> int:
    return sum(ord(letter) * 31**place for place, letter in enumerate(text)) % 1009


def recipe(files: dict[str, Any], taught_by: str, **more: Any) -> Recipe:
    taught = {"model": taught_by, "rows": files["rows"], **more.pop("teacher", {})} if taught_by else {}
    return Recipe.model_validate(
        {
            "model": str(folder("bert")),
            "data": {"train": files["train"], "validation": 12, "test": 16},
            "objective": {"kind": "classify"},
            "technique": "full",
            "teacher": taught,
            "schedule": {"epochs": 2, "learning_rate": 3e-3, "probe": False, "patience": 1000},
            "retention": {"questions": 0, "texts": 0},
            **more,
        }
    )


def test_an_encoder_learns_from_the_labels_of_a_decoder(
    files: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    decoder = recipe(
        files, "", model=str(folder("llama")), schedule={"epochs": 8, "learning_rate": 3e-3, "probe": False}
    )
    taught_by = tune_recipe(decoder, out=tmp_path / "decoder", callbacks=Callbacks(), offline=True).folder
    run = tune_recipe(recipe(files, str(taught_by)), out=tmp_path / "student", callbacks=Callbacks(), offline=True)

    found = run.report.distillation
    assert found is not None
    assert found.asked == len(TEXTS) - 60
    rows = [json.loads(line) for line in (run.folder / teacher.ROWS_FILE).read_text().splitlines()]
    assert len(rows) == found.kept > 0
    assert {row["origin"] for row in rows} == {"teacher"}
    assert {row["answer"] for row in rows} <= {"animal", "tool"}
    assert all(max(row["probabilities"]) >= (found.threshold or 0) for row in rows)
    assert run.report.data.train == 60 - 12 - 16  # gold rows; held-out rows stay
    assert (run.report.data.validation, run.report.data.test) == (12, 16)
    assert [model.name for model in found.models] == ["base", "teacher", "gold rows alone", "student"]
    assert found.gain.tuned == run.report.task.tuned == found.models[3].score
    assert found.against_teacher.base == found.models[1].score
    lines = (run.folder / "gold" / "journal.jsonl").read_text().splitlines()
    assert max(json.loads(line)["step"] for line in lines) == run.report.training.planned_steps
    for page in ("report.html", "README.md"):
        assert "gold rows alone" in (run.folder / page).read_text()

    # A second start asks nobody, and finds the same.
    monkeypatch.setattr(teacher, "open_teacher", None)
    (run.folder / "report.json").unlink()
    again = tune_recipe(recipe(files, str(taught_by)), out=tmp_path / "student", callbacks=Callbacks(), offline=True)
    assert again.report.distillation is not None
    assert again.report.distillation.models[3].score == found.models[3].score


class Server:
    """A server that names labels, in its own way, until it fails."""

    def __init__(self, answers: int) -> None:
        self.left = answers
        self.asked: list[str] = []

    def replies(self, batch: Any, **_: Any) -> list[Reply]:
        self.left -= len(batch)
        if self.left < 0:
            raise DataError("http://127.0.0.1:9/v1: cannot be reached (ConnectError); start it, or check the address")
        self.asked += [messages[-1].content for messages in batch]
        texts = [content.rpartition("\n")[2] for content in self.asked[-len(batch) :]]
        return [Reply("I do not know" if "2" in text else f" {TEXTS[text].title()}.", 0, 0, True) for text in texts]


def test_answers_of_a_server_that_fails_midway_are_kept(
    files: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    server = Server(40)
    monkeypatch.setattr(Remote, "named", lambda self: self)
    monkeypatch.setattr(Remote, "replies", lambda self, batch, **options: server.replies(batch, **options))
    wanted = recipe(files, "http://127.0.0.1:9/v1#any")
    with pytest.raises(DataError, match="cannot be reached"):
        tune_recipe(wanted, out=tmp_path / "run", callbacks=Callbacks(), offline=True)
    first, server.left = list(server.asked), 1000
    assert len(first) == 32  # two calls of 16
    run = tune_recipe(wanted, out=tmp_path / "run", callbacks=Callbacks(), offline=True)
    assert not set(first) & set(server.asked[len(first) :])

    found = run.report.distillation
    assert found is not None
    rows = [json.loads(line) for line in (run.folder / teacher.ROWS_FILE).read_text().splitlines()]
    assert rows
    assert all(row["answer"] == TEXTS[row["prompt"]] and "2" not in row["prompt"] for row in rows)
    assert found.threshold is None
    assert found.models[1].parameters is None
    assert 0.2 < found.models[1].score < 0.8  # what is no label is wrong


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"teacher": {"rows": ""}}, "teacher.rows is missing"),
        ({"teacher": {"model": ""}}, "teacher.model is missing"),
        ({"teacher": {"model": "runs/nowhere"}}, "runs/nowhere"),
        ({"teacher": {"rows": "nowhere.jsonl"}}, "nowhere.jsonl"),
        ({"objective": "domain"}, "teacher: not supported for domain"),
    ],
)
def test_a_teacher_that_cannot_be_asked_is_one_line(files: dict[str, Any], changes: dict[str, Any], error: str):
    with pytest.raises((RecipeError, DataError, ModelError, CheckpointError), match=error) as raised:
        prepare(recipe(files, str(folder("llama")), **changes), on_event=ignore, offline=True)
    assert "\n" not in str(raised.value)


NUMBERS, NEW = [f"{number:03d}" for number in range(20)], ["new1", "new2"]


def unanswered(tmp_path: Path, gold: list[Any], rows: list[Any], **objective: str) -> tuple[Any, list[list[Message]]]:
    files = {"train": str(write(tmp_path / "gold.jsonl", gold)), "rows": str(write(tmp_path / "more.jsonl", rows))}
    data = {"train": files["train"], "validation": 2, "test": 2}
    wanted = recipe(files, "", model=str(folder("llama")), objective={"kind": "instruct", **objective}, data=data)
    prepared = prepare(wanted, on_event=ignore, offline=True)
    section = Teacher(model="x", rows=files["rows"])
    asked = replace(prepared, recipe=prepared.recipe.model_copy(update={"teacher": section}))
    return prepared, [asked.recipe.objective.prompt_messages(row) for row in teacher.unanswered(asked, offline=True)]


@pytest.mark.parametrize(
    ("row", "answer", "objective"),
    [
        ({"instruction": "Translate {}", "input": "house"}, {"output": "Haus"}, {}),
        ({"system": "You are a pirate.", "prompt": "What is {}?"}, {"completion": "Y"}, {"instruction": "Be brief."}),
        ({"context": "{} is a boat.", "question": "What is it?"}, {"answer": "boat"}, {}),
        ({"question": "Which one is {}?", "choices": ["red", "blue"]}, {"answer": "A"}, {"choices": "choices"}),
        ({"q": "What is {}?", "c": "{} is a boat."}, {"a": "Y"}, {"prompt": "q", "answer": "a", "context": "c"}),
        (
            {
                "messages": [
                    {"role": role, "content": f"{role} {{}}"} for role in ("system", "user", "assistant", "user")
                ]
            },
            {},
            {},
        ),
    ],
    ids=["input", "system", "context", "choices", "named", "chat"],
)
def test_rows_for_a_teacher_have_the_prompts_of_gold_rows_and_no_copies(
    row: dict[str, Any], answer: dict[str, str], objective: dict[str, str], tmp_path: Path
):
    def made(word: str) -> dict[str, Any]:
        return json.loads(json.dumps(row).replace("{}", word))

    last = [{"role": "assistant", "content": "b"}]
    gold = [made(n) | answer for n in NUMBERS]
    gold = [one | ({"messages": one["messages"] + last} if "messages" in one else {}) for one in gold]
    prepared, found = unanswered(tmp_path, gold, [made(word) for word in [*NUMBERS, *NEW]], **objective)
    first = prepared.loaded.split.train[0]
    number = NUMBERS[int(first.where.rpartition(":")[2]) - 1]
    prompt = prepared.recipe.objective.prompt_messages(first)
    assert found == [[replace(m, content=m.content.replace(number, word)) for m in prompt] for word in NEW]


def test_prompts_that_differ_from_held_out_ones_in_a_word_are_not_asked(tmp_path: Path):
    common = "Answer in one word, and think of who has written this letter before you say what it is about: "
    texts = [common + " ".join(f"w{n}{place}" for place in range(24)) for n in range(30)]
    changed = [text.replace(" w", " no w", 1) for text in texts]
    gold = [{"prompt": text, "completion": "Y"} for text in texts[:20]]
    prepared, found = unanswered(tmp_path, gold, [{"prompt": text} for text in changed])
    held = [int(row.where.rpartition(":")[2]) - 1 for row in (*prepared.loaded.split.validation, *prepared.test)]
    assert [prompt[0].content for prompt in found] == [text for n, text in enumerate(changed) if n not in held]


@pytest.mark.parametrize("accuracy", ["auto", 0.8])
def test_labels_are_kept_from_the_confidence_at_which_validation_rows_are_right(accuracy: Any, files: dict[str, Any]):
    prepared = prepare(recipe(files, "x", teacher={"model": "", "rows": ""}), on_event=ignore, offline=True)
    section = Teacher(model="x", rows="y", accuracy=accuracy)
    asked = replace(prepared, recipe=prepared.recipe.model_copy(update={"teacher": section}))
    teaching = teacher.Teaching(teacher.Teacher(asked, offline=True), prepared)
    checked = [LabelledText("v", str(i), ("animal" if i < 5 else "tool",)) for i in range(10)]
    sure = [0.9] * 5 + [0.8, 0.2, 0.2, 0.3, 0.3]  # the sixth is wrong, and more certain than the last
    rows = [0.95, 0.1, 0.75, 0.5]
    table = [{"animal": p, "tool": 1 - p} for p in sure + rows]
    given = ["animal" if row["animal"] >= 0.5 else "tool" for row in table]
    kept, found = teacher._kept_labels(AnswerSet(given, "", 1.0, [], table), checked, teaching)
    assert found.accuracy == 0.9
    assert set(kept) == ({0, 1} if accuracy == "auto" else {0, 1, 2})
    assert found.kept_accuracy is not None
    assert found.kept_accuracy >= (0.95 if accuracy == "auto" else 0.8)
    assert all(sum(probabilities) == pytest.approx(1) for probabilities in kept.values())
