"""The test rows of a verdict: all, or as many as its time allows, chosen at random before anything is scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tunesmith.data.examples.types import Example
from tunesmith.data.stored import joined, take
from tunesmith.evaluation.results import ReportPart, ScoredRows
from tunesmith.metrics.resampling import MIN_GROUPS, Clusters, groups_of
from tunesmith.metrics.significance import expected_to_detect
from tunesmith.pipelines.plan.forecast import RunForecast, forecast_run
from tunesmith.pipelines.plan.phase_costs import count_run, known_phases, scored_tokens, trained_tokens
from tunesmith.pipelines.plan.profile import profile_run
from tunesmith.pipelines.plan.workload import generation
from tunesmith.report.formatting import clock
from tunesmith.training.prepare import TrainingContext
from tunesmith.training.train import base_policy

SCORING = ("base scoring", "test scoring")
GENERAL = ("general ability before", "general ability after")
# Test rows that are always scored: of `auto`, and of a time that is too short.
AUTO_ROWS, FEWEST_ROWS = 1_000, 30
# A trained token costs as much as three that are read: its forward pass, and the backward pass of twice that.
PASSES = 3
# Numbers of general questions to choose from, and the share of the time that they may take.
QUESTIONS, GENERAL_SHARE = (400, 200, 100), 1 / 3
# Assumed standard deviation of the change of a row or a question, before any is scored: a quarter of the rows become
# right or wrong, and a tenth of the questions.
ROW_DEVIATION, QUESTION_DEVIATION = 0.25**0.5, 0.1**0.5


class ChosenRows(ReportPart):
    """The rows of a verdict, pinned in the run folder so that a resumed run scores the same."""

    rows: dict[str, list[int]] = {}  # task -> indices of its test rows in random order; all if it is not named
    extent: ScoredRows | None = None  # None: all rows

    @property
    def note(self) -> str:
        """Return how many rows are scored, and what they can detect; empty if all are."""
        return f"verdict: {self.extent.sentence}; --verdict-minutes all scores every row" if self.extent else ""

    def of(self, prepared: TrainingContext) -> TrainingContext:
        """Return a run with these test rows and general questions."""
        if self.extent is None:
            return prepared
        return _asking(with_test_rows(prepared, self.rows), self.extent.questions)


def rows_of_verdict(prepared: TrainingContext) -> ChosenRows:
    """Choose the test rows by `verdict.minutes` of the recipe."""
    minutes = prepared.recipe.verdict.minutes
    if minutes == "all" or prepared.recipe.objective.samples_completions:
        return ChosenRows()
    return _as_long_as_training(prepared) if minutes == "auto" else _within(prepared, 60 * minutes)


def with_test_rows(prepared: TrainingContext, rows: Mapping[str, Sequence[int]]) -> TrainingContext:
    """Return a run with some of the test rows of each task, by index."""

    def narrowed(name: str, task: TrainingContext) -> TrainingContext:
        return _testing(task, take(task.test, np.array(rows[name], dtype=np.intp)))

    changed = prepared.map_tasks(narrowed)
    return _testing(changed, joined(*(task.test for task in changed.tasks.values()))) if changed.subtasks else changed


def _testing(task: TrainingContext, rows: Sequence[Example]) -> TrainingContext:
    return replace(task, loaded=replace(task.loaded, split=replace(task.loaded.split, test=rows)))


def _asking(prepared: TrainingContext, questions: int) -> TrainingContext:
    retention = prepared.recipe.retention.model_copy(update={"questions": questions})
    return replace(prepared, recipe=prepared.recipe.model_copy(update={"retention": retention}))


def _as_long_as_training(prepared: TrainingContext) -> ChosenRows:
    """Choose as many rows as base and tuned model score at the cost of training in tokens, on any machine."""
    tasks, available = prepared.tasks.values(), len(prepared.test)
    if available <= AUTO_ROWS or prepared.recipe.objective.samples_completions:
        return ChosenRows()
    share = PASSES * sum(map(trained_tokens, tasks)) / (2 * sum(map(scored_tokens, tasks)))
    if share >= 1:
        return ChosenRows()
    reason = "scoring all costs more than training"
    return _chosen(prepared, max(AUTO_ROWS, int(share * available)), prepared.recipe.retention.questions, reason)


def _within(prepared: TrainingContext, seconds: float) -> ChosenRows:
    """Choose as many rows and general questions as base and tuned model answer in a time."""
    available, most = len(prepared.test), prepared.recipe.retention.questions
    half = with_test_rows(prepared, {name: range(-(-len(task.test) // 2)) for name, task in prepared.tasks.items()})
    profile, policy = profile_run(prepared, own=True), base_policy(prepared)
    known = known_phases(prepared)

    def forecast(part: TrainingContext) -> RunForecast:
        written = tuple(group for task in part.tasks.values() for group in generation(task, policy))
        own = replace(profile, work=replace(profile.work, written=written))
        return forecast_run(part, own, work=count_run(part, own, known))

    # Half of the rows, so that what does not depend on them, such as choosing a prompt, is not counted.
    # Only their formulas are subtracted: earlier runs may count for the forecast of the half and not of the whole.
    by_formula = {phase.name: phase.formula for phase in forecast(half).phases}
    scoring = sum(
        phase.seconds * (1 - by_formula[phase.name] / phase.formula)
        for phase in forecast(prepared).phases
        if phase.name in SCORING and phase.formula
    )
    per_row = max(1e-9, scoring / max(1, available - len(half.test)))
    for questions in (most, *(number for number in QUESTIONS if number < most)):
        general = forecast(_asking(half, questions)).of(*GENERAL)
        if general + available * per_row <= seconds or general <= GENERAL_SHARE * seconds:
            break
    rows = min(available, max(FEWEST_ROWS, int((seconds - general) / per_row)))
    if rows == available and questions == most:
        return ChosenRows()
    taken = f"{clock(available * per_row)}, these with general ability {clock(rows * per_row + general)}"
    return _chosen(prepared, rows, questions, f"all would take {taken} of the {clock(seconds)} of verdict.minutes")


def _chosen(prepared: TrainingContext, count: int, questions: int, reason: str) -> ChosenRows:
    """Choose about `count` rows of all tasks together, at random, and state what they can detect."""
    share = count / len(prepared.test)
    rows = {name: _random_rows(task, round(share * len(task.test))) for name, task in prepared.tasks.items()}
    narrowed = with_test_rows(prepared, rows)
    headline = next(iter(narrowed.tasks.values()))
    detectable = expected_to_detect(Clusters.of(len(headline.test), groups_of(headline.test)).sizes, ROW_DEVIATION)
    reach = f"{detectable:.2g}"
    if not headline.recipe.objective.scores_are_shares:
        detectable /= ROW_DEVIATION
        reach = f"{detectable:.2g} standard deviations of the change of a row"
    if questions:
        drop = expected_to_detect(np.ones(questions), QUESTION_DEVIATION)
        reach += f", and drops of {drop:.2g} in {questions} general questions"
    counts: dict[str, Any] = {"scored": len(narrowed.test), "available": len(prepared.test), "questions": questions}
    sentence = (
        f"{counts['scored']:,} of {counts['available']:,} test rows, chosen at random before scoring ({reason}), "
    )
    sentence += f"expected to detect differences of about {reach}"
    return ChosenRows(rows=rows, extent=ScoredRows(**counts, detectable=detectable, sentence=sentence))


def _random_rows(task: TrainingContext, count: int) -> list[int]:
    """Return the rows of random groups, group after group: at most `count`, but the fewest groups of a test."""
    clusters = Clusters.of(len(task.test), groups_of(task.test))
    order = np.random.default_rng(task.recipe.seed).permutation(clusters.count)
    ends = np.cumsum(clusters.sizes[order]).astype(np.intp)
    groups = max(MIN_GROUPS, int(np.searchsorted(ends, count, side="right")))
    by_group = np.argsort(np.argsort(order)[clusters.codes], kind="stable")
    rows: list[int] = by_group[: ends[:groups][-1]].tolist()
    return rows
