"""Train a prepared run: adapt the base, check that it can learn, run the loop, keep the best parameters."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import asdict, dataclass, field, replace
from heapq import nsmallest
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from tunesmith.data.examples.prompts import RLPrompt
from tunesmith.data.files import read_page, write_whole
from tunesmith.data.stored import build_once, cached_folder
from tunesmith.data.tokenization.token_store import sizes_of
from tunesmith.errors import RecipeError, Refused
from tunesmith.events import (
    Event,
    EventHandler,
    Note,
    OverfitChecked,
    Resumed,
    StageStarted,
    StepFinished,
    TrainingStarted,
    Validated,
    journal_record,
)
from tunesmith.inference.engine_server import rollout_sampler
from tunesmith.metrics import calibration
from tunesmith.models.batch import TOKENS_PER_PASS, Batch, collate
from tunesmith.models.generation.generate import sample
from tunesmith.models.kept_answers import kept_answers
from tunesmith.models.loading.checkpoint import find_folder
from tunesmith.models.loading.device import DTYPES, NOT_ONE_ROW, gpu_share, keep_freed_memory
from tunesmith.models.mixtures import RouterLoss
from tunesmith.models.policy import Policy
from tunesmith.models.recompute import recompute_layers, recomputes
from tunesmith.models.sharded import reshard
from tunesmith.models.world import added, alone, current_world, passes
from tunesmith.objectives import Rl
from tunesmith.objectives.base import Learner
from tunesmith.objectives.distillation import DistillationLearner
from tunesmith.objectives.online_rl import OnlineRLLearner, Sampler
from tunesmith.phases import phase
from tunesmith.progress import track
from tunesmith.techniques import Full
from tunesmith.training.batches import Batches, StepBatches, batches_of
from tunesmith.training.callbacks import Callbacks
from tunesmith.training.fit import Trainer, ValidationResult, pass_tokens, prepare_each, retry_smaller
from tunesmith.training.head_init import init_heads_from_probe
from tunesmith.training.journal import KEPT_KEY, Journal
from tunesmith.training.multitask import TaskMetrics, gradient_cosines, mean_loss, read_task_metrics
from tunesmith.training.optim import TrainingPlan, make_plan
from tunesmith.training.overfit_check import ROWS, Probe, can_learn, check_int8
from tunesmith.training.prepare import TrainingContext
from tunesmith.training.reference_logprobs import (
    chosen_logprob_warning,
    precompute_reference_logprobs,
    preference_metrics,
)
from tunesmith.training.rewards import completion_metrics, scorer_of
from tunesmith.training.run_folder import task_dir
from tunesmith.training.trackers import Tracker, open_trackers
from tunesmith.training.train_state import TrainingState

# Prompts whose completions are scored before training starts.
CHECKED_PROMPTS = 8
# Prompts per validation: enough to measure a change of the reward, few enough to be quick.
VALIDATION_PROMPTS = 64
# Result of the overfit check, kept for a run that resumes.
PROBE = "probe.json"
# Key of a journal line that records an out-of-memory error: the tokens per micro-batch from there on.
TOKENS_AT_ONCE_KEY = "tokens_at_once"
# Key of a journal line that records that activations are computed again from there on.
RECOMPUTE_KEY = "recompute"


@dataclass(frozen=True, slots=True)
class TrainingSetup:
    """The policy, the rows and the plan that the first step of a run starts from."""

    prepared: TrainingContext  # with reference log-probabilities
    policy: Policy
    learner: Learner
    plan: TrainingPlan
    batches: StepBatches


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A trained policy with its best parameters, and how they were trained."""

    policy: Policy
    plan: TrainingPlan
    state: TrainingState
    probe: Probe | None
    setup: TrainingSetup
    notes: tuple[str, ...] = ()
    task_metrics: tuple[TaskMetrics, ...] = ()  # by validation


@passes()
def train(prepared: TrainingContext, out: Path, *, callbacks: Callbacks) -> TrainResult:
    """Adapt the base by the recipe's technique, check that it can learn, and train it.

    Resumes from the checkpoint in `out`, if there is one.

    Args:
        prepared: the recipe with its base model and encoded rows.
        out: the run folder; holds `journal.jsonl` and `checkpoints/`.
        callbacks: observe and stop the run, and reject policies that violate a gate.

    Returns:
        The policy with the parameters of the best step, and how they were trained.

    Raises:
        Interrupted: `should_stop` returned true; the last finished step is saved.
        Refused: the model cannot learn a few rows, the loss is not finite, or memory does not hold one row.
    """
    with rollout_sampler(prepared.recipe) as sampler:
        return _train(prepared, out, sampler, callbacks=callbacks)


def _train(prepared: TrainingContext, out: Path, sampler: Sampler, *, callbacks: Callbacks) -> TrainResult:
    recipe, objective = prepared.recipe, prepared.recipe.objective
    setup = set_up(prepared, out, sampler, on_event=callbacks.on_event)
    prepared, policy, learner = setup.prepared, setup.policy, setup.learner
    plan, batches = setup.plan, setup.batches
    learners = {name: learner_of(task, sampler) for name, task in prepared.tasks.items()}
    if isinstance(learner, DistillationLearner):  # validation and the overfit check repeat the answers of the rows
        learners = {name: replace(learner, on_policy=0.0) for name in learners}
    journal = Journal(out / "journal.jsonl")
    recompute_layers(policy.network, on=recipe.schedule.recompute is True)
    recompute = Recompute(policy, journal, callbacks.on_event, auto=recipe.schedule.recompute == "auto")
    world = current_world()
    if not world.broadcast(find_folder(out / "checkpoints" / "last") is not None):
        # Online RL samples its completions, so there are no rows to overfit.
        if recipe.schedule.probe and not objective.samples_completions:
            with phase("overfit check"):
                views = {name: objective.task_policy(policy, name) for name in prepared.tasks}
                checks = [
                    _overfit_check(task, views[name], learners[name], plan=plan, recompute=recompute)
                    for name, task in prepared.tasks.items()
                ]
            if world.leads:
                write_whole(out / PROBE, json.dumps(asdict(checks[0])))
        with phase("adapter and head"):
            init_heads_from_probe(prepared, policy, callbacks.on_event)
        if world.leads and not world.lockstep:
            with alone():
                _fill_passes(prepared, policy, learner, batches, journal=journal)
    probe = read_page(out / PROBE, Probe) if (out / PROBE).exists() else None
    tracked = recipe.track if world.leads else ()
    trackers = open_trackers(tracked, run=out, config=recipe.model_dump(mode="json"))
    log = RunLog(journal, trackers, batches, recompute, callbacks.on_event, _packer(policy.device))
    trainer = Trainer(
        policy,
        learner,
        log,
        plan=plan,
        folder=out / "checkpoints",
        callbacks=replace(callbacks, on_event=log),
        validate=lambda: _validate(prepared, policy, learners, callbacks),
    )
    try:
        with phase("training"), keep_freed_memory():
            callbacks.on_event(TrainingStarted())
            state = trainer.run()
    finally:
        for tracker in trackers:
            tracker.close()
    notes = _notes(journal, state, plan, callbacks.on_event)
    if objective.samples_completions:
        policy.head = None  # the value head of PPO; the model that answers does not use it
    policy.router_loss = None
    recompute_layers(policy.network, on=False)
    policy.autocast_dtype = None  # answers are computed in full precision, here and wherever the run is loaded
    return TrainResult(policy, plan, state, probe, setup, tuple(notes), read_task_metrics(journal, prepared))


def set_up(prepared: TrainingContext, out: Path, sampler: Sampler, *, on_event: EventHandler) -> TrainingSetup:
    """Adapt the base and plan the run; no step is taken.

    Args:
        prepared: the recipe with its base model and encoded rows.
        out: folder of the reference log-probabilities.
        sampler: samples the completions of `rl`.
        on_event: receives the stages.
    """
    compared = [each.kind for each in prepared.recipe.objective.task_objectives.values() if each.compares_rows]
    if compared and current_world().size > 1:
        raise RecipeError(f"objective {compared[0]}: one process compares all rows of a step; leave --processes out")
    with phase("reference log-probabilities"):
        prepared = prepared.map_tasks(
            lambda name, task: precompute_reference_logprobs(
                task, task_dir(out, name), policy=base_policy(task), on_event=on_event
            )
        )
    with phase("adapter and head"):
        policy = adapted_policy(prepared)
    plan = make_plan(prepared.recipe, policy, rows=len(prepared.train), validation=len(prepared.validation))
    if not prepared.validation:  # there may be validation rows, but none with a learned token
        plan = replace(plan, eval_steps=0)
    batches, learner = batches_of(prepared, whole=policy.router_loss is not None), learner_of(prepared, sampler)
    if getattr(prepared.recipe.technique, "products", ""):
        on_event(Note(check_int8(policy, learner, batches.largest(TOKENS_PER_PASS))))
    return TrainingSetup(prepared, policy, learner, plan, batches)


def _fill_passes(
    prepared: TrainingContext, policy: Policy, learner: Learner, batches: StepBatches, *, journal: Journal
) -> None:
    """Find how many tokens of a micro-batch fill a GPU, once for each model, technique and GPU, and record it."""
    recipe, device = prepared.recipe, policy.device
    fixed = recipe.schedule.batch_tokens != "auto" or recipe.objective.samples_completions
    if fixed or gpu_share(device) is None or any(TOKENS_AT_ONCE_KEY in record for record in journal.read()):
        return
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else device
    settings = recipe.model_dump(mode="json", include={"model", "objective", "technique", "schedule", "machine"})
    folder = cached_folder("passes", settings, prepared.machine.dtype, batches.largest(1).tokens, gpu)

    def find(partial: Path) -> None:
        # What AdamW adds to the first step: two values for each trained one, in float32.
        moments = 8 * sum(value.numel() for _, value in policy.trainable())
        most = recipe.schedule.batch_rows * recipe.data.max_tokens
        tokens = pass_tokens(
            policy, learner, batches.largest, most=most, filled=lambda: gpu_share(device, moments) or 0
        )
        write_whole(partial / "tokens.json", json.dumps(tokens))

    build_once(folder, find)
    journal.write({"step": 0, TOKENS_AT_ONCE_KEY: read_page(folder / "tokens.json", int)})


def _notes(journal: Journal, state: TrainingState, plan: TrainingPlan, on_event: EventHandler) -> list[str]:
    """Report why the run stopped and which step it keeps; return the notes on training for the report."""
    notes = [
        _recompute_note(record["step"])
        if RECOMPUTE_KEY in record
        else _out_of_memory_note(record["step"], record[TOKENS_AT_ONCE_KEY])
        for record in journal.read()
        if "out_of_memory" in record
    ]
    if state.stopped_early and state.step < plan.steps:
        on_event(
            Note(
                f"stopped at step {state.step} of {plan.steps}: {plan.patience} validations without improvement "
                f"(schedule.patience); kept: step {best_step(state)}"
            )
        )
    if plan.eval_steps and not state.best_step:
        notes.append(f"every validation violated a gate; kept: step {best_step(state)}, the last")
        on_event(Note(notes[-1]))
    return notes


def best_step(state: TrainingState) -> int:
    """Return the step whose parameters the run keeps: the best, or the last if no validation was within the gates."""
    return state.best_step or state.step


def base_policy(prepared: TrainingContext) -> Policy:
    """Return the base model as a policy, in the dtype of training."""
    policy = Policy.over(prepared.base.network, family=prepared.base.family)
    _set_dtypes(policy, prepared)
    return policy


def untouched_policy(prepared: TrainingContext) -> Policy:
    """Return the policy of the base model in evaluation, with the answers that earlier runs have kept."""
    policy = base_policy(prepared)
    policy.autocast_dtype = None
    policy.kept = kept_answers(prepared.base.network)
    return policy


def adapted_policy(prepared: TrainingContext) -> Policy:
    """Adapt the base by the recipe's technique and add the objective's head; no step is taken."""
    recipe, objective, base = prepared.recipe, prepared.recipe.objective, prepared.base
    torch.manual_seed(recipe.seed)
    # Full fine-tuning needs a second copy of the weights as its reference, so it keeps one only for per-step use.
    per_step = objective.reference == "per_step"
    keep = per_step if isinstance(recipe.technique, Full) else objective.starts_at_reference
    # Soft prompts start from the labels and the instruction, or from the first row if there is neither.
    text = objective.instruction
    if objective.known_labels:
        text = f"{', '.join(objective.known_labels)}. {text}"
    start: list[int] = prepared.template.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    start = start or prepared.train[0].sequences[0].ids
    reshard(base.network)  # what is frozen now are its shards
    policy = recipe.technique.adapt(base.network, family=base.family, keep_reference=keep, start=start)
    policy.head = objective.head(policy)
    for name, task in prepared.tasks.items():
        head = objective.task_policy(policy, name).head
        if head is not None and task.head is not None:
            head.load_state_dict(task.head)
    _set_dtypes(policy, prepared)
    policy.router_loss = RouterLoss.of(policy.network)
    return policy


def _set_dtypes(policy: Policy, prepared: TrainingContext) -> None:
    """Set the dtype of matrix products in training and in evaluation, if it is not that of the parameters."""
    dtype = DTYPES[prepared.machine.dtype]
    policy.autocast_dtype = None if dtype == torch.float32 else dtype  # trained parameters are in float32
    policy.scoring_dtype = prepared.scoring_dtype


def learner_of(prepared: TrainingContext, sampler: Sampler = sample) -> Learner:
    """Return the learner that the training loop calls: the objective, or for `rl` one that samples completions."""
    objective = prepared.recipe.objective
    if prepared.teacher is not None:
        return distillation_of(prepared)
    if not isinstance(objective, Rl):
        return objective.make_learner()
    split = prepared.loaded.split
    prompts = {e.where: e for part in (split.train, split.validation) for e in part if isinstance(e, RLPrompt)}
    return OnlineRLLearner(
        objective, prepared.template, prompts, scorer_of(objective), prepared.recipe.seed, completion_metrics, sampler
    )


def distillation_of(prepared: TrainingContext) -> DistillationLearner:
    """Return the learner of a run with the distribution of a teacher."""
    section, objective = prepared.recipe.teacher, prepared.recipe.objective
    assert prepared.teacher is not None
    return DistillationLearner(
        prepared.teacher,
        prepared.template,
        {"forward_kl": 0.0, "reverse_kl": 1.0}.get(section.loss, section.beta),
        section.temperature,
        section.on_policy,
        objective.max_new_tokens,
        prepared.recipe.seed,
    )


def check_reward_varies(prepared: TrainingContext, policy: Policy, *, on_event: EventHandler) -> None:
    """Report the range of rewards over completions of the first prompts.

    Args:
        prepared: a run whose objective samples completions.
        policy: samples them.
        on_event: receives the range.

    Raises:
        Refused: all rewards are equal.
    """
    learner = cast(OnlineRLLearner, learner_of(prepared))
    on_event(StageStarted("checking that the reward distinguishes completions"))
    policy.train(False)
    lowest, highest = learner.check(policy, collate(prepared.train[:CHECKED_PROMPTS]))
    on_event(Note(f"rewards of the first completions: {lowest:.3g} to {highest:.3g}"))


def _overfit_check(
    task: TrainingContext, policy: Policy, learner: Learner, *, plan: TrainingPlan, recompute: Recompute
) -> Probe:
    """Check that a few short rows of a task can be learned at all; raise Refused if not."""
    rows = task.train
    shortest = nsmallest(4 * ROWS, range(len(rows)), key=sizes_of(rows).__getitem__)[::4]
    recompute.on_event(StageStarted(f"overfit check on {len(shortest)} of the shortest rows"))
    batches = Batches(task, rows)

    def halve() -> bool:
        if recompute.start(0):
            return True
        if len(batches.sampler.cut(shortest[::-1])) == len(shortest):
            raise Refused(f"overfit check: {NOT_ONE_ROW}")
        batches.at_once(batches.sampler.tokens // 2)
        return True

    check = retry_smaller(lambda: can_learn(policy, learner, batches.micro_batches(shortest[::-1]), plan=plan), halve)
    recompute.on_event(OverfitChecked(check.first, check.last, check.steps))
    return check


def _validate(
    prepared: TrainingContext, policy: Policy, learners: Mapping[str, Learner], callbacks: Callbacks
) -> ValidationResult:
    """Compute the validation loss and what is logged with it; a policy that violates a gate is never the best."""
    if violation := callbacks.gate_violation(policy):
        callbacks.on_event(Note(f"checkpoint rejected: {violation}"))
        return ValidationResult(math.inf)
    metrics = preference_metrics(prepared, policy)
    losses = validation_losses(prepared, policy, learners)
    loss = mean_loss(prepared, losses)
    if prepared.recipe.objective.samples_completions:
        metrics["validation_reward"] = -loss
    return ValidationResult(loss, metrics, losses, gradient_cosines(prepared, policy, learners))


@torch.no_grad()
def validation_losses(prepared: TrainingContext, policy: Policy, learners: Mapping[str, Learner]) -> dict[str, float]:
    """Compute the loss per unit on the validation rows of every task that has any.

    A linear head for single labels or tags is scored at its best temperature: a small encoder becomes overconfident
    long before it stops improving, and the run fits that temperature at its end anyway. `rl` is scored by the negative
    mean reward of greedy completions.

    Args:
        prepared: the run.
        policy: the policy in its present state.
        learners: the learner of each task.

    Returns:
        The loss by task, nats per unit.

    Raises:
        Refused: memory does not hold one row.
    """
    objective = prepared.recipe.objective
    return {
        name: _validation_loss(task, objective.task_policy(policy, name), learners[name])
        for name, task in prepared.tasks.items()
        if task.validation
    }


def _validation_loss(task: TrainingContext, policy: Policy, learner: Learner) -> float:
    world = current_world()
    if isinstance(learner, OnlineRLLearner):
        prompts = task.validation[:VALIDATION_PROMPTS]
        with policy.full_precision():  # as in the report
            rewards = world.map(prompts, lambda part: learner.greedy_rewards(policy, collate(part)))
        return -sum(rewards) / len(rewards)
    batches = Batches(task, task.validation)
    prepared: list[Batch] = []

    def halve() -> bool:
        nonlocal prepared
        if not batches.halve_all():
            raise Refused(f"validation: {NOT_ONE_ROW}")
        prepared = []
        return True

    if learner.predicts_classes:
        parts = world.collect(lambda: retry_smaller(lambda: _logits_and_labels(batches, policy, learner), halve))
        logits = np.array([row for part in parts for row in part[0]], dtype=np.float32)
        labels = np.array([label for part in parts for label in part[1]])
        temperature = calibration.fit_temperature(logits, labels)
        return calibration.nll(calibration.softmax(logits, temperature=temperature), labels)

    def ready() -> list[Batch]:
        nonlocal prepared
        if not prepared:
            prepared = prepare_each(policy, learner, track(batches.all(), "preparing validation", unit="batches"))
        return prepared

    sums = added(world.collect(lambda: retry_smaller(lambda: learner.step_sums(ready(), policy), halve)))

    def loss() -> dict[str, float]:
        total, units = 0.0, 0.0
        batches = learner.with_sums(ready(), sums)
        for batch in track(batches, "validating", unit="rows", size=lambda batch: batch.examples):
            result = learner.loss(batch, policy)
            total += float(result.total)
            units += result.units
        return {"total": total, "units": units}

    found = added(world.collect(lambda: retry_smaller(loss, halve)))
    return found["total"] / (found["units"] or 1)


def _logits_and_labels(batches: Batches, policy: Policy, learner: Learner) -> tuple[list[list[float]], list[int]]:
    """Return the logits [N, K] and the labels [N] of the rows, or tokens, of this process."""
    logits: list[list[float]] = []
    labels: list[int] = []
    for batch in track(batches.all(), "validating", unit="rows", size=lambda batch: batch.examples):
        labelled = batch.targets if batch.labels is None else batch.labels.argmax(dim=1)
        logits += learner.logits(batch.to(policy.device), policy).cpu().tolist()
        labels += labelled.tolist()
    return logits, labels


@dataclass(frozen=True, slots=True)
class Recompute:
    """Keeps no activations inside of layers once memory has run out, and records it."""

    policy: Policy
    journal: Journal
    on_event: EventHandler
    auto: bool  # the recipe leaves it to the run

    def start(self, step: int) -> bool:
        """Recompute activations from this step on; return False if that is so already, or refused."""
        network = self.policy.network
        if not self.auto or recomputes(network) or not recompute_layers(network):
            return False
        _record_out_of_memory(self.journal, {"step": step, RECOMPUTE_KEY: True})
        self.on_event(Note(_recompute_note(step)))
        return True


@dataclass(slots=True)
class RunLog:
    """Passes the batches of a run to the loop, and its events on; both are written to the journal and the trackers.

    Of several processes, only the first one writes. With a thread, the batches of the next step are packed ahead.
    """

    journal: Journal
    trackers: Sequence[Tracker]
    batches: StepBatches
    recomputing: Recompute
    on_event: EventHandler
    thread: ThreadPoolExecutor | None
    step: int = 0
    ahead: dict[int, Future[list[Batch]]] = field(default_factory=dict)

    def __call__(self, event: Event) -> None:
        """Record a step or a validation; on resuming, drop what was recorded after the checkpoint."""
        match event:
            case Resumed(step):
                for record in current_world().lead(lambda: self._kept(step)):
                    if TOKENS_AT_ONCE_KEY in record:
                        self.batches.at_once(record[TOKENS_AT_ONCE_KEY])
                    if RECOMPUTE_KEY in record:
                        recompute_layers(self.recomputing.policy.network)
            case Validated(step, math.inf):  # a gate was violated, which is noted already; JSON has no infinity
                self._write({"step": step, "outside_gate": True})
                return
            case StepFinished() | Validated():
                record = journal_record(event)
                self._write(record)
                for tracker in self.trackers:
                    tracker.log(record)
        self.on_event(event)
        if isinstance(event, Validated) and (warning := chosen_logprob_warning(event.metrics)):
            self._write({"step": event.step, "alarm": warning})
            self.on_event(Note(warning))

    def window(self, step: int) -> Sequence[Batch]:
        """Return the micro-batches of one optimizer step."""
        self.step = step
        if self.thread is None:
            return self.batches.window(step)
        runs = [self.ahead.get(n) or self.thread.submit(copy_context().run, self._pinned, n) for n in (step, step + 1)]
        self.ahead = {step + 1: runs[1]}
        return runs[0].result()

    def halve(self, step: int) -> int:
        """Halve the tokens per micro-batch from this step on and return the new limit; 0 if one row is the limit."""
        if tokens := self.batches.halve(step):
            self._cut(step, tokens)
        return tokens

    def at_once(self, tokens: int) -> None:
        """Limit the tokens of a micro-batch, because memory ran out in another process."""
        self.batches.at_once(tokens)
        self._cut(self.step, tokens)

    def recompute(self, step: int) -> bool:
        """Keep no activations inside of layers from this step on; return False if that is so already, or refused."""
        return self.recomputing.start(step)

    def _pinned(self, step: int) -> list[Batch]:
        return [batch.pinned() for batch in self.batches.window(step)]

    def _cut(self, step: int, tokens: int) -> None:
        self.ahead = {}
        _record_out_of_memory(self.journal, {"step": step, TOKENS_AT_ONCE_KEY: tokens})
        self.on_event(Note(_out_of_memory_note(step, tokens)))

    def _write(self, record: Mapping[str, Any]) -> None:
        if current_world().leads:
            self.journal.write(record)

    def _kept(self, step: int) -> list[dict[str, Any]]:
        """Drop the records after a step and return the others."""
        self.journal.rewind(step)
        return self.journal.read()


def _record_out_of_memory(journal: Journal, record: Mapping[str, Any]) -> None:
    """Record what changes from a step on; in lockstep the run ends with it, in whichever process it was."""
    world = current_world()
    if world.leads or world.lockstep:
        journal.write({**record, "out_of_memory": True, **({KEPT_KEY: True} if world.lockstep else {})})


def _packer(device: torch.device) -> ThreadPoolExecutor | None:
    """Return the thread that packs batches while a GPU computes; None on a CPU, which has no core to spare."""
    return ThreadPoolExecutor(1) if device.type == "cuda" else None


def _recompute_note(step: int) -> str:
    return f"out of memory in step {step + 1}: activations are computed again from there on (schedule.recompute)"


def _out_of_memory_note(step: int, tokens: int) -> str:
    return (
        f"out of memory in step {step + 1}: at most {tokens} tokens per micro-batch from there on, same rows per step"
    )
