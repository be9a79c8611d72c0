"""Headers that nobody knows: which columns may be meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.data.examples.usable import usable
from tunesmith.data.readers.read import read_rows
from tunesmith.data.readers.row import Row
from tunesmith.data.schema.formats import detect, detect_or_guess
from tunesmith.data.schema.guess import guess
from tunesmith.data.schema.values import number_of
from tunesmith.errors import DataError

LONG = "the battery of this phone holds a day"


def rows(count: int = 12, **columns: object) -> list[Row]:
    """Rows of these columns; a list is gone through again and again."""
    return [
        Row(f"a.csv:{n}", {name: v[n % len(v)] if isinstance(v, list) else f"{v} {n}" for name, v in columns.items()})
        for n in range(count)
    ]


@pytest.mark.parametrize(
    ("columns", "objective", "found"),
    [
        ({"Comment text": LONG, "Mood": ["good", "bad"]}, "classify", {"text": "Comment text", "label": "Mood"}),
        ({"x1": ["good", "bad"], "x2": LONG}, "classify", {"text": "x2", "label": "x1"}),  # by their values alone
        ({"userQuestion": LONG, "ourReply": LONG}, "instruct", {"prompt": "userQuestion", "answer": "ourReply"}),
        ({"Q": LONG, "A": LONG}, "instruct", {"prompt": "Q", "answer": "A"}),
        ({"term": "entropy", "meaning": LONG}, "instruct", {"prompt": "term", "answer": "meaning"}),
        ({"word": "x", "gloss": LONG, "field": ["a", "b"]}, "classify", {"text": "gloss", "label": "field"}),
        (
            {"comment": LONG, "toxic": [0, 1, 0], "insult": [0, 0, 1], "threat": [1, 0, 0]},
            "classify",
            {"text": "comment", "label": "toxic + insult + threat"},
        ),
        ({"title": ["too hot"], "body": LONG, "queue": ["a", "b"]}, "classify", {"text": "body", "label": "queue"}),
        ({"text": LONG, "department": ["a", "b"]}, "classify", {"text": "text", "label": "department"}),
        ({"note": LONG, "stars": [1, 5], "shop": ["a", "b"]}, "classify", {"text": "note", "label": "stars"}),
    ],
)  # fmt: skip
def test_columns_are_guessed_by_name_or_by_what_they_hold(
    columns: dict[str, object], objective: str, found: dict[str, str]
):
    guessed = guess(rows(**columns))
    assert guessed is not None
    assert (guessed.objective, guessed.columns) == (objective, found)


def test_other_columns_that_could_be_the_label_are_named():
    guessed = guess(rows(note=LONG, stars=[1, 5], shop=["a", "b"], version=[1, 2]))
    assert guessed is not None
    assert guessed.other_labels == ("shop",)
    assert "note -> text, stars -> label; other possible labels: shop" in guessed.explain()


def test_a_column_of_few_values_is_the_text_only_where_there_is_no_other():
    guessed = guess(rows(name="red cup", kind_of_thing=["cups and mugs", "plates and bowls"], sold=["yes", "no"]))
    assert guessed is not None
    assert guessed.columns["text"] == "name"


@pytest.mark.parametrize("columns", [{"x1": LONG, "x2": LONG}, {"x1": ["a", "b"]}, {"x1": LONG, "x2": ["a"]}])
def test_where_nothing_tells_the_parts_nothing_is_guessed(columns: dict[str, object]):
    assert guess(rows(**columns)) is None


def test_a_text_beside_a_column_called_like_a_label_is_not_taken_for_a_document():
    with pytest.raises(DataError, match="kind: classify, text: text, label: department"):
        detect(rows(text=LONG, department=["a", "b"]))
    with pytest.raises(DataError, match="kind: classify, text: text, label: spam"):
        detect(rows(text=LONG, spam=["spam", "ham"]))
    assert detect(rows(text=LONG, lang=["en", "fr"], split=["train", "test"])).objective == "domain"
    assert detect(rows(text=LONG, tags=[["a"], ["a", "b"], []])).columns == {"text": "text", "label": "tags"}


@pytest.mark.parametrize("blank", [None, "", float("nan"), "n/a", "NULL"])
@pytest.mark.parametrize("name", ["score", "target", "value"])
def test_a_number_that_some_rows_lack_is_named_with_the_option_that_skips_them(name: str, blank: object):
    numbers: list[object] = [n / 8 for n in range(50)]
    partly = rows(60, text=LONG, **{name: [*numbers, *[blank] * 10]})
    with pytest.raises(DataError) as error:
        detect(partly)
    option = f"--set 'objective={{kind: regress, text: text, target: {name}}}'"
    problem = f"10 of 60 rows have no number in {name!r}"
    assert str(error.value) == f"a.csv: {problem}; to skip them, confirm with {option}"
    guessed = detect_or_guess(partly)
    assert guessed.explain() == f"text -> text, {name} -> target; {problem}"
    kept, notes = usable(partly, guessed.columns)
    assert [number_of(row.fields[name]) for row in kept] == numbers
    assert notes[0].startswith(f"a.csv: 10 of 60 rows skipped, {name!r} has no number (a.csv:50, ")


@pytest.mark.parametrize("blank", [None, "", float("nan")])
def test_rows_without_a_label_are_counted_and_may_be_skipped_or_labelled(blank: object):
    option = "--set 'objective={kind: classify, text: text, label: label}'"
    with pytest.raises(DataError) as error:
        detect(rows(120, text=LONG, label=["good", blank, "bad", blank, "good"]))
    problem = "48 of 120 rows have no label in 'label'"
    fix = f"to skip them, confirm with {option}, or label them with `tunesmith label`"
    assert str(error.value) == f"a.csv: {problem}; {fix}"


def test_whole_numbers_that_some_rows_lack_are_named_too():
    prices = [*range(0, 5000, 100), *[None] * 10]
    with pytest.raises(DataError, match="10 of 60 rows have no number in 'price'.*kind: regress"):
        detect(rows(60, text=LONG, price=prices))
    with pytest.raises(DataError, match="10 of 60 rows have no label in 'rating'.*kind: classify"):
        detect(rows(60, text=LONG, rating=[*[1, 2, 3, 4, 5] * 10, *[None] * 10]))
    assert detect(rows(60, text=LONG, shelf=prices)).objective == "domain"  # not a name of a number to predict


def test_a_column_of_fractions_that_is_not_used_is_not_called_blank():
    ignored = detect(rows(60, text=LONG, label=["a", "b"], trust=[n / 8 for n in range(30)], gap=[None])).ignored
    assert ignored == {"trust": "other values", "gap": "blank"}


def test_two_answers_to_a_prompt_are_no_answer_to_learn():
    judged = rows(prompt=LONG, response_a=LONG, response_b=LONG, label=[0, 1])  # which of them is 1?
    with pytest.raises(
        DataError, match=r"^a\.csv: response_a and response_b are both answers; rename the better one to"
    ):
        detect(judged)


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ({"question1": LONG, "question2": LONG, "same": ["yes", "no"]}, "question1 and question2 are both"),
        ({"4": ["4", "0"], "I love this new phone": LONG}, r"the first line looks like a row, not a header \("),
        ({"prompt": LONG, "response": LONG, "rating": [1, 5]}, r"rating rates the answers, .* data\.where: \{rating:"),
    ],
)  # fmt: skip
def test_rows_that_say_more_than_their_columns_are_asked_about(columns: dict[str, object], found: str):
    with pytest.raises(DataError, match=rf"^a\.csv: {found}"):
        detect(rows(24, **columns))
    assert guess(rows(24, **columns)) is None


def test_a_short_column_beside_options_is_no_answer_key():
    found = detect(rows(24, question=LONG, options=[["x", "y"]], answer=LONG, lang=["en", "de"]))
    assert found.columns["answer"] == "answer"
    apart = detect(rows(24, text=LONG, label=["a", "b"], question=LONG, context=LONG))
    assert apart.columns == {"text": "text", "label": "label"}


def test_a_good_and_a_bad_answer_are_a_pair_and_the_bad_one_is_never_learned():
    guessed = guess(rows(question=LONG, good_answer=LONG, bad_answer=LONG))
    assert guessed is not None
    assert guessed.objective == "preference"
    assert guessed.columns == {"prompt": "question", "chosen": "good_answer", "rejected": "bad_answer"}
    assert guess(rows(question=LONG, bad_answer=LONG)) is None


def test_thumbs_of_other_names_are_guessed_and_gaps_in_them_are_asked_about():
    guessed = guess(rows(user_message=LONG, bot_reply=LONG, thumbs=["up", "down"]))
    assert guessed is not None
    assert guessed.objective == "preference"
    assert guessed.columns == {"prompt": "user_message", "answer": "bot_reply", "label": "thumbs"}
    for judged in ({"thumbs": ["up", "down", ""]}, {"correct": ["yes", "no"]}):
        found = rows(user_message=LONG, bot_reply=LONG, **judged)
        assert guess(found) is None
        with pytest.raises(DataError, match=rf"^a\.csv: {next(iter(judged))} may rate the answers"):
            detect(found)


def test_a_column_of_notes_about_rows_is_no_label():
    assert guess(rows(question_text=LONG, split=["train", "test"])) is None


def test_names_numbers_and_dates_are_no_questions_and_no_answers():
    tickets = {"Customer Name": ["Ada L", "Alan T"], "Ticket Type": ["bill", "tech"], "Ticket Text": LONG}
    guessed = guess(rows(24, **tickets, **{"First Response Time": ["2023-06-01 12:15:36", "2023-06-02 08:00:01"]}))
    assert guessed is not None
    assert guessed.columns == {"text": "Ticket Text", "label": "Ticket Type"}


def test_texts_without_spaces_between_words_are_texts():
    guessed = guess(rows(评论="快递太慢了包装也坏了客服不回复", 标签=["差评", "好评"]))
    assert guessed is not None
    assert guessed.columns == {"text": "评论", "label": "标签"}


def test_rows_of_no_known_format_are_refused_with_the_guess_as_an_option_to_paste():
    odd = rows(**{"it's said": LONG, "Mood": ["good", "bad"]})
    with pytest.raises(
        DataError, match=r"confirm it with --set 'objective=\{kind: classify, text: it'\"'\"'s said, label"
    ):
        detect(odd)


def test_a_column_without_a_name_is_no_column_and_is_told(tmp_path: Path):
    file = tmp_path / "a.csv"
    file.write_text(",Mood\n" + "".join(f"{LONG} {n},{('good', 'bad')[n % 2]}\n" for n in range(12)))
    with pytest.raises(DataError, match=r"^a\.csv: column 1 has no name; name it in the first line$"):
        detect(read_rows(file))
    file.write_text(",text,label\n" + "".join(f"{n},{LONG} {n},{('good', 'bad')[n % 2]}\n" for n in range(12)))
    assert detect(read_rows(file)).columns == {"text": "text", "label": "label"}  # a number beside them harms nobody


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ({"history": LONG, "human_ref_A": LONG, "human_ref_B": LONG, "labels": [0, 1]}, "human_ref_A and human_ref_B"),
        (
            {
                "question": [{"full_text": "q"}],
                "answer_0": LONG,
                "score_0": [1, -1],
                "answer_1": LONG,
                "score_1": [1, -1],
            },
            "answer_0 and answer_1",
        ),
    ],
)
def test_of_rival_answers_the_better_one_is_asked_for(columns: dict[str, object], found: str):
    judged = rows(24, **columns)
    with pytest.raises(
        DataError, match=rf"^a\.csv: {found} are both answers; rename the better one to `chosen`, the other"
    ):
        detect(judged)
    assert guess(judged) is None


def test_a_table_that_pandas_wrote_column_by_column_is_told_with_the_call_that_helps(tmp_path: Path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": {"0": "a b", "1": "c d"}, "label": {"0": "x", "1": "y"}}', encoding="utf-8")
    with pytest.raises(DataError, match=r'stored by column; write df.to_json\(FILE, orient="records", lines=True\)$'):
        detect(read_rows(file))


@pytest.mark.parametrize(
    "values",
    [
        ["2026-11-28 12:28:43", "2026-11-28 12:28:44"],
        ["08:15", "17:30:02"],
        ["2026-11-28T12:28:43,418", "2026-11-28T12:28:43,420"],
    ],
)
def test_dates_and_times_are_no_labels(values: list[str]):
    log = rows(time=values, text=LONG)
    assert guess(log) is None
    assert detect(log).objective == "domain"
