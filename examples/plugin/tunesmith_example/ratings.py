"""An objective: classify, but labels are numbers, and one that is near the right one counts as partly right."""

from collections.abc import Sequence
from dataclasses import replace
from math import exp, isfinite
from typing import Literal

from pydantic import Field

from tunesmith.data.examples.types import Example, LabelledText
from tunesmith.data.tokenization.chat_template import Encoded, Template
from tunesmith.errors import DataError
from tunesmith.objectives import Classify


class Ratings(Classify):
    """Learn ratings such as stars, from 1 to 5, through a linear head with one output per rating.

    The target of a row with rating r is exp(-sharpness * (j - r)^2) for each rating j, divided by the sum of all, as in
    Díaz and Marathe 2019, "Soft labels for ordinal regression". The rest is that of `classify`.
    """

    kind: Literal["ratings"] = "ratings"
    sharpness: float = Field(1.0, gt=0, description="how much less another rating is right; large: not at all")

    def bind(self, examples: Sequence[Example], family: str) -> "Ratings":
        """Return the objective with the ratings of the rows, smallest first.

        Raises:
            DataError: a label is not a number, or a row has several.
        """
        bound = super().bind(examples, family)
        for row in examples:
            if isinstance(row, LabelledText) and (bound.multi or not _is_number(row.labels[0])):
                found = ", ".join(row.labels)
                raise DataError(f"{row.where}: expected one number as label, got {found}; use objective: classify")
        labels = tuple(sorted(bound.labels, key=float))
        return bound.model_copy(update={"labels": labels, "output": "linear"})

    def encode(self, example: Example, template: Template, *, limit: int) -> Encoded:
        """Encode the text, with the target of each rating."""
        assert isinstance(example, LabelledText)
        row = super().encode(example, template, limit=limit)
        if not example.labels:
            return row
        rating = float(example.labels[0])
        near = [exp(-self.sharpness * (float(label) - rating) ** 2) for label in self.labels]
        return replace(row, label=tuple(value / sum(near) for value in near))


def _is_number(label: str) -> bool:
    try:
        return isfinite(float(label))
    except ValueError:
        return False
