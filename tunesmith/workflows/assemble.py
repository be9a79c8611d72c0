"""From everything measured to the report."""

from __future__ import annotations

import platform
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

from tunesmith.data.examples import Example
from tunesmith.evaluation.tasks import BESIDE, Score, TaskScore, score, task_score
from tunesmith.report.schema import DataPart, Memory, Report, Speed, Training
from tunesmith.workflows.answers import Answers, gold, groups
from tunesmith.workflows.prepare import Prepared
from tunesmith.workflows.train import Trained


@dataclass(frozen=True, slots=True)
class Measured:
    """What a finished run knows about itself."""

    prepared: Prepared
    trained: Trained
    base: Answers
    tuned: Answers
    seconds: float


def assemble(run: Measured, *, name: str) -> Report:
    """The report of a run."""
    split = run.prepared.loaded.split
    test = split.test or split.validation
    recipe = run.prepared.recipe
    tasks = task_scores(recipe.objective.metric, test, (run.base.given, run.tuned.given), name=name)
    return Report(
        name=name,
        model=recipe.model,
        family=run.prepared.base.family,
        objective=recipe.objective.kind,
        technique=recipe.technique.kind,
        task=tasks[0],
        tasks=tasks,
        baselines=[_base_score(run, test)],
        training=_training(run),
        speed=_speed(run, len(test)),
        memory=Memory(peak_bytes=peak_bytes()),
        data=_data(run.prepared),
        environment=environment(run.prepared),
        verdict=tasks[0].sentence,
    )


def task_scores(
    metric: str, test: Sequence[Example], sides: tuple[Sequence[str], Sequence[str]], *, name: str
) -> list[TaskScore]:
    """The headline comparison first, then the metrics reported beside it."""
    right, clusters = gold(test), groups(test)
    wanted = [metric, *(m for m in BESIDE.get(metric, ()) if m not in ("bleu", "corpus_chrf"))]
    return [task_score(m, right, sides, name=name, groups=clusters) for m in wanted]


def _base_score(run: Measured, test: Sequence[Example]) -> Score:
    """The untuned model, scored alone."""
    metric = run.prepared.recipe.objective.metric
    found = score(metric, gold(test), run.base.given, name="base", groups=groups(test))
    return found.model_copy(update={"detail": run.base.how})


def _training(run: Measured) -> Training:
    trained = run.trained
    policy, state = trained.policy, trained.state
    validated = bool(trained.plan.eval_steps)
    head = 0 if policy.head is None else sum(p.numel() for p in policy.head.parameters())
    return Training(
        steps=state.step,
        planned_steps=trained.plan.steps,
        best_step=state.best_step if validated else state.step,
        best_validation_loss=state.best if validated else None,
        stopped_early=state.stopped_early,
        learning_rate=trained.plan.peak,
        trainable=sum(value.numel() for _, value in policy.trainable()),
        parameters=sum(p.numel() for p in policy.network.parameters()) + head,
        probe_first=trained.probe.first if trained.probe else None,
        probe_last=trained.probe.last if trained.probe else None,
    )


def _speed(run: Measured, rows: int) -> Speed:
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
        total_seconds=run.seconds,
    )


def step_flops(trained: Trained) -> float:
    """Arithmetic of all training steps in the network's matrices: 2 forward and 2 back per weight and token, 2 more
    for the gradients of weights that move. The head works on learned positions only and is left out."""
    policy = trained.policy
    matrices = [
        p
        for name, p in policy.network.named_parameters()
        if p.ndim == 2 and "embed" not in name and "lm_head" not in name
    ]
    moving = sum(p.numel() for p in matrices if p.requires_grad)
    return float(trained.state.computed * (4 * sum(p.numel() for p in matrices) + 2 * moving))


def _data(prepared: Prepared) -> DataPart:
    facts = prepared.facts
    return DataPart(
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
        notes=facts.notes,
    )


def environment(prepared: Prepared) -> dict[str, str]:
    """Machine and versions, as text."""
    machine = prepared.machine
    found = {name: version(name) for name in ("torch", "transformers", "peft")}
    rates = ", ".join(f"{dtype} {rate:.0f}" for dtype, rate in machine.gemm_gflops.items())
    return found | {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": machine.device,
        "dtype": machine.dtype,
        "threads": str(machine.threads),
        "gemm_gflops": rates,
    }


def peak_bytes() -> int:
    """Largest resident size of this process so far; Linux counts in KiB, macOS in bytes."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
