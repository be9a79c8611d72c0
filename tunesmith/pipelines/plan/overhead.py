"""The work of a run besides its training steps, counted before it starts: overfit check, validation and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.data.examples.types import Example, Text
from tunesmith.evaluation.predict import CHOICE_ROWS
from tunesmith.evaluation.retention import WINDOW, WINDOWS
from tunesmith.pipelines.plan.cost_model import reading_seconds, writing_seconds
from tunesmith.pipelines.plan.profile import RunProfile
from tunesmith.pipelines.plan.report import Bounds
from tunesmith.pipelines.plan.workload import READINGS, planned
from tunesmith.training.batches import Batches
from tunesmith.training.overfit_check import ROWS
from tunesmith.training.prepare import TrainingContext
from tunesmith.training.train import base_policy

# Seconds of a run that do not depend on the rows: loading, baselines, writing the reports.
FIXED_SECONDS = 25.0
# Steps after which the overfit check has usually passed.
CHECK_STEPS = 10
# Tokens of the general text and of the questions that probe general ability.
GENERAL_TOKENS = 20_000
# Bounds as factors of the expected value: the length of answers is unknown, and a run may stop early.
BOUNDS = (0.5, 2.0)


@dataclass(frozen=True, slots=True)
class RunOverhead:
    """The work of a run besides its training steps; it is the same for every technique."""

    trained: int  # number of trainings: 2 with a control run
    probed: float  # cost of the overfit check, in trainings
    read: float  # tokens of forward passes without a backward pass
    written: tuple[tuple[float, float], ...]  # (decoding steps, rows that get a token in each step)

    def whole(self, training: Bounds, profile: RunProfile) -> Bounds:
        """Return the seconds of the whole run, given those of one training."""
        trainings = self.trained * (1 + self.probed)
        seconds = self.seconds(profile)
        low, high = BOUNDS
        return Bounds(
            low=trainings * training.low + low * seconds,
            expected=trainings * training.expected + seconds,
            high=trainings * training.high + high * seconds,
        )

    def seconds(self, profile: RunProfile) -> float:
        """Return the seconds of the work that trains nothing."""
        writing = sum(writing_seconds(steps, rows, profile.size, profile.pace) for steps, rows in self.written)
        return FIXED_SECONDS + reading_seconds(self.read, profile.size, profile.pace) + writing


def count_overhead(prepared: TrainingContext, profile: RunProfile) -> RunOverhead:
    """Count what a run reads and generates besides its training steps.

    Args:
        prepared: the run.
        profile: its workload.
    """
    tasks, work = list(prepared.tasks.values()), profile.work
    schedule, family = prepared.recipe.schedule, prepared.base.family
    plan = planned(prepared, base_policy(prepared))
    trained = 2 if prepared.recipe.controls else 1
    evaluations = -(-plan.steps // plan.eval_steps) if plan.eval_steps else 0
    learned = plan.steps * schedule.batch_rows  # rows of all epochs; each window of a document is a row
    # Share of the tokens of all rows that the network computes; shared prefixes are computed once.
    computed = work.computed / learned * len(prepared.train) / sum(map(_tokens, tasks))
    evaluated = sum(
        computed * _tokens(task) / _size(task.loaded.split.train) * _rows_read(task, trained) for task in tasks
    )
    general = GENERAL_TOKENS if family == "decoder" else 0  # by the tuned model; the base's result is cached
    gated = family == "decoder" and prepared.recipe.gates.max_general_nats is not None
    per_validation = sum(_validation_tokens(task, profile) for task in tasks) + (WINDOW * WINDOWS if gated else 0)
    # Answers end at different lengths, so on average half of the rows of a batch are active.
    answers = [((1 + trained) * group.answer, group.rows / 2) for group in work.written]
    choices = [
        (len(templates) * task.recipe.objective.max_new_tokens, _choice_rows(task) / 2)
        for task in tasks
        if (templates := task.recipe.objective.prompt_templates(family)) and task.recipe.objective.produces == "text"
    ]
    return RunOverhead(
        trained=trained,
        probed=CHECK_STEPS * ROWS * len(tasks) / learned if schedule.probe else 0.0,
        read=trained * evaluations * per_validation + evaluated + general,
        written=(*answers, *choices),
    )


def _tokens(task: TrainingContext) -> int:
    """Return the tokens of a task's training rows."""
    return sum(row.length for row in task.train)


def _size(examples: Sequence[Example]) -> int:
    """Return the number of rows; of documents, whose lengths differ a hundredfold, the number of characters."""
    return sum(len(example.text) if isinstance(example, Text) else 1 for example in examples)


def _choice_rows(task: TrainingContext) -> int:
    """Return the number of rows on which each prompt template of the base model is tried."""
    split = task.loaded.split
    objective = task.recipe.objective
    rows = CHOICE_ROWS[objective.produces] if objective.has_reference_answers else 0
    return min(len(split.validation or split.train), rows)


def _validation_tokens(task: TrainingContext, profile: RunProfile) -> int:
    """Return the tokens that one validation reads: for the loss, and for what is compared with the reference model."""
    if not task.validation:
        return 0
    objective = task.recipe.objective
    compared = objective.reference != "none" and not objective.samples_completions
    passes = 1 + compared + (READINGS if objective.reference == "per_step" else 0)
    return passes * sum(map(profile.counter.computed, Batches(task, task.validation).all()))


def _rows_read(task: TrainingContext, trained: int) -> int:
    """Return the rows, as `_size` counts them, read to score the models, choose a prompt or fit a probe of the base."""
    objective, split = task.recipe.objective, task.loaded.split
    train, validation, test = map(_size, (split.train, split.validation, task.test))
    templates = objective.prompt_templates(task.base.family)
    rows = (1 + trained) * test + len(templates) * _choice_rows(task)
    if objective.produces in ("labels", "score") and not templates:
        rows += train  # the base is a probe on the frozen model
    elif objective.label_mode and task.recipe.controls:
        rows += train + test  # the same probe is a control
    if objective.label_mode:
        rows += validation  # for temperature scaling
    if objective.reference != "none" and not objective.samples_completions:
        rows += trained * (train + validation)
    return rows
