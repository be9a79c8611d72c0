"""What a run does beside its training steps, counted before it begins: probes, validations, scores, written answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tunesmith.data.examples.types import Example, Text
from tunesmith.evaluation.predict import CHOICE_ROWS
from tunesmith.evaluation.retention import WINDOW, WINDOWS
from tunesmith.objectives import Classify, Instruct, Reward
from tunesmith.objectives.instruct import PLAIN_WORDINGS
from tunesmith.pipelines.plan.cost_model import reading_seconds, writing_seconds
from tunesmith.pipelines.plan.profile import RunProfile
from tunesmith.pipelines.plan.report import Bounds
from tunesmith.pipelines.plan.workload import READINGS, planned, tasks_of
from tunesmith.training.batches import Batches
from tunesmith.training.overfit_check import ROWS
from tunesmith.training.prepare import TrainingContext
from tunesmith.training.train import base_policy

# Seconds of a run that no row explains: loading, the cheap ways, writing the reports.
AROUND = 25.0
# Steps after which the overfit probe has mostly seen enough.
PROBED = 10
# Tokens of the general text and of the probe's questions.
GENERAL_TOKENS = 20_000
# Bounds as factors: answers end when they want to, and a run may stop early.
SURE = (0.5, 2.0)


@dataclass(frozen=True, slots=True)
class RunOverhead:
    """What a run does beside its training steps, whichever technique moves the numbers."""

    trained: int  # times that it trains: once more for its control
    probed: float  # what the overfit probe takes, in trainings
    read: float  # tokens that pass without a way back
    written: tuple[tuple[float, float], ...]  # steps in which so many rows get their next token

    def whole(self, training: Bounds, found: RunProfile) -> Bounds:
        """The seconds of the whole run; `training` are those of training once."""
        times, seconds, (low, high) = self.trained * (1 + self.probed), self.seconds(found), SURE
        return Bounds(
            low=times * training.low + low * seconds,
            expected=times * training.expected + seconds,
            high=times * training.high + high * seconds,
        )

    def seconds(self, found: RunProfile) -> float:
        """How long that takes which trains nothing."""
        wrote = sum(writing_seconds(steps, rows, found.size, found.pace) for steps, rows in self.written)
        return AROUND + reading_seconds(self.read, found.size, found.pace) + wrote


def count_overhead(prepared: TrainingContext, found: RunProfile) -> RunOverhead:
    """What is read and written beside the training of these rows."""
    parts, plan, work = tasks_of(prepared), planned(prepared, base_policy(prepared)), found.work
    trained = 2 if prepared.recipe.controls else 1
    evaluations = -(-plan.steps // plan.eval_steps) if plan.eval_steps else 0
    learned = plan.steps * prepared.recipe.schedule.batch_rows  # rows of all passes, a text's windows each one
    # Of the tokens of all rows the share that passes through the network, where rows share what they begin with.
    passing = work.computed / learned * len(prepared.train) / sum(map(_tokens, parts))
    asked = sum(passing * _tokens(part) / _size(part.loaded.split.train) * _asked(part, trained) for part in parts)
    decoder, gated = prepared.base.family == "decoder", prepared.recipe.gates.max_general_nats is not None
    general = GENERAL_TOKENS if decoder else 0  # what the base says to them is kept
    checked = sum(_checked(part, found) for part in parts) + (WINDOW * WINDOWS if decoder and gated else 0)
    # They end when they want to, so half of the rows are there at a time.
    answers = [((1 + trained) * group.answer, group.rows / 2) for group in work.written]
    return RunOverhead(
        trained=trained,
        probed=PROBED * ROWS * len(parts) / learned if prepared.recipe.schedule.probe else 0.0,
        read=trained * evaluations * checked + asked + general,
        written=(*answers, *(one for part in parts for one in _chosen(part))),
    )


def _tokens(part: TrainingContext) -> int:
    """Tokens of a task's training rows."""
    return sum(row.length for row in part.train)


def _checked(part: TrainingContext, found: RunProfile) -> int:
    """Tokens that a validation of a task reads: for the loss, and beside its start for what answers have gained."""
    if not part.validation:
        return 0
    objective = part.recipe.objective
    beside = objective.reference != "none" and not objective.samples_completions
    times = 1 + beside + (READINGS if objective.reference == "per_step" else 0)
    return times * sum(map(found.counter.computed, Batches(part, part.validation).all()))


def _asked(part: TrainingContext, trained: int) -> int:
    """What a task reads to score it, to choose the base's wording or fit its head, and for references."""
    objective, split = part.recipe.objective, part.loaded.split
    train, validation, test = map(_size, (split.train, split.validation, part.test))
    wordings = objective.prompt_templates(part.base.family)
    rows = (1 + trained) * test + len(wordings) * _tried(part)
    if isinstance(objective, Classify | Reward) and not wordings:
        rows += train  # a probe on the frozen model, which is the base here
    elif isinstance(objective, Classify) and part.recipe.controls:
        rows += train + test  # the same as a control
    if isinstance(objective, Classify):
        rows += validation  # for the temperature
    if objective.reference != "none" and not objective.samples_completions:
        rows += trained * (train + validation)
    return rows


def _size(examples: Sequence[Example]) -> int:
    """How much there is to read, in rows; of documents, one of which may be a hundred of others, in characters."""
    return sum(len(example.text) if isinstance(example, Text) else 1 for example in examples)


def _tried(part: TrainingContext) -> int:
    """Rows that each wording is tried on."""
    split = part.loaded.split
    return min(len(split.validation or split.train), CHOICE_ROWS.get(part.recipe.objective.kind, 0))


def _chosen(part: TrainingContext) -> Iterator[tuple[float, float]]:
    """Steps and rows of the answers by which the base's wording is chosen."""
    if isinstance(part.recipe.objective, Instruct):
        yield len(PLAIN_WORDINGS) * part.recipe.objective.max_new_tokens, _tried(part) / 2
