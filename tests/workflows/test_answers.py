"""What the untuned model is asked, and on which rows that is chosen."""

from __future__ import annotations

from collections import Counter

from tunesmith.data.examples import Labelled
from tunesmith.workflows.answers import CHOICE_ROWS, some


def test_the_rows_that_a_wording_is_chosen_on_hold_every_label_of_a_file_that_is_sorted_by_them():
    rows = [
        Labelled(where=f"x:{i}", group="", text=f"t{i}", labels=("good" if i < 200 else "bad",)) for i in range(400)
    ]
    chosen = some(rows, CHOICE_ROWS["classify"], seed=0)
    assert len(chosen) == CHOICE_ROWS["classify"]
    assert min(Counter(row.labels for row in chosen).values()) >= 30
