"""The middle of a run: adapt, probe, fit, and the numbers that were best."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tunesmith.data.files import read_page, write_whole
from tunesmith.errors import Refused
from tunesmith.model.batch import cut
from tunesmith.model.checkpoint import find_folder
from tunesmith.model.device import DTYPES, NOT_ONE_ROW, out_of_memory
from tunesmith.model.policy import Policy
from tunesmith.objectives import Classify, Multitask, Rl
from tunesmith.objectives.base import Learner
from tunesmith.techniques import Full
from tunesmith.training.fit import Hooks, fit
from tunesmith.training.journal import Journal
from tunesmith.training.optim import TrainingPlan
from tunesmith.training.probe import ROWS, Probe, can_learn
from tunesmith.training.state import TrainingState
from tunesmith.training.track import Tracker, open_trackers
from tunesmith.workflows.batches import Batches, MixedBatches, batches_of, parts_of
from tunesmith.workflows.first_head import begin_heads
from tunesmith.workflows.learner import compares, learner_of, needs_start
from tunesmith.workflows.prepare import ALONE, Listener, Prepared
from tunesmith.workflows.references import fallen, preferred, with_references
from tunesmith.workflows.run_folder import of_task
from tunesmith.workflows.tasks import LOSS_OF, losses, mean_of, pulls, seen_beside
from tunesmith.workflows.training_plan import make_plan
from tunesmith.workflows.validation import validation_loss


@dataclass(frozen=True, slots=True)
class Trained:
    """A policy with its best numbers, and how it got them."""

    policy: Policy
    plan: TrainingPlan
    state: TrainingState
    probe: Probe | None
    notes: tuple[str, ...] = ()
    beside: tuple[dict[str, float], ...] = ()  # what was seen of each of several tasks at each validation


@dataclass(frozen=True, slots=True)
class Watch:
    """What the world hears of a training run, may stop it with, and holds it to."""

    listen: Listener
    stop: Callable[[], bool] = lambda: False
    outside: Callable[[Policy], str] = lambda policy: ""  # which gate a policy breaks; one that does is never the best


def train(prepared: Prepared, out: Path, *, watch: Watch) -> Trained:
    """Fine-tune as the recipe says, going on from `out` when a checkpoint is there."""
    listen = watch.listen
    recipe, objective = prepared.recipe, prepared.recipe.objective
    prepared = _with_references(prepared, out, listen)
    policy, learner = adapted(prepared), learner_of(prepared)
    plan = make_plan(recipe, policy, rows=len(prepared.train))
    if not prepared.validation:  # rows may be there and teach nothing: a score of nothing would always be the best
        plan = replace(plan, eval_steps=0)
    batches = batches_of(prepared)
    journal = Journal(out / "journal.jsonl")
    if find_folder(out / "checkpoints" / "last") is None:
        _begin(prepared, policy, plan, out, watch)
    probe = read_page(out / PROBE, Probe) if (out / PROBE).exists() else None
    trackers = open_trackers(recipe.track, run=out, config=recipe.model_dump(mode="json"))
    beside: dict[str, float] = {}
    hooks = Hooks(
        folder=out / "checkpoints",
        record=_recorder(journal, trackers, listen, beside),
        resumed=lambda step: _rewound(journal, batches, step, listen),
        validate=lambda: _judged(prepared, (policy, learner), watch, beside),
        stop=watch.stop,
        smaller=lambda step: _smaller(batches, step, journal=journal, listen=listen),
    )
    listen({"event": "stage", "text": "training"})
    try:
        state = fit(policy, learner, batches.window, plan=plan, hooks=hooks)
    finally:
        for tracker in trackers:
            tracker.close()
    if state.stopped_early and state.step < plan.steps:
        listen({"event": "note", "text": _stopped(state, plan)})
    for note in (outside := _outside(state, plan)):
        listen({"event": "note", "text": note})
    if isinstance(objective, Rl):
        policy.head = None  # what expected rewards; the model that answers has no use for it
    policy.mixed = None  # answers are given in full precision, here and wherever the run is loaded
    return Trained(policy, plan, state, probe, (*_notes(journal), *outside), seen_beside(journal))


# What the overfit probe came to, for a run that goes on.
PROBE = "probe.json"


def _begin(prepared: Prepared, policy: Policy, plan: TrainingPlan, out: Path, watch: Watch) -> None:
    """Look whether it can learn at all, and give its heads of labels their beginning."""
    learns = prepared.recipe.schedule.probe and not isinstance(prepared.recipe.objective, Rl)  # drawn answers: no rows
    if learns and (looked := _probe(prepared, policy, plan, watch)):
        write_whole(out / PROBE, json.dumps(asdict(looked)))
    begin_heads(prepared, policy, watch.listen)


# What a journal line about memory that ran out has, and no other: tokens that run at once from there on.
AT_ONCE = "tokens_at_once"


def _smaller(batches: Batches | MixedBatches, step: int, *, journal: Journal, listen: Listener) -> bool:
    """Whether less can run at once than in this step, which is then so from there on and stands in the journal."""
    tokens = batches.halve(step)
    if tokens:
        journal.write({"step": step, "out_of_memory": True, AT_ONCE: tokens})
        listen({"event": "note", "text": _ran_out(step, tokens)})
    return bool(tokens)


def _stopped(state: TrainingState, plan: TrainingPlan) -> str:
    why = f"{plan.patience} validations brought nothing better (schedule.patience)"
    return f"stopped at step {state.step} of {plan.steps}: {why}; kept: step {kept_step(state)}"


def kept_step(state: TrainingState) -> int:
    """The step whose numbers the run ends with: the best, or the last where none was scored or inside a gate."""
    return state.best_step or state.step


def _outside(state: TrainingState, plan: TrainingPlan) -> tuple[str, ...]:
    """A note where every validation broke a gate."""
    if not plan.eval_steps or state.best_step:
        return ()
    return (f"no validation was inside the gate; kept: step {kept_step(state)}, the last",)


def _ran_out(step: int, tokens: int) -> str:
    return f"out of memory in step {step + 1}: at most {tokens} tokens at once from there on, as many rows a step"


def _rewound(journal: Journal, batches: Batches | MixedBatches, step: int, listen: Listener) -> None:
    """The journal up to this step, and no more at once than memory held by then; a run that goes on says from where."""
    if step:
        listen({"event": "note", "text": f"going on after step {step}"})
    journal.rewind(step)
    for record in journal.read():
        if AT_ONCE in record:
            batches.at_once(record[AT_ONCE])


def _notes(journal: Journal) -> tuple[str, ...]:
    """What a reader of the report has to know of how training went."""
    return tuple(_ran_out(record["step"], record[AT_ONCE]) for record in journal.read() if AT_ONCE in record)


def _recorder(
    journal: Journal, trackers: Sequence[Tracker], listen: Listener, beside: Mapping[str, float]
) -> Callable[[Mapping[str, Any]], None]:
    """Tells journal, trackers and listener of every step and validation, and what was seen `beside` its loss."""

    def record(entry: Mapping[str, Any]) -> None:
        if entry.get("validation_loss") == math.inf:  # outside a gate, as `_judged` has said; JSON has no infinity
            journal.write({"step": entry["step"], "outside_gate": True})
            return
        entry = {**entry, **beside} if "validation_loss" in entry else entry
        journal.write(entry)
        for tracker in trackers:
            tracker.log(entry)
        listen({"event": "step", **entry})
        if alarm := fallen(entry):
            journal.write({"step": entry["step"], "alarm": alarm})
            listen({"event": "note", "text": alarm})

    return record


def _opening(prepared: Prepared) -> list[int]:
    """Ids of a text about the task: its labels and instruction, or the first row where it has none."""
    objective = prepared.recipe.objective
    words = objective.instruction
    if isinstance(objective, Classify):
        words = f"{', '.join(objective.labels)}. {words}"
    ids: list[int] = prepared.template.tokenizer(words, add_special_tokens=False, verbose=False)["input_ids"]
    return ids or prepared.train[0].sequences[0].ids


def _with_references(prepared: Prepared, out: Path, listen: Listener) -> Prepared:
    """The rows with what the untuned model says to them, where their objective, or that of their task, asks for it."""
    if not prepared.parts:
        return with_references(prepared, out, policy=untouched(prepared), listen=listen)
    return replace(prepared, parts={n: _with_references(p, of_task(out, n), listen) for n, p in prepared.parts.items()})


def untouched(prepared: Prepared) -> Policy:
    """The base before a technique has touched it, computing as it does while it is trained."""
    policy = Policy.over(prepared.base.network, family=prepared.base.family)
    policy.mixed = mixed_type(prepared)
    return policy


def adapted(prepared: Prepared) -> Policy:
    """The base under the recipe's technique, with the objective's head, before any step."""
    recipe, base = prepared.recipe, prepared.base
    torch.manual_seed(recipe.seed)
    keeps = needs_start if isinstance(recipe.technique, Full) else compares  # full tuning pays for it with a copy
    policy = recipe.technique.adapt(
        base.network, family=base.family, keep_reference=keeps(recipe.objective), start=_opening(prepared)
    )
    policy.head = recipe.objective.head(policy)
    for name, one in (prepared.parts or {ALONE: prepared}).items():
        head = recipe.objective.seen(policy, name).head if isinstance(recipe.objective, Multitask) else policy.head
        if head is not None and one.head is not None:
            head.load_state_dict(one.head)
    policy.mixed = mixed_type(prepared)
    return policy


def _judged(prepared: Prepared, learns: tuple[Policy, Learner], watch: Watch, beside: dict[str, float]) -> float:
    """The validation loss, infinite outside a gate, so never the best. `beside` gets what goes with it."""
    policy, learner = learns
    if broken := watch.outside(policy):
        watch.listen({"event": "note", "text": f"not to be kept: {broken}"})
        return math.inf
    beside.update(preferred(prepared, policy))
    if not prepared.parts:
        found_loss = validation_loss(prepared, policy, learner)
        beside |= {"validation_reward": -found_loss} if isinstance(prepared.recipe.objective, Rl) else {}
        return found_loss
    found = losses(prepared, policy, validation_loss)
    beside |= pulls(prepared, policy, parts_of(prepared)) | {f"{LOSS_OF}{name}": loss for name, loss in found.items()}
    return mean_of(prepared, found)


def _probe(prepared: Prepared, policy: Policy, plan: TrainingPlan, watch: Watch) -> Probe | None:
    """Whether a few short rows can be learned at all, of each of several tasks; Refused if not."""
    if isinstance(objective := prepared.recipe.objective, Multitask):
        return [_probe(one, objective.seen(policy, n), plan, watch) for n, one in prepared.parts.items()][0]
    rows, listen = prepared.train, watch.listen
    learner = learner_of(prepared)
    listen({"event": "stage", "text": f"can it learn {ROWS} rows at all?"})
    shortest = sorted(range(len(rows)), key=lambda i: rows[i].length)[: 4 * ROWS : 4]
    batches = Batches(prepared, rows)
    most, found = batches.sampler.tokens, None
    while found is None:
        parts = cut(shortest[::-1], batches.sampler.lengths, most)
        try:
            found = can_learn(policy, learner, [batches.of(part) for part in parts], plan=plan)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            if len(parts) == len(shortest):
                raise Refused(f"overfit probe: {NOT_ONE_ROW}") from error
            most //= 2
    listen({"event": "probe", "first": found.first, "last": found.last, "steps": found.steps})
    return found


def mixed_type(prepared: Prepared) -> torch.dtype | None:
    """The type to multiply in while training, when the machine is faster in it than in the weights' own."""
    wanted = DTYPES[prepared.machine.dtype]
    return None if wanted == prepared.base.network.dtype else wanted
