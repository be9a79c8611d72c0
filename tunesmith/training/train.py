"""Train a prepared run: adapt the base, check that it can learn, run the loop, keep the best parameters."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from tunesmith.data.examples.prompts import RLPrompt
from tunesmith.data.files import read_page, write_whole
from tunesmith.errors import Refused
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
from tunesmith.metrics import calibration
from tunesmith.models.batch import Batch, collate, split_by_tokens
from tunesmith.models.loading.checkpoint import find_folder
from tunesmith.models.loading.device import DTYPES, NOT_ONE_ROW, out_of_memory
from tunesmith.models.policy import Policy
from tunesmith.objectives import Classify, Multitask, Rl
from tunesmith.objectives.base import Learner
from tunesmith.objectives.online_rl import OnlineRLLearner
from tunesmith.techniques import Full
from tunesmith.training.batches import Batches, MultitaskBatches, batches_of, parts_of
from tunesmith.training.callbacks import Callbacks
from tunesmith.training.fit import Trainer, ValidationResult, prepare_batches
from tunesmith.training.head_init import init_heads_from_probe
from tunesmith.training.journal import Journal
from tunesmith.training.multitask import TASK_LOSS_PREFIX, gradient_cosines, losses, mean_of, read_task_metrics
from tunesmith.training.optim import TrainingPlan, make_plan
from tunesmith.training.overfit_check import ROWS, Probe, can_learn
from tunesmith.training.prepare import ONLY_TASK, TrainingContext
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
FIRST = 8


# Prompts per validation: enough to measure a change of the reward, few enough to be quick.
JUDGED = 64


def learner_of(prepared: TrainingContext) -> Learner:
    """Return the learner that the training loop calls."""
    objective = prepared.recipe.objective
    if not isinstance(objective, Rl):
        return objective.make_learner()
    split = prepared.loaded.split
    known = [e for part in (split.train, split.validation) for e in part if isinstance(e, RLPrompt)]
    places = {exercise.where: exercise for exercise in known}
    return OnlineRLLearner(
        objective, prepared.template, places, scorer_of(objective), prepared.recipe.seed, completion_metrics
    )


def check_reward_varies(prepared: TrainingContext, policy: Policy, *, on_event: EventHandler) -> None:
    """Report the range of rewards over completions of the first prompts. Raises Refused if all are equal."""
    learner = learner_of(prepared)
    assert isinstance(learner, OnlineRLLearner)
    on_event(StageStarted("checking that the reward distinguishes completions"))
    policy.train(False)
    lowest, highest = learner.check(policy, collate(prepared.train[:FIRST]))
    on_event(Note(f"rewards of the first completions: {lowest:.3g} to {highest:.3g}"))


def held_out_reward(prepared: TrainingContext, policy: Policy, learner: OnlineRLLearner) -> float:
    """Return the mean reward of greedy completions of validation prompts, in full precision as in the report."""
    with policy.full_precision():
        return learner.mean_reward(policy, collate(prepared.validation[:JUDGED]))


@torch.no_grad()
def validation_loss(prepared: TrainingContext, policy: Policy, learner: Learner | None = None) -> float:
    """Loss per unit over the validation rows; of several tasks the mean by their weights.

    With a head for one label of several it is taken at the temperature that suits it best: a small encoder grows
    too sure long before it stops getting better, and the run fits that temperature at its end anyway. `learner` is
    one that was made already. Raises Refused where memory does not hold one row.
    """
    if prepared.parts:
        return mean_of(prepared, losses(prepared, policy, validation_loss))
    learner = learner or learner_of(prepared)
    if isinstance(learner, OnlineRLLearner):
        return -held_out_reward(prepared, policy, learner)
    batches = Batches(prepared, prepared.validation)
    while True:
        try:
            return _loss(learner, policy, batches.all())
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
        if not batches.halve_all():
            raise Refused(f"validation: {NOT_ONE_ROW}")


def _loss(learner: Learner, policy: Policy, batches: Sequence[Batch]) -> float:
    """Loss per unit over the batches."""
    if policy.head is not None and isinstance(learner, Classify) and not learner.multi:
        return _calibrated_loss(learner, policy, batches)
    total, units = 0.0, 0
    for batch in prepare_batches(policy, learner, batches):
        loss = learner.loss(batch, policy)
        total, units = total + float(loss.total), units + loss.units
    return total / max(1, units)


def _calibrated_loss(objective: Classify, policy: Policy, batches: Sequence[Batch]) -> float:
    """Cross-entropy per row of a head's labels at its best temperature."""
    logits = torch.cat([objective.logits(batch.to(policy.device), policy).cpu() for batch in batches]).numpy()
    gold = torch.cat([batch.labels.argmax(dim=1) for batch in batches if batch.labels is not None]).numpy()
    return calibration.nll(calibration.softmax(logits, temperature=calibration.fit_temperature(logits, gold)), gold)


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A trained policy with its best parameters, and how they were trained."""

    policy: Policy
    plan: TrainingPlan
    state: TrainingState
    probe: Probe | None
    notes: tuple[str, ...] = ()
    task_metrics: tuple[dict[str, float], ...] = ()  # multitask: losses and gradient cosines at each validation


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
    recipe, objective = prepared.recipe, prepared.recipe.objective
    prepared = _with_references(prepared, out, callbacks.on_event)
    policy = adapted_policy(prepared)
    learner = learner_of(prepared)
    plan = make_plan(recipe, policy, rows=len(prepared.train))
    if (
        not prepared.validation
    ):  # validation rows may exist and contain no learned token: their score would be a constant
        plan = replace(plan, eval_steps=0)
    batches = batches_of(prepared)
    journal = Journal(out / "journal.jsonl")
    if find_folder(out / "checkpoints" / "last") is None:
        _check_and_initialize(prepared, policy, plan, out, callbacks)
    probe = read_page(out / PROBE, Probe) if (out / PROBE).exists() else None
    trackers = open_trackers(recipe.track, run=out, config=recipe.model_dump(mode="json"))
    log = RunLog(journal, trackers, batches, callbacks.on_event)
    trainer = Trainer(
        policy,
        learner,
        LoggedBatches(batches, log),
        plan=plan,
        folder=out / "checkpoints",
        callbacks=replace(callbacks, on_event=log),
        validate=lambda: _validate(prepared, policy, learner, callbacks),
    )
    callbacks.on_event(TrainingStarted())
    try:
        state = trainer.run()
    finally:
        for tracker in trackers:
            tracker.close()
    notes = list(_out_of_memory_notes(journal))
    if state.stopped_early and state.step < plan.steps:
        callbacks.on_event(
            Note(
                f"stopped at step {state.step} of {plan.steps}: {plan.patience} validations without improvement "
                f"(schedule.patience); kept: step {best_step(state)}"
            )
        )
    if plan.eval_steps and not state.best_step:
        notes.append(f"every validation violated a gate; kept: step {best_step(state)}, the last")
        callbacks.on_event(Note(notes[-1]))
    if objective.samples_completions:
        policy.head = None  # the value head of PPO; the model that answers does not use it
    policy.autocast_dtype = None  # answers are computed in full precision, here and wherever the run is loaded
    return TrainResult(policy, plan, state, probe, tuple(notes), read_task_metrics(journal))


# Result of the overfit check, kept for a run that resumes.
PROBE = "probe.json"


# Key of a journal line that records an out-of-memory error: the tokens per micro-batch from there on.
TOKENS_AT_ONCE_KEY = "tokens_at_once"


def _check_and_initialize(
    prepared: TrainingContext, policy: Policy, plan: TrainingPlan, out: Path, callbacks: Callbacks
) -> None:
    """Run the overfit check, and initialize classification heads from a linear probe."""
    # Online RL samples its completions, so there are no rows to overfit.
    if prepared.recipe.schedule.probe and not prepared.recipe.objective.samples_completions:
        probe = _probe(prepared, policy, plan, callbacks)
        write_whole(out / PROBE, json.dumps(asdict(probe)))
    init_heads_from_probe(prepared, policy, callbacks.on_event)


@dataclass(frozen=True, slots=True)
class RunLog:
    """Writes events of the loop to the journal and the trackers, and passes them on."""

    journal: Journal
    trackers: Sequence[Tracker]
    batches: Batches | MultitaskBatches
    on_event: EventHandler

    def __call__(self, event: Event) -> None:
        """Record a step or a validation; on resuming, drop what was recorded after the checkpoint."""
        match event:
            case Resumed(step):
                self.journal.rewind(step)
                for record in self.journal.read():
                    if TOKENS_AT_ONCE_KEY in record:
                        self.batches.at_once(record[TOKENS_AT_ONCE_KEY])
            case Validated(step, math.inf):  # a gate was violated, which is noted already; JSON has no infinity
                self.journal.write({"step": step, "outside_gate": True})
                return
            case StepFinished() | Validated():
                record = journal_record(event)
                self.journal.write(record)
                for tracker in self.trackers:
                    tracker.log(record)
        self.on_event(event)
        if isinstance(event, Validated) and (alarm := chosen_logprob_warning(event.metrics)):
            self.journal.write({"step": event.step, "alarm": alarm})
            self.on_event(Note(alarm))

    def out_of_memory(self, step: int, tokens: int) -> None:
        """Record that micro-batches are smaller from this step on."""
        self.journal.write({"step": step, "out_of_memory": True, TOKENS_AT_ONCE_KEY: tokens})
        self.on_event(Note(_out_of_memory_note(step, tokens)))


@dataclass(frozen=True, slots=True)
class LoggedBatches:
    """The batches of a run; a cut in their size is logged."""

    batches: Batches | MultitaskBatches
    log: RunLog

    def window(self, step: int) -> Sequence[Batch]:
        """Return the micro-batches of one optimizer step."""
        return self.batches.window(step)

    def halve(self, step: int) -> int:
        """Halve the tokens per micro-batch from this step on and return the new limit; 0 if one row is the limit."""
        tokens = self.batches.halve(step)
        if tokens:
            self.log.out_of_memory(step, tokens)
        return tokens


def _out_of_memory_note(step: int, tokens: int) -> str:
    return (
        f"out of memory in step {step + 1}: at most {tokens} tokens per micro-batch from there on, same rows per step"
    )


def _out_of_memory_notes(journal: Journal) -> Iterator[str]:
    """Yield the notes for the report about micro-batches that had to be cut."""
    for record in journal.read():
        if TOKENS_AT_ONCE_KEY in record:
            yield _out_of_memory_note(record["step"], record[TOKENS_AT_ONCE_KEY])


def best_step(state: TrainingState) -> int:
    """Return the step whose parameters the run keeps: the best, or the last if no validation was within the gates."""
    return state.best_step or state.step


def _opening(prepared: TrainingContext) -> list[int]:
    """Tokenize the labels and the instruction, or the first row if there is neither: soft prompts start from it."""
    objective = prepared.recipe.objective
    words = objective.instruction
    if isinstance(objective, Classify):
        words = f"{', '.join(objective.labels)}. {words}"
    ids: list[int] = prepared.template.tokenizer(words, add_special_tokens=False, verbose=False)["input_ids"]
    return ids or prepared.train[0].sequences[0].ids


def _with_references(prepared: TrainingContext, out: Path, on_event: EventHandler) -> TrainingContext:
    """Add reference log-probabilities to the rows of every objective that compares with the base model."""
    if not prepared.parts:
        return precompute_reference_logprobs(prepared, out, policy=base_policy(prepared), on_event=on_event)
    return replace(
        prepared, parts={n: _with_references(p, task_dir(out, n), on_event) for n, p in prepared.parts.items()}
    )


def base_policy(prepared: TrainingContext) -> Policy:
    """Return the base model as a policy, in the dtype of training."""
    policy = Policy.over(prepared.base.network, family=prepared.base.family)
    policy.autocast_dtype = mixed_type(prepared)
    return policy


def adapted_policy(prepared: TrainingContext) -> Policy:
    """Adapt the base by the recipe's technique and add the objective's head; no step is taken."""
    recipe, base = prepared.recipe, prepared.base
    torch.manual_seed(recipe.seed)
    # Full fine-tuning needs a second copy of the weights as its reference, so it keeps one only for per-step use.
    per_step = recipe.objective.reference == "per_step"
    keep = per_step if isinstance(recipe.technique, Full) else recipe.objective.starts_at_reference
    policy = recipe.technique.adapt(base.network, family=base.family, keep_reference=keep, start=_opening(prepared))
    policy.head = recipe.objective.head(policy)
    for name, one in (prepared.parts or {ONLY_TASK: prepared}).items():
        head = recipe.objective.task_policy(policy, name).head
        if head is not None and one.head is not None:
            head.load_state_dict(one.head)
    policy.autocast_dtype = mixed_type(prepared)
    return policy


def _validate(prepared: TrainingContext, policy: Policy, learner: Learner, callbacks: Callbacks) -> ValidationResult:
    """Compute the validation loss and what is logged with it; a policy that violates a gate is never the best."""
    if violation := callbacks.gate_violation(policy):
        callbacks.on_event(Note(f"checkpoint rejected: {violation}"))
        return ValidationResult(math.inf)
    metrics = preference_metrics(prepared, policy)
    if not prepared.parts:
        loss = validation_loss(prepared, policy, learner)
        if prepared.recipe.objective.samples_completions:
            metrics["validation_reward"] = -loss
        return ValidationResult(loss, metrics)
    task_losses = losses(prepared, policy, validation_loss)
    metrics |= gradient_cosines(prepared, policy, parts_of(prepared))
    metrics |= {f"{TASK_LOSS_PREFIX}{name}": loss for name, loss in task_losses.items()}
    return ValidationResult(mean_of(prepared, task_losses), metrics)


def _probe(prepared: TrainingContext, policy: Policy, plan: TrainingPlan, callbacks: Callbacks) -> Probe:
    """Check that a few short rows of every task can be learned at all; raise Refused if not."""
    if isinstance(objective := prepared.recipe.objective, Multitask):
        return [_probe(one, objective.task_policy(policy, n), plan, callbacks) for n, one in prepared.parts.items()][0]
    rows = prepared.train
    learner = learner_of(prepared)
    callbacks.on_event(StageStarted(f"overfit check on {ROWS} rows"))
    shortest = sorted(range(len(rows)), key=lambda i: rows[i].length)[: 4 * ROWS : 4]
    batches = Batches(prepared, rows)
    tokens = batches.sampler.tokens
    check = None
    while check is None:
        parts = split_by_tokens(shortest[::-1], batches.sampler.lengths, tokens)
        try:
            check = can_learn(policy, learner, [batches.of(part) for part in parts], plan=plan)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            if len(parts) == len(shortest):
                raise Refused(f"overfit probe: {NOT_ONE_ROW}") from error
            tokens //= 2
    callbacks.on_event(OverfitChecked(check.first, check.last, check.steps))
    return check


def mixed_type(prepared: TrainingContext) -> torch.dtype | None:
    """Return the autocast dtype of training if this machine is faster in it than in the dtype of the weights."""
    dtype = DTYPES[prepared.machine.dtype]
    return None if dtype == prepared.base.network.dtype else dtype
