import json
from collections.abc import Callable

import pytest

from tunesmith.data.examples.parsers import chats
from tunesmith.data.readers.row import Row
from tunesmith.data.schema.formats import detect
from tunesmith.errors import DataError, UnsettledError


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
    with pytest.raises(DataError, match=r"and a\.jsonl:1 does not have a label in 'label': nan; "):
        detect(rows({"text": "t", "label": float("nan")}))
    with pytest.raises(DataError, match=r"and a\.jsonl:2 does not have a text in 'text': \['a', 'b'\]; "):
        detect(rows({"text": "t", "label": "x"}, {"text": ["a", "b"], "label": "x"}))


def test_a_turn_of_calls_needs_no_content():
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bonn"}}}
    result = [{"role": "tool", "name": "weather", "content": "sun"}, {"role": "assistant", "content": "Sunny."}]
    for calls in ({"tool_calls": [call]}, {"function_call": call["function"]}):
        turns = [{"role": "user", "content": "Rain?"}, {"role": "assistant", **calls}, *result]
        assert detect(rows({"messages": turns})).columns == {"messages": "messages"}


def test_preferences_as_openai_takes_them_are_no_prompts():
    answers = {f"{kind}_output": [{"role": "assistant", "content": kind}] for kind in ("preferred", "non_preferred")}
    found = detect(rows({"input": {"messages": [{"role": "user", "content": "Rain?"}], "tools": []}, **answers}))
    assert (found.objective, found.columns) == (
        "preference",
        {"prompt": "input.messages", "chosen": "preferred_output", "rejected": "non_preferred_output"},
    )


def test_prompts_without_answers_may_be_those_of_a_reward():
    given = [{"prompt": f"What is {n} plus {2 * n}?", "id": n} for n in range(30)]
    with pytest.raises(
        DataError, match=r"to train with a reward function, use --set 'objective=\{kind: rl, prompt: pr"
    ):
        detect(rows(*given))


def test_unclear_columns_are_named_with_what_to_write():
    columns = r"^a\.jsonl: no known format has the columns \['en', 'frog'\]; "
    option = r"if frog answers en, use --set 'objective=\{kind: instruct, prompt: en, answer: frog\}'$"
    with pytest.raises(DataError, match=columns + option):
        detect(rows({"en": "a", "frog": "b"}))


def of(*judged: dict[str, object]) -> dict[str, str]:
    """What detection takes rows for, as {part: column} with the format's name."""
    found = detect(rows(*judged))
    return {"format": found.name, **found.columns}


def test_thumbs_are_read_beside_chats_and_alpaca_rows_and_as_pandas_writes_them():
    chat = of({"messages": TURNS, "label": False}, {"messages": TURNS, "label": True})
    assert chat == {"format": "thumbs", "messages": "messages", "label": "label"}
    shared = of({"conversations": SHARES, "kto_tag": False})
    assert shared == {"format": "thumbs", "conversations": "conversations", "label": "kto_tag"}
    alpaca = of({"instruction": "i", "input": "about", "output": "o", "kto_tag": False})
    parts = {"prompt": "instruction", "input": "input", "answer": "output", "label": "kto_tag"}
    assert alpaca == {"format": "thumbs", **parts}
    for name, value in (("label", "1.0"), ("label", "no"), ("desirable", "False"), ("liked", False)):
        assert of({"prompt": "p", "completion": "c", name: value})["format"] == "thumbs"
    blank = [{"prompt": f"p {n}", "completion": f"c {n}", "label": ("1.0", "0.0")[n % 2]} for n in range(19)]
    assert of(*blank, {"prompt": "p", "completion": "c", "label": ""})["format"] == "thumbs"


@pytest.mark.parametrize(
    "answered",
    [
        {"prompt": "p", "completion": "c"},
        {"instruction": "i", "input": "", "output": "o"},
        {"messages": TURNS},
        {"conversations": SHARES},
    ],
)
def test_what_may_say_which_answers_are_good_is_asked_about_and_never_passed_over(answered: dict[str, object]):
    gaps = [{**answered, "label": (True, False, None)[n % 3]} for n in range(12)]
    with pytest.raises(UnsettledError, match=r"^a\.jsonl: label may rate the answers, .* rename it to `label`"):
        detect(rows(*gaps))
    named = [{**answered, "was it right": ("yes", "no")[n % 2]} for n in range(12)]
    with pytest.raises(UnsettledError, match=r"was it right may rate .* data\.where: \{was it right: \[\.\.\.\]\}"):
        detect(rows(*named))
    assert detect(rows(*named), learned=False).objective == "instruct"  # where no answer is learned
    rated = [{**answered, "quality": n % 5} for n in range(24)]
    with pytest.raises(UnsettledError, match="quality rates the answers"):
        detect(rows(*rated))
    by_mark = [{**answered, "quality": 5 - n // 100} for n in range(500)]  # a file may be sorted, the best first
    with pytest.raises(UnsettledError, match="quality rates the answers"):
        detect(rows(*by_mark))
    by_turns = [{**answered, "quality": (5, 1)[n % 2]} for n in range(400)]
    with pytest.raises(UnsettledError, match="quality rates the answers"):
        detect(rows(*by_turns))
    noted = [{**answered, "group": n % 2, "multi_turn": False} for n in range(12)]
    assert detect(rows(*noted)).objective == "instruct"


def test_a_label_that_says_what_the_answer_says_is_no_thumb_to_learn_from_unasked():
    spam = [
        {"instruction": "Spam?", "input": f"mail {n}", "output": ("yes", "no")[n % 2], "label": 1 - n % 2}
        for n in range(40)
    ]
    with pytest.raises(UnsettledError, match="label may rate the answers"):
        detect(rows(*spam))


def test_the_text_a_judged_question_is_about_and_earlier_turns_belong_to_its_prompt():
    judged = {"instruction": "Answer.", "input": "How do I boil an egg?", "chosen": "a", "rejected": "b"}
    parts = {"prompt": "instruction", "input": "input", "chosen": "chosen", "rejected": "rejected"}
    assert of(judged) == {"format": "preference", **parts}
    history: dict[str, object] = {"history": [["old q", "old a"]]}
    assert of({**judged, **history})["history"] == "history"
    assert of({"instruction": "i", "output": "o", **history})["history"] == "history"
    for name in ("input", "query"):
        assert of({name: "q", "chosen": "a", "rejected": "b"})["prompt"] == name


def test_a_dialogue_that_waits_for_an_answer_is_the_prompt_of_what_was_preferred():
    asked = [*SHARES, {"from": "human", "value": "and?"}]
    one, other = {"from": "gpt", "value": "a"}, {"from": "gpt", "value": "b"}
    parts = {"format": "preference", "prompt": "conversations", "chosen": "chosen", "rejected": "rejected"}
    assert of({"conversations": asked, "chosen": one, "rejected": other}) == parts
    assert of({"conversations": asked, "chosen": [one], "rejected": [other]}) == parts
    assert "prompt" not in of({"messages": TURNS, "chosen": TURNS, "rejected": TURNS})  # UltraFeedback's copy


def test_rows_with_chosen_and_rejected_are_never_taken_for_anything_else():
    with pytest.raises(
        UnsettledError, match=r"^a\.jsonl:2: expected an answer in 'chosen', got ''; write chosen and rejected"
    ):
        detect(
            rows(
                {"prompt": "p", "completion": "c", "chosen": "a", "rejected": "b"},
                {"prompt": "p", "completion": "c", "chosen": "", "rejected": "b"},
            )
        )


@pytest.mark.parametrize("written", [str, json.dumps])
def test_chats_that_a_table_holds_as_text_are_told_as_chats(written: Callable[[object], str]):
    assert of({"messages": written(TURNS)}) == {"format": "messages", "messages": "messages"}
    assert of({"conversations": written(SHARES)})["format"] == "sharegpt"
    assert of({"chosen": written(TURNS), "rejected": written(TURNS)})["format"] == "preference"


def test_prompt_and_completion_may_be_turns_and_functions_are_tools():
    asked, said = TURNS[:1], TURNS[1:]
    assert of({"prompt": asked, "completion": said})["format"] == "prompt_completion"
    assert of({"messages": TURNS, "functions": []})["tools"] == "functions"


def test_the_older_name_of_tools_is_read_beside_an_instruction_too():
    fields = {"instruction": "ring", "output": "done", "functions": [{"name": "ring", "parameters": {}}]}
    found = detect([Row(f"a.jsonl:{n}", fields | {"instruction": f"ring {n}"}) for n in range(20)])
    assert found.columns["tools"] == "functions"


def test_of_two_names_that_differ_in_letters_the_one_in_small_letters_is_read():
    assert detect(rows(*[{"text": "t", "label": "l", "Text": "other"}] * 3)).columns["text"] == "text"


def test_a_label_with_a_fraction_is_told_with_its_cure():
    with pytest.raises(DataError, match=r"does not have a label in 'label': 1\.5 \(write the number as text\)"):
        detect(rows(*[{"text": "t", "label": 1.5}] * 3))
    with pytest.raises(DataError, match=r"does not have a text in 'text': 9{40}; "):
        detect(rows(*[{"text": int("9" * 400), "label": "a"}] * 3))  # more than a float can be


@pytest.mark.parametrize(
    ("fields", "columns"),
    [
        ({"prompt": "p", "input": "i", "output": "o"}, {"prompt": "prompt", "input": "input", "answer": "output"}),
        ({"prompt": "p", "input": "i", "response": "r"}, {"prompt": "prompt", "input": "input", "answer": "response"}),
        ({"input": "i", "context": "c", "output": "o"}, {"prompt": "input", "input": "context", "answer": "output"}),
    ],
)
def test_what_a_prompt_is_about_stands_with_it(fields: dict[str, object], columns: dict[str, str]):
    assert detect(rows(*[fields] * 20)).columns == columns


def test_a_context_that_is_no_text_is_refused_and_not_left_out():
    found = rows(*[{"question": f"q {n}", "context": ["a", "b"], "answer": "x"} for n in range(9)])
    assert detect(found).columns["input"] == "context"
    with pytest.raises(DataError, match=r"column 'context' must be one text \(join its parts, or set objective.prompt"):
        chats(found, columns=detect(found).columns)
    for nothing in ([], None, float("nan")):
        found = rows(*[{"question": f"q {n}", "context": nothing, "answer": "x"} for n in range(9)])
        assert chats(found, columns=detect(found).columns)[0].messages[0].content == "q 0"
    found = rows(*[{"question": f"q {n}", "input": n, "context": "all", "answer": "x"} for n in range(9)])
    assert detect(found).columns["input"] == "context"  # a number is no text that a question is about


def test_an_answer_that_is_a_number_is_told_with_its_row():
    with pytest.raises(
        DataError, match=r"and a\.jsonl:1 does not have a text in 'answer': 4 \(write the number as text\); "
    ):
        detect(rows(*[{"question": f"what is {n} and more", "answer": 4} for n in range(9)]))


def test_a_context_that_some_questions_lack_is_read_for_the_others():
    some = [{"question": "q", "context": "" if n % 5 == 0 else "c", "answer": "a"} for n in range(20)]
    assert detect(rows(*some)).columns == {"prompt": "question", "input": "context", "answer": "answer"}


def test_a_history_is_read_from_lists_and_from_json_and_refused_by_name_in_any_other_form():
    said = [["Hi", "Hello."]]
    for history in (said, json.dumps(said), str(said)):
        few = rows(*[{"instruction": f"Why {i}?", "output": f"Since {i}.", "history": history} for i in range(12)])
        found = detect(few)
        assert found.columns["history"] == "history"
        assert [turn.content for turn in chats(few, columns=found.columns)[0].messages][:2] == ["Hi", "Hello."]
    odd = [{"role": "user", "content": "Hi"}]
    few = rows(*[{"prompt": f"Why {i}?", "response": f"Since {i}.", "history": odd} for i in range(12)])
    with pytest.raises(DataError, match="history.*must be a list of"):
        chats(few, columns=detect(few).columns)


@pytest.mark.parametrize("grades", [(1, 0), (True, False), ("1", "0")])
@pytest.mark.parametrize(("passage", "relevance"), [("passage", "relevance"), ("document", "label")])
def test_a_query_and_a_passage_with_0_or_1_are_not_a_text_with_a_label(
    grades: tuple[object, ...], passage: str, relevance: str
):
    found = detect(rows(*({"query": "q", passage: f"p {grade}", relevance: grade} for grade in grades * 9)))
    assert found.columns == {"query": "query", "passage": passage, "relevance": relevance}
    assert found.explain().endswith(f"{passage} -> passage, {relevance} -> 1 if the passage answers it")
    asked = rows(*({"question": f"q {i // 2}", "passage": f"p {i}", "label": grades[i % 2]} for i in range(20)))
    assert detect(asked).columns["relevance"] == "label"
    answered = rows(*({"question": f"q {i}", "passage": f"p {i}", "label": grades[i % 2]} for i in range(20)))
    assert detect(answered).name == "text_pair"  # yes or no may be the answer to the question
