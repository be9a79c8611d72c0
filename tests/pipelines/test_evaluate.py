"""Scoring any model on any file, alone and against another, with tiny models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from tests.cli.conftest import reviews, write_rows
from tests.engine_stub import engine_stub
from tests.glance import only_a_glance
from tunesmith.config import make_recipe
from tunesmith.errors import DataError, ModelError, RecipeError
from tunesmith.inference.identify import ModelSource, identify
from tunesmith.metrics.task_scores import score
from tunesmith.models.loading.device import ChosenMachine
from tunesmith.objectives.classify import WORDINGS
from tunesmith.objectives.instruct import PLAIN_WORDINGS
from tunesmith.pipelines.evaluate import (
    Compared,
    EvaluateRequest,
    Evaluation,
    Page,
    ScoredAlone,
    chosen_wording,
    evaluate,
    read_task,
)
from tunesmith.pipelines.tune.tune import tune_recipe
from tunesmith.training.callbacks import Callbacks

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
KNOWN = ChosenMachine("cpu", "float32", 1, {"float32": 100.0}, "known")
NEW = [
    {"text": f"camera {i} is {word}", "label": label}
    for i, (word, label) in enumerate([("good", "positive"), ("bad", "negative"), ("fine", "positive")] * 4)
]


def tuned(folder: Path, model: Path, **objective: Any) -> Path:
    """A run of sixty labelled sentences, barely trained."""
    rows = write_rows(folder / "train.jsonl", reviews())
    raw = {
        "model": str(model),
        "data": {"train": str(rows), "group": "group"},
        "objective": {"kind": "classify", **objective},
        "schedule": {"epochs": 0.3, "probe": False},
        "machine": {"threads": 1, "dtype": "float32"},
    }
    recipe, _ = make_recipe(raw, place="test")
    with pytest.MonkeyPatch.context() as patch:
        only_a_glance(patch)
        return tune_recipe(recipe, out=folder / "run", callbacks=Callbacks()).folder


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    return tuned(tmp_path_factory.mktemp("decoder"), tiny_llama, instruction="Is it good?")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    return tuned(tmp_path_factory.mktemp("encoder"), tiny_bert)


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "new.jsonl", NEW)


def ask(model: Path, data: Path, **more: Any) -> Evaluation:
    return evaluate(EvaluateRequest(str(model), str(data), **more), on_event=lambda event: None, offline=True)


def test_a_base_is_scored_alone_with_its_interval(tiny_llama: Path, new: Path) -> None:
    done = ask(tiny_llama, new)
    page = done.page
    assert isinstance(page, ScoredAlone)
    right = sum(line["gold"] == line["answer"] for line in done.answers)
    assert (page.metric, page.score, page.n) == ("accuracy", right / 12, 12)
    assert page.ci95 is not None
    assert page.ci95[0] <= page.score <= page.ci95[1]
    assert [task.metric for task in page.tasks] == ["accuracy", "macro_f1"]


def test_a_base_chooses_among_the_labels_of_all_rows_also_if_some_rows_are_scored(tiny_llama: Path, new: Path) -> None:
    for count in (1, 3):
        source = identify(tiny_llama)
        task = read_task(EvaluateRequest(str(tiny_llama), str(new), rows=count), source, offline=True)
        assert (task.objective.known_labels, len(task.examples)) == (("negative", "positive"), count)
    assert ask(tiny_llama, new, rows=1).page.n == 1


def test_labels_that_may_mean_the_same_are_noted(tiny_llama: Path, tmp_path: Path) -> None:
    new = write_rows(tmp_path / "new.jsonl", [{"text": f"row {i}", "label": (1, True, 0)[i % 3]} for i in range(12)])
    note = "the labels '1' and 'True' may mean the same, but count as 2 labels; write only one of them"
    assert note in read_task(EvaluateRequest(str(tiny_llama), str(new)), identify(tiny_llama), offline=True).notes


def test_a_run_against_its_base_is_compared_row_by_row(decoder: Path, new: Path) -> None:
    done = ask(decoder, new, against="base")
    page = done.page
    assert isinstance(page, Compared)
    share = [sum(line["gold"] == line[side] for line in done.answers) / 12 for side in ("against", "answer")]
    assert [page.base, page.tuned] == share
    assert page.delta == pytest.approx(page.tuned - page.base)
    assert {"name", "metric", "ci95", "p_value", "n"} <= set(page.model_dump())
    assert any(note.startswith("base: plain prompt") for note in page.notes)


def test_the_base_of_an_encoder_is_the_probe_on_the_rows_of_the_run(encoder: Path, new: Path) -> None:
    done = ask(encoder, new, against="base")
    assert "base: linear probe on the frozen model" in done.page.notes
    assert {line["against"] for line in done.answers} <= {"positive", "negative"}


def test_the_base_is_scored_as_the_run_scored_it(decoder: Path, encoder: Path, tmp_path: Path) -> None:
    for run in (decoder, encoder):
        lines = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
        rows = write_rows(tmp_path / "test.jsonl", [{"text": x["question"], "label": x["gold"]} for x in lines])
        done = ask(run, rows, against="base")
        assert [line["against"] for line in done.answers] == [line["base"] for line in lines]
        assert [line["answer"] for line in done.answers] == [line["tuned"] for line in lines]
        assert not any("trained on" in note for note in done.page.notes)


@pytest.mark.parametrize("wording", ["", WORDINGS[1], PLAIN_WORDINGS[1]])
def test_the_wording_of_an_older_run_is_read_from_its_sentence(wording: str, tmp_path: Path) -> None:
    how = f"plain prompt: {wording or 'the instruction as written'}"
    run = ModelSource("run", "run", tmp_path / "model")
    for answers in ({"how": how}, {"how": how, "wording": wording}):
        (tmp_path / "before.json").write_text(json.dumps({"said": {"answers": answers}}))
        assert chosen_wording(run) == wording


def test_the_base_of_a_run_over_four_bits_lies_in_four_bits_too(tiny_llama: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    texts = [{"text": f"The {row['text']} {i}"} for i, row in enumerate(reviews())]
    train, test = write_rows(tmp_path / "train.jsonl", texts[:40]), write_rows(tmp_path / "test.jsonl", texts[40:])
    raw = {
        "model": str(tiny_llama),
        "data": {"train": str(train), "test": str(test), "validation": 0, "audit": "note"},
        "objective": {"kind": "domain", "text": "text"},
        "technique": {"kind": "lora", "rank": 2, "quantize": "nf4"},
        "schedule": {"epochs": 0.3, "probe": False},
        "machine": {"threads": 1, "dtype": "float32"},
    }
    recipe, _ = make_recipe(raw, place="test")
    with pytest.MonkeyPatch.context() as patch:
        only_a_glance(patch)
        done = tune_recipe(recipe, out=tmp_path / "run", callbacks=Callbacks())
    page = ask(done.folder, test, against="base").page
    assert isinstance(page, Compared)
    assert (page.base, page.tuned) == pytest.approx((done.report.task.base, done.report.task.tuned), rel=1e-5)


def test_models_that_begin_texts_by_other_tokens_are_not_compared_by_their_losses(
    tiny_llama: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(tiny_llama, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    first = tokenizer["added_tokens"][0]
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": first["content"], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            first["content"]: {"id": first["content"], "ids": [first["id"]], "tokens": [first["content"]]}
        },
    }
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": f"A battery is bad {i}"} for i in range(8)])
    with pytest.raises(RecipeError, match="uses another tokenizer"):
        ask(tiny_llama, texts, objective="domain", against=str(other))


@pytest.mark.long
def test_an_engine_answers_for_a_run_and_its_base_as_torch_does(
    decoder: Path, tiny_llama: Path, new: Path, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "chats.jsonl", [{"prompt": f"say {i}", "answer": f"it is {i}"} for i in range(8)])
    with engine_stub(tiny_llama) as stub:
        for model, data, more in (
            (decoder, new, {"against": "base"}),
            (tiny_llama, rows, {"changes": ("objective.max_new_tokens=4",)}),
        ):
            here, there = (ask(model, data, engine=engine, **more) for engine in ("", stub.url))
            assert there.page == here.page
            assert [row["answer"] for row in there.answers] == [row["answer"] for row in here.answers]
    assert {asked["model"] for asked in stub.asked} > {"base"}


def test_an_engine_is_not_asked_for_losses_and_heads(decoder: Path, encoder: Path, tiny_llama: Path, new: Path) -> None:
    with engine_stub(tiny_llama) as stub:
        with pytest.raises(RecipeError, match="--engine: an engine generates and chooses answers, not"):
            ask(tiny_llama, new, objective="domain", engine=stub.url)
        with pytest.raises(ModelError, match="an encoder generates no text in an engine; leave --engine out"):
            ask(encoder, new, engine=stub.url)
    assert stub.asked == []


def test_two_runs_are_compared(decoder: Path, encoder: Path, new: Path) -> None:
    page = ask(decoder, new, against=str(encoder)).page
    assert isinstance(page, Compared)
    assert page.against == str(encoder)


def test_rows_that_the_run_trained_on_are_told(decoder: Path) -> None:
    notes = ask(decoder, decoder.parent / "train.jsonl").page.notes
    assert any(note.startswith("warning") and "of these 60 questions" in note for note in notes)


def test_a_few_rows_that_the_run_trained_on_are_counted(decoder: Path, tmp_path: Path) -> None:
    where = [json.loads(line)["question"] for line in (decoder / "predictions.jsonl").read_text().splitlines()]
    old = [row for row in reviews() if row["text"] not in where]
    rows = write_rows(tmp_path / "mixed.jsonl", [*NEW, *old[:2]])
    notes = ask(decoder, rows).page.notes
    assert any("was trained on" in note and not note.startswith("warning") for note in notes)


def test_a_run_whose_recipe_is_gone_says_that_nobody_checked(decoder: Path, new: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(decoder, tmp_path / "moved"))
    (run / "recipe.yaml").unlink()
    assert any("was not checked" in note for note in ask(run, new).page.notes)


def test_other_column_names_are_detected(decoder: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "new.jsonl", [{"review": row["text"], "sentiment": row["label"]} for row in NEW])
    assert ask(decoder, rows).page.n == 12


def test_columns_can_be_named(decoder: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "new.jsonl", [{"words": row["text"], "mood": row["label"]} for row in NEW])
    changes = ("objective.text=words", "objective.label=mood")
    assert ask(decoder, rows, changes=changes).page.n == 12


def test_some_rows_are_drawn_always_the_same_ones(tiny_llama: Path, new: Path) -> None:
    first, second = (ask(tiny_llama, new, rows=5) for _ in range(2))
    assert first.answers == second.answers
    assert first.page.n == 5
    assert "5 of 12 rows, sampled with seed 0" in first.page.notes


def test_labels_that_the_run_never_learned_are_told(decoder: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "new.jsonl", [*NEW, {"text": "so so", "label": "mixed"}])
    assert "1 rows have labels that the model was not trained on (mixed)" in ask(decoder, rows).page.notes


def test_rows_with_none_of_the_labels_are_refused(decoder: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "new.jsonl", [{"text": row["text"], "label": i % 2} for i, row in enumerate(NEW)])
    with pytest.raises(DataError, match="but the labels of the rows are"):
        ask(decoder, rows)


@pytest.mark.parametrize(("kind", "target"), [("classify", "label"), ("regress", "target")])
def test_rows_that_cannot_be_parsed_are_dropped_by_the_command_in_the_error(
    kind: str, target: str, tiny_llama: Path, tmp_path: Path
) -> None:
    rows = [{"text": f"camera {i}", target: i % 7 / 2 if kind == "regress" else "ab"[i % 2]} for i in range(30)]
    broken = write_rows(tmp_path / "broken.jsonl", [*rows, {"text": 5, target: 1}])
    request = EvaluateRequest(
        str(tiny_llama), str(broken), changes=(f"objective={{kind: {kind}, text: text, {target}: {target}}}",)
    )
    with pytest.raises(DataError) as error:
        read_task(request, ModelSource(str(tiny_llama), "base", tiny_llama), offline=True)
    option = f"--set 'objective={{kind: {kind}, text: text, {target}: {target}}}'"
    problem, _, fix = str(error.value).partition("; to drop these rows: ")
    assert problem.startswith("broken.jsonl:31: column 'text' must be text, got 5; ")
    assert fix == f"`tunesmith audit {broken} {option} --fix {tmp_path / 'broken-clean.jsonl'}`"


def test_a_base_has_no_base(tiny_llama: Path, new: Path) -> None:
    with pytest.raises(RecipeError, match="is a base model itself"):
        ask(tiny_llama, new, against="base")


def test_answers_are_scored_and_those_cut_short_counted(tiny_llama: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "qa.jsonl", [{"prompt": f"number {i}?", "answer": "it is"} for i in range(4)])
    done = ask(tiny_llama, rows, changes=("objective.max_new_tokens=3", "objective.metric=chrf"))
    assert [task.metric for task in done.page.tasks] == ["chrf", "bleu", "exact_match"]
    assert any("4 completions were cut at 3 tokens" in note for note in done.page.notes)


def test_a_run_tuned_to_label_can_be_asked_to_answer(decoder: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "qa.jsonl", [{"prompt": f"number {i}?", "answer": "it is"} for i in range(3)])
    page = ask(decoder, rows, objective="instruct", changes=("objective.max_new_tokens=3",)).page
    assert page.metric == "rouge_l"


def test_macro_f1_alone_has_the_interval_of_a_bootstrap() -> None:
    given = ["a"] * 30 + ["b"] * 10
    found = score("macro_f1", ["a"] * 20 + ["b"] * 20, given, name="x")
    # a: 20 right of 30 given, 20 wanted: 0.8. b: 10 of 10, 20 wanted: 2/3.
    assert found.score == pytest.approx((0.8 + 2 / 3) / 2)
    assert found.ci95 is not None
    low, high = found.ci95
    assert low < found.score < high
    assert 0.2 < high - low < 0.4


def test_the_schema_names_what_other_programs_rely_on() -> None:
    shapes = TypeAdapter(Page).json_schema()["$defs"]
    wanted = {"name", "metric", "base", "tuned", "delta", "ci95", "p_value", "n"}
    assert wanted <= set(shapes["Compared"]["properties"])


def test_notes_say_how_the_file_was_read(tmp_path: Path):
    file = tmp_path / "new.csv"
    file.write_text("text;label\n" + "".join(f"{row['text']};{row['label']}\n" for row in NEW))
    task = read_task(EvaluateRequest("base", str(file)), ModelSource("base", "model", None), offline=True)
    assert "new.csv: separated by semicolon" in task.notes
