"""What a run would take, before it runs: counted on the real batches, and timed on a few steps of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from torch.optim import Optimizer

from tunesmith.config import AnyTechnique, Recipe
from tunesmith.errors import RecipeError, Refused
from tunesmith.events import EventHandler, Note, StageStarted
from tunesmith.models.loading.device import out_of_memory
from tunesmith.models.loading.load import not_in_4_bits
from tunesmith.models.policy import Policy
from tunesmith.objectives import Domain
from tunesmith.pipelines.plan.cost_model import moving, peak_bytes, step_seconds
from tunesmith.pipelines.plan.overhead import RunOverhead, count_overhead
from tunesmith.pipelines.plan.profile import RunProfile, named, predict, profile_run
from tunesmith.pipelines.plan.recommend import ENCODERS, STANDINGS, Case, recommend
from tunesmith.pipelines.plan.report import PlanReport, Recommended, TechniqueEstimate
from tunesmith.techniques import Full, Ia3, Lora, Prefix, Prompt, PTuning
from tunesmith.training.batches import batches_of
from tunesmith.training.fit import step
from tunesmith.training.optim import make_optimizer, make_plan, set_rate
from tunesmith.training.prepare import TrainingContext, prepare
from tunesmith.training.train import adapted_policy, learner_of

# Steps that are timed, the first of them to warm up, until so many seconds are spent on one technique.
TIMED, MOST_SECONDS = 4, 15.0
# A technique is only timed where its memory surely fits.
SURELY = 0.7


def techniques_of(recipe: Recipe) -> list[AnyTechnique]:
    """Every technique, with the recipe's own settings where it has some."""
    own = recipe.technique
    lora = own.model_copy(update={"dora": False, "quantize": ""}) if isinstance(own, Lora) else Lora()
    variants = [lora, lora.model_copy(update={"dora": True}), lora.model_copy(update={"quantize": "nf4"})]
    others: list[AnyTechnique] = [Ia3(), Prompt(), Prefix(), PTuning()]
    return [Full(), *variants, *(own if type(own) is type(other) else other for other in others)]


def plan_recipe(recipe: Recipe, *, on_event: EventHandler, timed: bool = True, offline: bool = False) -> PlanReport:
    """What each technique would take, and which to take. Raises the errors of `prepare`."""
    if recipe.objective.samples_completions:
        why = "how long answers will be is not known before they are drawn"
        raise RecipeError(f"plan: rl: {why}; nearest that works: a plan of the same rows under objective: instruct")
    own = recipe.technique
    if own.load_options().quantize:  # weights as they are fit every technique's formula
        recipe = recipe.model_copy(update={"technique": techniques_of(recipe)[1]})
    prepared = prepare(recipe, on_event=on_event, offline=offline)
    on_event(StageStarted("counting rows and network"))
    found = profile_run(prepared)
    factors = _timed(prepared, found, on_event) if timed else {}
    beside, how = count_overhead(prepared, found), _how(factors)
    options = [_option(prepared, technique, found, beside, factors) for technique in techniques_of(recipe)]
    return PlanReport(
        data=", ".join(Path(one.data.train).name for one in recipe.parts.values() or [recipe]),
        model=recipe.model,
        family=prepared.base.family,
        objective=recipe.objective.kind,
        train_rows=len(prepared.train),
        steps=found.work.steps,
        tokens=found.work.computed,
        machine=prepared.machine.why,
        room_bytes=round(found.room),
        how=how,
        options=options,
        recommendation=_recommended(prepared, found, options),
        notes=list(prepared.facts.notes),
    )


def _how(factors: dict[str, float]) -> str:
    if not factors:
        return "by formula, not timed"
    return f"by formula, corrected by timed steps of {' and '.join(factors)} on these rows"


def _option(
    prepared: TrainingContext,
    technique: AnyTechnique,
    found: RunProfile,
    beside: RunOverhead,
    factors: dict[str, float],
) -> TechniqueEstimate:
    """A line of the plan."""
    name = named(technique)
    standing = (ENCODERS if prepared.base.family == "encoder" else STANDINGS)[name]
    said = {"technique": name, "standing": standing.word, "published": standing.published, "ours": standing.ours}
    base = prepared.base
    reason = technique.refusal(base.network, family=base.family)
    if technique.load_options().quantize:
        reason = reason or not_in_4_bits(base.name, offline=True)  # it has just been read
    if reason:
        return TechniqueEstimate(refused=reason, **said)
    factor = factors.get(name, factors.get("lora"))
    if factor is not None:
        found = replace(found, pace=replace(found.pace, factor=factor, timed=name in factors))
    made = predict(technique, found, how=_how(factors))
    whole = beside.whole(made.seconds, found)
    return TechniqueEstimate(prediction=made, whole_seconds=whole, fits=made.memory.high <= found.room, **said)


def _timed(prepared: TrainingContext, found: RunProfile, on_event: EventHandler) -> dict[str, float]:
    """Seconds measured over seconds by formula, for LoRA and full tuning where the memory of each surely fits."""
    prepared = _answerable(prepared)
    asked: list[AnyTechnique] = [techniques_of(prepared.recipe)[1], Full()]
    factors: dict[str, float] = {}
    for technique in asked:
        if peak_bytes(technique, found.size, found.work, found.pace, held=found.held) >= SURELY * found.room:
            continue
        on_event(StageStarted(f"timing a few steps: {technique.kind}"))
        try:
            factors[technique.kind] = _factor(prepared, technique, found)
        except (MemoryError, RuntimeError, Refused) as error:
            if not out_of_memory(error.__cause__ or error):  # the optimizer's memory is refused in its own words
                raise
            on_event(Note(f"memory ran out while {technique.kind} was timed: it is told by formula"))
    return factors


def _answerable(prepared: TrainingContext) -> TrainingContext:
    """Give every row a reference log-probability of 0: computing them is slow, and the time of a step is the same."""

    def answer(name: str, task: TrainingContext) -> TrainingContext:
        objective = task.recipe.objective
        if objective.reference == "none" or objective.samples_completions:
            return task
        return replace(task, train=[replace(row, reference=(0.0,) * len(row.sequences)) for row in task.train])

    return prepared.map_tasks(answer)


def _factor(prepared: TrainingContext, technique: AnyTechnique, found: RunProfile) -> float:
    """The median over a few steps that move nothing: their learning rate is 0."""
    recipe = prepared.recipe.model_copy(update={"technique": technique})
    policy = adapted_policy(replace(prepared, recipe=recipe))
    try:
        optimizer = make_optimizer(policy, make_plan(recipe, policy, rows=len(prepared.train)))
        set_rate(optimizer, 0.0)
        return median(_ratios(prepared, technique, found, policy, optimizer)[1:])
    finally:
        policy.train(False)
        if policy.adapter is not None:
            policy.adapter.unload()  # the base as it was


def _ratios(
    prepared: TrainingContext, technique: AnyTechnique, found: RunProfile, policy: Policy, optimizer: Optimizer
) -> list[float]:
    """Seconds measured over seconds by formula of each step that was timed."""
    batches, learner, ratios, began = batches_of(prepared), learner_of(prepared), [], time.perf_counter()
    every = batches.steps_per_epoch
    for turn in range(TIMED):
        start = time.perf_counter()
        window = batches.window(turn * every // TIMED)  # a run's steps make their batches too
        step(policy, learner, window, optimizer=optimizer, clip=1.0)
        seconds = time.perf_counter() - start
        numbers: dict[str, Any] = {name: round(value) for name, value in found.counter.counts(window).items()}
        counted = replace(found.work, steps=1, **numbers)
        ratios.append(seconds / step_seconds(technique, found.size, counted, found.pace))
        if turn and time.perf_counter() - began > MOST_SECONDS:
            break
    return ratios


def _learned(prepared: TrainingContext) -> int:
    """Tokens of the training rows that are learned: an encoder hides a share of a text's in each pass."""
    objective = prepared.recipe.objective
    tokens = prepared.facts.learned_tokens
    if isinstance(objective, Domain) and prepared.base.family == "encoder":
        return round(objective.hide * tokens)
    return tokens


def _recommended(
    prepared: TrainingContext, found: RunProfile, options: Sequence[TechniqueEstimate]
) -> Recommended | None:
    lora = techniques_of(prepared.recipe)[1]
    case = Case(
        family=prepared.base.family,
        rows=len(prepared.train),
        parameters=found.size.parameters,
        learned_tokens=_learned(prepared),
        lora_numbers=moving(lora, found.size),
        fits=frozenset(option.technique for option in options if option.fits),
    )
    choice = recommend(case)
    return None if choice is None else Recommended(technique=choice.technique, reasons=list(choice.reasons))
