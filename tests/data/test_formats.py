import pytest

from tunesmith.data.formats import detect
from tunesmith.data.rows import Row
from tunesmith.errors import DataError


def rows(*fields: dict[str, object]) -> list[Row]:
    return [Row(f"a.jsonl:{n}", one) for n, one in enumerate(fields, 1)]


TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SHARES = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


@pytest.mark.parametrize(
    ("fields", "name", "objective", "columns"),
    [
        (
            {"instruction": "i", "input": "", "output": "o"},
            "alpaca",
            "instruct",
            {"prompt": "instruction", "input": "input", "answer": "output"},
        ),
        (
            {"instruction": "i", "context": "c", "response": "r", "category": "open_qa"},
            "alpaca",
            "instruct",
            {"prompt": "instruction", "input": "context", "answer": "response"},
        ),
        ({"conversations": SHARES}, "sharegpt", "instruct", {"conversations": "conversations"}),
        ({"messages": TURNS}, "messages", "instruct", {"messages": "messages"}),
        (
            {"conversations": TURNS, "tools": []},
            "messages",
            "instruct",
            {"messages": "conversations", "tools": "tools"},
        ),
        (
            {"Prompt": "p", "Completion": "c"},
            "prompt_completion",
            "instruct",
            {"prompt": "Prompt", "answer": "Completion"},
        ),
        (
            {"source": "bash", "document": "d", "summary": "s"},
            "prompt_completion",
            "instruct",
            {"prompt": "document", "answer": "summary"},
        ),
        (
            {"question": "q", "answer": "a", "text": "t", "label": "l"},
            "prompt_completion",
            "instruct",
            {"prompt": "question", "answer": "answer"},
        ),
        ({"id": "x", "en": "hi", "fr": "salut"}, "translation", "instruct", {"prompt": "en", "answer": "fr"}),
        ({"text": "t", "label": 1}, "text_label", "classify", {"text": "text", "label": "label"}),
        (
            {"Review": "t", "Sentiment": "pos", "id": 4},
            "text_label",
            "classify",
            {"text": "Review", "label": "Sentiment"},
        ),
        ({"text": "t", "labels": []}, "text_label", "classify", {"text": "text", "label": "labels"}),
        (
            {"prompt": "p", "chosen": "c", "rejected": "r", "label": "x"},
            "preference",
            "preference",
            {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
        ),
        (
            {"chosen": TURNS, "rejected": TURNS},
            "preference",
            "preference",
            {"chosen": "chosen", "rejected": "rejected"},
        ),
        (
            {"prompt": "p", "completion": "c", "label": False},
            "thumbs",
            "preference",
            {"prompt": "prompt", "answer": "completion", "label": "label"},
        ),
        ({"id": 1, "content": "t"}, "text", "domain", {"text": "content"}),
    ],
)
def test_columns_tell_the_format(fields, name, objective, columns):
    found = detect(rows(*[fields] * 3))
    assert (found.name, found.objective, dict(found.columns)) == (name, objective, columns)


def test_votes_written_as_csv_text_are_thumbs_and_not_answers_to_learn():
    assert detect(rows({"prompt": "p", "completion": "c", "label": "0"})).name == "thumbs"


def test_the_usual_words_for_a_thumb_are_thumbs_and_a_system_column_belongs_to_the_prompt():
    for name, up, down in (("feedback", "thumbs_up", "thumbs_down"), ("label", "good", "bad"), ("thumb", "👍", "👎")):
        judged = [{"prompt": f"p {n}", "response": "r", name: (up, down)[n % 2]} for n in range(20)]
        assert detect(rows(*judged)).columns == {"prompt": "prompt", "answer": "response", "label": name}
    pair = {"system": "Be brief.", "question": "q", "chosen": "c", "rejected": "r"}
    assert detect(rows(pair)).columns["system"] == "system"


def test_the_text_a_question_is_about_is_part_of_the_question():
    asked = {"question": "How old?", "context": "CREATE TABLE head (age INTEGER)", "answer": "SELECT age FROM head"}
    assert detect(rows(asked)).columns == {"prompt": "question", "input": "context", "answer": "answer"}


def test_of_two_columns_called_like_labels_the_one_whose_values_come_again_is_read():
    found = [{"title": "t", "category": f"free words {n}", "topic": "ab"[n % 2]} for n in range(40)]
    assert detect(rows(*found)).columns == {"text": "title", "label": "topic"}


def test_the_mapping_is_explained_in_one_line():
    found = detect(rows({"instruction": "i", "input": "x", "output": "o"}))
    assert found.explain() == "detected alpaca: instruction+input -> user turn, output -> assistant turn"


def test_a_column_counts_if_nine_rows_in_ten_have_it():
    full, bare = {"text": "t", "label": "a"}, {"text": "t", "label": None}
    assert detect(rows(*[full] * 18, *[bare] * 2)).name == "text_label"
    with pytest.raises(DataError):
        detect(rows(*[full] * 17, *[bare] * 3))


def test_the_first_row_alone_decides_nothing():
    assert detect(rows({"text": "t"}, *[{"text": "t", "label": "a"}] * 19)).name == "text_label"


def test_only_the_first_two_hundred_rows_are_looked_at():
    assert detect(rows(*[{"text": "t", "label": "a"}] * 200, *[{"other": 1}] * 500)).name == "text_label"


def test_sentences_in_a_target_column_are_no_labels():
    translations = [{"text": f"sentence {n}", "target": f"phrase {n}"} for n in range(20)]
    with pytest.raises(DataError):
        detect(rows(*translations))
    with pytest.raises(DataError):
        detect(rows({"text": "t", "target": "a long sentence " * 5}))


def test_a_value_of_another_kind_in_a_known_column_is_shown_with_its_row():
    with pytest.raises(DataError, match=r"and a\.jsonl:1 has no label in 'label': nan; "):
        detect(rows({"text": "t", "label": float("nan")}))
    with pytest.raises(DataError, match=r"and a\.jsonl:2 has no text in 'text': \['a', 'b'\]; "):
        detect(rows({"text": "t", "label": "x"}, {"text": ["a", "b"], "label": "x"}))


def test_unclear_columns_are_named_with_what_to_write():
    with pytest.raises(DataError, match=r"^a\.jsonl: no known format has the columns \['en', 'frog'\]; write in the"):
        detect(rows({"en": "a", "frog": "b"}))
    with pytest.raises(DataError, match=r"objective: \{kind: classify, text: COLUMN, label: COLUMN\}"):
        detect(rows({"en": "a", "frog": "b"}))
