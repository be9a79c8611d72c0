"""Answer as we do: prompts and answers, or whole chats, of which only the assistant's turns are learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import nn

from tunesmith.data.examples.parsers import chats
from tunesmith.data.examples.types import Chat, Example
from tunesmith.data.readers.row import Row, columns_of, file_of, missing_column, refuse
from tunesmith.data.schema.columns import beside
from tunesmith.data.schema.formats import SYSTEMS, TOOLS, detect
from tunesmith.data.tokenization.chat_template import Encoded, Template
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import DataError
from tunesmith.models.batch import Batch
from tunesmith.models.policy import Policy
from tunesmith.objectives.base import Loss, Objective, Produces

# Ways to ask the untuned model for nothing but the answer; the best on validation is the base's score.
PLAIN_WORDINGS = ("", "Reply with the answer only.", "Answer in one short line.")


class Instruct(Objective):
    """Lower the loss of the assistant's turns, end tokens included; in a chat of many turns, of each of them.

    Reads Chat rows; calls of tools are learned as the model's template writes them. Decoders only.
    Loss: mean negative log-likelihood per learned token.
    """

    families: ClassVar[tuple[str, ...]] = ("decoder",)
    produces: ClassVar[Produces] = "text"

    kind: Literal["instruct"] = "instruct"
    prompt: str = Field("", description="column with the prompt; empty: detected")
    answer: str = Field("", description="column with the wanted answer; empty: detected")
    messages: str = Field("", description="column with whole chats instead of prompt and answer")
    tools: str = Field("", description="column with the tools that a chat may call; empty: `tools`, where there is one")
    instruction: str = Field("", description="text put before every prompt")
    metric: Literal["rouge_l", "exact_match", "contains", "chrf", "tool_calls"] = Field(
        "rouge_l", description="headline score of the answers"
    )
    max_new_tokens: int = Field(0, ge=0, description="longest answer; 0: from the training answers")

    def columns(self, rows: Sequence[Row]) -> Mapping[str, str]:
        """Which column plays which part."""
        if self.tools and self.tools not in columns_of(rows):
            refuse([missing_column(rows, self.tools)])
        more = beside(rows, {self.messages, self.prompt, self.answer}, system=SYSTEMS, tools=TOOLS)
        more |= {"tools": self.tools} if self.tools else {}
        if self.messages:
            return {"messages": self.messages, **more}
        named = {part: column for part, column in (("prompt", self.prompt), ("answer", self.answer)) if column}
        if len(named) == 2:
            return {**named, **more}
        found = detect(rows).columns
        if named and not {"prompt", "answer"} <= set(found):
            part = next(iter(named))
            raise DataError(
                f"{file_of(rows)}: objective.{part} is named, and the rows show no other part beside it; "
                "name objective.prompt and objective.answer"
            )
        return {**more, **found, **named, **({"tools": self.tools} if self.tools else {})}

    def examples(self, rows: Sequence[Row], *, group: str, columns: Mapping[str, str] | None = None) -> list[Example]:
        """Chats, one per row."""
        found = chats(rows, columns=columns or self.columns(rows), instruction=self.instruction, group=group)
        return [_judged(_to_last_answer(chat), calls=self.metric == "tool_calls") for chat in found]

    def bind(self, examples: Sequence[Example], family: str) -> Instruct:
        """The longest answer set from those of the rows. Raises DataError where calls are scored and there are none."""
        if self.metric == "tool_calls" and not any(
            m.calling for e in examples if isinstance(e, Chat) for m in e.messages
        ):
            raise DataError("objective.metric: tool_calls, and no answer of the rows calls a tool; leave metric out")
        if self.max_new_tokens:
            return self
        return self.model_copy(
            update={"max_new_tokens": completion_budget([reference(example) for example in examples])}
        )

    def encode(self, example: Example, template: Template, *, limit: int) -> Encoded:
        """The rendered chat, the longest prompt shortened where it does not fit."""
        assert isinstance(example, Chat)
        messages, shortened = template.fit(example.messages, limit)
        tokens = template.chat(messages)
        if len(tokens.ids) > limit:
            tokens, shortened = type(tokens)(tokens.ids[:limit], tokens.learn[:limit]), True
        return Encoded((tokens,), example.where, shortened=shortened)

    def head(self, policy: Policy) -> nn.Module | None:
        """None: the model's own words are used."""
        return None

    def prepare(self, batch: Batch, policy: Policy) -> Batch:
        """The batch as it is."""
        return batch

    def units(self, batch: Batch) -> int:
        """Learned tokens."""
        return len(batch.targets)

    def loss(self, batch: Batch, policy: Policy) -> Loss:
        """Sum of -log p over the learned tokens."""
        return Loss(policy.sum_nll(batch), self.units(batch))


def completion_budget(answers: Sequence[str]) -> int:
    """Tokens enough for nearly all answers like these: one and a half times their 95th percentile."""
    return int(np.percentile([_tokens(answer) for answer in answers], 95) * 1.5) + 16


def _tokens(answer: str) -> float:
    """About how many tokens an answer has: three characters each, two bytes of other scripts; a bound for loops."""
    plain = sum(map(str.isascii, answer))
    return plain / 3 + (len(answer.encode(errors="replace")) - plain) / 2


def _to_last_answer(chat: Chat) -> Chat:
    """The chat without turns after its last answer: nothing in them is learned or asked."""
    last = max(i for i, message in enumerate(chat.messages) if message.role == "assistant")
    return replace(chat, messages=chat.messages[: last + 1])


def _judged(chat: Chat, *, calls: bool) -> Chat:
    """The chat judged by its last answer, or by its last call where calls are what counts and it has one."""
    calling = [i for i, message in enumerate(chat.messages) if message.calling] if calls else []
    return replace(chat, reference_index=calling[-1] - len(chat.messages)) if calling else chat


def reference(example: Example) -> str:
    """The assistant turn that an answer is compared with: the last one, or the last call."""
    assert isinstance(example, Chat)
    return example.messages[example.reference_index].said


def asked(example: Example, wording: str = "") -> list[Message]:
    """The messages before that turn, a plain wording added to the last of them."""
    assert isinstance(example, Chat)
    return with_wording(example.messages[: example.reference_index], wording)


def with_wording(messages: Sequence[Message], wording: str) -> list[Message]:
    """The messages with a plain wording added to the last of them."""
    *before, last = messages
    return [*before, replace(last, content=f"{last.content}\n\n{wording}" if wording else last.content)]
