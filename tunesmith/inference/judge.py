"""Scores of answers: the output of a reward head, or the log-probability of the answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from tunesmith.data.examples import Example, Message, Pair
from tunesmith.data.template import Encoded
from tunesmith.data.turns import instructed
from tunesmith.errors import RecipeError
from tunesmith.inference.local import LocalModel
from tunesmith.model.batch import TOKENS_PER_PASS, Batch, collate, split_by_tokens
from tunesmith.objectives import Preference, Reward


@dataclass(frozen=True, slots=True)
class AnswerScore:
    """The score of an answer."""

    value: float  # reward, or summed log-probability in nats
    ids: int  # tokens of the answer

    @property
    def per_id(self) -> float:
        """The score per token."""
        return self.value / max(1, self.ids)


def score_answers(model: LocalModel, examples: Sequence[Example]) -> list[tuple[AnswerScore, ...]]:
    """Score the answers of each example.

    Args:
        model: a reward or preference model.
        examples: rows with one or two answers.

    Returns:
        One or two scores per row.
    """
    assert isinstance(model.objective, Preference | Reward)
    rows = [model.objective.encode(example, model.template, limit=model.limit) for example in examples]
    counts = [[max(1, tokens.learned) for tokens in row.sequences] for row in rows]
    return [
        tuple(AnswerScore(value, ids) for value, ids in zip(values, known, strict=True))
        for values, known in zip(_values(model, rows), counts, strict=True)
    ]


def rewards(model: LocalModel, asked: Sequence[tuple[str | Sequence[Message], str]]) -> list[float]:
    """Return the reward of each (prompt, answer); raise RecipeError if this is not a reward model."""
    objective = model.objective
    if not isinstance(objective, Reward):
        raise RecipeError(
            f"reward: expected a reward model, this one was tuned with {objective.kind}; tune with reward"
        )
    rows = []
    for prompt, answer in asked:
        turns = [Message("user", prompt)] if isinstance(prompt, str) else prompt
        question = next((turn.content for turn in turns if turn.role == "user"), None)
        if question is None:
            raise RecipeError("reward: the prompt contains no user message; add one")
        if not question.startswith(objective.instruction):  # the calling recipe may have added the same instruction
            turns = instructed(turns, objective.instruction)
        (tokens,), _ = objective.read(turns, [answer], model.template, limit=model.limit)
        rows.append(Encoded((tokens,), ""))
    return [value for (value,) in _values(model, rows)]


@torch.inference_mode()
def pair_states(model: LocalModel, pairs: Sequence[Pair]) -> torch.Tensor:
    """Compute the pooled states of both answers of each pair, the input of the reward head.

    Args:
        model: a reward model.
        pairs: N preference pairs.

    Returns:
        States [N, 2, D], chosen first.
    """
    assert isinstance(model.objective, Reward)
    rows = [model.objective.encode(pair, model.template, limit=model.limit) for pair in pairs]
    states = torch.empty(len(rows), 2, model.policy.hidden)
    for indices, batch in _batches(model, rows):
        states[indices] = model.policy.pooled(batch).float().cpu().view(len(indices), 2, -1)
    return states


@torch.inference_mode()
def _values(model: LocalModel, rows: Sequence[Encoded]) -> list[list[float]]:
    """Return the score of each sequence of each row."""
    scores: list[list[float]] = [[] for _ in rows]
    for indices, batch in _batches(model, rows):
        if isinstance(model.objective, Reward):
            values = model.objective.scores(batch, model.policy)
        else:
            values = model.policy.logprobs(batch)
        for index, row_scores in zip(indices, values.float().cpu().view(len(indices), -1).tolist(), strict=True):
            scores[index] = row_scores
    return scores


def _batches(model: LocalModel, rows: Sequence[Encoded]) -> Iterator[tuple[list[int], Batch]]:
    """Yield indices of rows and their batch, longest first."""
    sizes = [row.size for row in rows]
    order = sorted(range(len(rows)), key=lambda row: -sizes[row])
    for indices in split_by_tokens(order, sizes, TOKENS_PER_PASS):
        batch = collate([rows[i] for i in indices], share=model.policy.family == "decoder")
        yield indices, batch.to(model.policy.device)
