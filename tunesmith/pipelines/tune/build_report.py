"""From everything measured to the report."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import combinations
from typing import Any

from pydantic import BaseModel, ConfigDict

from tunesmith.evaluation.evaluators import SINGLE_TASK_MODEL, Diagnostics, Evaluator, MultitaskEvaluator
from tunesmith.evaluation.results import Retention
from tunesmith.evaluation.retention import GeneralAbility
from tunesmith.inference.local_model import LocalModel
from tunesmith.metrics.significance import lower_is_better
from tunesmith.metrics.task_scores import ArmScore, TaskScore
from tunesmith.models.loading.device import ChosenMachine, peak_bytes
from tunesmith.models.loading.quantization import count_parameters, resident_bytes
from tunesmith.models.profile import matmul_parameters
from tunesmith.objectives import Multitask
from tunesmith.pipelines.plan.report import CostPrediction
from tunesmith.report.formatting import p_value
from tunesmith.report.schema import (
    DataReport,
    GradientConflict,
    Memory,
    MultitaskReport,
    Report,
    Speed,
    TaskReport,
    Training,
)
from tunesmith.report.verdicts import is_not_beaten, multitask_verdict, scores_as_high
from tunesmith.training.batches import mixture_of
from tunesmith.training.multitask import TaskMetrics
from tunesmith.training.prepare import TrainingContext
from tunesmith.training.replay import lost_too_much
from tunesmith.training.train import TrainResult, best_step


class BaselineSnapshot(BaseModel):
    """What is known of the untuned model before anything moves; `said` in the shape of the run's yardstick."""

    model_config = ConfigDict(frozen=True)

    said: dict[str, Any]
    general: GeneralAbility | None


@dataclass(frozen=True, slots=True)
class RunResults:
    """What a finished run knows about itself."""

    prepared: TrainingContext
    trained: TrainResult
    model: LocalModel
    yardstick: Evaluator[Any]
    base: Any  # predictions of the base model for the test rows
    tuned: Any  # predictions of the tuned model
    controls: Mapping[str, Any] = field(default_factory=dict)
    worth: Diagnostics = Diagnostics()
    retention: Retention | None = None
    prediction: CostPrediction | None = None  # what it was expected to take


def build_report(run: RunResults, *, name: str, seconds: float) -> Report:
    """The report of a run that took so long."""
    test, recipe = run.prepared.test, run.prepared.recipe
    tasks = run.yardstick.compare(run.base, run.tuned, name=name)
    baselines, controls = run.yardstick.compare_arms(tasks[0], base=run.base, tuned=run.tuned, controls=run.controls)
    together = multitask_report(run, tasks)
    broken = broken_gates(run, [part.task for part in together.tasks] if together else tasks[:1])
    told = verdict(tasks[0], baselines, controls=controls, broken=broken)
    return Report(
        name=name,
        model=recipe.model,
        family=run.prepared.base.family,
        objective=recipe.objective.kind,
        technique=recipe.technique.kind,
        task=tasks[0],
        tasks=tasks,
        baselines=baselines,
        controls=controls,
        retention=run.retention,
        calibration=run.worth.calibration,
        style=run.worth.style,
        preference_diagnostics=run.worth.preference_diagnostics,
        reward_diagnostics=run.worth.reward_diagnostics,
        warnings=(*run.worth.warnings, *lost_too_much(recipe, _rise(run.retention))),
        multitask=together,
        training=_training(run),
        speed=_speed(run, len(test), seconds),
        memory=_memory(run),
        data=_data(run),
        environment=environment(run.prepared.machine),
        broken_gates=broken,
        verdict=told if together is None else multitask_verdict(together, told),
    )


def multitask_report(run: RunResults, tasks: Sequence[TaskScore]) -> MultitaskReport | None:
    """What several tasks came to, one by one and between them; None for a single one."""
    objective, yardstick = run.prepared.recipe.objective, run.yardstick
    if not isinstance(objective, Multitask) or not isinstance(yardstick, MultitaskEvaluator):
        return None
    mixture = mixture_of(run.prepared, tokens=1)
    parts = []
    for number, (name, part) in enumerate(objective.tasks.items()):
        headline = next(task for task in tasks if task.name == name)
        baselines = yardstick.baselines(name, headline, base=run.base, tuned=run.tuned)
        parts.append(
            TaskReport(
                name=name,
                objective=part.objective.kind,
                weight=part.weight,
                share=mixture.shares[number],
                rows=mixture.drawn(number, run.trained.state.step),
                task=headline,
                baselines=baselines,
                single_task=_beside_alone(run, yardstick, name),
                validation=[(one.step, one.losses[name]) for one in run.trained.task_metrics if name in one.losses],
                verdict=verdict(headline, baselines, controls=(), broken=()),
            )
        )
    return MultitaskReport(
        sampling=objective.sampling, tasks=parts, conflicts=conflicts(run.trained.task_metrics, objective.tasks)
    )


def _beside_alone(run: RunResults, yardstick: MultitaskEvaluator, name: str) -> TaskScore | None:
    """One task's own model against the model of all, on the same rows; None where it was not made."""
    if SINGLE_TASK_MODEL not in run.controls:
        return None
    own, all_of_them = run.controls[SINGLE_TASK_MODEL].parts[name], run.tuned.parts[name]
    return yardstick.tasks[name].compare(own, all_of_them, name=name)[0]


def _rise(kept: Retention | None) -> float:
    """What general text costs more than before, in nats per token; 0 where that was not measured."""
    return kept.general_nll_tuned - kept.general_nll_base if kept else 0.0


def broken_gates(run: RunResults, headlines: Sequence[TaskScore]) -> list[str]:
    """The recipe's gates that this run broke, in words; each of several tasks has its headline."""
    gates, kept = run.prepared.recipe.gates, run.retention
    broken = []
    if gates.max_general_nats is not None and kept:
        rise = _rise(kept)
        if rise > gates.max_general_nats:
            broken.append(
                f"max_general_nats: general text cost {rise:+.3f} nats/token, allowed {gates.max_general_nats}"
            )
    if gates.min_delta is None:
        return broken
    for task in headlines:
        sign = -1 if lower_is_better(task.metric) else 1
        if sign * task.delta < gates.min_delta:
            whose = f"{task.name}: " if len(headlines) > 1 else ""
            moved = f"{task.metric} moved by {task.delta:+.3f}, wanted {sign * gates.min_delta:+}"
            broken.append(f"min_delta: {whose}{moved}")
    return broken


def verdict(
    task: TaskScore, baselines: Sequence[ArmScore], *, controls: Sequence[ArmScore], broken: Sequence[str]
) -> str:
    """One sentence: better or not, and whether something cheaper or meaningless did as well."""
    if broken:
        return f"gate broken: {'; '.join(broken)}. {task.sentence}"
    unbeaten = [arm for arm in controls if is_not_beaten(arm, task)]
    if task.verdict != "better":
        return task.sentence
    if unbeaten:
        return f"no effect: the control {_named(unbeaten)} is not beaten. Beside the base it is {task.sentence}"
    level = [arm for arm in baselines if is_not_beaten(arm, task)]
    equal = [arm for arm in level if scores_as_high(arm, task)]
    if equal:
        return f"no effect worth its cost: {_named(equal)} alone does as well. Beside the base it is {task.sentence}"
    return f"{task.sentence}; but too few rows to tell it from {_named(level)}" if level else task.sentence


def _named(found: Sequence[ArmScore]) -> str:
    """The best of some arms with its score and the adjusted p-value of the gain over it."""
    best = max(found, key=lambda arm: -arm.score if lower_is_better(arm.metric) else arm.score)
    sure = "" if best.p_adjusted is None else f", adjusted {p_value(best.p_adjusted)}"
    return f"{best.name} ({best.score:.4g}{sure})"


def _memory(run: RunResults) -> Memory:
    """Beside the peak, of each process that trained, what was foretold of it; on a GPU that one's memory was."""
    foretold = run.prediction if run.prepared.machine.device == "cpu" else None
    return Memory(
        peak_bytes=max(peak_bytes(), run.trained.state.peak_bytes),
        predicted_bytes=None if foretold is None else round(foretold.memory.expected),
        model_bytes=resident_bytes(run.trained.policy.network),
    )


def _training(run: RunResults) -> Training:
    trained = run.trained
    policy, state = trained.policy, trained.state
    beside = [value for name, value in policy.trainable() if name.startswith(("head.", "virtual."))]
    return Training(
        steps=state.step,
        planned_steps=trained.plan.steps,
        best_step=best_step(state),
        best_validation_loss=state.best if state.best_step else None,
        stopped_early=state.stopped_early,
        learning_rate=trained.plan.learning_rate,
        trainable=sum(value.numel() for _, value in policy.trainable()),
        parameters=count_parameters([*policy.network.parameters(), *beside]),
        probe_first=trained.probe.first if trained.probe else None,
        probe_last=trained.probe.last if trained.probe else None,
    )


def _speed(run: RunResults, rows: int, total: float) -> Speed:
    state = run.trained.state
    seconds = max(state.seconds, 1e-9)
    dtype = run.prepared.machine.dtype
    peak = run.prepared.machine.gemm_gflops.get(dtype, 0.0) * 1e9
    flops = step_flops(run.trained) / seconds
    return Speed(
        seconds=state.seconds,
        tokens=state.tokens,
        tokens_per_second=state.tokens / seconds,
        rows_per_second=state.rows / seconds,
        mfu_of_measured_gemm=flops / peak if peak else 0.0,
        answers_per_second_base=rows / max(run.base.seconds, 1e-9),
        answers_per_second_tuned=rows / max(run.tuned.seconds, 1e-9),
        total_seconds=max(total, state.seconds),  # a run that went on has trained before this call too
        predicted_seconds=None if run.prediction is None else run.prediction.seconds.expected,
        predicted_between=None if run.prediction is None else (run.prediction.seconds.low, run.prediction.seconds.high),
    )


def step_flops(trained: TrainResult) -> float:
    """Arithmetic of all training steps in the network's matrices: 2 forward and 2 back per weight and token, 2 more
    for the gradients of weights that move. The head works on learned positions only and is left out."""
    policy = trained.policy
    return float(
        trained.state.forward_tokens * (4 * matmul_parameters(policy) + 2 * matmul_parameters(policy, moving=True))
    )


def _data(run: RunResults) -> DataReport:
    facts = run.prepared.facts
    return DataReport(
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
    )


def environment(machine: ChosenMachine) -> dict[str, str]:
    """Machine and versions, as text."""
    found = {name: version(name) for name in ("tunesmith", "torch", "transformers", "peft")}
    rates = ", ".join(f"{dtype} {rate:.0f}" for dtype, rate in machine.gemm_gflops.items())
    return found | {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": machine.device,
        "dtype": machine.dtype,
        "threads": str(machine.threads),
        "gemm_gflops": rates,
    }


def conflicts(metrics: Sequence[TaskMetrics], tasks: Iterable[str]) -> list[GradientConflict]:
    """The cosines of each two tasks over all validations."""
    found = []
    for a, b in combinations(tasks, 2):
        values = [one.gradient_cosines[a, b] for one in metrics if (a, b) in one.gradient_cosines]
        if values:
            found.append(
                GradientConflict(tasks=(a, b), mean=sum(values) / len(values), lowest=min(values), n=len(values))
            )
    return found
