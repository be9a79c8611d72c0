"""Measured by answers: labels or texts, beside what the rows say is right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from tunesmith.evaluation.resampling import groups_of
from tunesmith.evaluation.results import BASE
from tunesmith.evaluation.tasks import BESIDE, Arm, Score, TaskScore, arms, score, task_score
from tunesmith.inference.local import LocalModel
from tunesmith.model.policy import Policy
from tunesmith.objectives import Classify, Instruct
from tunesmith.workflows.answers import Answers, Untuned, Ways, answer, gold, question
from tunesmith.workflows.prepare import Prepared
from tunesmith.workflows.worth import SHUFFLED, cheap_ways, head_only, reliability, voice
from tunesmith.workflows.yardsticks.base import Frozen, Worth

DETAILS = {SHUFFLED: "same recipe, answers dealt out at random; journal in control"}
# Metrics of the whole set that need all answers at once and are slow to draw intervals for.
ALONE_ONLY = ("bleu",)


@dataclass(frozen=True, slots=True)
class Answered:
    """A model's answers; of the base also what the cheap ways and a head alone answer."""

    answers: Answers
    ways: Ways = field(default_factory=dict)
    controls: Ways = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """How long the answers took."""
        return self.answers.seconds


class Answering:
    """Scores answers by the objective's metric."""

    shape: ClassVar[type[Any]] = Answered

    def __init__(self, frozen: Frozen) -> None:
        assert isinstance(frozen.objective, Classify | Instruct)
        self._objective = frozen.objective
        self._examples = list(frozen.examples)
        self._limit = frozen.limit

    def untuned(self, prepared: Prepared, policy: Policy, out: Path) -> Answered:
        """The base's answers by its best plain prompt or a linear probe, and those of the cheap ways."""
        untuned = Untuned(prepared.base, policy, prepared.template, self._objective, self._limit)
        split, test = prepared.loaded.split, self._examples
        answers = untuned.answer(train=split.train, validation=split.validation, test=test)
        controls = head_only(prepared, untuned.model(), test) if prepared.recipe.controls else {}
        return Answered(answers, cheap_ways(prepared, test), controls)

    def tuned(self, model: LocalModel) -> Answered:
        """A model's answers."""
        return Answered(answer(model, self._examples))

    def tasks(self, base: Answered, tuned: Answered, *, name: str) -> list[TaskScore]:
        """Base against tuned by the headline and what is reported beside it."""
        right, clusters = gold(self._examples), groups_of(self._examples)
        sides = (base.answers.given, tuned.answers.given)
        wanted = (metric for metric in self._metrics() if metric not in ALONE_ONLY)
        return [task_score(metric, right, sides, name=name, groups=clusters) for metric in wanted]

    def scores(self, said: Answered, *, name: str) -> list[Score]:
        """One side by all metrics."""
        right, clusters, given = gold(self._examples), groups_of(self._examples), said.answers.given
        return [score(metric, right, given, name=name, groups=clusters) for metric in self._metrics()]

    def arms(
        self, task: TaskScore, sides: tuple[Answered, Answered], controls: Mapping[str, Answered]
    ) -> tuple[list[Arm], list[Arm]]:
        """The base, the cheap ways and the controls beside the tuned answers."""
        base, tuned = sides
        meaningless = {**base.controls, **{name: said.answers.given for name, said in controls.items()}}
        ways = {BASE: base.answers.given, **base.ways, **meaningless}
        details = {BASE: base.answers.how, **DETAILS}
        right, clusters = gold(self._examples), groups_of(self._examples)
        found = [
            arm.model_copy(update={"detail": details.get(arm.name, "")})
            for arm in arms(task.metric, right, ways, tuned.answers.given, groups=clusters)
        ]
        return [arm for arm in found if arm.name not in meaningless], [arm for arm in found if arm.name in meaningless]

    def lines(self, sides: Mapping[str, Answered]) -> list[dict[str, Any]]:
        """Each row with what was right and what the sides answered, with the last side's probabilities."""
        probabilities = list(sides.values())[-1].answers.probabilities
        found = []
        for i, (example, right) in enumerate(zip(self._examples, gold(self._examples), strict=True)):
            line: dict[str, Any] = {"where": example.where, "group": example.group}
            line |= {"question": question(example), "gold": right}
            line |= {name: said.answers.given[i] for name, said in sides.items()}
            if probabilities:
                line["probabilities"] = {label: round(p, 5) for label, p in probabilities[i].items()}
            found.append(line)
        return found

    def worth(self, prepared: Prepared, model: LocalModel, sides: tuple[Answered, Answered]) -> Worth:
        """How far stated probabilities hold, or how near written answers are to people's."""
        base, tuned = (side.answers for side in sides)
        return Worth(reliability(prepared, model, tuned), voice(prepared, (base, tuned), self._examples))

    def _metrics(self) -> tuple[str, ...]:
        metric = self._objective.metric
        return (metric, *BESIDE.get(metric, ()))
