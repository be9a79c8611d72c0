"""Whether another program answers as the original does: the same rows, the same ids, the same greedy answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from tunesmith.data.examples import Message
from tunesmith.evaluation.tasks import PER_ROW, SCALES, WHOLE, value
from tunesmith.inference.local import LocalModel
from tunesmith.model.generate import generate
from tunesmith.model.sampling import Sampling
from tunesmith.objectives import Classify, Domain
from tunesmith.report.predictions import Prediction

# Tokens of a text that a model of texts goes on from, and how far it goes.
BEGINNING = 48
# Largest difference of two pooled states, as a share of their length; weights of 16 bits make another.
SAME_STATE = 1e-4
ROUNDED_STATE = {"merged f16": 0.01, "merged bf16": 0.05}
# By format: least share of equal answers, and most that the score may move; one row's worth is always allowed.
BOUNDS = {
    "merged": (1.0, 0.0),
    "merged f16": (0.95, 0.005),
    "merged bf16": (0.90, 0.01),
    "adapter": (1.0, 0.0),
    "gguf f16": (0.95, 0.005),
    "gguf q8_0": (0.90, 0.01),
    "gguf q4_0": (0.0, 0.05),
}


class OpenedExport(Protocol):
    """Another program that has opened an export."""

    def prompts(self, chats: Sequence[Sequence[Message]]) -> list[list[int]]:
        """The ids after which it answers each chat."""
        ...

    def ids(self, text: str) -> list[int]:
        """A text in its tokens."""
        ...

    def answers(self, prompts: Sequence[list[int]], *, longest: int) -> list[str]:
        """Its greedy answers."""
        ...


Opener = Callable[[], OpenedExport]
States = Callable[[Sequence[list[int]]], Tensor]


@dataclass(frozen=True, slots=True)
class ProgramAgreement:
    """How far two programs agree over some rows; scores where the rows say what is right."""

    metric: str
    rows: int
    same_prompts: float
    same_answers: float
    score_original: float | None = None
    score_export: float | None = None


@dataclass(frozen=True, slots=True)
class _Asked:
    """What both sides are asked: chats or texts, the ids that they have here, and how far an answer goes."""

    chats: list[list[Message]]
    texts: list[str]
    prompts: list[list[int]]
    longest: int


def by_answers(model: LocalModel, rows: Sequence[Prediction], opened: Opener) -> ProgramAgreement:
    """The greedy answers of both sides to the same rows."""
    asked = _asked(model, rows)
    sampling = Sampling(max_new_tokens=asked.longest)
    drawn = generate(model.policy, asked.prompts, sampling=sampling, template=model.template)
    ours = [model.template.decode(one.ids).strip() for one in drawn]
    program = opened()
    theirs = [program.ids(text)[:BEGINNING] for text in asked.texts] or program.prompts(asked.chats)
    said = program.answers(asked.prompts, longest=asked.longest)
    metric, gold = model.objective.metric, [row.gold for row in rows]
    scored = all(gold) and (metric in PER_ROW or metric in WHOLE)
    return ProgramAgreement(
        metric=metric,
        rows=len(rows),
        same_prompts=_share(theirs, asked.prompts),
        same_answers=_share(said, ours),
        score_original=value(metric, gold, ours) if scored else None,
        score_export=value(metric, gold, said) if scored else None,
    )


def by_states(model: LocalModel, rows: Sequence[Prediction], states: States, *, form: str) -> ProgramAgreement:
    """The states [B, D] that a head reads, of both sides over the same ids."""
    ours = model.embed([row.question for row in rows])
    theirs = states([model.tokens(row.question).ids for row in rows])
    same = (theirs - ours).norm(dim=1) <= ROUNDED_STATE.get(form, SAME_STATE) * ours.norm(dim=1)
    return ProgramAgreement("states", len(rows), same_prompts=1.0, same_answers=float(same.double().mean()))


def overall(parts: Sequence[ProgramAgreement]) -> ProgramAgreement:
    """The rows of all tasks together; the scores are those of the first, which is the headline."""
    rows = sum(part.rows for part in parts)
    prompts = sum(part.same_prompts * part.rows for part in parts) / rows
    answers = sum(part.same_answers * part.rows for part in parts) / rows
    return replace(parts[0], rows=rows, same_prompts=prompts, same_answers=answers)


def find_problems(found: Mapping[str, ProgramAgreement], form: str) -> tuple[str, ...]:
    """What is wrong with an export of this form, by task where there are several; empty for one that may be used."""
    return tuple(f"{task}: {said}" if task else said for task, part in found.items() for said in _faults(part, form))


def _faults(found: ProgramAgreement, form: str) -> list[str]:
    least, most = BOUNDS[form]
    said = []
    if found.same_prompts < 1:
        said.append(f"{1 - found.same_prompts:.1%} of the prompts become other tokens there")
    if found.same_answers < least:
        said.append(f"{found.same_answers:.1%} of {found.rows} answers are the same, {least:.0%} have to be")
    if found.score_original is not None and found.score_export is not None:
        moved = abs(found.score_export - found.score_original)
        if moved / SCALES.get(found.metric, 1.0) > max(most, 1 / found.rows if most else 0) + 1e-9:
            said.append(f"{found.metric} moves by {moved:.3f}")
    return said


def _asked(model: LocalModel, rows: Sequence[Prediction]) -> _Asked:
    """Test rows as this model is asked them, special tokens inside them broken up for both sides alike."""
    objective, template = model.objective, model.template
    texts = [template.harmless(row.question) for row in rows]
    if isinstance(objective, Domain):
        return _Asked([], texts, [template.document(text, limit=BEGINNING).ids for text in texts], BEGINNING)
    if isinstance(objective, Classify):
        asked = [objective.messages(text) for text in texts]
        longest = 2 + max(len(template.answer(asked[0], label)) for label in objective.labels)
    else:
        asked = [[Message("user", text)] for text in texts]
        longest = model.sampling.max_new_tokens
    chats = [template.fit(messages, model.prompt_budget(longest))[0] for messages in asked]
    prompts = [template.prompt(chat) for chat in chats]
    return _Asked(chats, [], prompts, min(model.longest(ids, Sampling(max_new_tokens=longest)) for ids in prompts))


def _share(some: Sequence[object], others: Sequence[object]) -> float:
    """Share of pairs that are equal."""
    return sum(a == b for a, b in zip(some, others, strict=True)) / len(others)
