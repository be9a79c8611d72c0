"""Reward models: a head that scores a completion of a prompt.

Letters: B sequences of a batch, D size of a hidden state, P pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from tunesmith.data.examples.preferences import pairs
from tunesmith.data.examples.types import Example, Pair
from tunesmith.data.readers.row import Row, file_of
from tunesmith.data.tokenization.chat_template import Encoded, Template, Tokens
from tunesmith.data.tokenization.messages import Message, instructed
from tunesmith.errors import DataError
from tunesmith.objectives.base import Learner, Loss, Objective, Produces, one_output, zero_head
from tunesmith.objectives.pair_encoding import check_thoughts, encode_completions, preference_columns

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tunesmith.models.batch import Batch
    from tunesmith.models.policy import Policy


class Reward(Objective, Learner):
    """Score chosen completions higher than rejected ones.

    Reads preference pairs. The score is a linear function of the last token's state (decoder) or of the mean of all
    states (encoder). Loss per pair: -log sigmoid(chosen - rejected - margin) (Bradley and Terry 1952; the margin:
    Touvron et al. 2023, arXiv 2307.09288) plus `center` times the squared sum of both scores (Eisenstein et al. 2023,
    arXiv 2312.09244). Without that term only differences of scores would be defined.
    """

    produces: ClassVar[Produces] = "score"
    results: ClassVar[str] = "scores"
    column_keys: ClassVar[tuple[str, ...]] = ("chosen", "rejected", "prompt", "winner", "margin")
    route: ClassVar[str] = ""
    hub_task: ClassVar[str] = "text-classification"
    needs_head: ClassVar[bool] = True
    exported: ClassVar[str] = "rewards"
    export_form: ClassVar[str] = "reward {read}"
    probes_base: ClassVar[bool] = True
    unsuited: ClassVar[str] = (
        "TF-IDF and a probe predict labels, not scores of answers; encoder and decoder can both learn a reward"
    )
    python_use: ClassVar[str] = 'print({model}.reward("{text}", "an answer to it"))'
    max_new_tokens: ClassVar[int] = 0

    kind: Literal["reward"] = "reward"
    prompt: str = Field("", description="column with the prompt; empty: detected")
    chosen: str = Field("", description="column with the chosen completion, or the chat that ends with it")
    rejected: str = Field("", description="column with the rejected completion")
    winner: str = Field("", description="column that names the better one of both, for answers in random order")
    margin: str = Field("", description="column with the strength of the preference; empty: `margin`, if there is one")
    instruction: str = Field("", description="text put before every prompt")
    center: float = Field(0.01, ge=0, description="weight of the penalty that keeps scores near 0")
    metric: Literal["preference_accuracy"] = Field("preference_accuracy", description="headline score")

    @property
    def output_names(self) -> tuple[str, ...]:
        """Return the name of the only output."""
        return ("reward",)

    def columns(self, rows: Sequence[Row]) -> Mapping[str, str]:
        """Return the columns of prompt, completions and margin."""
        roles = ("prompt", "chosen", "rejected", "winner", "margin")
        return preference_columns(rows, {role: getattr(self, role) for role in roles})

    def examples(self, rows: Sequence[Row], *, group: str, columns: Mapping[str, str] | None = None) -> list[Example]:
        """Parse rows into pairs.

        Raises:
            DataError: with the errors of the whole file, or because the rows are unpaired preferences.
        """
        columns = columns or self.columns(rows)
        if "chosen" not in columns:
            raise DataError(
                f"{file_of(rows)}: a reward model learns from two completions, and these rows contain one with a "
                "rating; use rows with chosen and rejected, or tune with objective: preference"
            )
        return list(pairs(rows, columns=columns, instruction=self.instruction, group=group))

    def user_message(self, text: str) -> Message:
        """Return the instruction, if any, with the text."""
        return instructed([Message("user", text)], self.instruction)[0]

    def encode(self, example: Example, template: Template, *, limit: int) -> Encoded:
        """Encode the chosen and the rejected completion after their prompt; the label is the margin."""
        assert isinstance(example, Pair)
        check_thoughts(example.where, (example.chosen, example.rejected), template)
        rows, shortened = self.read(example.prompt, (example.chosen, example.rejected), template, limit=limit)
        return Encoded(tuple(rows), example.where, label=(example.margin,), shortened=shortened)

    def read(
        self, prompt: Sequence[Message], completions: Sequence[str], template: Template, *, limit: int
    ) -> tuple[list[Tokens], bool]:
        """Encode each completion after its prompt, as in `encode`."""
        if not template.chats:
            return _encode_as_text(prompt, completions, template, limit=limit)
        rows, shortened = encode_completions(prompt, completions, template, limit=limit)
        return [Tokens.of(row.ids) for row in rows], shortened

    def head(self, policy: Policy) -> nn.Module | None:
        """Return a layer [B, D] -> [B, 1], initialized to zero so that the first loss is that of guessing."""
        return zero_head(policy, outputs=1)

    def units(self, batch: Batch) -> int:
        """Return the number of pairs."""
        return batch.examples

    def scores(self, batch: Batch, policy: Policy) -> Tensor:
        """Compute the score of every sequence, [B]."""
        return one_output(policy.pooled(batch), policy)

    def loss_of(self, scores: Tensor, margins: Tensor) -> Tensor:
        """Compute the summed loss from scores [2P], each pair consecutive and chosen first, and margins [P]."""
        import torch.nn.functional as F

        chosen, rejected = scores[::2], scores[1::2]
        penalty = self.center * ((chosen + rejected) ** 2).sum()
        return penalty - F.logsigmoid(chosen - rejected - margins).sum()

    def loss(self, batch: Batch, policy: Policy) -> Loss:
        """Compute the loss, summed over pairs."""
        assert batch.labels is not None
        return Loss(self.loss_of(self.scores(batch, policy), batch.labels[:, 0]), self.units(batch))


def _encode_as_text(
    prompt: Sequence[Message], completions: Sequence[str], template: Template, *, limit: int
) -> tuple[list[Tokens], bool]:
    """Encode prompt and completion as one text, for an encoder; the prompt is shortened to fit the longest one."""
    tails = [template.document(template.harmless(completion)).ids for completion in completions]
    question = template.document(template.harmless("\n".join(message.content for message in prompt))).ids
    prompt_limit = max(0, limit - max(map(len, tails)))
    # A sequence has one opening token: that of the completion is dropped if a prompt precedes it.
    opening = [template.tokenizer.cls_token_id]
    tails_after = [tail[1:] if prompt_limit and tail[:1] == opening else tail for tail in tails]
    rows = [[*question[:prompt_limit], *tail][:limit] for tail in tails_after]
    return [Tokens.of(ids) for ids in rows], len(question) > prompt_limit or max(map(len, tails)) > limit
