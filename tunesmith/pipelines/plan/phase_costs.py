"""The work of every phase of a run, counted before it starts, and its seconds by formula."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from tunesmith.config import SELF, AnyObjective, AnyTechnique, Retention
from tunesmith.data.examples.types import Example, TaggedText, Text, TextExample
from tunesmith.data.stored import StoredSequence, joined
from tunesmith.data.tokenization.token_store import sizes_of
from tunesmith.evaluation.diagnostics import base_general_ability
from tunesmith.evaluation.evaluators import EvalSet, evaluator_for
from tunesmith.evaluation.predict import BASELINES, CHOICE_ROWS
from tunesmith.evaluation.retention import WINDOW, WINDOWS
from tunesmith.evaluation.thinking import answer_both_ways, ledger_limit, ledger_task, no_ledger
from tunesmith.inference.defaults import sampling_of
from tunesmith.inference.local_model import LocalModel
from tunesmith.models.generation.generate import ROWS as ROWS_AT_ONCE
from tunesmith.models.kept_answers import UnknownAnswerError, only_known
from tunesmith.models.mlm_head import own_head
from tunesmith.models.world import alone
from tunesmith.phases import Phases, timing
from tunesmith.pipelines.plan.cost_model import NUMBER, reading_seconds, trainable, writing_seconds
from tunesmith.pipelines.plan.history import RunKind, machine_of
from tunesmith.pipelines.plan.profile import RunProfile, named
from tunesmith.pipelines.plan.workload import READINGS, planned
from tunesmith.training.batches import Batches
from tunesmith.training.head_init import MOST_ROWS
from tunesmith.training.mlm_head import FEWEST_STEPS
from tunesmith.training.overfit_check import ROWS
from tunesmith.training.prepare import TrainingContext
from tunesmith.training.replay import BATCH_SIZE, general_rows
from tunesmith.training.train import base_policy, untouched_policy

# Steps after which the overfit check has usually passed.
CHECK_STEPS = 10
# Tokens of the general text and of the questions that probe general ability.
GENERAL_TOKENS = 20_000
# Starting values, corrected by the first run: seconds of TF-IDF by character and label and of a linear probe by row,
# bytes per second of files.
TFIDF_SECONDS = 3e-6
CRF_SECONDS = 1e-5  # by character and tag, of all fits that choose its setting
PROBE_SECONDS = 1e-3
FILE_BYTES = 300e6
# Tokens per second of reading and encoding rows.
ENCODED = 100e3


def general_tokens(extent: Retention) -> float:
    """Return the tokens of the general texts and questions that a recipe measures."""
    full = Retention()
    questions = GENERAL_TOKENS - full.texts * WINDOW
    return extent.texts * WINDOW + questions * extent.questions / full.questions


@dataclass(frozen=True, slots=True)
class PhaseWork:
    """The work of one phase that trains nothing."""

    read: float = 0.0  # tokens of forward passes without a backward pass
    written: tuple[tuple[float, float], ...] = ()  # (decoding steps, rows that get a token in each step)
    seconds: float = 0.0  # of everything else
    trainings: float = 0.0  # multiples of the training of the run
    read32: float = 0.0  # tokens of forward passes in float32, though the run trains in another dtype

    def __add__(self, other: PhaseWork) -> PhaseWork:
        """Return the sum of two works."""
        return PhaseWork(
            self.read + other.read,
            (*self.written, *other.written),
            self.seconds + other.seconds,
            self.trainings + other.trainings,
            self.read32 + other.read32,
        )


@dataclass(frozen=True, slots=True)
class RunWork:
    """The work of all phases, which is the same for every technique but for training."""

    phases: dict[str, PhaseWork]
    saves: int  # checkpoints
    earliest: float  # share of training after which the run may stop early at the soonest


def kind_of(prepared: TrainingContext, technique: AnyTechnique) -> RunKind:
    """Return what the speed of a run depends on besides rows and machine."""
    base = prepared.base
    return RunKind(
        model=base.fingerprint,
        family=base.family,
        objective=prepared.recipe.objective.kind,
        technique=named(technique),
    )


def machine(prepared: TrainingContext) -> dict[str, str]:
    """Return the machine of a run in the form of the history."""
    chosen = prepared.machine
    return machine_of(device=chosen.device, dtype=chosen.dtype, threads=chosen.threads)


def count_run(prepared: TrainingContext, profile: RunProfile, known: Container[str] | None = None) -> RunWork:
    """Count the work of every phase of a run but those `known`, by default `known_phases`."""
    recipe, tasks = prepared.recipe, list(prepared.tasks.values())
    plan = planned(prepared, base_policy(prepared))
    learned = plan.steps * recipe.schedule.batch_rows
    decoder = prepared.base.family == "decoder"
    computed = (
        profile.placement.processes * profile.work.computed / learned * len(prepared.train) / sum(map(_tokens, tasks))
    )
    answers = tuple((float(group.answer), group.rows / 2) for group in profile.work.written)
    scored = sum((_scored(task, computed) for task in tasks), PhaseWork(written=answers))
    general = PhaseWork(read=general_tokens(recipe.retention) * decoder)
    known = known_phases(prepared) if known is None else known
    evaluations = -(-plan.steps // plan.eval_steps) if plan.eval_steps else 0
    gated = decoder and recipe.gates.max_general_nats is not None
    per_validation = sum(_validation_tokens(task, profile) for task in tasks) + (WINDOW * WINDOWS if gated else 0)
    validation = PhaseWork(read=evaluations * per_validation)
    phases = {
        "loading": PhaseWork(seconds=4 * profile.size.parameters / FILE_BYTES + sum(map(_tokens, tasks)) / ENCODED),
        "forecast": PhaseWork(seconds=1.0),
        "replay samples": _replay(prepared),
        "masked-LM head": _mlm_head(prepared, profile, plan.steps),
        "baselines": PhaseWork(seconds=sum(map(_baseline_seconds, tasks))),
        "base scoring": sum((_base_scored(task, computed) for task in tasks), scored),
        "general ability before": general,
        "thinking before": _ledger(prepared),
        "controls": PhaseWork(trainings=1.0) + scored + validation if recipe.controls else PhaseWork(),
        "reference log-probabilities": PhaseWork(read=sum(_referenced(task, computed) for task in tasks)),
        "overfit check": PhaseWork(
            trainings=CHECK_STEPS * ROWS * len(tasks) / learned if recipe.schedule.probe else 0.0
        ),
        "adapter and head": sum((_head_initialized(task, computed) for task in tasks), PhaseWork(seconds=0.2)),
        "training": PhaseWork(trainings=1.0),
        "validation": validation,
        "general ability after": general,
        "test scoring": sum((_calibrated(task, computed) for task in tasks), scored),
        "thinking after": _ledger(prepared),
        "diagnostics": PhaseWork(seconds=0.05),
        "report": PhaseWork(seconds=3.0),
    }
    phases = {name: work for name, work in phases.items() if name not in known}
    early = (plan.patience + 1) * plan.eval_steps / plan.steps if plan.eval_steps else 1.0
    saves = -(-plan.steps // plan.save_steps) if plan.save_steps else 1
    return RunWork(phases, saves + evaluations, min(1.0, early))


def known_phases(prepared: TrainingContext) -> set[str]:
    """Return the phases of the base model whose results were kept by earlier runs, by asking for them."""
    if prepared.recipe.objective.samples_completions:  # whose rewards would be computed
        return set()
    policy = untouched_policy(prepared)
    objective = cast(AnyObjective, prepared.recipe.objective.inference_objective())
    model = LocalModel(policy, prepared.template, objective, prepared.recipe.data.max_tokens)
    asked: dict[str, Callable[[], object]] = {
        "general ability before": lambda: base_general_ability(prepared, policy),
        "thinking before": lambda: (
            no_ledger(prepared) or answer_both_ways(prepared, model.at(next(iter(prepared.tasks))))
        ),
        "base scoring": lambda: evaluator_for(EvalSet.of(prepared)).evaluate_base(prepared, policy, Path()),
    }
    known = set()
    with timing(Phases()), only_known(), alone():
        for name, ask in asked.items():
            try:
                ask()
            except UnknownAnswerError as unknown:
                if str(unknown) != BASELINES:
                    continue
            else:
                known |= {"baselines"} if name == "base scoring" else set()
            known.add(name)
    return known


def phase_seconds(run: RunWork, profile: RunProfile, technique: AnyTechnique) -> dict[str, float]:
    """Return the seconds of each phase by formula; phases without work are left out."""
    size, pace = profile.size, profile.pace
    training, placement = profile.cost(technique).seconds, profile.placed(technique)
    dealt = 1 / placement.processes if placement.shards == 1 else 1.0  # answers; over shards, all compute the same
    seconds = {
        name: work.trainings * training
        + dealt * reading_seconds(work.read, size, pace, tokens32=work.read32)
        + dealt * sum(writing_seconds(steps, rows, size, pace) for steps, rows in work.written)
        + work.seconds
        for name, work in run.phases.items()
    }
    trained = trainable(technique, size, profile.work)
    seconds["checkpoints"] = run.saves * (NUMBER + placement.moments) * trained / FILE_BYTES
    seconds["saving"] = 0.1 + NUMBER * trained / FILE_BYTES
    return {name: value for name, value in seconds.items() if value > 0}


def _tokens(task: TrainingContext) -> int:
    """Return the tokens of a task's training rows."""
    return sum(sizes_of(task.train)) // len(task.train[0].sequences)


def _size(examples: Sequence[Example]) -> int:
    """Return the number of rows; of documents, whose lengths differ a hundredfold, the number of characters."""
    step = max(1, len(examples) // 10_000) if isinstance(examples, StoredSequence) else 1  # rows in files are sampled
    return step * sum(len(example.text) if isinstance(example, Text) else 1 for example in examples[::step])


def scored_tokens(task: TrainingContext) -> float:
    """Return the tokens that one model reads and writes for the test rows; answers are half as long as they may be."""
    objective, rows = task.recipe.objective, task.test
    read = _tokens(task) * _size(rows) / max(1, _size(task.loaded.split.train))
    answer = sampling_of(objective, thinking=False).max_new_tokens if objective.produces == "text" else 0
    return read + len(rows) * answer / 2


def trained_tokens(task: TrainingContext) -> float:
    """Return the tokens of the training rows over all epochs."""
    return task.recipe.schedule.epochs * _tokens(task)


def _row_tokens(task: TrainingContext, computed: float) -> float:
    """Return the tokens that the network computes for one row, or one character of a document."""
    return computed * _tokens(task) / max(1, _size(task.loaded.split.train))


def _scored(task: TrainingContext, computed: float) -> PhaseWork:
    """Return the reading of the test rows by one model."""
    tokens = _row_tokens(task, computed) * _size(task.test) * task.recipe.objective.test_readings
    return _reading(task, tokens, rounded=task.recipe.objective.produces == "labels")


def _reading(task: TrainingContext, tokens: float, *, rounded: bool) -> PhaseWork:
    """Return the reading of some tokens in the dtype of training if `rounded`, else in that of the weights."""
    return PhaseWork(read=tokens) if rounded or task.scoring_dtype is None else PhaseWork(read32=tokens)


def _base_scored(task: TrainingContext, computed: float) -> PhaseWork:
    """Return the choice of a prompt, or the probe on the frozen model."""
    objective, split = task.recipe.objective, task.loaded.split
    templates = objective.prompt_templates(task.base.family)
    choice = CHOICE_ROWS[objective.produces] if templates and objective.has_reference_answers else 0
    choice_rows = min(len(split.validation or split.train), choice)
    train, rows = _size(task.baseline_rows), float(len(templates) * choice_rows)
    probed = 0
    if objective.probes_base and not templates:
        probed = train
    elif objective.label_mode and task.recipe.controls:
        probed = train
        rows += _size(task.test)
    written: tuple[tuple[float, float], ...] = ()
    if templates and objective.produces == "text":
        thinking = task.template.thinks and objective.thinks
        longest = sampling_of(objective, thinking=thinking).max_new_tokens
        written = ((float(len(templates) * longest), choice_rows / 2),)
    row, labels = _row_tokens(task, computed), objective.produces == "labels"
    read = _reading(task, row * rows, rounded=labels) + _reading(task, row * probed, rounded=False)
    return read + PhaseWork(written=written, seconds=PROBE_SECONDS * probed)


def _ledger(prepared: TrainingContext) -> PhaseWork:
    """Return the answers of one model for the thinking ledger, in both positions of the switch."""
    if no_ledger(prepared):
        return PhaseWork()
    task = ledger_task(prepared)
    asked = prepared.recipe.ledger.rows
    rows = asked if task.recipe.objective.produces == "likelihood" else min(asked, len(task.test))
    batches = -(-rows // ROWS_AT_ONCE)
    steps = [float(batches * ledger_limit(prepared, thinking=thinking)) for thinking in (True, False)]
    return PhaseWork(written=tuple((count, rows / batches / 2) for count in steps))


def _head_initialized(task: TrainingContext, computed: float) -> PhaseWork:
    """Return the probe of the network that a head for labels or values starts from."""
    objective = task.recipe.objective
    probed = objective.starts_from_probe and objective.produces in ("labels", "number")
    rows = min(len(task.train), MOST_ROWS) if probed else 0
    return PhaseWork(read=_row_tokens(task, computed) * rows, seconds=PROBE_SECONDS * rows)


def _calibrated(task: TrainingContext, computed: float) -> PhaseWork:
    """Return the reading of the validation rows for temperature scaling."""
    rows = _size(task.loaded.split.validation) if task.recipe.objective.label_mode else 0
    return PhaseWork(read=_row_tokens(task, computed) * rows)


def _referenced(task: TrainingContext, computed: float) -> float:
    """Return the tokens that the reference model reads before training."""
    objective, split = task.recipe.objective, task.loaded.split
    if objective.reference == "none" or objective.samples_completions:
        return 0.0
    return _row_tokens(task, computed) * (_size(split.train) + _size(split.validation))


def _validation_tokens(task: TrainingContext, profile: RunProfile) -> int:
    """Return the tokens that one validation reads: for the loss, and for what is compared with the reference model."""
    if not task.validation:
        return 0
    objective = task.recipe.objective
    compared = objective.reference != "none" and not objective.samples_completions
    passes = 1 + compared + (READINGS if objective.reference == "per_step" else 0)
    with alone():
        return passes * sum(map(profile.counter.computed, Batches(task, task.validation).all()))


def _baseline_seconds(task: TrainingContext) -> float:
    """Return the seconds of TF-IDF, which is fitted if rows have one label or a number, or of a random field."""
    objective = task.recipe.objective
    if objective.produces == "spans":
        marked = [row for row in task.baseline_rows if isinstance(row, TaggedText)]
        tags = 1 + 2 * len({span.label for row in marked for span in row.spans})
        return CRF_SECONDS * tags * sum(len(row.text) for row in marked)
    if not objective.fits_tfidf:
        return 0.0
    rows = joined(task.baseline_rows, task.test)
    characters = sum(len(row.text) for row in rows if isinstance(row, TextExample))
    return 0.3 + TFIDF_SECONDS * characters * max(1.0, len(task.recipe.objective.known_labels) / 4)


def _replay(prepared: TrainingContext) -> PhaseWork:
    """Return the sampling of general rows by the base model."""
    recipe = prepared.recipe
    if recipe.replay.source != SELF or prepared.general or not recipe.replay.share:
        return PhaseWork()
    rows = general_rows(prepared) * -(-recipe.schedule.epochs // 1)
    return PhaseWork(written=((rows / BATCH_SIZE * recipe.data.max_tokens, float(BATCH_SIZE)),))


def _mlm_head(prepared: TrainingContext, profile: RunProfile, steps: int) -> PhaseWork:
    """Return the training of a masked-LM head on the frozen encoder, which has no backward pass through it."""
    base = prepared.base
    head = base.family == "encoder" and prepared.recipe.objective.produces == "likelihood"
    if not head or prepared.head is not None or own_head(base.network, base.folder) is not None:
        return PhaseWork()
    times, work = max(FEWEST_STEPS, steps) / steps, profile.work
    return PhaseWork(read=times * work.computed, seconds=times * 6 * work.headed / profile.pace.products32)
