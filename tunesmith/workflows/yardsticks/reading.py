"""Measured without labels: what the untuned and the tuned model say to the same held-out documents."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from tunesmith.data.examples import Text
from tunesmith.data.template import Template
from tunesmith.errors import DataError
from tunesmith.evaluation.likelihood import (
    REPORTED,
    ReadingOptions,
    Told,
    can_tell,
    compare,
    rate,
    rate_interval,
    read,
    row_score,
)
from tunesmith.evaluation.resampling import groups_of
from tunesmith.evaluation.results import BASE
from tunesmith.evaluation.tasks import Arm, Difference, Score, TaskScore, as_task
from tunesmith.inference.local import LocalModel
from tunesmith.model.policy import Policy
from tunesmith.objectives import Domain
from tunesmith.workflows.frozen_head import how_made
from tunesmith.workflows.prepare import Prepared, masking_of
from tunesmith.workflows.yardsticks.base import Frozen, Worth

# Characters of a document that its line in predictions.jsonl shows.
SHOWN = 2_000


@dataclass(frozen=True, slots=True)
class Read:
    """What a model says to each document, how long it took, and of a base with a head how that was made."""

    told: list[Told]
    seconds: float
    how: str = ""


class Reading:
    """Scores what is said to documents: by how much, window for window."""

    shape: ClassVar[type[Any]] = Read

    def __init__(self, frozen: Frozen) -> None:
        assert isinstance(frozen.objective, Domain)
        self._objective = frozen.objective
        self._frozen = frozen
        self._examples = list(frozen.examples)

    def untuned(self, prepared: Prepared, policy: Policy, out: Path) -> Read:
        """What the base says to the documents, an encoder through the head that the run begins with."""
        how = "as it is"
        if prepared.head is not None:
            policy.head = self._objective.head(policy)
            assert policy.head is not None
            policy.head.load_state_dict(prepared.head)
            how = how_made(out)
        policy.train(False)
        return self._read(policy, prepared.template, how=how)

    def tuned(self, model: LocalModel) -> Read:
        """What a model says to each document."""
        return self._read(model.policy, model.template)

    def tasks(self, base: Read, tuned: Read, *, name: str) -> list[TaskScore]:
        """Base against tuned by the headline and what is reported beside it."""
        clusters = groups_of(self._examples)
        return [
            as_task(compare(one, base.told, tuned.told, groups=clusters), name=name, metric=one)
            for one in REPORTED[self._objective.metric]
            if can_tell(one, base.told)
        ]

    def scores(self, said: Read, *, name: str) -> list[Score]:
        """One model alone, by the headline and what is reported beside it."""
        return [
            Score(
                name=name,
                metric=one,
                score=rate(one, said.told),
                ci95=rate_interval(one, said.told, groups=groups_of(self._examples)),
                n=len(said.told),
            )
            for one in REPORTED[self._objective.metric]
            if can_tell(one, said.told)
        ]

    def arms(
        self, task: TaskScore, sides: tuple[Read, Read], controls: Mapping[str, Read]
    ) -> tuple[list[Arm], list[Arm]]:
        """The base as a way among others; what the tuned model gains over it is the headline."""
        base, _ = sides
        (alone,) = (one for one in self.scores(base, name=BASE) if one.metric == task.metric)
        gain = Difference(**{name: getattr(task, name) for name in Difference.model_fields})
        return [Arm(**{**alone.model_dump(), "detail": base.how}, gain=gain, p_adjusted=task.p_value)], []

    def lines(self, sides: Mapping[str, Read]) -> list[dict[str, Any]]:
        """A line for each document: what each side, under its name, finds it worth, higher being better."""
        found = []
        for i, example in enumerate(self._examples):
            named = {name: said.told[i] for name, said in sides.items()}
            text = example.text[:SHOWN] if isinstance(example, Text) else ""
            line: dict[str, Any] = {"where": example.where, "group": example.group, "question": text, "gold": ""}
            line |= dict.fromkeys(named, "")
            line |= {f"score_{name}": row_score(_nats(self._objective.metric), one) for name, one in named.items()}
            found.append(line | {"counts": {name: asdict(one) for name, one in named.items()}})
        return found

    def worth(self, prepared: Prepared, model: LocalModel, sides: tuple[Read, Read]) -> Worth:
        """Nothing: texts have neither probabilities of labels nor a voice to keep to."""
        return Worth()

    def _read(self, policy: Policy, template: Template, *, how: str = "") -> Read:
        began = time.perf_counter()
        masking = masking_of(self._objective, template, self._frozen.seed)
        asked = ReadingOptions(self._frozen.limit, self._objective.terms, masking)
        told = read(policy, template, [e.text for e in self._examples if isinstance(e, Text)], asked)
        if not any(one.tokens for one in told):
            raise DataError("data.test: no document has a second token to tell; hold longer ones out")
        return Read(told, time.perf_counter() - began, how)


def _nats(metric: str) -> str:
    """The metric of one document: losses add up and compare, perplexities of short texts do not."""
    return "nats_per_token" if metric == "perplexity" else metric
