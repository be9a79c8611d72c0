"""The report of a run, built from everything that was measured."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import combinations
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tunesmith.config import Gates
from tunesmith.evaluation.diagnostics import not_measured
from tunesmith.evaluation.evaluators import SINGLE_TASK_MODEL, Diagnostics, EvalSet, Evaluator, evaluator_for
from tunesmith.evaluation.results import BASE, Retention, ScoredRows, ThinkingLedger
from tunesmith.evaluation.retention import GeneralAbility
from tunesmith.evaluation.teacher import GOLD, STUDENT, TEACHER, Teaching
from tunesmith.evaluation.thinking import ThinkingAnswers, no_ledger
from tunesmith.inference.local_model import LocalModel
from tunesmith.metrics.significance import lower_is_better
from tunesmith.metrics.task_scores import ArmScore, TaskScore
from tunesmith.models.certificate import Certificate
from tunesmith.models.loading.device import ChosenMachine, peak_bytes
from tunesmith.models.loading.quantization import count_parameters, resident_bytes
from tunesmith.models.profile import matmul_parameters
from tunesmith.objectives import Multitask
from tunesmith.pipelines.plan.report import CostPrediction
from tunesmith.pipelines.tune.run_clock import RunClock, compared
from tunesmith.report.schema import (
    DataReport,
    Distillation,
    DistilledModel,
    GradientConflict,
    Memory,
    MultitaskReport,
    Report,
    Speed,
    TaskReport,
    Training,
)
from tunesmith.report.verdicts import is_not_beaten, multitask_verdict, rivalry, scores_as_high
from tunesmith.training.batches import mixture_of
from tunesmith.training.multitask import TaskMetrics
from tunesmith.training.prepare import TrainingContext
from tunesmith.training.replay import lost_too_much
from tunesmith.training.train import TrainResult, best_step

# Shares of the thinking ledger below which the report warns.
FEW_FINISHED = 0.5
MOSTLY_OBEYED = 0.8


class BaselineSnapshot(BaseModel):
    """The results of the base model before training, `before.json` of a run folder."""

    model_config = ConfigDict(frozen=True, validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)

    predictions: dict[str, Any] = Field(alias="said")  # in the shape of the run's evaluator
    general: GeneralAbility | None
    thinking: ThinkingAnswers | None = None  # of a thinking model
    reused: dict[str, float] = {}  # see `Report.reused`
    secrets: list[float] = []  # log-probability of each canary and alternative, nats


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResults:
    """Everything that was measured in a finished run."""

    prepared: TrainingContext
    trained: TrainResult
    model: LocalModel  # the tuned model
    evaluator: Evaluator[Any]
    base: Any  # predictions of the base model for the test rows
    tuned: Any  # predictions of the tuned model
    flops: float  # operations of all training steps
    controls: Mapping[str, Any] = field(default_factory=dict)  # predictions of the control runs
    diagnostics: Diagnostics = Diagnostics()
    retention: Retention | None = None
    canaries: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    ledger: ThinkingLedger | None = None
    prediction: CostPrediction | None = None
    certificate: Certificate | None = None  # of the base model
    teaching: Teaching | None = None  # of a teacher
    scored_rows: ScoredRows | None = None  # where these are not all test rows
    reused: Mapping[str, float] = field(default_factory=dict)
    clock: RunClock | None = None
    resumed: bool = False

    @property
    def general_rise(self) -> float:
        """Return the rise of the loss on general text, in nats per token; 0 if it was not measured."""
        return (self.retention.rise if self.retention else None) or 0.0


def build_report(run: RunResults, *, name: str, seconds: float) -> Report:
    """Build the report of a finished run.

    `seconds` is the duration of this call; a resumed run has trained before.
    """
    prepared, recipe, diagnostics = run.prepared, run.prepared.recipe, run.diagnostics
    tasks = run.evaluator.compare(run.base, run.tuned, name=name)
    controlled = {name: found for name, found in run.controls.items() if name not in (TEACHER, GOLD)}
    baselines, controls = run.evaluator.compare_arms(tasks[0], base=run.base, tuned=run.tuned, controls=controlled)
    multitask = multitask_report(run, tasks)
    broken = broken_gates(run, [part.task for part in multitask.tasks] if multitask else tasks[:1])
    sentence = verdict(tasks[0], baselines, controls=controls, broken=broken)
    facts, training, memory = prepared.facts, _training(run.trained), _memory(run)
    return Report(
        name=name,
        model=recipe.model,
        family=prepared.base.family,
        objective=recipe.objective.kind,
        technique=recipe.technique.kind,
        task=tasks[0],
        tasks=tasks,
        baselines=baselines,
        controls=controls,
        scored_rows=run.scored_rows,
        retention=run.retention,
        retention_reason=not_measured(prepared),
        thinking=run.ledger,
        thinking_reason=no_ledger(prepared) if prepared.template.thinks else "",
        calibration=diagnostics.calibration,
        style=diagnostics.style,
        preference_diagnostics=diagnostics.preference_diagnostics,
        reward_diagnostics=diagnostics.reward_diagnostics,
        tool_calls=diagnostics.tool_calls,
        span_counts=dict(diagnostics.span_counts),
        canaries=dict(run.canaries),
        warnings=(
            *(run.certificate.warnings if run.certificate else ()),
            *diagnostics.warnings,
            *lost_too_much(recipe, run.general_rise),
            *([] if run.ledger is None else thinking_warnings(run.ledger)),
        ),
        multitask=multitask,
        distillation=None if run.teaching is None else distillation(run, run.teaching, training, memory),
        training=training,
        speed=_speed(run, seconds),
        memory=memory,
        forecast=run.clock and compared(run.clock, seconds=seconds, resumed=run.resumed),
        reused=dict(run.reused),
        data=DataReport(
            rows=facts.rows,
            train=facts.train,
            validation=facts.validation,
            test=facts.test,
            copies_removed=facts.copies_removed,
            learned_tokens=facts.learned_tokens,
            longest=facts.longest,
            truncated_rows=len(facts.truncated),
            zero_label_rows=len(facts.zero_label),
            sha256=facts.sha256,
            notes=(*facts.notes, *run.trained.notes),
        ),
        certificate=run.certificate,
        environment=environment(prepared.machine),
        broken_gates=broken,
        verdict=multitask_verdict(multitask, sentence) if multitask else sentence,
    )


def distillation(run: RunResults, teaching: Teaching, training: Training, memory: Memory) -> Distillation:
    """Compare the student with its teacher and with itself tuned without: is the teacher worth it?"""
    predictions = {BASE: run.base, **{name: run.controls[name] for name in (TEACHER, GOLD)}, STUDENT: run.tuned}
    models = []
    for name, found in predictions.items():
        score = run.evaluator.score(found, name=name)[0]
        own = (training.parameters, memory.model_bytes)
        parameters, size = run.controls[TEACHER].answers.size if name == TEACHER else own
        speed = score.n / max(found.seconds, 1e-9)
        shown = {"name": name, "parameters": parameters, "bytes": size, "rows_per_second": speed}
        models.append(DistilledModel(**shown, score=score.score, ci95=score.ci95))
    return Distillation(
        teacher=teaching.teacher.label,
        **{key: getattr(teaching, key) for key in ("asked", "kept", "accuracy", "threshold", "kept_accuracy")},
        models=models,
        gain=run.evaluator.compare(predictions[GOLD], run.tuned, name=STUDENT)[0],
        against_teacher=run.evaluator.compare(predictions[TEACHER], run.tuned, name=STUDENT)[0],
    )


def multitask_report(run: RunResults, tasks: Sequence[TaskScore]) -> MultitaskReport | None:
    """Report each task of a multitask run and the conflicts between them; None for a single task."""
    objective = run.prepared.recipe.objective
    if not isinstance(objective, Multitask):
        return None
    mixture = mixture_of(run.prepared, tokens=1)
    parts = []
    for index, (name, task) in enumerate(run.prepared.tasks.items()):
        evaluator, base, tuned = evaluator_for(EvalSet.of(task)), run.base.parts[name], run.tuned.parts[name]
        headline = next(score for score in tasks if score.name == name)
        baselines, _ = evaluator.compare_arms(headline, base=base, tuned=tuned, controls={})
        single_task = None
        if SINGLE_TASK_MODEL in run.controls:
            alone = run.controls[SINGLE_TASK_MODEL].parts[name]
            single_task = evaluator.compare(alone, tuned, name=name)[0]
        parts.append(
            TaskReport(
                name=name,
                objective=task.recipe.objective.kind,
                weight=objective.task_weights[name],
                share=mixture.shares[index],
                rows=mixture.drawn(index, run.trained.state.step),
                task=headline,
                baselines=baselines,
                single_task=single_task,
                validation=[(each.step, each.losses[name]) for each in run.trained.task_metrics if name in each.losses],
                verdict=verdict(headline, baselines, controls=(), broken=()),
            )
        )
    return MultitaskReport(
        sampling=objective.sampling, tasks=parts, conflicts=conflicts(run.trained.task_metrics, objective.tasks)
    )


def broken_gates(run: RunResults, headlines: Sequence[TaskScore]) -> list[str]:
    """Return a sentence on each gate of the recipe that the run violates by the headline of a task."""
    gates, rise = run.prepared.recipe.gates, run.general_rise
    broken = [] if run.ledger is None else broken_thinking_gates(gates, run.ledger)
    if gates.max_general_nats is not None and run.retention and rise > gates.max_general_nats:
        broken.append(
            f"max_general_nats: general-text loss rose by {rise:.3f} nats/token, at most {gates.max_general_nats} is "
            "allowed"
        )
    if gates.min_delta is None:
        return broken
    for task in headlines:
        sign = -1 if lower_is_better(task.metric) else 1
        if sign * task.delta < gates.min_delta:
            place = f"{task.name}: " if len(headlines) > 1 else ""
            change = f"{task.metric} changed by {task.delta:+.3f}, expected {sign * gates.min_delta:+}"
            broken.append(f"min_delta: {place}{change}")
    return broken


def broken_thinking_gates(gates: Gates, ledger: ThinkingLedger) -> list[str]:
    """Return a sentence on each gate on the thinking ledger that the tuned model violates."""
    broken = []
    if (least := gates.min_thoughts_finished) is not None:
        finished = ledger.finished.tuned
        if finished is None:
            broken.append(f"min_thoughts_finished: the tuned model wrote no thoughts in {ledger.rows} rows")
        elif finished < least:
            limit = f"{ledger.max_new_tokens} tokens, expected at least {least:.0%}"
            broken.append(f"min_thoughts_finished: {finished:.0%} of the thoughts ended within {limit}")
    if (most := gates.max_thinking_loss) is not None:
        if ledger.score_on is None or ledger.score_on.delta is None:
            broken.append("max_thinking_loss: the rows have no reference answers to score; remove the gate")
        elif ledger.score_on.delta < -most:
            change = f"{ledger.metric} with thinking changed by {ledger.score_on.delta:+.3f}"
            broken.append(f"max_thinking_loss: {change}, at most {-most:+.3g} is allowed")
    if (least := gates.min_switch_obeyed) is not None:
        for position, obeyed in (("on", ledger.obeyed_on.tuned), ("off", ledger.obeyed_off.tuned)):
            if obeyed is not None and obeyed < least:
                share = f"{obeyed:.0%} of the answers followed the switch when it was {position}"
                broken.append(f"min_switch_obeyed: {share}, expected at least {least:.0%}")
    return broken


def thinking_warnings(ledger: ThinkingLedger) -> list[str]:
    """Return what makes the thinking of the tuned model useless or surprising, with the fix."""
    warnings = []
    finished, off = ledger.finished.tuned, ledger.obeyed_off.tuned
    if finished is not None and finished < FEW_FINISHED:
        warnings.append(
            f"{finished:.0%} of the thoughts of the tuned model end within {ledger.max_new_tokens} tokens; raise "
            "objective.max_thinking_tokens, or give rows with shorter thoughts"
        )
    if off is not None and off < MOSTLY_OBEYED:
        warnings.append(
            f"with thinking off, {1 - off:.0%} of the answers of the tuned model have thoughts; add rows without "
            "thoughts, or set objective.thinking to keep"
        )
    if ledger.thinks_by_default and ledger.obeyed_on.tuned is not None and ledger.obeyed_on.tuned < MOSTLY_OBEYED:
        warnings.append(
            f"with thinking on, {1 - ledger.obeyed_on.tuned:.0%} of the answers of the tuned model have no thoughts; "
            "add rows with thoughts, or set objective.thinking to keep"
        )
    return warnings


def verdict(
    task: TaskScore, baselines: Sequence[ArmScore], *, controls: Sequence[ArmScore], broken: Sequence[str]
) -> str:
    """State in one sentence whether the tuned model is better, and whether a baseline or a control scores as high."""
    if broken:
        return f"gate broken: {'; '.join(broken)}. {task.sentence}"
    if task.verdict != "better":
        return task.sentence
    if unbeaten := [arm for arm in controls if is_not_beaten(arm, task)]:
        return f"no effect: a control is not beaten: {_best_of(unbeaten, task)}. Against the base: {task.sentence}"
    unbeaten = [arm for arm in baselines if is_not_beaten(arm, task)]
    if as_high := [arm for arm in unbeaten if scores_as_high(arm, task)]:
        return f"no benefit over the baseline: {_best_of(as_high, task)}. Against the base: {task.sentence}"
    if unbeaten:
        return f"{task.sentence}; but {_best_of(unbeaten, task)}"
    return task.sentence


def _best_of(arms: Sequence[ArmScore], task: TaskScore) -> str:
    """Compare the best arm with the tuned model: the direction, both scores and the adjusted p-value."""
    return rivalry(max(arms, key=lambda arm: -arm.score if lower_is_better(arm.metric) else arm.score), task)


def _memory(run: RunResults) -> Memory:
    """Return the peak over all processes of the run."""
    return Memory(
        peak_bytes=max(peak_bytes(run.prepared.machine.device), run.trained.state.peak_bytes),
        predicted_bytes=None if run.prediction is None else round(run.prediction.memory.expected),
        model_bytes=resident_bytes(run.trained.policy.network),
    )


def _training(trained: TrainResult) -> Training:
    policy, state = trained.policy, trained.state
    added = [value for name, value in policy.trainable() if name.startswith(("head.", "virtual."))]
    return Training(
        steps=state.step,
        planned_steps=trained.plan.steps,
        best_step=best_step(state),
        best_validation_loss=state.best if state.best_step else None,
        stopped_early=state.stopped_early,
        learning_rate=trained.plan.learning_rate,
        trainable=sum(value.numel() for _, value in policy.trainable()),
        parameters=count_parameters([*policy.network.parameters(), *added]),
        probe_first=trained.probe.first if trained.probe else None,
        probe_last=trained.probe.last if trained.probe else None,
    )


def _speed(run: RunResults, total: float) -> Speed:
    state, machine, rows = run.trained.state, run.prepared.machine, len(run.prepared.test)
    seconds = max(state.seconds, 1e-9)
    peak = machine.gemm_gflops.get(machine.dtype, 0.0) * 1e9
    flops = run.flops / seconds
    predicted = None if run.prediction is None else run.prediction.seconds
    return Speed(
        seconds=state.seconds,
        tokens=state.tokens,
        tokens_per_second=state.tokens / seconds,
        rows_per_second=state.rows / seconds,
        mfu_of_measured_gemm=flops / peak if peak else 0.0,
        answers_per_second_base=rows / max(run.base.seconds, 1e-9),
        answers_per_second_tuned=rows / max(run.tuned.seconds, 1e-9),
        total_seconds=max(total, state.seconds),  # a resumed run has also trained before this call
        predicted_seconds=None if predicted is None else predicted.expected,
        predicted_between=None if predicted is None else (predicted.low, predicted.high),
    )


def step_flops(trained: TrainResult) -> float:
    """Return the operations of all training steps in the matrices of the network.

    Per token and weight 2 in the forward pass, 2 for the gradient of its input, and 2 more if the weight is trained.
    The output layer computes only learned positions and is not counted.
    """
    policy = trained.policy
    return float(
        trained.state.forward_tokens * (4 * matmul_parameters(policy) + 2 * matmul_parameters(policy, moving=True))
    )


def environment(machine: ChosenMachine) -> dict[str, str]:
    """Return the machine and the versions as text."""
    versions = {name: version(name) for name in ("tunesmith", "torch", "transformers", "peft")}
    rates = ", ".join(f"{dtype} {rate:.0f}" for dtype, rate in machine.gemm_gflops.items())
    return versions | {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": machine.device,
        "dtype": machine.dtype,
        "threads": str(machine.threads),
        "gemm_gflops": rates,
    }


def conflicts(metrics: Sequence[TaskMetrics], tasks: Iterable[str]) -> list[GradientConflict]:
    """Return the cosine of every two tasks' gradients over all validations."""
    summary = []
    for pair in combinations(tasks, 2):
        cosines = [each.gradient_cosines[pair] for each in metrics if pair in each.gradient_cosines]
        if cosines:
            mean = sum(cosines) / len(cosines)
            summary.append(GradientConflict(tasks=pair, mean=mean, lowest=min(cosines), n=len(cosines)))
    return summary
