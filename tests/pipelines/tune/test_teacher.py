"""An encoder learns labels from a decoder: rows without labels are answered, checked, marked, kept and trained on."""

from __future__ import annotations

import gc
import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bases import folder
from tunesmith.config import Recipe, Teacher
from tunesmith.data.examples.types import LabelledText
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import CheckpointError, DataError, ModelError, RecipeError, Refused
from tunesmith.evaluation import teacher
from tunesmith.evaluation.diagnostics import shuffled_labels
from tunesmith.evaluation.predict import AnswerSet
from tunesmith.events import ignore
from tunesmith.inference.openai_client import Remote
from tunesmith.models.generation.sampling import Reply
from tunesmith.pipelines.tune import tune
from tunesmith.pipelines.tune.tune import tune_recipe
from tunesmith.training.callbacks import Callbacks
from tunesmith.training.prepare import TrainingContext, prepare

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


@pytest.mark.long
def test_an_encoder_learns_from_the_labels_of_a_decoder(
    files: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    decoder = recipe(
        files, "", model=str(folder("llama")), schedule={"epochs": 8, "learning_rate": 3e-3, "probe": False}
    )
    taught_by = tune_recipe(decoder, out=tmp_path / "decoder", callbacks=Callbacks(), offline=True).folder
    networks, open_teacher, tuned_beside = [], teacher.open_teacher, tune._tuned_beside

    def opened(*args: Any, **options: Any) -> Any:
        model = open_teacher(*args, **options)
        networks.append(weakref.ref(model.policy.network))
        return model

    def without_teacher(*args: Any, **options: Any) -> Any:
        gc.collect()
        assert [network() for network in networks] == [None]  # no model takes memory beside those that are trained
        return tuned_beside(*args, **options)

    monkeypatch.setattr(teacher, "open_teacher", opened)
    monkeypatch.setattr(tune, "_tuned_beside", without_teacher)
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
    assert not [*run.folder.rglob("checkpoints")]
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


@pytest.mark.long
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
        ({"teacher": {"model": "http://h/v1", "accuracy": 0.9}}, "a server states no confidence"),
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


@pytest.fixture
def prepared(files: dict[str, Any]) -> TrainingContext:
    return prepare(recipe(files, ""), on_event=ignore, offline=True)


def kept(prepared: TrainingContext, rows: list[tuple[float, str]], sure: list[float], accuracy: Any) -> tuple[Any, Any]:
    """Keep labels of rows with the probabilities `sure` of an animal; validation `rows` are (probability, label)."""
    section = Teacher(model="x", rows="y", accuracy=accuracy)
    asked = replace(prepared, recipe=prepared.recipe.model_copy(update={"teacher": section}))
    teaching = teacher.Teaching(teacher.Teacher(asked, offline=True), prepared)
    table = [{"animal": p, "tool": 1 - p} for p in [*(p for p, _ in rows), *sure]]
    given = ["animal" if row["animal"] >= 0.5 else "tool" for row in table]
    checked = [LabelledText("v", str(i), (label,)) for i, (_, label) in enumerate(rows)]
    return teacher._kept_labels(AnswerSet(given, "", 1.0, [], table), checked, teaching)


@pytest.mark.parametrize("accuracy", ["auto", 0.8])
def test_labels_are_kept_from_the_confidence_at_which_validation_rows_are_right(
    accuracy: Any, prepared: TrainingContext
):
    # Below a confidence of 0.7, half of the labels are wrong.
    rows = [(0.9, "animal"), (0.1, "tool"), (0.85, "animal"), (0.2, "tool"), (0.6, "animal"), (0.6, "tool")] * 10
    found, teaching = kept(prepared, rows, [0.95, 0.1, 0.6, 0.5], accuracy)
    assert teaching.accuracy == pytest.approx(5 / 6)
    assert set(found) == ({0, 1} if accuracy == "auto" else {0, 1, 2})
    assert (teaching.kept_accuracy, teaching.checked) == (
        (1.0, 40) if accuracy == "auto" else (pytest.approx(5 / 6), 60)
    )
    assert all(sum(probabilities) == pytest.approx(1) for probabilities in found.values())


def test_the_accuracy_of_kept_labels_is_that_of_rows_which_did_not_choose_the_threshold(prepared: TrainingContext):
    rng = np.random.default_rng(0)
    stated = []
    for _ in range(60):  # confidence says nothing, 70% are right
        rows = [
            (p, "animal" if right else "tool")
            for p, right in zip(rng.uniform(0.5, 1, 40), rng.random(40) < 0.7, strict=True)
        ]
        try:
            _, teaching = kept(prepared, rows, [0.9], "auto")
        except Refused:
            continue
        assert teaching.checked
        stated.append((teaching.kept_accuracy * teaching.checked, teaching.checked))
    right, of = map(sum, zip(*stated, strict=True))
    assert len(stated) < 50
    assert right / of < 0.8


def test_the_control_on_shuffled_labels_has_the_rows_of_the_teacher(prepared: TrainingContext):
    rows = [LabelledText(f"more:{i}", f"a text {i}", (("animal", "tool")[i % 2],)) for i in range(30)]
    control = shuffled_labels(replace(prepared, answered=rows))
    assert len(control.train) == len(prepared.train) + 30
    gold = [label for row in [*prepared.loaded.split.train, *rows] for label in row.target]
    given = [label for row in control.loaded.split.train for label in row.target]
    assert given != gold
    assert sorted(given) == sorted(gold)


def test_without_enough_validation_rows_all_valid_labels_are_kept_and_the_report_says_so(prepared: TrainingContext):
    found, teaching = kept(prepared, [(0.9, "animal")] * 19, [0.51, 0.3], "auto")
    assert found == {0: (0.51, 0.49), 1: (0.3, 0.7)}
    assert "19 validation rows are too few" in teaching.note
    with pytest.raises(RecipeError, match="cannot be kept, 0 validation rows are too few"):
        kept(prepared, [], [0.51], 0.99)


def test_answers_are_those_to_the_same_rows_whatever_their_order(
    prepared: TrainingContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[str] = []

    def call(self: teacher.Teacher, rows: list[LabelledText]) -> teacher.Call:
        asked.extend(row.text for row in rows)
        return teacher.Call([row.text.upper() for row in rows], [True] * len(rows), 1.0, size=(7, 8))

    monkeypatch.setattr(teacher.Teacher, "_call", call)
    rows = [LabelledText("r", f"text {i}", ()) for i in range(40)]
    model = "http://127.0.0.1:9/v1#a"
    for order, name, new in ((rows[:35], model, 35), (rows[::-1], model, 5), (rows, model + "b", 40)):
        settings = prepared.recipe.model_copy(update={"teacher": Teacher(model=name, rows="y")})
        asked.clear()
        made = teacher.Teacher(replace(prepared, recipe=settings), offline=True)
        found = made.answers(order, tmp_path / "calls.jsonl")
        assert (found.given, found.size) == ([row.text.upper() for row in order], (7, 8))
        assert len(asked) == new


@pytest.mark.parametrize("label", ["N.A.", "Animal"])
def test_labels_that_a_server_writes_in_its_own_way_are_recognized(label: str):
    assert teacher._plain(label) == teacher._plain(f' "{label}".')
