"""The reward model of RLHF: one number for an answer to a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tunesmith.data.examples.preferences import pairs
from tunesmith.data.examples.types import Example, Pair
from tunesmith.data.readers.row import Row, file_of
from tunesmith.data.tokenization.chat_template import Encoded, Template, Tokens
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import DataError
from tunesmith.models.batch import Batch
from tunesmith.models.policy import Policy
from tunesmith.objectives.base import Loss, Objective, Produces
from tunesmith.objectives.pair_encoding import answered, columns_of


class Reward(Objective):
    """Score the answer that people prefer above the other one.

    Reads Pair rows. A linear head of one number over the last token's state (decoder) or the mean of all (encoder).
    Loss: a sum over pairs of -log sigmoid(chosen - rejected - margin) (Bradley and Terry 1952; the margin: Touvron et
    al. 2023, arXiv 2307.09288), plus `center` times the square of both scores' sum (Eisenstein et al. 2023,
    arXiv 2312.09244), without which only differences would mean anything.
    """

    produces: ClassVar[Produces] = "score"
    max_new_tokens: ClassVar[int] = 0

    kind: Literal["reward"] = "reward"
    prompt: str = Field("", description="column with the prompt; empty: detected")
    chosen: str = Field("", description="column with the preferred answer, or the chat that ends with it")
    rejected: str = Field("", description="column with the other answer")
    margin: str = Field("", description="column that says by how much; empty: `margin`, where there is one")
    instruction: str = Field("", description="text put before every prompt")
    center: float = Field(0.01, ge=0, description="weight of the pull that keeps scores around 0")
    metric: Literal["preference_accuracy"] = Field("preference_accuracy", description="headline score")

    def columns(self, rows: Sequence[Row]) -> Mapping[str, str]:
        """Which column plays which part."""
        return columns_of(rows, {part: getattr(self, part) for part in ("prompt", "chosen", "rejected", "margin")})

    def examples(self, rows: Sequence[Row], *, group: str, columns: Mapping[str, str] | None = None) -> list[Example]:
        """Pairs, one per row. Raises DataError for thumbs."""
        columns = columns or self.columns(rows)
        if "chosen" not in columns:
            raise DataError(
                f"{file_of(rows)}: a reward is learned from two answers, and these rows hold one with a thumb; "
                "give rows with chosen and rejected, or tune with objective: preference"
            )
        return list(pairs(rows, columns=columns, instruction=self.instruction, group=group))

    def bind(self, examples: Sequence[Example], family: str) -> Reward:
        """The objective as it is: it learns nothing from the rows beforehand."""
        return self

    def encode(self, example: Example, template: Template, *, limit: int) -> Encoded:
        """The chosen and the rejected answer behind their prompt, and the margin."""
        assert isinstance(example, Pair)
        rows, shortened = self.read(example.prompt, (example.chosen, example.rejected), template, limit=limit)
        return Encoded(tuple(rows), example.where, label=(example.margin,), shortened=shortened)

    def read(
        self, prompt: Sequence[Message], answers: Sequence[str], template: Template, *, limit: int
    ) -> tuple[list[Tokens], bool]:
        """The ids that are read before each answer gets its score, and whether something was shortened."""
        if template.chats:
            rows, shortened = answered(prompt, answers, template, limit=limit)
        else:
            rows, shortened = _as_texts(prompt, answers, template, limit=limit)
        return [Tokens.of(row.ids) for row in rows], shortened

    def head(self, policy: Policy) -> nn.Module | None:
        """[B, D] -> [B, 1], starting at zero so that the first loss is that of guessing."""
        layer = nn.Linear(policy.hidden, 1, device=policy.device)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        return layer

    def prepare(self, batch: Batch, policy: Policy) -> Batch:
        """The batch as it is."""
        return batch

    def units(self, batch: Batch) -> int:
        """Pairs."""
        return batch.examples

    def scores(self, batch: Batch, policy: Policy) -> Tensor:
        """[B]: the score of every row."""
        assert policy.head is not None
        found: Tensor = policy.head(policy.pooled(batch)).float()[:, 0]
        return found

    def loss_of(self, scores: Tensor, margins: Tensor) -> Tensor:
        """The sum over pairs whose scores [B] follow each other, the chosen one's first, with margins [P]."""
        chosen, rejected = scores[::2], scores[1::2]
        pull = self.center * ((chosen + rejected) ** 2).sum()
        return pull - F.logsigmoid(chosen - rejected - margins).sum()

    def loss(self, batch: Batch, policy: Policy) -> Loss:
        """Sum over pairs."""
        assert batch.labels is not None
        return Loss(self.loss_of(self.scores(batch, policy), batch.labels[:, 0]), self.units(batch))


def _as_texts(
    prompt: Sequence[Message], answers: Sequence[str], template: Template, *, limit: int
) -> tuple[list[Tokens], bool]:
    """Prompt and answer as one text for a model that knows no chats; the prompt gives way to the longest answer."""
    tails = [template.document(template.harmless(answer)).ids for answer in answers]
    asked = template.document(template.harmless("\n".join(message.content for message in prompt))).ids
    room = max(0, limit - max(map(len, tails)))
    opens = template.tokenizer.cls_token_id
    # One opening token stands before all: the answer's own falls away behind a prompt.
    behind = [tail[1:] if room and tail[:1] == [opens] else tail for tail in tails]
    rows = [[*asked[:room], *tail][:limit] for tail in behind]
    return [Tokens.of(ids) for ids in rows], len(asked) > room or max(map(len, tails)) > limit
