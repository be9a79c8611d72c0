"""What the untuned model is asked, and on which rows that is chosen."""

from __future__ import annotations

import pytest

from tests.bases import base, policy, template
from tunesmith.data.examples import Example, Labelled
from tunesmith.inference.local import LocalModel
from tunesmith.objectives import Classify
from tunesmith.workflows import answers
from tunesmith.workflows.answers import Answers, Untuned


def test_a_wording_that_knows_one_label_only_does_not_win_in_a_file_sorted_by_labels(monkeypatch: pytest.MonkeyPatch):
    rows: list[Example] = [Labelled(f"x:{i}", f"t{i}", ("bad" if i < 200 else "good",)) for i in range(400)]
    truth = {row.text: row.labels[0] for row in rows if isinstance(row, Labelled)}

    def answer(model: LocalModel, some: list[Labelled]) -> Answers:
        told = ["bad" if not model.wording else truth[row.text] if i % 5 else "bad" for i, row in enumerate(some)]
        return Answers(told, "", 0.0)

    monkeypatch.setattr(answers, "answer", answer)
    kind = Classify(labels=("bad", "good"), metric="accuracy")
    untuned = Untuned(base("llama"), policy("llama"), template("llama"), kind, 64)
    assert untuned._choose(("", "Bad or good? {text}"), rows) != ""
