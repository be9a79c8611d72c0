"""The plan of a run: the cost of each technique, from counted rows and a few timed steps, and a recommendation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunesmith.config import AnyTechnique, Recipe
from tunesmith.errors import OptionError, RecipeError, Refused, out_of_memory
from tunesmith.events import EventHandler, Note, StageStarted
from tunesmith.models.loading.locate import not_in_4_bits
from tunesmith.models.recompute import recompute_layers
from tunesmith.objectives.base import SINGLE_TASK
from tunesmith.pipelines.plan.candidates import Job, choose_model
from tunesmith.pipelines.plan.cost_model import moving
from tunesmith.pipelines.plan.forecast import forecast_run
from tunesmith.pipelines.plan.history import PhaseTiming, RunTimings, append
from tunesmith.pipelines.plan.phase_costs import RunWork, count_run, kind_of, machine
from tunesmith.pipelines.plan.profile import RunProfile, named, profile_run
from tunesmith.pipelines.plan.recommend import ENCODERS, STANDINGS, Case, recommend
from tunesmith.pipelines.plan.report import Bounds, ModelChoice, PlanReport, Recommended, TechniqueEstimate
from tunesmith.pipelines.plan.verdict_rows import rows_of_verdict
from tunesmith.techniques import Full, Ia3, Lora, Prefix, Prompt, PTuning
from tunesmith.training.batches import batches_of
from tunesmith.training.fit import step
from tunesmith.training.optim import make_optimizer, make_plan, set_rate
from tunesmith.training.prepare import TrainingContext, prepare
from tunesmith.training.train import adapted_policy, learner_of

# Steps that are timed per technique, the first of them to warm up; no more of them after this many seconds.
TIMED_STEPS = 4
MAX_SECONDS = 15.0
# A technique is only timed if its predicted peak is below this share of the available memory.
SAFE_SHARE = 0.7


def techniques_of(recipe: Recipe) -> list[AnyTechnique]:
    """Return every technique, with the recipe's settings for its own."""
    own = recipe.technique
    lora = own.model_copy(update={"dora": False, "quantize": ""}) if isinstance(own, Lora) else Lora()
    variants = [lora, lora.model_copy(update={"dora": True}), lora.model_copy(update={"quantize": "nf4"})]
    others: list[AnyTechnique] = [Ia3(), Prompt(), Prefix(), PTuning()]
    return [Full(), *variants, *(own if type(own) is type(other) else other for other in others)]


def plan_recipe(
    recipe: Recipe, *, on_event: EventHandler, timed: bool = True, processes: int = 1, offline: bool = False
) -> PlanReport:
    """Estimate the cost of each technique and recommend one.

    Args:
        recipe: the recipe; its technique only provides settings.
        on_event: observes the progress.
        timed: time a few steps of LoRA and full tuning, and correct all estimates by them.
        processes: number of processes on this machine that share the run.
        offline: do not access the network.

    Raises:
        RecipeError: the objective samples completions, or the recipe cannot be prepared.
        OptionError: there cannot be such a number of processes.
    """
    if processes < 1:
        raise OptionError(f"--processes: expected an integer >= 1, got {processes}; use 1 for a single process")
    if recipe.objective.samples_completions:
        raise RecipeError(
            "plan: rl: the length of completions is unknown before they are sampled; nearest that works: a plan of the "
            "same rows with objective: instruct"
        )
    if recipe.technique.load_options().quantize:  # the cost model starts from unquantized weights
        recipe = recipe.model_copy(update={"technique": techniques_of(recipe)[1]})
    prepared = prepare(recipe, on_event=on_event, offline=offline)
    scored = rows_of_verdict(prepared)
    prepared = scored.of(prepared)
    family = prepared.base.family
    on_event(StageStarted("counting rows and network"))
    profile = profile_run(prepared)
    timings = _time_techniques(prepared, profile, on_event) if timed else []
    profile = profile.shared(prepared, processes)
    work = count_run(prepared, profile)
    options = [_estimate(prepared, technique, profile, work, timings=timings) for technique in techniques_of(recipe)]
    for line in timings:  # `tune` then forecasts from the same steps
        append(line)
    objective, learned_tokens = prepared.recipe.objective, prepared.facts.learned_tokens
    if objective.masked_share and family == "encoder":  # each epoch masks another share of the words
        learned_tokens = round(objective.masked_share * learned_tokens)
    choice = recommend(
        Case(
            family=family,
            rows=len(prepared.train),
            parameters=profile.size.parameters,
            learned_tokens=learned_tokens,
            lora_numbers=moving(techniques_of(prepared.recipe)[1], profile.size),
            fits=frozenset(option.technique for option in options if option.fits),
        )
    )
    own = next((option for option in options if choice and option.technique == choice.technique), None)
    models = _models(prepared, on_event, own)
    return PlanReport(
        data=", ".join(Path(part.data.train).name for part in recipe.parts.values() or [recipe]),
        model=recipe.model,
        family=family,
        objective=recipe.objective.kind,
        train_rows=len(prepared.train),
        steps=profile.work.steps,
        tokens=profile.work.computed,
        machine=prepared.machine.why,
        room_bytes=round(profile.available),
        how=next(option.prediction.how for option in options if option.prediction),
        options=options,
        recommendation=choice and Recommended(technique=choice.technique, reasons=list(choice.reasons)),
        notes=[*prepared.facts.notes, *([scored.note] if scored.note else [])],
        metric=models.metric if models else "",
        candidates=models.candidates if models else [],
        recommended_model=models.model if models else "",
        model_reasons=models.reasons if models else [],
    )


def _models(prepared: TrainingContext, on_event: EventHandler, own: TechniqueEstimate | None) -> ModelChoice | None:
    """Return the models that can learn the objective; None for several tasks, whose scores are not comparable.

    The estimate of the recommended technique replaces the rough one of the recipe's model.
    """
    if SINGLE_TASK not in prepared.tasks:
        return None
    split = prepared.loaded.split
    costs = {}
    if own and own.prediction and own.whole_seconds:
        costs = {prepared.recipe.model: (own.whole_seconds, own.prediction.memory)}
    job = Job(
        prepared.recipe.objective,
        [*split.train, *split.validation],  # test rows may not decide
        test_rows=len(split.test),
        validation_rows=len(split.validation),
        train_rows=len(split.train),
        costs=costs,
    )
    return choose_model(job, on_event=on_event, probe=False)


def _estimate(
    prepared: TrainingContext,
    technique: AnyTechnique,
    profile: RunProfile,
    work: RunWork,
    *,
    timings: Sequence[RunTimings],
) -> TechniqueEstimate:
    """Estimate the cost of one technique, or state why the model does not support it."""
    name, base = named(technique), prepared.base
    standing = (ENCODERS if base.family == "encoder" else STANDINGS)[name]
    known = {"technique": name, "standing": standing.word, "published": standing.published, "ours": standing.ours}
    reason = technique.refusal(base.network, family=base.family)
    if technique.load_options().quantize:
        reason = reason or not_in_4_bits(base.name, offline=True)  # its files have just been read
    if reason:
        return TechniqueEstimate(refused=reason, **known)
    forecast = forecast_run(prepared, profile, technique=technique, work=work, timed=timings)
    cost = forecast.prediction(name, profile.cost(technique))
    return TechniqueEstimate(
        prediction=cost,
        whole_seconds=Bounds(low=forecast.low, expected=forecast.seconds, high=forecast.high),
        fits=cost.memory.high <= profile.available,
        **known,
    )


def _time_techniques(prepared: TrainingContext, profile: RunProfile, on_event: EventHandler) -> list[RunTimings]:
    """Return timed steps of LoRA and full tuning, of those whose memory safely fits."""

    def with_references(_: str, task: TrainingContext) -> TrainingContext:
        # Reference log-probabilities of 0: computing them is slow, and the time of a step does not depend on them.
        if task.recipe.objective.reference == "none":
            return task
        return replace(task, train=[replace(row, reference=(0.0,) * len(row.sequences)) for row in task.train])

    prepared = prepared.map_tasks(with_references)
    timed: list[AnyTechnique] = [techniques_of(prepared.recipe)[1], Full()]
    timings: list[RunTimings] = []
    for technique in timed:
        if profile.cost(technique).memory.expected >= SAFE_SHARE * profile.available:
            continue
        on_event(StageStarted(f"timing a few steps: {technique.kind}"))
        try:
            step_timing = _measure_steps(prepared, technique, profile)
        except (MemoryError, RuntimeError, Refused) as error:
            if not out_of_memory(error.__cause__ or error):  # the optimizer raises another error
                raise
            on_event(Note(f"out of memory while timing {technique.kind}; using the analytic estimate"))
            continue
        kind, phases = kind_of(prepared, technique), {"training": step_timing}
        timings.append(RunTimings(machine=machine(prepared), kind=kind, source="timed steps", phases=phases))
    return timings


def _measure_steps(prepared: TrainingContext, technique: AnyTechnique, profile: RunProfile) -> PhaseTiming:
    """Return the step with the median of measured over computed seconds, of a few at a learning rate of 0."""
    recipe = prepared.recipe.model_copy(update={"technique": technique})
    policy = adapted_policy(replace(prepared, recipe=recipe))
    recompute_layers(policy.network, on=recipe.schedule.recompute is True)
    try:
        optimizer = make_optimizer(policy, make_plan(recipe, policy, rows=len(prepared.train)))
        set_rate(optimizer, 0.0)
        batches, learner, started = batches_of(prepared), learner_of(prepared), time.perf_counter()
        timings = []
        for index in range(TIMED_STEPS):
            start = time.perf_counter()
            window = batches.window(index * batches.steps_per_epoch // TIMED_STEPS)  # timed too: a run also makes them
            step(policy, learner, window, optimizer=optimizer, clip=1.0)
            seconds = time.perf_counter() - start
            counts: dict[str, Any] = {name: round(value) for name, value in profile.counter.counts(window).items()}
            work = replace(profile.work, steps=1, **counts)
            timings.append(PhaseTiming(formula=replace(profile, work=work).cost(technique).seconds, actual=seconds))
            if index and time.perf_counter() - started > MAX_SECONDS:
                break
        ordered = sorted(timings[1:], key=lambda timing: timing.actual / timing.formula)
        return ordered[len(ordered) // 2]
    finally:
        recompute_layers(policy.network, on=False)
        policy.train(False)
        if policy.adapter is not None:
            policy.adapter.unload()  # restores the base
