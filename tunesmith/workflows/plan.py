"""What a run would take, before it runs: counted on the real batches, and timed on a few steps of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

from torch.optim import Optimizer

from tunesmith.decision.plan import moving, peak_bytes, reading_seconds, step_seconds, writing_seconds
from tunesmith.decision.recommend import STANDINGS, Case, recommend
from tunesmith.errors import RecipeError, Refused
from tunesmith.model.device import out_of_memory
from tunesmith.model.generate import REMEMBERED, ROWS
from tunesmith.model.load import not_in_4_bits
from tunesmith.model.policy import Policy
from tunesmith.objectives import Instruct, Preference, Rl
from tunesmith.recipe import AnyTechnique, Recipe
from tunesmith.report.plan import Bounds, Option, Outlook, Recommended
from tunesmith.techniques import Full, Ia3, Lora, Prefix, Prompt, PTuning
from tunesmith.training.fit import step
from tunesmith.training.optim import make_optimizer, set_rate
from tunesmith.workflows.answers import CHOICE_ROWS
from tunesmith.workflows.batches import Batches, batches_of
from tunesmith.workflows.learner import learner_of
from tunesmith.workflows.prepare import Listener, Prepared, prepare
from tunesmith.workflows.survey import Survey, counts_of, named, predict, survey
from tunesmith.workflows.train import adapted, make_plan, untouched

# Steps that are timed, the first of them to warm up, until so many seconds are spent on one technique.
TIMED, MOST_SECONDS = 4, 15.0
# A technique is only timed where its memory surely fits.
SURELY = 0.7
# Seconds of a run that no row explains: loading, the cheap ways, writing the reports.
AROUND = 25.0
# Bounds of a whole run as factors: answers end when they want to, and a run may stop early.
WHOLE = (0.5, 2.0)
GENERAL_TOKENS = 20_000


def techniques_of(recipe: Recipe) -> list[AnyTechnique]:
    """Every technique, with the recipe's own settings where it has some."""
    own = recipe.technique
    lora = own.model_copy(update={"dora": False, "quantize": ""}) if isinstance(own, Lora) else Lora()
    variants = [lora, lora.model_copy(update={"dora": True}), lora.model_copy(update={"quantize": "nf4"})]
    others: list[AnyTechnique] = [Ia3(), Prompt(), Prefix(), PTuning()]
    return [Full(), *variants, *(own if type(own) is type(other) else other for other in others)]


def plan_recipe(recipe: Recipe, *, listen: Listener, timed: bool = True, offline: bool = False) -> Outlook:
    """What each technique would take, and which to take. Raises the errors of `prepare`."""
    if isinstance(recipe.objective, Rl):
        why = "how long answers will be is not known before they are drawn"
        raise RecipeError(f"plan: rl: {why}; nearest that works: a plan of the same rows under objective: instruct")
    own = recipe.technique
    if own.load_options().quantize:  # weights as they are fit every technique's formula
        recipe = recipe.model_copy(update={"technique": techniques_of(recipe)[1]})
    prepared = prepare(recipe, listen=listen, offline=offline)
    listen({"event": "stage", "text": "counting rows and network"})
    found = survey(prepared)
    factors = _timed(prepared, found, listen) if timed else {}
    options = [_option(prepared, technique, found, factors) for technique in techniques_of(recipe)]
    facts, how = prepared.facts, _how(factors)
    return Outlook(
        data=Path(recipe.data.train).name,
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
        notes=list(facts.notes),
    )


def _how(factors: dict[str, float]) -> str:
    if not factors:
        return "by formula, not timed"
    return f"by formula, corrected by timed steps of {' and '.join(factors)} on these rows"


def _option(prepared: Prepared, technique: AnyTechnique, found: Survey, factors: dict[str, float]) -> Option:
    """A line of the plan."""
    name = named(technique)
    standing = STANDINGS[name]
    said = {"technique": name, "standing": standing.word, "published": standing.published, "ours": standing.ours}
    base = prepared.base
    reason = technique.refusal(base.network, family=base.family)
    if technique.load_options().quantize:
        reason = reason or not_in_4_bits(base.name, offline=True)  # it has just been read
    if reason:
        return Option(refused=reason, **said)
    factor = factors.get(name, factors.get("lora"))
    if factor is not None:
        found = replace(found, pace=replace(found.pace, factor=factor, timed=name in factors))
    made = predict(technique, found, how=_how(factors))
    beside = _beside(prepared, found)
    low, high = WHOLE
    whole = Bounds(
        low=made.seconds.low + low * beside,
        expected=made.seconds.expected + beside,
        high=made.seconds.high + high * beside,
    )
    return Option(prediction=made, whole_seconds=whole, fits=made.memory.high <= found.room, **said)


def _timed(prepared: Prepared, found: Survey, listen: Listener) -> dict[str, float]:
    """Seconds measured over seconds by formula, for LoRA and full tuning where the memory of each surely fits."""
    prepared = _answerable(prepared)
    asked: list[AnyTechnique] = [techniques_of(prepared.recipe)[1], Full()]
    factors: dict[str, float] = {}
    for technique in asked:
        if peak_bytes(technique, found.size, found.work, found.pace, held=found.held) >= SURELY * found.room:
            continue
        listen({"event": "stage", "text": f"timing a few steps: {technique.kind}"})
        try:
            factors[technique.kind] = _factor(prepared, technique, found)
        except (MemoryError, RuntimeError, Refused) as error:
            if not out_of_memory(error.__cause__ or error):  # the optimizer's memory is refused in its own words
                raise
            listen({"event": "note", "text": f"memory ran out while {technique.kind} was timed: it is told by formula"})
    return factors


def _answerable(prepared: Prepared) -> Prepared:
    """Rows whose loss can be taken: what the start says to the answers takes long to ask, and no time hangs on it."""
    objective = prepared.recipe.objective
    parts = {name: _answerable(part) for name, part in prepared.parts.items()}
    if not isinstance(objective, Preference) or not objective.needs_reference:
        return replace(prepared, parts=parts)
    return replace(prepared, train=[replace(row, reference=(0.0,) * len(row.sequences)) for row in prepared.train])


def _factor(prepared: Prepared, technique: AnyTechnique, found: Survey) -> float:
    """The median over a few steps that move nothing: their learning rate is 0."""
    recipe = prepared.recipe.model_copy(update={"technique": technique})
    policy = adapted(replace(prepared, recipe=recipe))
    try:
        optimizer = make_optimizer(policy, make_plan(recipe, policy, rows=len(prepared.train)))
        set_rate(optimizer, 0.0)
        return median(_ratios(prepared, technique, found, policy, optimizer)[1:])
    finally:
        policy.train(False)
        if policy.adapter is not None:
            policy.adapter.unload()  # the base as it was


def _ratios(
    prepared: Prepared, technique: AnyTechnique, found: Survey, policy: Policy, optimizer: Optimizer
) -> list[float]:
    """Seconds measured over seconds by formula of each step that was timed."""
    batches, learner, ratios, began = batches_of(prepared), learner_of(prepared), [], time.perf_counter()
    every = batches.steps_per_epoch
    for turn in range(TIMED):
        window = batches.window(turn * every // TIMED)
        start = time.perf_counter()
        step(policy, learner, window, optimizer=optimizer, clip=1.0)
        seconds = time.perf_counter() - start
        counted = replace(found.work, steps=1, **counts_of(window))
        ratios.append(seconds / step_seconds(technique, found.size, counted, found.pace))
        if turn and time.perf_counter() - began > MOST_SECONDS:
            break
    return ratios


def _beside(prepared: Prepared, found: Survey) -> float:
    """Seconds of a run beside its training steps: validations, and the scoring of base and tuned model."""
    objective, split = prepared.recipe.objective, prepared.loaded.split
    plan = make_plan(prepared.recipe, untouched(prepared), rows=len(prepared.train))
    parts = [part for part in prepared.parts.values() or [prepared] if part.validation]
    checked = [batch for part in parts for batch in Batches(part, part.validation).all()]
    tokens = sum(batch.computed for batch in checked)
    each = found.work.computed / max(1, found.work.rows)
    test, validation = len(prepared.test), len(split.validation)
    evaluations = plan.steps // plan.eval_steps if plan.eval_steps and checked else 0
    asked: float = 2 * test + validation + 4 * min(validation, CHOICE_ROWS.get(objective.kind, 0))
    general = 2 * GENERAL_TOKENS if prepared.base.family == "decoder" else 0
    if isinstance(objective, Preference) and objective.needs_reference:
        asked += found.work.rows / prepared.recipe.schedule.epochs + validation
    seconds = AROUND + reading_seconds(evaluations * tokens + asked * each + general, found.size, found.pace)
    if isinstance(objective, Instruct):
        longest = objective.max_new_tokens or 64
        together = max(1, min(ROWS, REMEMBERED // max(1, round(each))))
        groups = (2 * test + 3 * min(validation, CHOICE_ROWS["instruct"])) / together
        seconds += writing_seconds(groups * longest, together / 2, found.size, found.pace)
    return seconds


def _recommended(prepared: Prepared, found: Survey, options: Sequence[Option]) -> Recommended | None:
    lora = techniques_of(prepared.recipe)[1]
    case = Case(
        objective=prepared.recipe.objective.kind,
        family=prepared.base.family,
        rows=len(prepared.train),
        parameters=found.size.parameters,
        learned_tokens=prepared.facts.learned_tokens,
        lora_numbers=moving(lora, found.size),
        fits=frozenset(option.technique for option in options if option.fits),
    )
    choice = recommend(case)
    return None if choice is None else Recommended(technique=choice.technique, reasons=list(choice.reasons))
