"""A run without labels: what the untuned and the tuned model say to the same held-out documents."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tunesmith.data.examples import Example, Text
from tunesmith.data.template import Template
from tunesmith.evaluation.likelihood import (
    REPORTED,
    Asked,
    Told,
    can_tell,
    compare,
    rate,
    rate_interval,
    read,
    row_score,
)
from tunesmith.evaluation.tasks import Arm, Difference, Score, TaskScore, as_task
from tunesmith.model.policy import Policy
from tunesmith.objectives import Domain
from tunesmith.report.standing import BASE
from tunesmith.workflows.answers import groups
from tunesmith.workflows.prepare import masking_of

# Characters of a document that its line in predictions.jsonl shows.
SHOWN = 2_000


@dataclass(frozen=True, slots=True)
class Reading:
    """What a model says to each document, and how long it took."""

    told: list[Told]
    seconds: float


@dataclass(frozen=True, slots=True)
class Reader:
    """How documents are read: by which objective, in windows of how many tokens, with which words hidden."""

    objective: Domain
    limit: int
    seed: int = 0

    def read(self, policy: Policy, template: Template, examples: Sequence[Example]) -> Reading:
        """What a policy says to each document."""
        began = time.perf_counter()
        masking = masking_of(self.objective, template, self.seed)
        asked = Asked(self.limit, self.objective.terms, masking)
        told = read(policy, template, [e.text for e in examples if isinstance(e, Text)], asked)
        return Reading(told, time.perf_counter() - began)


def tasks(
    metric: str, sides: tuple[Sequence[Told], Sequence[Told]], examples: Sequence[Example], *, name: str
) -> list[TaskScore]:
    """Base against tuned by the headline and what is reported beside it."""
    return [
        as_task(compare(one, *sides, groups=groups(examples)), name=name, metric=one)
        for one in REPORTED[metric]
        if can_tell(one, sides[0])
    ]


def scores(metric: str, told: Sequence[Told], examples: Sequence[Example], *, name: str) -> list[Score]:
    """One model alone, by the headline and what is reported beside it."""
    return [
        Score(
            name=name,
            metric=one,
            score=rate(one, told),
            ci95=rate_interval(one, told, groups=groups(examples)),
            n=len(told),
        )
        for one in REPORTED[metric]
        if can_tell(one, told)
    ]


def base_arm(task: TaskScore, told: Sequence[Told], examples: Sequence[Example], *, how: str) -> Arm:
    """The base as a way among others; what the tuned model gains over it is the headline."""
    (alone,) = (one for one in scores(task.metric, told, examples, name=BASE) if one.metric == task.metric)
    gain = Difference(**{name: getattr(task, name) for name in Difference.model_fields})
    return Arm(**{**alone.model_dump(), "detail": how}, gain=gain, p_adjusted=task.p_value)


def lines(
    metric: str,
    sides: Sequence[Sequence[Told]],
    examples: Sequence[Example],
    *,
    names: Sequence[str] = ("base", "tuned"),
) -> list[dict[str, Any]]:
    """A line for each document: what each side, under its name, finds it worth, higher being better."""
    found = []
    for example, *told in zip(examples, *sides, strict=True):
        named = dict(zip(names, told, strict=True))
        text = example.text[:SHOWN] if isinstance(example, Text) else ""
        line: dict[str, Any] = {"where": example.where, "group": example.group, "question": text, "gold": ""}
        line |= dict.fromkeys(named, "")
        line |= {f"score_{name}": row_score(_nats(metric), one) for name, one in named.items()}
        found.append(line | {"counts": {name: asdict(one) for name, one in named.items()}})
    return found


def _nats(metric: str) -> str:
    """The metric of one document: losses add up and compare, perplexities of short texts do not."""
    return "nats_per_token" if metric == "perplexity" else metric
