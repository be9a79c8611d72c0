"""What an arm asks: the plain question, examples before it, or passages above it. All arms ask the same rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from tunesmith.data.collect.document import plain
from tunesmith.data.examples import Chat, Example, Labelled, Message
from tunesmith.decision.index import Hit
from tunesmith.objectives import Classify, Instruct
from tunesmith.objectives.instruct import asked, reference

# How passages stand above a question; the best on validation is taken, and `raft` learns the first.
FORMS = (
    "{passages}\n\n{question}",
    "Text: {passages}\n\n{question} Reply with the answer only.",
)
# Characters of an example in the prompt: more would crowd out the question.
SHOT = 600


def question_of(objective: Classify | Instruct, example: Example, wording: str = "") -> list[Message]:
    """The turns that ask a row, in a wording."""
    if isinstance(objective, Classify):
        assert isinstance(example, Labelled)
        return objective.messages(example.text, wording)
    return asked(example, wording)


def with_shots(
    objective: Classify | Instruct, asked: Sequence[Message], shots: Sequence[Example], wording: str = ""
) -> list[Message]:
    """The question after answered ones, the most alike last; what the system says stays first."""
    before = [turn for shot in reversed(shots) for turn in _answered(objective, shot, wording)]
    tools, turns = asked[0].tools, [replace(turn, tools="") for turn in asked]
    lead = [turn for turn in turns if turn.role == "system"]
    first, *others = [*lead, *before, *(turn for turn in turns if turn.role != "system")]
    return [replace(first, tools=tools), *others]


def _answered(objective: Classify | Instruct, shot: Example, wording: str) -> list[Message]:
    """One example as a question and its answer, cut where it is long."""
    if isinstance(shot, Labelled):
        short: Example = replace(shot, text=shot.text[:SHOT])
        return [*question_of(objective, short, wording), Message("assistant", shot.labels[0])]
    last = question_of(objective, shot)[-1]
    told = last.content[: SHOT + 200]
    return [Message("user", f"{told}\n\n{wording}" if wording else told), Message("assistant", reference(shot))]


def with_passages(messages: Sequence[Message], hits: Sequence[Hit], form: str = FORMS[0]) -> list[Message]:
    """The question with passages above it, the best one next to it; without any the question as it is."""
    if not hits:
        return list(messages)
    passages = "\n\n".join(hit.chunk.text for hit in reversed(hits))
    *before, last = messages
    marks = {"{passages}": passages, "{question}": last.content}
    filled = "".join(marks.get(part, part) for part in re.split(r"(\{passages\}|\{question\})", form))
    return [*before, replace(last, content=filled)]


def shown_in(asked: Sequence[Message], hits: Sequence[Hit]) -> list[Hit]:
    """Those of the hits that stand above the question: what did not fit was left out, the worst first."""
    return [hit for hit in hits if hit.chunk.text in asked[-1].content]


def cited(answer: str, hits: Sequence[Hit]) -> str:
    """The id of the shown chunk that holds the most of the answer's words; empty where none holds half of them."""
    words = set(plain(answer).split())
    held = [len(words & set(plain(hit.chunk.text).split())) for hit in hits]
    most = max(held, default=0)
    return hits[held.index(most)].chunk.id if most and most >= len(words) / 2 else ""


def raft_example(example: Example, hits: Sequence[Hit], objective: Classify | Instruct) -> Chat:
    """A training row whose question has passages above it: RAFT, Zhang et al. 2024, arXiv 2403.10131."""
    asking = with_passages(question_of(objective, example), hits)
    answer = example.labels[0] if isinstance(example, Labelled) else reference(example)
    return Chat(example.where, (*asking, Message("assistant", answer)), example.group)
