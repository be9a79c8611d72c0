"""Shapes of rows that people have: what is guessed, what a row becomes, and what is ignored."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tunesmith.data.examples.types import Chat, Example, LabelledText, Pair
from tunesmith.data.examples.usable import answer_notes, usable
from tunesmith.data.readers.read import read_rows
from tunesmith.data.schema.formats import Format, detect_or_guess
from tunesmith.data.text.language import NAMES, language_of_name
from tunesmith.errors import DataError
from tunesmith.objectives import Classify, Instruct, Preference
from tunesmith.training.read import Reader

LONG = "the battery of this phone holds for a day"
GERMAN = "der Akku von diesem Telefon ist nicht schlecht und hält einen Tag"
TURNS = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ada."}]
ROWS = 40

Cell = Any  # a list is repeated, a function gets the number of the row, a text is numbered


class Shape(NamedTuple):
    """The columns of a file, and what should be guessed from them."""

    columns: Mapping[str, Cell]
    objective: str
    roles: Mapping[str, str]
    ignored: str = ""


def several(*answers: str) -> Callable[[int], list[str]]:
    return lambda number: list(answers)


PAIR = {"prompt": "question", "answer": "answers"}
SQUAD = {"context": "context", **PAIR}
SHAPES = {
    "SQuAD": Shape(
        {
            "id": lambda n: f"q{n}",
            "question": LONG,
            "context": lambda n: f"Passage {n // 2}.",
            "answers": lambda n: {"text": ["a day", "one day"], "answer_start": [1, 1]},
        },
        "instruct", SQUAD, "id (unique values)",
    ),
    "SQuAD as text": Shape(
        {"question": LONG, "context": LONG, "answers": lambda n: "{'text': ['a day'], 'answer_start': [1]}"},
        "instruct", SQUAD,
    ),
    "SQuAD from pandas": Shape(
        {"question": LONG, "answers": lambda n: "{'text': array(['a', 'b'], dtype=object), 'start': array([1])}"},
        "instruct", PAIR,
    ),
    "answers and doc_id": Shape(
        {"question": LONG, "doc_id": lambda n: f"d{n // 2}", "answers": several("x", "y"), "split": ["train", "test"]},
        "instruct", PAIR, "split (names the split)",
    ),
    "references": Shape(
        {"prompt": LONG, "references": several("x", "y")}, "instruct", {"prompt": "prompt", "answer": "references"}
    ),
    "en/fr": Shape({"en": LONG, "fr": LONG}, "instruct", {"prompt": "en", "answer": "fr"}),
    "en/target": Shape({"en": LONG, "target": GERMAN}, "instruct", {"prompt": "en", "answer": "target"}),
    "src/tgt": Shape({"src": LONG, "tgt": GERMAN}, "instruct", {"prompt": "src", "answer": "tgt"}),
    "source/target": Shape({"source": LONG, "target": GERMAN}, "instruct", {"prompt": "source", "answer": "target"}),
    "english/german": Shape({"english": LONG, "german": GERMAN}, "instruct", {"prompt": "english", "answer": "german"}),
    "text_en/text_de": Shape(
        {"text_en": LONG, "text_de": GERMAN}, "instruct", {"prompt": "text_en", "answer": "text_de"}
    ),
    "translation": Shape(
        {"translation": lambda n: {"en": f"{LONG} {n}", "de": f"{GERMAN} {n}"}},
        "instruct", {"prompt": "translation.en", "answer": "translation.de"},
    ),
    "chat under another key": Shape(
        {"chat_log": lambda n: TURNS, "id": lambda n: n}, "instruct", {"messages": "chat_log"}, "id (unique values)"
    ),
    "chat in an object": Shape({"body": lambda n: {"messages": TURNS}}, "instruct", {"messages": "body.messages"}),
    "instruction/output": Shape(
        {"instruction": LONG, "input": [""], "output": LONG},
        "instruct", {"prompt": "instruction", "input": "input", "answer": "output"},
    ),
    "inputs/targets": Shape({"inputs": LONG, "targets": LONG}, "instruct", {"prompt": "inputs", "answer": "targets"}),
    "query/response": Shape({"query": LONG, "response": LONG}, "instruct", {"prompt": "query", "answer": "response"}),
    "source/summary": Shape({"source": LONG, "summary": LONG}, "instruct", {"prompt": "source", "answer": "summary"}),
    "dialogue/summary": Shape(
        {"dialogue": LONG, "summary": LONG}, "instruct", {"prompt": "dialogue", "answer": "summary"}
    ),
    "article/highlights": Shape(
        {"article": LONG, "highlights": LONG}, "instruct", {"prompt": "article", "answer": "highlights"}
    ),
    "choices by position": Shape(
        {"question": LONG, "choices": several("red", "green", "blue"), "answer": [0, 1, 2]},
        "instruct", {"prompt": "question", "choices": "choices", "answer": "answer"},
    ),
    "choices from one": Shape(
        {"question": LONG, "choices": several("red", "green", "blue"), "answer": [1, 2, 3]},
        "instruct", {"prompt": "question", "choices": "choices", "answer": "answer"},
    ),
    "choices with keys": Shape(
        {"question": LONG, "choices": lambda n: {"text": ["red", "x"], "label": ["1", "2"]}, "answerKey": ["1", "2"]},
        "instruct", {"prompt": "question", "choices": "choices", "answer": "answerKey"},
    ),
    "one column per choice": Shape(
        {"question": LONG, "A": ["red"], "B": ["green"], "C": ["blue"], "answer": ["A", "B", "C"]},
        "instruct", {"prompt": "question", "choices": "A + B + C", "answer": "answer"},
    ),
    "premise/hypothesis": Shape(
        {"premise": LONG, "hypothesis": LONG, "label": [0, 1, 2]},
        "classify", {"text": "premise + hypothesis", "label": "label"},
    ),
    "text1/text2": Shape(
        {"idx": lambda n: n, "text1": LONG, "text2": LONG, "label": ["same", "other"]},
        "classify", {"text": "text1 + text2", "label": "label"}, "idx (unique values)",
    ),
    "review_body/star_rating": Shape(
        {"review_body": LONG, "star_rating": [1, 2, 3]}, "classify", {"text": "review_body", "label": "star_rating"}
    ),
    "body/tags": Shape(
        {"title": LONG, "body": LONG, "tags": [["a", "b"], ["c"]]},
        "classify", {"text": "body", "label": "tags"}, "title (text)",
    ),
    "tags with commas": Shape(
        {"body": LONG, "tags": ["a, b", "c", "a, c", "b"]}, "classify", {"text": "body", "label": "tags"}
    ),
    "headline/category": Shape(
        {"headline": LONG, "category": ["x", "y"]}, "classify", {"text": "headline", "label": "category"}
    ),
    "label and its words": Shape(
        {"text": LONG, "label": [0, 1], "label_text": ["bad", "good"]},
        "classify", {"text": "text", "label": "label_text"}, "label (2 values)",
    ),
    "two responses and a winner": Shape(
        {"prompt": LONG, "response_a": LONG, "response_b": GERMAN, "winner": ["a", "b", "tie"]},
        "preference", {"prompt": "prompt", "chosen": "response_a", "rejected": "response_b", "winner": "winner"},
    ),
    "two responses and a number": Shape(
        {"prompt": LONG, "response_1": LONG, "response_2": GERMAN, "preference": [1, 2]},
        "preference", {"prompt": "prompt", "chosen": "response_1", "rejected": "response_2", "winner": "preference"},
    ),
    "chosen/rejected as chats": Shape(
        {"chosen": lambda n: TURNS, "rejected": lambda n: [TURNS[0], {"role": "assistant", "content": "Bob."}]},
        "preference", {"chosen": "chosen", "rejected": "rejected"},
    ),
}  # fmt: skip
OBJECTIVES = {"instruct": Instruct, "classify": Classify, "preference": Preference}


def written(folder: Path, columns: Mapping[str, Cell], name: str = "rows.jsonl") -> Path:
    """Write the rows of a shape."""

    def value(cell: Cell, number: int) -> Any:
        if callable(cell):
            return cell(number)
        return cell[number % len(cell)] if isinstance(cell, list) else f"{cell} {number}"

    rows = [{column: value(cell, number) for column, cell in columns.items()} for number in range(ROWS)]
    file = folder / name
    if file.suffix == ".csv":
        with file.open("w", encoding="utf-8", newline="") as out:
            writer = csv.DictWriter(out, list(columns))
            writer.writeheader()
            writer.writerows(rows)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def examples(folder: Path, shape: str) -> list[Example]:
    """Parse the rows of a shape as a run does."""
    rows = read_rows(written(folder, SHAPES[shape].columns))
    found = detect_or_guess(rows)
    rows, _ = usable(rows, found.columns)
    return OBJECTIVES[found.objective]().examples(rows, group="", columns=found.columns)


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_is_guessed_with_its_columns_and_every_row_is_read(name: str, tmp_path: Path):
    shape = SHAPES[name]
    found = detect_or_guess(read_rows(written(tmp_path, shape.columns)))
    assert (found.objective, dict(found.columns)) == (shape.objective, dict(shape.roles))
    assert ", ".join(f"{column} ({reason})" for column, reason in found.ignored.items()) == shape.ignored
    assert f"; ignored columns: {shape.ignored}" in found.explain() or not shape.ignored
    ties = ROWS // 3 if "winner" in name else 0
    assert len(examples(tmp_path, name)) == ROWS - ties


def test_an_unused_column_is_never_silent(tmp_path: Path):
    for name, shape in SHAPES.items():
        found = detect_or_guess(read_rows(written(tmp_path, shape.columns)))
        used = {part for column in found.columns.values() for part in column.split(" + ")}
        unnamed = {column for column in shape.columns if column not in used | found.ignored.keys()}
        opened = {column for column in unnamed if any(part.startswith(f"{column}.") for part in used)}
        assert unnamed - opened <= {"doc_id"}, name  # which groups the rows, as the note on the split says


def chat(found: Example) -> tuple[str, str, tuple[str, ...] | None]:
    assert isinstance(found, Chat)
    return found.messages[0].content, found.messages[-1].content, found.accepted


def test_a_passage_comes_before_its_question_and_keeps_its_rows_in_one_split(tmp_path: Path):
    found = examples(tmp_path, "SQuAD")
    assert chat(found[0]) == (f"Passage 0.\n\n{LONG} 0", "a day", ("a day", "one day"))
    groups = [example.group for example in found]
    assert groups[0] == groups[1] != groups[2]
    assert len(set(groups)) == ROWS // 2


def test_lists_written_as_text_are_answers_only_in_columns_named_for_lists(tmp_path: Path):
    shape = {"question": LONG, "answers": lambda n: '["x", "y"]', "answer": lambda n: '["x", "y"]'}
    rows = read_rows(written(tmp_path, shape, "rows.csv"))
    plural = Instruct(prompt="question", answer="answers").examples(rows, group="")
    assert chat(plural[0])[1:] == ("x", ("x", "y"))
    singular = Instruct(prompt="question", answer="answer").examples(rows, group="")
    assert chat(singular[0])[1:] == ('["x", "y"]', None)


def test_a_question_without_an_answer_learns_the_text_for_it_and_a_note_counts_it(tmp_path: Path):
    shape = {"question": LONG, "answers": lambda n: {"text": ["a", "b"] if n % 4 else [], "answer_start": []}}
    rows = read_rows(written(tmp_path, shape))
    found = Instruct(unanswerable="not in the text").examples(rows, group="")
    assert chat(found[0])[1:] == ("not in the text", ())
    assert answer_notes(found) == [
        "30 of 40 rows have several accepted answers: the first is learned, and a score is the best of up to 2 "
        "accepted answers",
        "10 of 40 rows have no accepted answer: the text of objective.unanswerable is learned and expected",
    ]


@pytest.mark.parametrize("name", ["choices by position", "choices from one", "one column per choice"])
def test_choices_are_listed_by_letter_and_the_letter_of_the_right_one_is_learned(name: str, tmp_path: Path):
    prompt, answer, accepted = chat(examples(tmp_path, name)[1])
    assert prompt == f"{LONG} 1\n\nA. red\nB. green\nC. blue"
    assert (answer, accepted) == ("B", ("B", "B. green", "green"))


def test_positions_that_may_count_from_zero_or_one_are_asked_about(tmp_path: Path):
    shape = {"question": LONG, "choices": several("red", "green", "blue"), "answer": [1, 2]}
    rows = read_rows(written(tmp_path, shape))
    with pytest.raises(
        DataError, match=r"answer contains the positions 1 to 2, which may count from 0 or from 1; write"
    ):
        Instruct().examples(rows, group="")


def test_positions_come_before_texts_that_are_numbers_if_the_column_has_positions(tmp_path: Path):
    sums: list[list[Any]] = [[["4", "2", "6", "0"], 2], [["3", "1", "2", "0"], 0], [["9", "8", "7", "5"], 3]]
    shape = {
        "question": LONG,
        "choices": lambda n: sums[n % 3][0],
        "answer": lambda n: sums[n % 3][1],
    }
    found = Instruct().examples(read_rows(written(tmp_path, shape)), group="")
    assert [chat(example)[2][2] for example in found[:3]] == ["6", "3", "5"]


def test_answers_that_are_numbers_are_positions_among_choices_that_are_texts(tmp_path: Path):
    shape = {"question": LONG, "choices": several("3", "0", "1", "2"), "answer": [0, 1, 2, 3]}
    found = Instruct().examples(read_rows(written(tmp_path, shape)), group="")
    assert [chat(example)[1] for example in found[:4]] == ["A", "B", "C", "D"]
    assert answer_notes(found) == [
        "40 of 40 rows have choices: the letter of the right one is learned, and its text is accepted too"
    ]


def test_a_label_that_occurs_alone_and_with_others_is_one_of_several(tmp_path: Path):
    rows = read_rows(written(tmp_path, {"text": LONG, "tags": ["a,b", "b", "a,c"]}))
    found = Classify().examples(rows, group="")
    assert [example.labels for example in found[:3] if isinstance(example, LabelledText)] == [
        ("a", "b"), ("b",), ("a", "c"),
    ]  # fmt: skip


def test_numbers_that_are_texts_of_choices_name_these_if_no_row_has_a_position(tmp_path: Path):
    shape = {"question": LONG, "choices": several("4", "2", "6"), "answer": ["4", "2", "6"]}
    found = Instruct().examples(read_rows(written(tmp_path, shape)), group="")
    assert [chat(example)[1] for example in found[:3]] == ["A", "B", "C"]


@pytest.mark.parametrize("columns", [{"no": [1, 2, 3]}, {"text_en": LONG}])
def test_numbers_and_labels_are_no_translation(columns: Mapping[str, Cell], tmp_path: Path):
    shape = {"text": LONG, **columns, "target": ["positive", "negative"]}
    path = tmp_path / "rows.csv"
    rows = read_rows(written(tmp_path, shape))
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(shape))
        table.writeheader()
        table.writerows(dict(row.fields) for row in rows)
    assert detect_or_guess(read_rows(path)).objective == "classify"


def test_values_of_only_one_answer_name_no_winner(tmp_path: Path):
    winner = [1] * 19 + [0]  # 0 and 1 may mean second and first, or first and second
    shape = {"prompt": LONG, "response_a": LONG, "response_b": GERMAN, "winner": winner}
    with pytest.raises(
        DataError, match="winner does not say which is better; write response_a, response_b or tie in it"
    ):
        detect_or_guess(read_rows(written(tmp_path, shape)))
    named = {**shape, "winner": ["response_a", "response_b", "tie"]}  # the fix
    assert detect_or_guess(read_rows(written(tmp_path, named))).objective == "preference"


def test_several_columns_are_read_as_one_text_with_their_names(tmp_path: Path):
    first = examples(tmp_path, "premise/hypothesis")[0]
    assert isinstance(first, LabelledText)
    assert first.text == f"premise: {LONG} 0\nhypothesis: {LONG} 0"
    rows = read_rows(written(tmp_path, SHAPES["body/tags"].columns))
    joined = Classify(text="title + body", label="tags").examples(rows, group="")[0]
    assert isinstance(joined, LabelledText)
    assert joined.text == f"title: {LONG} 0\nbody: {LONG} 0"
    with pytest.raises(DataError, match="no column 'titel . body'"):
        Classify(text="titel + body", label="tags").examples(rows, group="")


def test_a_short_file_has_the_labels_of_the_training_file(tmp_path: Path):
    train = read_rows(written(tmp_path, {"text": LONG, "tags": ["phone;price", "screen", "price;screen", "phone"]}))
    short = train[:1]  # by itself it may have the label "phone;price"
    read = Reader(Classify(), group="")
    read(train)
    (example,) = read(short)
    assert isinstance(example, LabelledText)
    assert (example.labels, example.multi) == (("phone", "price"), True)


def test_tags_between_commas_are_several_labels(tmp_path: Path):
    found = examples(tmp_path, "tags with commas")
    assert [example.labels for example in found[:3] if isinstance(example, LabelledText)] == [
        ("a", "b"), ("c",), ("a", "c"),
    ]  # fmt: skip
    rows = read_rows(written(tmp_path, {"text": LONG, "category": ["Arts, Music", "Sports"]}))
    single = Classify().examples(rows, group="")[0]
    assert isinstance(single, LabelledText)
    assert (single.labels, single.multi) == (("Arts, Music",), False)


def test_the_winner_is_chosen_and_ties_are_skipped_and_counted(tmp_path: Path):
    shape = {
        "prompt": LONG,
        "response_a": "first answer",
        "response_b": "second answer",
        "winner": ["a", "model_b", "tie"],
    }
    rows = read_rows(written(tmp_path, shape))
    columns = detect_or_guess(rows).columns
    kept, notes = usable(rows, columns)
    first, second, *_ = Preference().examples(kept, group="", columns=columns)
    assert isinstance(first, Pair)
    assert isinstance(second, Pair)
    assert (first.chosen, first.rejected) == ("first answer 0", "second answer 0")
    assert (second.chosen, second.rejected) == ("second answer 1", "first answer 1")
    assert notes[0].startswith("rows.jsonl: 13 of 40 rows skipped, 'winner' prefers neither answer (")


@pytest.mark.parametrize(
    ("columns", "instruction"),
    [
        ({"en": LONG, "target": GERMAN}, "Translate into German:"),
        ({"pt_BR": LONG, "zh-CN": LONG}, "Translate into Chinese:"),
        ({"translation": lambda n: {"eng_Latn": LONG, "fra_Latn": LONG}}, "Translate into French:"),
        ({"en": LONG, "target": "xyzzy"}, "Translate:"),
    ],
)
def test_translations_are_instructed_with_the_target_language(
    columns: Mapping[str, Cell], instruction: str, tmp_path: Path
):
    found = detect_or_guess(read_rows(written(tmp_path, columns)))
    assert isinstance(found, Format)
    assert dict(found.settings) == {"instruction": instruction, "metric": "chrf"}


def test_texts_of_one_language_in_source_and_target_are_not_called_a_translation(tmp_path: Path):
    found = detect_or_guess(read_rows(written(tmp_path, {"source": LONG, "target": LONG})))
    assert isinstance(found, Format)
    assert (found.objective, found.name, dict(found.settings)) == ("instruct", "prompt_completion", {})


def test_free_text_in_both_columns_is_no_classifier_and_the_option_to_paste_is_named(tmp_path: Path):
    with pytest.raises(
        DataError, match=r"if target answers text, use --set 'objective=\{kind: instruct, prompt: text, an"
    ):
        detect_or_guess(read_rows(written(tmp_path, {"text": LONG, "target": GERMAN})))


def test_languages_have_names_for_codes_regions_and_words():
    names = (
        "en",
        "pt_BR",
        "eng_Latn",
        "German",
        "text_fr",
        "de_sentence",
        "zh-CN",
        "title",
        "id",
        "lang",
        "Englisch",
        "texto inglés",
    )
    assert [language_of_name(name) for name in names] == [
        "English", "Portuguese", "English", "German", "French", "German", "Chinese", "", "", "", "English", "",
    ]  # fmt: skip
    assert len(NAMES) >= 40
