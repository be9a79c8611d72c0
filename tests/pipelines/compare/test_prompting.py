"""How a written answer is taken for a label, and which rows are drawn."""

from __future__ import annotations

from tests.bases import policy, template
from tunesmith.data.examples.types import Text
from tunesmith.data.tokenization.messages import Message
from tunesmith.evaluation.predict import subsample
from tunesmith.inference.local_model import LocalModel
from tunesmith.objectives import Instruct
from tunesmith.pipelines.compare.prompting import fit_messages, label_in
from tunesmith.retrieval.prompts import Nearest


def test_the_label_that_stands_first_is_taken():
    assert label_in("I would say: Spam, not ham.", ["ham", "spam"]) == "spam"


def test_of_labels_that_begin_alike_the_longer_is_taken():
    assert label_in("It is not good", ["not", "not good"]) == "not good"


def test_labels_that_differ_in_marks_alone_are_told_apart_by_an_answer_that_is_one():
    labels = ["C", "C++", "C#", "+"]
    assert [label_in(said, labels) for said in ("c#", "C", " C++ ", "+")] == ["C#", "C", "C++", "+"]
    assert [label_in(said, labels) for said in ("C.", "Answer: C", "C# is it", "c++!")] == ["C", "C", "C#", "C++"]


def test_a_part_of_a_word_is_no_label_and_no_label_leaves_the_answer():
    assert label_in("hamster", ["ham"]) == "hamster"


def test_of_the_things_beside_a_question_as_many_stay_as_can_be_read_with_it():
    def asked(count: int) -> list[Message]:
        return [Message("user", "dog " * (10 * count) + "What is it?")]

    room = len(template("llama").prompt(asked(2)))
    made = LocalModel(policy("llama"), template("llama"), Instruct(), room)
    assert fit_messages(made, 5, asked) == (2, asked(2))
    made.limit = 1
    assert fit_messages(made, 5, asked) == (0, asked(0))


def test_rows_are_drawn_by_the_seed_and_keep_their_order():
    rows = [Text(str(i), f"text {i}") for i in range(50)]
    drawn = subsample(rows, 10, 3)
    assert drawn == subsample(rows, 10, 3) != subsample(rows, 10, 4)
    assert [int(row.where) for row in drawn] == sorted(int(row.where) for row in drawn)
    assert subsample(rows, 0, 3) == subsample(rows, 60, 3) == rows


def test_the_nearest_rows_share_the_most_telling_words():
    nearest = Nearest(["how high is arda", "what grows in arda", "how high is brin"])
    assert nearest.to(["how high is coll", "what grows in brin"], 2) == [[0, 2], [1, 2]]
    unspaced = Nearest(["如何重置密码", "今天天气很好", "怎样退货"])
    assert unspaced.to(["密码怎么重置", "天气好吗", "我想退货"], 1) == [[0], [1], [2]]


def test_a_label_of_marks_alone_is_not_found_in_an_empty_answer():
    assert [label_in(said, ["+", "-"]) for said in ("", "?!", " \n", " + ")] == ["", "?!", " \n", "+"]


def test_a_label_joined_by_underscores_is_found_in_words():
    assert label_in("Not spam", ["spam", "not_spam"]) == "not_spam"
    assert label_in("Very positive.", ["positive", "very_positive"]) == "very_positive"
