"""Prompts of the arms: the plain question, with few-shot examples, or with retrieved passages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tunesmith.data.documents.document import plain
from tunesmith.data.examples.types import Chat, Example, LabelledText
from tunesmith.data.text.words import words_of
from tunesmith.data.tokenization.messages import Message
from tunesmith.objectives import Objective
from tunesmith.objectives.instruct import reference
from tunesmith.retrieval.index import Hit

BATCH_SIZE = 256  # texts per similarity matrix, which is dense


class Nearest:
    """Nearest neighbours by TF-IDF of words and word pairs.

    Example: `Nearest(train_texts).to(test_texts, 4)`.
    """

    def __init__(self, known: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._vectorizer = TfidfVectorizer(
            ngram_range=(1, 2), tokenizer=words_of, token_pattern=None, sublinear_tf=True
        )
        self._count = len(known)
        # TF-IDF cannot be fitted to texts without any word.
        self._known = self._vectorizer.fit_transform(known) if any(map(words_of, known)) else None

    def to(self, texts: Sequence[str], count: int) -> list[list[int]]:
        """Return the indices of the `count` known texts that are most similar to each query, most similar first."""
        if self._known is None:
            return [list(range(min(count, self._count)))] * len(texts)
        queries = self._vectorizer.transform(texts)
        neighbours = list[list[int]]()
        for start in range(0, len(texts), BATCH_SIZE):
            similarity = (queries[start : start + BATCH_SIZE] @ self._known.T).toarray()
            neighbours += [np.argsort(-row, kind="stable")[:count].tolist() for row in similarity]
        return neighbours


# Templates with passages. The best one on validation rows is used; the `raft` arm is trained with the first.
FORMS = (
    "{passages}\n\n{question}",
    "Text: {passages}\n\n{question} Reply with the answer only.",
)

# Characters of an example in the prompt; longer ones would leave too little context for the question.
SHOT = 600


def with_shots(
    objective: Objective, messages: Sequence[Message], shots: Sequence[Example], wording: str = ""
) -> list[Message]:
    """Insert few-shot examples before a question, the most similar one last; system messages stay first.

    Args:
        objective: of rows with reference answers.
        messages: the question.
        shots: the examples, the most similar one first.
        wording: prompt template; empty for the default.
    """
    before = [turn for shot in reversed(shots) for turn in _shot_messages(objective, shot, wording)]
    turns = [replace(turn, tools="") for turn in messages]
    system = [turn for turn in turns if turn.role == "system"]
    first, *others = [*system, *before, *(turn for turn in turns if turn.role != "system")]
    return [replace(first, tools=messages[0].tools), *others]


def _shot_messages(objective: Objective, shot: Example, wording: str) -> list[Message]:
    """Return an example as question and answer, shortened if it is long."""
    if isinstance(shot, LabelledText):
        short: Example = replace(shot, text=shot.text[:SHOT])
        return [*objective.prompt_messages(short, wording), Message("assistant", shot.labels[0])]
    text = objective.prompt_messages(shot)[-1].content[: SHOT + 200]
    return [Message("user", f"{text}\n\n{wording}" if wording else text), Message("assistant", reference(shot))]


def with_passages(messages: Sequence[Message], hits: Sequence[Hit], form: str = FORMS[0]) -> list[Message]:
    """Insert retrieved passages before the last message, the best one closest to it.

    Args:
        messages: the question.
        hits: the passages, best first; without any the question is unchanged.
        form: one of `FORMS`.
    """
    if not hits:
        return list(messages)
    passages = "\n\n".join(hit.chunk.text for hit in reversed(hits))
    *before, last = messages
    marks = {"{passages}": passages, "{question}": last.content}
    filled = "".join(marks.get(part, part) for part in re.split(r"(\{passages\}|\{question\})", form))
    return [*before, replace(last, content=filled)]


def cited(answer: str, hits: Sequence[Hit]) -> str:
    """Return the id of the chunk with most words of an answer; empty if none in its prompt contains half of them."""
    words = set(plain(answer).split())
    overlaps = [len(words & set(plain(hit.chunk.text).split())) for hit in hits]
    most = max(overlaps, default=0)
    return hits[overlaps.index(most)].chunk.id if most and most >= len(words) / 2 else ""


def raft_example(example: Example, hits: Sequence[Hit], objective: Objective) -> Chat:
    """Build a training row with passages in its prompt.

    Args:
        example: the training row.
        hits: the passages, best first.
        objective: of rows with reference answers.

    Source: RAFT, Zhang et al. 2024, arXiv 2403.10131.
    """
    prompt = with_passages(objective.prompt_messages(example), hits)
    answer = example.labels[0] if isinstance(example, LabelledText) else reference(example)
    return Chat(example.where, (*prompt, Message("assistant", answer)), example.group)
