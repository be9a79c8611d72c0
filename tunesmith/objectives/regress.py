"""Regression: a linear head predicts a number for a text.

Letters: B rows of a batch, D size of a hidden state.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from tunesmith.data.examples.parsers import rated
from tunesmith.data.examples.types import Example, RatedText
from tunesmith.data.readers.row import Row, file_of
from tunesmith.data.schema.formats import detect
from tunesmith.data.tokenization.chat_template import Encoded, Template
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import DataError
from tunesmith.objectives.base import Learner, Loss, Objective, Produces, one_output, zero_head
from tunesmith.objectives.classify import head_rate_scale

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from tunesmith.models.batch import Batch
    from tunesmith.models.policy import Policy

INSTRUCTION = "Predict a number for this text."


class Regress(Objective, Learner):
    """Predict the number of a text.

    Reads rows with a text and a number. The head is linear in the last token's state (decoder) or in the mean of all
    states (encoder). The loss is the squared error of standardised values: their mean over the training rows is 0 and
    their standard deviation 1, so that the learning rate does not depend on the unit. Mean and deviation are part of
    the saved model, which predicts in the unit of the rows.
    """

    produces: ClassVar[Produces] = "number"
    results: ClassVar[str] = "numbers"
    column_keys: ClassVar[tuple[str, ...]] = ("text", "target")
    optional_columns: ClassVar[tuple[str, ...]] = ("target",)
    route: ClassVar[str] = "predict"
    hub_task: ClassVar[str] = "text-classification"
    needs_head: ClassVar[bool] = True
    exported: ClassVar[str] = "numbers"
    export_form: ClassVar[str] = "predict {read}"
    reads_texts: ClassVar[bool] = True
    probes_base: ClassVar[bool] = True
    scores_are_shares: ClassVar[bool] = False
    prefers_encoder: ClassVar[bool] = True
    unsuited: ClassVar[str] = (
        "a head predicts the value: the encoder is the cheapest; --model smollm2-135m tunes the decoder"
    )
    python_use: ClassVar[str] = 'print({model}.predict("{text}"))'
    max_new_tokens: ClassVar[int] = 0

    kind: Literal["regress"] = "regress"
    text: str = Field("", description="column with the text; empty: detected")
    target: str = Field("", description="column with the number; empty: detected")
    instruction: str = Field("", description="instruction before each text, decoder only; empty: a general one")
    metric: Literal["spearman"] = Field("spearman", description="headline score")
    mean: float = Field(0.0, description="mean of the targets; set from the training rows")
    scale: float = Field(0.0, ge=0, description="standard deviation of the targets; set from the training rows")

    @property
    def starts_from_probe(self) -> bool:
        """Return that the layer starts as a linear probe."""
        return True

    @property
    def mean_and_scale(self) -> tuple[float, float]:
        """Return mean and deviation of the targets of the training rows."""
        return self.mean, self.scale

    def export_settings(self, *, chats: bool) -> dict[str, Any]:
        """Return mean and deviation, for a head next to the weights, and what a decoder reads before a text."""
        before = {"before_text": self.user_message("").content} if chats else {}
        return {"mean": self.mean, "scale": self.scale, **before}

    def columns(self, rows: Sequence[Row]) -> Mapping[str, str]:
        """Return the columns of text and number. Raises DataError if they cannot be detected."""
        if self.text and self.target:
            return {"text": self.text, "target": self.target}
        detected = detect(rows)
        if "text" not in detected.columns or not (self.target or "target" in detected.columns):
            fix = "name the columns: objective: {kind: regress, text: COLUMN, target: COLUMN}"
            raise DataError(f"{file_of(rows)}: no numeric column was detected next to a text; {fix}")
        return {
            "text": self.text or detected.columns["text"],
            "target": self.target or detected.columns["target"],
        }

    def examples(self, rows: Sequence[Row], *, group: str, columns: Mapping[str, str] | None = None) -> list[Example]:
        """Parse rows into texts with a number."""
        return list(rated(rows, **(columns or self.columns(rows)), group=group))

    def bind(self, examples: Sequence[Example], family: str) -> Regress:
        """Return the objective unchanged. Raises DataError if all values are equal."""
        rows = [example for example in examples if isinstance(example, RatedText)]
        if len({row.number for row in rows}) < 2:
            file = rows[0].where.rpartition(":")[0]
            raise DataError(
                f"{file}: all {len(rows)} rows have the number {rows[0].number:g}; regress needs two or more"
            )
        return self

    def bind_encoded(self, train: Sequence[Encoded]) -> Regress:
        """Return the objective with mean and deviation of the training rows."""
        numbers = [row.label[0] for row in train]
        scale = statistics.pstdev(numbers) or 1.0
        return self.model_copy(update={"mean": statistics.fmean(numbers), "scale": scale})

    def learning_rate_scale(self, family: str, *, plain_weights: bool, adapter: bool, steps: int) -> float:
        """Return the fraction of the technique's learning rate that suits a head over a decoder, as for labels."""
        return head_rate_scale(family, plain_weights=plain_weights, adapter=adapter, steps=steps)

    def user_message(self, text: str) -> Message:
        """Return the instruction with the text."""
        return Message("user", f"{self.instruction or INSTRUCTION}\n\n{text}")

    def encode(self, example: Example, template: Template, *, limit: int) -> Encoded:
        """Encode the text, after the instruction for a decoder; the label is the number."""
        assert isinstance(example, RatedText)
        tokens, shortened = self.question(example.text, template, limit=limit)
        return Encoded((tokens,), example.where, label=(example.number,), shortened=shortened)

    def fixed_tokens(self, template: Template) -> int:
        """Return the tokens of a decoder's instruction; 0 for an encoder."""
        return len(template.prompt([self.user_message("")])) if template.chats else 0

    def head(self, policy: Policy) -> nn.Module | None:
        """Return a zero-initialized layer [B, D] -> [B, 1]; `training.head_init` initializes it from a probe."""
        return zero_head(policy, outputs=1)

    def probe_head(
        self, states: NDArray[np.float32], targets: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Fit weight [1, D] and bias [1] that predict standardised values from states [N, D]."""
        import numpy as np

        from tunesmith.metrics.ridge import fit_ridge

        fit = fit_ridge(states, (targets[:, 0] - self.mean) / self.scale)
        return fit.weight[None], np.array([fit.bias])

    def units(self, batch: Batch) -> int:
        """Return the number of rows."""
        return batch.rows

    def standardised(self, numbers: Tensor) -> Tensor:
        """Return values with the mean and deviation of the training rows taken out."""
        return (numbers - self.mean) / self.scale

    def scores(self, batch: Batch, policy: Policy) -> Tensor:
        """Compute the number of every row, [B], in the unit of the rows."""
        return one_output(policy.pooled(batch), policy) * self.scale + self.mean

    def loss(self, batch: Batch, policy: Policy) -> Loss:
        """Compute the squared error of standardised values, summed over rows."""
        import torch.nn.functional as F

        assert batch.labels is not None
        wanted = self.standardised(batch.labels[:, 0])
        return Loss(F.mse_loss(one_output(policy.pooled(batch), policy), wanted, reduction="sum"), batch.rows)
