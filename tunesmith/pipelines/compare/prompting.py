"""Prompts of the arms, and the answers of a model to a batch of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tunesmith.config import AnyObjective
from tunesmith.data.documents.document import plain
from tunesmith.data.examples.types import Example, LabelledText
from tunesmith.data.tokenization.messages import Message
from tunesmith.inference.local_model import LocalModel
from tunesmith.inference.openai_client import Remote
from tunesmith.models.generation.sampling import Sampling
from tunesmith.models.kept_answers import answer_clock
from tunesmith.pipelines.compare.answers import BatchAnswers
from tunesmith.pipelines.compare.context import ComparisonContext
from tunesmith.retrieval.index import Hit
from tunesmith.retrieval.prompts import with_passages

# Greatest answer of a server to a question about labels, in tokens; it returns no probabilities.
LABEL_TOKENS = 24


@dataclass(frozen=True, slots=True)
class Prompt:
    """The messages for one row, and the passages in them."""

    messages: list[Message]
    hits: Sequence[Hit] = ()  # best first
    dropped: int = 0  # retrieved passages that did not fit the context


# Builds the prompt of each row.
PromptBuilder = Callable[[Sequence[Example]], list[Prompt]]


def ask_model(model: LocalModel | Remote, batch: Sequence[Sequence[Message]], objective: AnyObjective) -> BatchAnswers:
    """Answer a batch of prompts: by the likeliest label of the objective, or by generating text.

    The text of a server is searched for a label.
    """
    began = answer_clock()
    options = objective.known_labels
    if options and isinstance(model, LocalModel):
        logprobs = model.options(batch, options)  # [B, O]
        return BatchAnswers(
            given=[options[index] for index in logprobs.argmax(dim=1).tolist()],
            prompt_tokens=[len(model.prompt(messages)) for messages in batch],
            seconds=answer_clock() - began,
        )
    longest = objective.max_new_tokens or LABEL_TOKENS
    if isinstance(model, LocalModel) and model.thinking_mode():
        longest += model.objective.thinking_tokens
    replies = model.replies(batch, sampling=Sampling(max_new_tokens=longest))
    return BatchAnswers(
        given=[label_in(reply.text, options) if options else reply.text for reply in replies],
        finished=[reply.finished for reply in replies],
        prompt_tokens=[reply.prompt_tokens for reply in replies],
        seconds=answer_clock() - began,
    )


def label_in(text: str, labels: Sequence[str]) -> str:
    """Return the label that an answer names first, of two at one word the longer one; the answer if it names none."""
    exact = [label for label in labels if label.strip().casefold() == text.strip().casefold()]
    if exact:  # the only way to match a label of punctuation alone
        return exact[0]
    words = f" {plain(text)} "
    # A label without letters or digits would match the spaces of any text.
    matches = [(words.find(f" {plain(label)} "), -len(label), label) for label in labels if plain(label)]
    named = [match for match in matches if match[0] >= 0]
    if not named:
        return text
    _, _, first = min(named)
    alike = [label for label in labels if plain(label) == plain(first)]  # C, C++ and C# differ in punctuation alone
    return max((label for label in alike if label.casefold() in text.casefold()), key=len, default=alike[0])


def plain_prompt(context: ComparisonContext, rows: Sequence[Example], wording: str = "") -> list[list[Message]]:
    """Return the messages of each row, in the default or another wording."""
    return [context.objective.prompt_messages(row, wording) for row in rows]


def base_prompt(context: ComparisonContext, row: Example, wording: str) -> list[Message]:
    """Return the messages of a row; a text to label is shortened to the context of the base model."""
    if isinstance(row, LabelledText):
        return context.base().about(row.text, wording)
    return context.objective.prompt_messages(row, wording)


def within(model: LocalModel, messages: Sequence[Message], hits: Sequence[Hit], form: str) -> Prompt:
    """Insert the best passages before the question, as many as fit the context of the model."""
    count, filled = fit_messages(model, len(hits), lambda count: with_passages(messages, hits[:count], form))
    return Prompt(filled, hits[:count], len(hits) - count)


def passage_prompts(
    context: ComparisonContext, model: LocalModel, rows: Sequence[Example], hits: Sequence[Sequence[Hit]], *, form: str
) -> list[Prompt]:
    """Build the prompt of each row with its passages, see `within`."""
    questions = plain_prompt(context, rows)
    return [within(model, messages, row_hits, form) for messages, row_hits in zip(questions, hits, strict=True)]


def fit_messages(model: LocalModel, most: int, make: Callable[[int], list[Message]]) -> tuple[int, list[Message]]:
    """Return the greatest number of extras, at most `most`, whose messages fit the context, and the messages."""
    thinking = model.thinking_mode()
    thoughts = model.objective.thinking_tokens if thinking else 0
    budget = model.prompt_budget((model.objective.max_new_tokens or LABEL_TOKENS) + thoughts)
    for count in range(most, 0, -1):
        messages = make(count)
        if len(model.template.prompt(messages, thinking=thinking)) <= budget:
            return count, messages
    return 0, make(0)
