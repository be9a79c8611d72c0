"""Supervised fine-tuning on prompts with answers or on chats; only the assistant's turns are learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from tunesmith.data.examples.parsers import chats
from tunesmith.data.examples.types import Chat, Example, Reference
from tunesmith.data.readers.row import Row, columns_of, file_of, missing_column, refuse
from tunesmith.data.schema.accepted import UNANSWERABLE
from tunesmith.data.schema.columns import beside
from tunesmith.data.schema.formats import SYSTEMS, TOOLS, detect
from tunesmith.data.tokenization.chat_template import Encoded, Template
from tunesmith.data.tokenization.messages import Message, instructed
from tunesmith.errors import DataError
from tunesmith.objectives.base import Learner, Loss, Objective, Produces

if TYPE_CHECKING:
    from tunesmith.models.batch import Batch
    from tunesmith.models.policy import Policy

# Prompt templates that ask the base model for the answer alone; the best one on validation is the score of the base.
PLAIN_WORDINGS = ("", "Reply with the answer only.", "Answer in one short line.")


class Instruct(Objective, Learner):
    """Lower the loss of every assistant turn of a chat, including its end token.

    Tool calls are learned as the model's chat template writes them. Decoders only. Loss: negative log-likelihood per
    learned token.
    """

    families: ClassVar[tuple[str, ...]] = ("decoder",)
    produces: ClassVar[Produces] = "text"
    has_reference_answers: ClassVar[bool] = True

    kind: Literal["instruct"] = "instruct"
    prompt: str = Field("", description="column with the prompt; empty: detected")
    context: str = Field("", description="column with a passage put before the prompt; empty: detected")
    choices: str = Field("", description="column with the choices of a question, or several joined by ` + `")
    answer: str = Field("", description="column with the reference answer, or a list of accepted ones; empty: detected")
    unanswerable: str = Field(UNANSWERABLE, min_length=1, description="answer of rows with an empty list of answers")
    messages: str = Field("", description="column with whole chats, instead of prompt and answer")
    tools: str = Field("", description="column with the tools that a chat may call; empty: `tools`, if there is one")
    instruction: str = Field("", description="text put before every prompt")
    metric: Literal["rouge_l", "exact_match", "contains", "chrf", "tool_calls"] = Field(
        "rouge_l", description="headline score of the answers"
    )
    max_new_tokens: int = Field(0, ge=0, description="longest answer, in tokens; 0: from the training answers")

    def columns(self, rows: Sequence[Row]) -> Mapping[str, str]:
        """Return the columns of prompt, answer or messages, and of system prompt and tools if there are any."""
        if self.tools and self.tools not in columns_of(rows):
            refuse([missing_column(rows, self.tools)])
        optional = beside(rows, {self.messages, self.prompt, self.answer}, system=SYSTEMS, tools=TOOLS)
        optional |= {"tools": self.tools} if self.tools else {}
        parts = {"context": self.context, "choices": self.choices} if not self.messages else {}
        optional |= {role: column for role, column in parts.items() if column}
        if self.messages:
            return {"messages": self.messages, **optional}
        named = {role: column for role, column in (("prompt", self.prompt), ("answer", self.answer)) if column}
        if len(named) == 2:
            return {**named, **optional}
        detected = detect(rows).columns
        if named and not {"prompt", "answer"} <= set(detected):
            raise DataError(
                f"{file_of(rows)}: objective.{next(iter(named))} is set, and the column of the other role was not "
                "detected; name objective.prompt and objective.answer"
            )
        chosen = {"tools": self.tools} if self.tools else {}
        return {**optional, **detected, **named, **chosen, **{part: parts[part] for part in parts if parts[part]}}

    def examples(self, rows: Sequence[Row], *, group: str, columns: Mapping[str, str] | None = None) -> list[Example]:
        """Parse rows into chats that end with an answer; turns after it are neither learned nor evaluated."""
        parsed: list[Example] = []
        columns = columns or self.columns(rows)
        for chat in chats(
            rows, columns=columns, instruction=self.instruction, group=group, unanswerable=self.unanswerable
        ):
            last = max(i for i, message in enumerate(chat.messages) if message.role == "assistant")
            chat = replace(chat, messages=chat.messages[: last + 1])
            calls = [i for i, message in enumerate(chat.messages) if message.calling]
            if calls and self.metric == "tool_calls":  # the reference answer is the last call
                chat = replace(chat, reference_index=calls[-1] - len(chat.messages))
            parsed.append(chat)
        return parsed

    def bind(self, examples: Sequence[Example], family: str) -> Instruct:
        """Return the objective with the longest answer set from the rows.

        Raises:
            DataError: tool calls are the metric, and no answer calls a tool.
        """
        if self.metric == "tool_calls" and not any(
            message.calling for chat in examples if isinstance(chat, Chat) for message in chat.messages
        ):
            raise DataError("objective.metric: tool_calls, and no answer of the rows calls a tool; omit metric")
        if self.max_new_tokens:
            return self
        return self.model_copy(
            update={"max_new_tokens": completion_budget([reference(example) for example in examples])}
        )

    def prompt_templates(self, family: str) -> tuple[str, ...]:
        """Return prompts that ask for the answer alone."""
        return PLAIN_WORDINGS

    def user_message(self, text: str) -> Message:
        """Return the instruction, if any, with the text."""
        return instructed([Message("user", text)], self.instruction)[0]

    def prompt_messages(self, example: Example, wording: str = "") -> list[Message]:
        """Return the messages before the reference answer."""
        return asked(example, wording)

    def encode(self, example: Example, template: Template, *, limit: int) -> Encoded:
        """Encode the chat; its longest prompt is shortened if it does not fit, and then the end is cut off."""
        assert isinstance(example, Chat)
        messages, shortened = template.fit(example.messages, limit)
        tokens = template.chat(messages)
        if len(tokens.ids) > limit:
            tokens, shortened = type(tokens)(tokens.ids[:limit], tokens.learn[:limit]), True
        return Encoded((tokens,), example.where, shortened=shortened)

    def make_learner(self) -> Learner:
        """Return the objective itself."""
        return self

    def units(self, batch: Batch) -> int:
        """Return the number of learned tokens."""
        return len(batch.targets)

    def loss(self, batch: Batch, policy: Policy) -> Loss:
        """Compute the negative log-likelihood of the learned tokens, summed over the batch in nats."""
        return Loss(policy.sum_nll(batch), self.units(batch))


def completion_budget(answers: Sequence[str]) -> int:
    """Return a number of new tokens that suffices for nearly all answers: 1.5 times their 95th percentile.

    Args:
        answers: answers of the rows; a token is taken to have three ASCII characters or two bytes of other scripts.
    """
    import numpy as np

    tokens = []
    for answer in answers:
        ascii_characters = sum(map(str.isascii, answer))
        tokens.append(ascii_characters / 3 + (len(answer.encode(errors="replace")) - ascii_characters) / 2)
    return int(np.percentile(tokens, 95) * 1.5) + 16


def reference(example: Example) -> str:
    """Return the assistant turn that a completion is compared with: the last one, or the last tool call."""
    assert isinstance(example, Chat)
    return example.messages[example.reference_index].said


def accepted(example: Example) -> Reference:
    """Return the reference answer for scoring, or all accepted answers of a row that lists several."""
    assert isinstance(example, Chat)
    return example.accepted if example.accepted and len(example.accepted) > 1 else reference(example)


def asked(example: Example, wording: str = "") -> list[Message]:
    """Return the messages before the reference answer.

    Args:
        example: a chat.
        wording: text appended to the last message.
    """
    assert isinstance(example, Chat)
    return with_wording(example.messages[: example.reference_index], wording)


def with_wording(messages: Sequence[Message], wording: str) -> list[Message]:
    """Return the messages with a text appended to the last one.

    Args:
        messages: at least one message.
        wording: text to append; may be empty.
    """
    *earlier, last = messages
    return [*earlier, replace(last, content=f"{last.content}\n\n{wording}" if wording else last.content)]
