"""What a model finds an answer worth: the score of its head, or the answer's log-probability."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from tunesmith.data.examples import Example, Message, Pair
from tunesmith.data.template import Encoded
from tunesmith.data.turns import instructed
from tunesmith.errors import RecipeError
from tunesmith.inference.local import LocalModel
from tunesmith.model.batch import TOKENS_PER_PASS, Batch, collate, cut
from tunesmith.objectives import Preference, Reward


@dataclass(frozen=True, slots=True)
class Valued:
    """What an answer is worth: a head's score, or the log-probability of its ids together."""

    value: float
    ids: int

    @property
    def per_id(self) -> float:
        """The same for each id of the answer."""
        return self.value / max(1, self.ids)


def valued(model: LocalModel, examples: Sequence[Example]) -> list[tuple[Valued, ...]]:
    """The worth of the one or two answers of each example."""
    assert isinstance(model.objective, Preference | Reward)
    rows = [model.objective.encode(example, model.template, limit=model.limit) for example in examples]
    counts = [[max(1, tokens.learned) for tokens in row.sequences] for row in rows]
    return [
        tuple(Valued(value, ids) for value, ids in zip(values, known, strict=True))
        for values, known in zip(_values(model, rows), counts, strict=True)
    ]


def rewards(model: LocalModel, asked: Sequence[tuple[str | Sequence[Message], str]]) -> list[float]:
    """The head's score of each (prompt, answer). Raises RecipeError for a model that is no reward model."""
    objective = model.objective
    if not isinstance(objective, Reward):
        raise RecipeError(f"reward: this model was tuned to {objective.kind} and scores no answers; tune with reward")
    rows = []
    for prompt, answer in asked:
        turns = [Message("user", prompt)] if isinstance(prompt, str) else prompt
        question = next((turn.content for turn in turns if turn.role == "user"), None)
        if question is None:
            raise RecipeError("reward: a prompt without a user's turn asks nothing; give one")
        asked_so = question.startswith(objective.instruction)
        turns = turns if asked_so else instructed(turns, objective.instruction)  # the recipe that asks may say it too
        (tokens,), _ = objective.read(turns, [answer], model.template, limit=model.limit)
        rows.append(Encoded((tokens,), ""))
    return [value for (value,) in _values(model, rows)]


@torch.inference_mode()
def pair_states(model: LocalModel, pairs: Sequence[Pair]) -> torch.Tensor:
    """[N, 2, D]: pooled states of both answers of each pair, as a reward model reads them."""
    assert isinstance(model.objective, Reward)
    rows = [model.objective.encode(pair, model.template, limit=model.limit) for pair in pairs]
    found = torch.empty(len(rows), 2, model.policy.hidden)
    for numbers, batch in _batches(model, rows):
        found[numbers] = model.policy.pooled(batch).float().cpu().view(len(numbers), 2, -1)
    return found


@torch.inference_mode()
def _values(model: LocalModel, rows: Sequence[Encoded]) -> list[list[float]]:
    """What each sequence of each row is worth."""
    found: list[list[float]] = [[] for _ in rows]
    for numbers, batch in _batches(model, rows):
        if isinstance(model.objective, Reward):
            values = model.objective.scores(batch, model.policy)
        else:
            values = model.policy.logprobs(batch)
        for number, told in zip(numbers, values.float().cpu().view(len(numbers), -1).tolist(), strict=True):
            found[number] = told
    return found


def _batches(model: LocalModel, rows: Sequence[Encoded]) -> Iterator[tuple[list[int], Batch]]:
    """Numbers of rows and their batch, longest first."""
    sizes = [row.size for row in rows]
    order = sorted(range(len(rows)), key=lambda row: -sizes[row])
    for numbers in cut(order, sizes, TOKENS_PER_PASS):
        batch = collate([rows[i] for i in numbers], share=model.policy.family == "decoder")
        yield numbers, batch.to(model.policy.device)
