"""Supervised fine-tuning on prompts with answers or on chats; only the assistant's turns are learned."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, PlainSerializer, WrapValidator

from tunesmith.data.examples.parsers import chats
from tunesmith.data.examples.types import Chat, Example, Reference
from tunesmith.data.readers.row import Row, columns_of, file_of, missing_column, refuse
from tunesmith.data.schema.accepted import UNANSWERABLE
from tunesmith.data.schema.columns import beside
from tunesmith.data.schema.formats import SYSTEMS, THOUGHTS, TOOLS, detect
from tunesmith.data.schema.values import may_be_text
from tunesmith.data.tokenization.chat_template import Encoded, Template, Tokens
from tunesmith.data.tokenization.messages import Message, instructed
from tunesmith.data.tokenization.thinking import MODES, Mode
from tunesmith.errors import DataError
from tunesmith.metrics.task_scores import metric_or_plugin
from tunesmith.objectives.base import Learner, Loss, Objective, Produces

if TYPE_CHECKING:
    from tunesmith.models.batch import Batch
    from tunesmith.models.policy import Policy

# Treatments of thoughts for which the template must write some.
RENDERED = ("learn", "mask", "keep")
# Longest thoughts in tokens, unless those of the rows are longer.
THOUGHT_TOKENS = 512
# Prompt templates that ask the base model for the answer alone; the best one on validation is the score of the base.
PLAIN_WORDINGS = ("", "Reply with the answer only.", "Answer in one short line.")


class Instruct(Objective, Learner):
    """Lower the loss of every assistant turn of a chat, including its end token.

    Tool calls are learned as the model's chat template writes them. Decoders only. Loss: negative log-likelihood per
    learned token.
    """

    families: ClassVar[tuple[str, ...]] = ("decoder",)
    produces: ClassVar[Produces] = "text"
    column_keys: ClassVar[tuple[str, ...]] = ("prompt", "answer", "messages", "context", "choices", "thoughts")
    optional_columns: ClassVar[tuple[str, ...]] = (
        "answer", "system", "context", "input", "history", "tools", "thoughts",
    )  # fmt: skip
    has_reference_answers: ClassVar[bool] = True
    reads_large_files: ClassVar[bool] = True

    kind: Literal["instruct"] = "instruct"
    prompt: str = Field("", description="column with the prompt; empty: detected")
    context: str = Field("", description="column with a passage put before the prompt; empty: detected")
    choices: str = Field("", description="column with the choices of a question, or several joined by ` + `")
    answer: str = Field("", description="column with the reference answer, or a list of accepted ones; empty: detected")
    unanswerable: str = Field(UNANSWERABLE, min_length=1, description="answer of rows with an empty list of answers")
    messages: str = Field("", description="column with whole chats, instead of prompt and answer")
    thoughts: str = Field("", description="column with the thoughts before the answer; empty: detected")
    thinking: Mode = Field(
        "auto",
        description="thoughts of the rows: learn, mask (learn only the answer), drop, or keep the model's own where "
        "rows have none; auto: learn, or drop if the chat template has none",
    )
    tools: str = Field("", description="column with the tools that a chat may call; empty: `tools`, if there is one")
    instruction: str = Field("", description="text put before every prompt")
    metric: Annotated[
        Literal["rouge_l", "exact_match", "contains", "chrf", "tool_calls"],
        WrapValidator(metric_or_plugin),
        PlainSerializer(str, return_type=str),
    ] = Field("rouge_l", description="headline score of the answers")
    max_new_tokens: int = Field(0, ge=0, description="longest answer, in tokens; 0: from the training answers")
    max_thinking_tokens: int = Field(
        THOUGHT_TOKENS,
        ge=16,
        description="longest thoughts that the model writes, in tokens; raised to those of the rows if it is 512",
    )
    think_by_default: bool | Literal["auto"] = Field(
        "auto", description="whether the tuned model thinks unless asked not to; auto: as most of the rows are learned"
    )

    @property
    def thinks(self) -> bool:
        """Return whether the model learned to answer after thoughts; then it thinks unless asked not to."""
        return self.think_by_default is True

    @property
    def thinking_tokens(self) -> int:
        """Return the longest thoughts, in tokens."""
        return self.max_thinking_tokens

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
            return {**named, **optional, **self._thoughts_column(rows)}
        detected = detect(rows).columns
        if named and not {"prompt", "answer"} <= set(detected):
            raise DataError(
                f"{file_of(rows)}: objective.{next(iter(named))} is set, and the column of the other role was not "
                "detected; name objective.prompt and objective.answer"
            )
        chosen = {"tools": self.tools} if self.tools else {}
        if self.thoughts and "answer" in detected:
            chosen |= self._thoughts_column(rows)
        return {**optional, **detected, **named, **chosen, **{part: parts[part] for part in parts if parts[part]}}

    def _thoughts_column(self, rows: Sequence[Row]) -> dict[str, str]:
        """Return the column of thoughts, named or found by its name; rows to evaluate on may have none."""
        if self.thoughts:
            return beside(rows, {self.prompt, self.answer}, thoughts=[self.thoughts])
        values = ((name, row.fields.get(name)) for row in rows for name in THOUGHTS)
        # The name of a treatment is a setting of its row.
        unusable = {name for name, value in values if not may_be_text(value) or value in MODES}
        return beside(rows, {self.prompt, self.answer, *unusable}, thoughts=THOUGHTS)

    def examples(self, rows: Sequence[Row], *, group: str, columns: Mapping[str, str] | None = None) -> list[Example]:
        """Parse rows into chats that end with an answer; turns after it are neither learned nor evaluated."""
        parsed: list[Example] = []
        columns = columns or self.columns(rows)
        for chat in chats(
            rows, columns=columns, instruction=self.instruction, group=group, unanswerable=self.unanswerable
        ):
            last = max(i for i, m in enumerate(chat.messages) if m.role == "assistant" and m.weight)
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
        answers, thoughts = array("d"), array("d")  # one pass and 8 bytes per row: they may be in a file
        learned = 0
        for chat in examples:
            if isinstance(chat, Chat):
                answers.append(_tokens_about(reference(chat)))
                thoughts.extend(_tokens_about(turn.thoughts) for turn in chat.messages if turn.thoughts)
                mode = self.mode_of(chat)  # with `keep`, the answer is learned after thoughts of the model
                learned += mode == "keep" or (has_thoughts(chat) and mode != "drop")
        longest, default = self.max_thinking_tokens, self.think_by_default
        if longest == THOUGHT_TOKENS:  # the default
            longest = max(longest, _budget(thoughts))
        if default == "auto":
            default = 2 * learned > len(answers)
        return self.model_copy(
            update={
                "max_new_tokens": self.max_new_tokens or _budget(answers),
                "max_thinking_tokens": longest,
                "think_by_default": default,
            }
        )

    def for_other_base(self, family: str, named: Collection[str]) -> Instruct:
        """Return the objective with `think_by_default` left to the other base model if the run's does not think."""
        return self.model_copy(update={"think_by_default": "auto"}) if self.think_by_default is False else self

    def prompt_templates(self, family: str) -> tuple[str, ...]:
        """Return prompts that ask for the answer alone."""
        return PLAIN_WORDINGS

    def user_message(self, text: str) -> Message:
        """Return the instruction, if any, with the text."""
        return instructed([Message("user", text)], self.instruction)[0]

    def prompt_messages(self, example: Example, wording: str = "") -> list[Message]:
        """Return the messages before the reference answer."""
        return asked(example, wording)

    def without_answer(self, example: Example) -> Example:
        """Return a chat without its last answer."""
        assert isinstance(example, Chat)
        prompt = example.messages[:-1]
        return replace(example, messages=prompt, reference_index=len(prompt), accepted=None)

    def with_answer(self, example: Example, answer: str) -> Example:
        """Return a chat that ends with an answer."""
        assert isinstance(example, Chat)
        return replace(example, messages=(*example.messages, Message("assistant", answer)), reference_index=-1)

    def template_notes(self, examples: Sequence[Example], template: Template) -> list[str]:
        """Return how the thoughts of the rows are treated; raise DataError if the template cannot write them."""
        asking: Chat | None = None
        having = dropped = masked = 0
        for chat in examples:
            if isinstance(chat, Chat):
                mode = self.mode_of(chat)
                asking = asking or (chat if mode in RENDERED else None)
                has = has_thoughts(chat)
                having += has
                dropped += has and (mode == "drop" or not template.thinks)
                masked += has and mode == "mask"
        if self.thoughts and not having:
            raise DataError(f"objective.thoughts: no training row has text in {self.thoughts!r}; name another column")
        if asking is not None and not template.thinks:
            where = f"{asking.where}: thinking" if asking.thinking else "objective.thinking"
            raise DataError(
                f"{where}: {self.mode_of(asking)}, but the chat template of this model neither renders nor switches "
                "thoughts; use thinking: drop, or a model that thinks"
            )
        if not having:
            return []
        count = f"thoughts of {having} of {len(examples)} rows"
        if dropped == having:
            why = "objective.thinking" if template.thinks else "the chat template of this model has none"
            return [f"{count} are dropped: {why}"]
        rest = "; the other rows with thinking off" * (having < len(examples))
        others = f", {masked} of them masked" * bool(masked) + f", {dropped} of them dropped" * bool(dropped)
        return [f"{count} are trained with thinking on{others}{rest}"]

    def encoded_notes(
        self, examples: Sequence[Example], rows: Sequence[Encoded], template: Template, *, limit: int
    ) -> list[str]:
        """Return how many rows are not learned because their thoughts do not fit."""
        having = {
            example.where
            for example in examples
            if isinstance(example, Chat) and has_thoughts(example) and self.mode_of(example) != "drop"
        }
        if not template.thinks or not having:
            return []
        lost = [
            row for row in rows if row.where in having and row.shortened and not any(t.learned for t in row.sequences)
        ]
        fix = f"their thoughts do not fit into {limit} tokens; raise data.max_tokens"
        return [f"{len(lost)} of {len(rows)} rows are not learned: {fix}"] if lost else []

    def mode_of(self, chat: Chat) -> str:
        """Return the treatment of the thoughts of a row: its own, or that of the recipe."""
        return chat.thinking or self.thinking

    def encode(self, example: Example, template: Template, *, limit: int) -> Encoded:
        """Encode the chat up to its last answer, as the last row of `encode_all`."""
        return self.encode_all(example, template, limit=limit)[-1]

    def encode_all(self, example: Example, template: Template, *, limit: int) -> list[Encoded]:
        """Encode the chat as one row, or one per turn if turns have thoughts (`Template.rows`).

        The longest prompt is shortened if the chat does not fit, and then the end is cut off. Thoughts are never cut:
        a row whose thoughts do not fit is not learned, because it would teach to think without an end.
        """
        assert isinstance(example, Chat)
        mode = self.mode_of(example)
        thinking = None if mode != "drop" and template.thinks else False
        messages, shortened = template.fit(example.messages, limit, thinking=thinking)
        rows = []
        for tokens in template.rows(messages, thinking=thinking, learn_thoughts=mode != "mask"):
            cut = len(tokens.ids) > limit
            learned = tokens.cut(limit) if cut else tokens
            if cut and thinking is None and has_thoughts(example):
                learned = Tokens.of(learned.ids)
            rows.append(Encoded((learned,), example.where, shortened=shortened or cut))
        return rows

    def units(self, batch: Batch) -> float:
        """Return the number of learned tokens, each counted by its weight."""
        return batch.units

    def loss(self, batch: Batch, policy: Policy) -> Loss:
        """Compute the negative log-likelihood of the learned tokens times their weights, summed, in nats."""
        return Loss(policy.sum_nll(batch), self.units(batch))


def has_thoughts(chat: Chat) -> bool:
    """Return whether any learned answer of a chat has thoughts."""
    return any(message.thoughts and message.weight for message in chat.messages if message.role == "assistant")


def completion_budget(answers: Sequence[str]) -> int:
    """Return a number of new tokens that suffices for nearly all answers; 0 without answers."""
    return _budget([_tokens_about(answer) for answer in answers])


def _tokens_about(answer: str) -> float:
    """Estimate the tokens of an answer: one for three ASCII characters, or for two bytes of other scripts."""
    ascii_characters = sum(map(str.isascii, answer))
    return ascii_characters / 3 + (len(answer.encode(errors="replace")) - ascii_characters) / 2


def _budget(tokens: Sequence[float]) -> int:
    """Return 1.5 times the 95th percentile."""
    import numpy as np

    return int(np.percentile(tokens, 95) * 1.5) + 16 if len(tokens) else 0


def reference(example: Example) -> str:
    """Return the assistant turn that a completion is compared with: the last one, or the last tool call."""
    assert isinstance(example, Chat)
    return example.messages[example.reference_index].said


def accepted(example: Example) -> Reference:
    """Return the reference answer for scoring, or all accepted answers of a row that lists several."""
    assert isinstance(example, Chat)
    return example.accepted if example.accepted and len(example.accepted) > 1 else reference(example)


def asked(example: Example, wording: str = "") -> list[Message]:
    """Return the messages of a chat before the reference answer, with a text appended to the last one."""
    assert isinstance(example, Chat)
    return with_wording(example.messages[: example.reference_index], wording)


def with_wording(messages: Sequence[Message], wording: str) -> list[Message]:
    """Return the messages, at least one, with a text appended to the last one; it may be empty."""
    *earlier, last = messages
    return [*earlier, replace(last, content=f"{last.content}\n\n{wording}" if wording else last.content)]
