import json

import pytest

from tunesmith.data.examples.parsers import chats, fingerprint, labelled, queries, question, texts
from tunesmith.data.examples.types import Chat, LabelledText, Text
from tunesmith.data.examples.usable import usable
from tunesmith.data.readers.row import Row
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import DataError


def rows(*fields: dict[str, object]) -> list[Row]:
    return [Row(f"train.jsonl:{n}", one) for n, one in enumerate(fields, 1)]


def turns(*said: str) -> list[dict[str, str]]:
    """`u:hello` is a user turn."""
    names = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return [{"role": names[one[0]], "content": one[2:]} for one in said]


def said(chat: Chat) -> list[str]:
    return [f"{message.role[0]}:{message.content}" for message in chat.messages]


PAIR = {"prompt": "prompt", "answer": "answer"}


def test_texts_keep_their_place_and_group():
    assert texts(rows({"text": " x ", "doc": 7}), text="text", group="doc") == [Text("train.jsonl:1", " x ", "7")]


def test_all_faults_of_a_file_are_told_together():
    with pytest.raises(DataError) as caught:
        texts(rows({"text": "ok"}, {"text": None}, {"text": "  "}, {"id": 3}), text="text")
    assert str(caught.value).split("\n") == [
        "train.jsonl:2: column 'text' must be text, got None; columns here: ['text']",
        "train.jsonl:3: column 'text' is blank; fill it or drop the row",
        "train.jsonl:4: column 'text' must be text, got None; columns here: ['id']",
    ]


def test_twenty_faults_are_told_and_the_rest_counted():
    with pytest.raises(DataError) as caught:
        texts(rows({"text": "ok"}, *[{"text": 5}] * 33), text="text")
    told = str(caught.value).split("\n")
    assert (len(told), told[-1]) == (21, "... and 13 more")


def test_a_column_that_no_row_has_is_one_error_with_the_nearest_name():
    with pytest.raises(DataError) as caught:
        labelled(rows(*[{"text": "x", "Label": "a"}] * 50), text="text", label="lable")
    assert str(caught.value) == (
        "train.jsonl: no column 'lable'; did you mean 'Label'? columns here: ['text', 'Label']"
    )


def test_half_a_character_is_a_fault():
    with pytest.raises(
        DataError, match=r"train\.jsonl:1: column 'text': half a surrogate pair \(\\ud83d\) at character 4"
    ):
        texts(rows({"text": "hi \ud83d"}), text="text")


@pytest.mark.parametrize(("value", "label"), [("a;b", "a;b"), (1, "1"), (True, "True"), (2.0, "2"), (" x ", "x")])
def test_a_label_becomes_its_word(value, label):
    found = labelled(rows({"text": "t", "label": value}), text="text", label="label")
    assert found == [LabelledText("train.jsonl:1", "t", (label,))]


@pytest.mark.parametrize("value", [0.73, float("nan"), None, "", {"a": 1}, [["a"]], ["a", None]])
def test_what_is_no_label_is_a_fault(value):
    with pytest.raises(DataError, match=r"^train\.jsonl:1: column 'label' must be a word, a whole number or a list"):
        labelled(rows({"text": "t", "label": value}), text="text", label="label")


def test_one_list_makes_all_rows_multi_label_and_an_empty_list_is_a_label():
    data = rows({"t": "x", "l": ["b", "a", "b"]}, {"t": "y", "l": []}, {"t": "z", "l": "a"})
    found = labelled(data, text="t", label="l")
    assert [example.labels for example in found] == [("b", "a"), (), ("a",)]
    assert all(example.multi for example in found)


def test_a_group_is_a_word_or_blank():
    data = rows({"text": "x", "g": None}, {"text": "y", "g": 2.0}, {"text": "z", "g": " a "})
    assert [example.group for example in texts(data, text="text", group="g")] == ["", "2", "a"]
    with pytest.raises(DataError, match="column 'g' must contain the source of the row, got 0.5"):
        texts(rows({"text": "x", "g": 0.5}), text="text", group="g")


def test_a_missing_value_of_pandas_is_none():
    nan = float("nan")
    (text,) = texts(rows({"title": nan, "body": "y", "g": nan}), text="title + body", group="g")
    assert (text.text, text.group) == ("body: y", "")
    columns = {**PAIR, "system": "system", "tools": "tools", "history": "history"}
    data = rows({"prompt": "p", "answer": "a", "system": nan, "tools": nan, "history": nan})
    assert said(chats(data, columns=columns)[0]) == ["u:p", "a:a"]


def test_instruction_prompt_and_input_make_the_user_turn():
    columns = {**PAIR, "input": "input", "system": "system"}
    data = rows(
        {"prompt": "p", "input": "i", "system": "be short", "answer": "a"},
        {"prompt": "p", "input": "", "system": None, "answer": "a"},
    )
    first, second = chats(data, columns=columns, instruction="Do.")
    assert said(first) == ["s:be short", "u:Do.\n\np\n\ni", "a:a"]
    assert said(second) == ["u:Do.\n\np", "a:a"]


def test_names_of_other_formats_become_the_four_roles():
    shares = [
        {"from": "system", "value": "s"},
        {"from": "human", "value": "u"},
        {"from": "gpt", "value": "a"},
        {"from": "observation", "value": "t"},
        {"from": "gpt", "value": "b"},
    ]
    (chat,) = chats(rows({"conversations": shares}), columns={"conversations": "conversations"})
    assert said(chat) == ["s:s", "u:u", "a:a", "t:t", "a:b"]


def test_the_instruction_stands_before_the_first_user_turn_only():
    data = rows({"messages": turns("s:s", "u:one", "a:x", "u:two", "a:y")})
    (chat,) = chats(data, columns={"messages": "messages"}, instruction="Do.")
    assert said(chat) == ["s:s", "u:Do.\n\none", "a:x", "u:two", "a:y"]


def test_an_empty_answer_behind_the_last_one_is_left_out():
    (chat,) = chats(rows({"messages": turns("u:q", "a:x", "u:r", "a:")}), columns={"messages": "messages"})
    assert said(chat) == ["u:q", "a:x", "u:r"]


def test_an_empty_system_turn_is_left_out():
    (chat,) = chats(rows({"messages": turns("s:", "u:q", "a:x")}), columns={"messages": "messages"})
    assert said(chat) == ["u:q", "a:x"]


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        (turns("a:x"), "turn 1: expected system or user first, got assistant; "),
        (turns("u:q", "u:r", "a:x"), "turn 2: expected assistant after user, got user; "),
        (turns("u:q", "s:s", "a:x"), "turn 2: expected assistant after user, got system; "),
        (turns("u:q", "t:1", "a:x"), "turn 2: expected assistant after user, got tool; "),
        (turns("u:q", "a: "), "no assistant turn with content; "),
        (turns("u:q", "a:", "u:r", "a:fine"), "turn 2 \\(assistant\\): empty answer; "),
        (turns("u:q"), "no assistant turn with content; "),
        (turns("u: ", "a:x"), "turn 1 \\(user\\): expected text, got ' '; "),
        (
            [{"role": "narrator", "content": "x"}],
            "turn 1: unknown role 'narrator'; write one of system, user, ",
        ),
        (
            [*turns("u:q"), {"role": "assistant", "content": None, "tool_calls": [{}]}],
            "turn 2: tool call without a name",
        ),
        (["hello"], "turn 1: expected a turn, got 'hello'; write "),
        ([*turns("u:q"), {"role": "assistant", "content": "no", "weight": 0}], "all answers are excluded .*; include "),
        ([*turns("u:q"), {"role": "assistant", "content": "no", "train": False}], "all answers are excluded .*; "),
        (
            [*turns("u:q"), {"role": "assistant", "content": "no", "weight": -1}],
            "turn 2: expected weight as true, false or a number >= 0, got -1; use 1",
        ),
        ([*turns("u:q"), {"role": "assistant", "content": "no", "loss": "nan"}], "turn 2: expected loss as true, "),
        ([*turns("u:q"), {"role": "assistant", "content": "no", "train": "perhaps"}], "turn 2: expected train as "),
        (
            [*turns("u:q"), {"role": "assistant", "content": "no", "reasoning_content": ["hm"]}],
            "turn 2: expected thoughts in 'reasoning_content' as text, got .*; write",
        ),
        (turns("u:q", "a:<think>hm"), "turn 2 \\(assistant\\): thoughts that do not end; write </think>"),
        (turns("u:q", "a:<think>hm</think>", "u:r", "a:x"), "turn 2 .*: empty answer after the thoughts; "),
        ([], "column 'messages' must be a list of turns, got \\[\\]; "),
        ("hello", "column 'messages' must be a list of turns, got 'hello'; "),
    ],
)
def test_turns_out_of_order_or_without_content_are_faults(messages, fault):
    with pytest.raises(DataError, match=rf"^train\.jsonl:1: {fault}"):
        chats(rows({"messages": messages}), columns={"messages": "messages"})


@pytest.mark.parametrize(
    "columns",
    [
        {"text": "t", "label": "l"},
        {"prompt": "p"},
        {"prompt": "p", "answer": "a", "label": "thumb"},
        {"prompt": "p", "chosen": "c", "rejected": "r"},
    ],
)
def test_columns_of_other_formats_do_not_become_chats(columns):
    with pytest.raises(
        DataError,
        match=".* of a prompt and an answer, got .*; .*name the columns in objective.prompt",
    ):
        chats(rows(dict.fromkeys(columns.values(), "x")), columns=columns)


def test_fingerprints_see_contents_and_not_case_or_spacing():
    one = LabelledText("a:1", "Good  phone\n", ("b", "A"), "g", True)
    assert fingerprint(one) == fingerprint(LabelledText("b:9", "good phone", ("a", "B")))
    assert fingerprint(one) != fingerprint(LabelledText("a:1", "good phone", ("a",)))
    assert fingerprint(Text("a:1", "Straße")) == fingerprint(Text("a:2", "STRASSE"))


def test_fingerprints_cannot_be_imitated_by_the_text():
    assert fingerprint(LabelledText("a:1", "x\x1ey", ())) != fingerprint(LabelledText("a:1", "x", ("y",)))


def test_the_question_leaves_out_label_and_last_answer():
    assert question(LabelledText("a:1", "X", ("y",))) == question(LabelledText("a:2", "x", ("z",))) == "x"
    asked = (Message("user", "q"), Message("assistant", "a"), Message("user", "r"))
    first, second = (Chat("a:1", (*asked, Message("assistant", last))) for last in ("b", "c"))
    assert question(first) == question(second)
    assert fingerprint(first) != fingerprint(second)
    assert question(first) != question(Chat("a:1", (Message("user", "q"), Message("assistant", "a"))))


def test_a_history_is_read_as_earlier_turns_and_refused_where_it_is_none():
    columns = {"prompt": "instruction", "answer": "output", "history": "history"}
    fields = {"instruction": "q", "output": "a", "history": [["old q", "old a"]]}
    (found, bare) = chats(rows(fields, {**fields, "history": None}), columns=columns)
    assert said(found) == ["u:old q", "a:old a", "u:q", "a:a"]
    assert said(bare) == ["u:q", "a:a"]
    with pytest.raises(DataError, match=r"column 'history' must be a list of \[question, answer\], got 'long ago'"):
        chats(rows({**fields, "history": "long ago"}), columns=columns)


def test_prompt_and_answer_may_be_lists_of_turns():
    fields = {"prompt": turns("s:brief", "u:q"), "answer": turns("a:yes")}
    (found,) = chats(rows(fields), columns=PAIR)
    assert said(found) == ["s:brief", "u:q", "a:yes"]


def test_chats_that_a_table_holds_as_text_are_read_or_refused():
    spoken = turns("u:it's 5\n'o clock'", "a:so\nbe it")
    (one, other) = chats(
        rows({"messages": str(spoken)}, {"messages": json.dumps(spoken)}), columns={"messages": "messages"}
    )
    assert said(one) == said(other) == ["u:it's 5\n'o clock'", "a:so\nbe it"]
    with pytest.raises(DataError, match=r"^train\.jsonl:1: column 'messages': list of turns written as text"):
        chats(rows({"messages": "[{'role': 'user', 'content': array(1)}]"}), columns={"messages": "messages"})


def test_a_content_in_parts_is_their_texts():
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    fields = {"messages": [{"role": "user", "content": parts}, *turns("a:b")]}
    (found,) = chats(rows(fields), columns={"messages": "messages"})
    assert said(found) == ["u:one\ntwo", "a:b"]


def test_labels_may_have_a_column_each_with_0_or_1():
    several = rows({"t": "a", "x": 1, "y": "0"}, {"t": "b", "x": True, "y": 1}, {"t": "c", "x": "0", "y": 0.0})
    made = labelled(several, text="t", label="x + y")
    assert [example.labels for example in made] == [("x",), ("x", "y"), ()]
    assert all(example.multi for example in made)
    with pytest.raises(DataError, match=r"train\.jsonl:2: column 'x \+ y' must be 0 or 1 in each of the columns"):
        labelled(rows({"t": "a", "x": 1, "y": 0}, {"t": "b", "x": 1, "y": 2}), text="t", label="x + y")


def test_a_list_of_labels_that_was_written_as_text_is_a_list():
    found = labelled(
        rows(
            {"text": "one", "label": "['toxic', 'insult']"},
            {"text": "two", "label": '["spam"]'},
            {"text": "three", "label": "[]"},
            {"text": "four", "label": "[sic]"},
        ),
        text="text",
        label="label",
    )
    assert [example.labels for example in found] == [("toxic", "insult"), ("spam",), (), ("[sic]",)]
    assert all(example.multi for example in found)


@pytest.mark.parametrize("value", ["['insult' 'toxic']", "[0 1]"])
def test_labels_that_numpy_wrote_without_commas_are_a_fault(value: str):
    with pytest.raises(DataError, match="must be a word, or a list of labels separated by commas"):
        labelled(rows({"text": "t", "label": value}, {"text": "u", "label": "[1]"}), text="text", label="label")


RANKED = {"query": "query", "passage": "document", "relevance": "label"}


def ranked(*found: tuple[str, str, object]) -> list[Row]:
    return rows(*({"query": query, "document": passage, "label": label} for query, passage, label in found))


def test_passages_of_relevance_0_become_negatives_of_their_query():
    read = queries(
        ranked(("a", "one", 1), ("b", "two", False), ("A ", "far", "0"), ("a", "ONE", 0), ("b", "three", "true")),
        columns=RANKED,
    )
    assert [(row.where, row.text, row.passage, row.negatives) for row in read] == [
        ("train.jsonl:1", "a", "one", ("far",)),
        ("train.jsonl:5", "b", "three", ("two",)),
    ]


def test_a_relevance_is_0_or_1_and_not_0_everywhere():
    with pytest.raises(DataError, match=r"train\.jsonl:2: column 'label' must be 1 if the passage answers the query"):
        queries(ranked(("a", "one", 1), ("a", "two", 3)), columns=RANKED)
    with pytest.raises(DataError, match=r"train\.jsonl: the relevance is 0 in all rows; give passages with 1, too"):
        queries(ranked(("a", "one", 0), ("a", "two", 0)), columns=RANKED)


def test_queries_that_no_passage_answers_are_skipped_and_counted():
    kept, notes = usable(ranked(("a", "one", 1), ("a", "two", 0), ("b", "one", 0), ("c", "one", None)), RANKED)
    assert [row.where for row in kept] == ["train.jsonl:1", "train.jsonl:2"]
    assert notes == [
        "train.jsonl: 1 of 4 rows skipped, no passage answers their query (train.jsonl:3)",
        "train.jsonl: 1 of 4 rows skipped, 'label' is blank (train.jsonl:4)",
    ]
