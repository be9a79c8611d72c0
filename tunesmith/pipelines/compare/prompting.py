"""Questions put to a model, a batch for the throughput and some one at a time for the latency."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from pydantic import BaseModel, ConfigDict

from tunesmith.data.documents.document import plain
from tunesmith.data.examples.types import Example, LabelledText
from tunesmith.data.tokenization.messages import Message
from tunesmith.inference.local_model import LocalModel
from tunesmith.inference.openai_client import Remote
from tunesmith.models.generation.sampling import Sampling
from tunesmith.objectives import Classify, Instruct
from tunesmith.pipelines.compare.context import ComparisonContext
from tunesmith.retrieval.index import Hit
from tunesmith.retrieval.prompts import question_of, with_passages

# The longest answer to a question about labels of a server, which gives no probabilities.
LABEL_TOKENS = 24

# Turns that ask each of some rows.
Ask = Callable[[Sequence[Example]], list[list[Message]]]


class BatchAnswers(BaseModel):
    """Answers to a batch."""

    model_config = ConfigDict(frozen=True)

    given: list[str] = []
    finished: list[bool] = []
    prompt_tokens: list[int] = []
    seconds: float = 0.0

    def __add__(self, more: BatchAnswers) -> BatchAnswers:
        return BatchAnswers(
            given=self.given + more.given,
            finished=self.finished + more.finished,
            prompt_tokens=self.prompt_tokens + more.prompt_tokens,
            seconds=self.seconds + more.seconds,
        )


def ask_model(
    model: LocalModel | Remote, batch: Sequence[Sequence[Message]], objective: Classify | Instruct
) -> BatchAnswers:
    """What a model answers: the likeliest label, or its own words."""
    began = time.perf_counter()
    if isinstance(objective, Classify) and isinstance(model, LocalModel):
        scores = model.options(batch, objective.labels)
        given = [objective.labels[place] for place in scores.argmax(dim=1).tolist()]
        read = [len(model.prompt(messages)) for messages in batch]
        return BatchAnswers(given=given, prompt_tokens=read, seconds=time.perf_counter() - began)
    longest = objective.max_new_tokens or LABEL_TOKENS
    replies = model.replies(batch, sampling=Sampling(max_new_tokens=longest))
    given = [reply.text for reply in replies]
    if isinstance(objective, Classify):
        given = [label_in(text, objective.labels) for text in given]
    return BatchAnswers(
        given=given,
        finished=[reply.finished for reply in replies],
        prompt_tokens=[reply.prompt_tokens for reply in replies],
        seconds=time.perf_counter() - began,
    )


def label_in(text: str, labels: Sequence[str]) -> str:
    """The label that an answer names first, the longer one where two begin alike; the answer itself if none."""
    exact = [label for label in labels if label.strip().casefold() == text.strip().casefold()]
    if exact:  # one of marks alone is found in no other way
        return exact[0]
    said = f" {plain(text)} "
    # A label of marks alone would be found in the spaces of any text.
    found = [(said.find(f" {plain(label)} "), -len(label), label) for label in labels if plain(label)]
    named = [place for place in found if place[0] >= 0]
    if not named:
        return text
    alike = [label for label in labels if plain(label) == plain(min(named)[2])]  # C, C++ and C# differ in marks alone
    return max((label for label in alike if label.casefold() in text.casefold()), key=len, default=alike[0])


def plain_prompt(context: ComparisonContext, rows: Sequence[Example], wording: str = "") -> list[list[Message]]:
    """The rows' own questions."""
    return [question_of(context.objective, row, wording) for row in rows]


def worded(model: LocalModel, example: Example, wording: str) -> list[Message]:
    """A row's question in a wording, its text shortened where the model cannot read all of it."""
    if isinstance(example, LabelledText):
        return model.about(example.text, wording)
    assert isinstance(model.objective, Instruct)
    return question_of(model.objective, example, wording)


def within(model: LocalModel, asked: Sequence[Message], hits: Sequence[Hit], form: str) -> list[Message]:
    """The question below as many of the passages, the best first, as the model can read with it."""
    return fit_messages(model, len(hits), lambda count: with_passages(asked, hits[:count], form))


def fit_messages(model: LocalModel, most: int, make: Callable[[int], list[Message]]) -> list[Message]:
    """The messages with as many things beside the question, up to `most`, as the model can read with it."""
    room = model.prompt_budget(model.objective.max_new_tokens or LABEL_TOKENS)
    for count in range(most, 0, -1):
        messages = make(count)
        if len(model.template.prompt(messages)) <= room:
            return messages
    return make(0)
