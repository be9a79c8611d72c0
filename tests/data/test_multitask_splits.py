"""Several tasks over files of their own: nothing that one holds out is learned by another."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tunesmith.data.examples.types import Chat, Example, LabelledText, Pair, Text
from tunesmith.data.splits.load import DatasetSplits
from tunesmith.data.splits.multitask import Asking, remove_cross_task_leaks
from tunesmith.data.splits.split import Split
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import DataError


def loaded(train: Sequence[Example], test: Sequence[Example] = ()) -> DatasetSplits:
    return DatasetSplits(Split(list(train), [], list(test), 0, ("before",)), len(train) + len(test), {})


def label(text: str, group: str = "") -> LabelledText:
    return LabelledText("l.jsonl:1", text, ("good",), group)


def chat(text: str, group: str = "") -> Chat:
    asked = Message("user", f"Say it in French:\n\n{text}")
    return Chat("c.jsonl:1", (Message("system", "Be brief."), asked, Message("assistant", "oui")), group)


FRENCH = Asking("Say it in French:", "film")


@pytest.mark.parametrize("other", [label("A GOOD  film"), Pair("p:1", (Message("user", "a good film"),), "yes", "no")])
def test_a_text_that_one_task_holds_out_is_not_learned_by_another(other: Example):
    tasks = {"mood": loaded([label("x")], [other]), "french": loaded([chat("a good film"), chat("b"), chat("c")])}
    found = remove_cross_task_leaks(tasks, {"mood": Asking("", ""), "french": FRENCH})
    assert found["french"].split.train == [chat("b"), chat("c")]
    assert found["french"].split.removed == 1
    assert found["french"].split.notes == (
        "before",
        "1 training rows removed: the held-out rows of mood contain the same or nearly the same text or group",
    )
    assert found["mood"] == tasks["mood"]


@pytest.mark.parametrize(("column", "left"), [("film", 2), ("scene", 3)])
def test_a_group_that_one_task_holds_out_is_not_learned_by_another_that_names_it(column: str, left: int):
    tasks = {
        "mood": loaded([label("x", "1")], [label("y", "7")]),
        "french": loaded([chat("a", "7"), chat("b", "8"), chat("c", "")]),
    }
    found = remove_cross_task_leaks(tasks, {"mood": Asking("", column), "french": FRENCH})
    assert len(found["french"].split.train) == left


def test_a_task_of_which_too_little_is_left_is_refused():
    tasks = {"mood": loaded([label("x")], [label("a")]), "french": loaded([chat("a"), chat("b")])}
    with pytest.raises(
        DataError, match="french: 1 training rows remain after removing held-out rows of other tasks; add more rows"
    ):
        remove_cross_task_leaks(tasks, {"mood": Asking("", ""), "french": FRENCH})


def test_a_document_most_of_which_another_task_holds_out_is_not_learned():
    words = [f"word{number}" for number in range(40)]
    held, near, far = (Text("t:1", " ".join(part)) for part in (words, [*words, "revised"], words[::-1]))
    tasks = {"one": loaded([far], [held]), "two": loaded([near, far, far])}
    found = remove_cross_task_leaks(tasks, {"one": Asking("", ""), "two": Asking("", "")})
    assert found["two"].split.train == [far, far]
