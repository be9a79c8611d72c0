"""The training loop: steps, memory, validation and checkpoints. Losses belong to the learner."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypedDict, TypeVar

import torch
from torch import Tensor, nn

from tunesmith.errors import ProcessError, Refused, RewardError, out_of_memory
from tunesmith.events import Note, Resumed, StepFinished, Validated
from tunesmith.models.batch import TOKENS_PER_PASS, Batch, StepMetrics, halve, mean_metrics, sum_metrics
from tunesmith.models.loading.device import NOT_ITS_MOMENTS, NOT_ONE_ROW, keep_randomness, peak_bytes
from tunesmith.models.policy import Policy
from tunesmith.models.sharded import clip_gradients, is_shard
from tunesmith.models.world import added, alone, among, current_world
from tunesmith.objectives.base import Learner, Loss
from tunesmith.phases import phase
from tunesmith.training.callbacks import Callbacks, Interrupted
from tunesmith.training.optim import TrainingPlan, make_optimizer, set_rate
from tunesmith.training.train_state import (
    DETACHED,
    Alarms,
    StepCounts,
    TrainingState,
    load_best,
    resume,
    save,
    save_best,
    step_counts,
)

T = TypeVar("T")
# Share of a GPU's memory that a pass may take with the moments of AdamW: allocators need the rest.
FILLED = 0.88


class StepBatches(Protocol):
    """The training rows, step by step."""

    def window(self, step: int) -> Sequence[Batch]:
        """Return the micro-batches of one optimizer step."""
        ...

    def halve(self, step: int) -> int:
        """Halve the tokens per micro-batch from this step on and return the new limit; 0 if one row is the limit."""
        ...

    def recompute(self, step: int) -> bool:
        """Keep no activations inside of layers from this step on; return False if that is so already, or refused."""
        ...

    def at_once(self, tokens: int) -> None:
        """Limit the tokens of a micro-batch, because memory ran out in another process."""
        ...


class _StepPart(TypedDict):
    """The share of one process in a step."""

    loss: float  # per unit of the whole step
    metrics: Mapping[str, tuple[float, float]]
    counts: StepCounts
    limit: int  # tokens of a micro-batch if memory ran out, else 0


@dataclass(frozen=True, slots=True)
class ValidationResult:
    """The validation loss (lower is better; infinite if the policy must not be kept) and further metrics to log."""

    loss: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    task_losses: Mapping[str, float] = field(default_factory=dict)  # by task
    gradient_cosines: Mapping[tuple[str, str], float] = field(default_factory=dict)  # by pair of tasks


class Trainer:
    """Trains one policy to the end of a plan.

    The same machine, threads and library versions produce bit-identical weights, whether or not a run was
    interrupted: every step seeds torch from the plan's seed and its own number, and a checkpoint holds the
    parameters, the optimizer and the state. A step that runs out of memory is repeated in smaller micro-batches.

        Trainer(policy, learner, batches, plan=plan, folder=run / "checkpoints").run()

    Args:
        policy: the network with its technique and head; trained in place.
        learner: computes summed losses of prepared batches.
        batches: micro-batches of each step.
        plan: steps, learning rate, validation and checkpoint intervals.
        folder: directory of the checkpoints.
        callbacks: observe every step, and stop the run after one.
        validate: scores the policy every `plan.eval_steps`; the best-scoring parameters are restored at the end.
        clock: seconds, for the speed of training.
    """

    def __init__(
        self,
        policy: Policy,
        learner: Learner,
        batches: StepBatches,
        *,
        plan: TrainingPlan,
        folder: Path,
        callbacks: Callbacks,
        validate: Callable[[], ValidationResult] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.policy = policy
        self.learner = learner
        self.batches = batches
        self.plan = plan
        self.folder = folder
        self.callbacks = callbacks
        self.validate = validate
        self.clock = clock
        self.optimizer = make_optimizer(policy, plan)
        self.alarms = Alarms(policy, learner, plan, folder)
        self.state = TrainingState()
        self.world = current_world().dealing
        self.lockstep = current_world().lockstep
        self._batches: Sequence[Batch] = ()
        self._prepared: Sequence[Batch] | None = None  # of the present step
        self._limit = 0  # tokens of a micro-batch, if memory ran out in the present step

    def run(self) -> TrainingState:
        """Train, resuming from a checkpoint if the folder has one, and leave the best parameters in the policy.

        Returns:
            The final state: steps, tokens, seconds, best step.

        Raises:
            Interrupted: `should_stop` returned true; the last finished step is saved.
            Refused: an alarm, see `Alarms`, or memory does not hold a single row.
            RewardError: a reward function failed; the step before it is saved.
        """
        plan = self.plan
        self.state = state = resume(self.policy, self.optimizer, self.folder) or TrainingState()
        self.world.align(plain_parameters(self.policy))
        self.callbacks.on_event(Resumed(state.step))
        while state.validation_pending or (state.step < plan.steps and not state.stopped_early):
            try:
                if not state.validation_pending:
                    self._step()
                last = state.step == plan.steps
                state.validation_pending = plan.eval_steps > 0 and (state.step % plan.eval_steps == 0 or last)
                if state.validation_pending:
                    self._validate()
            except RewardError:
                # Completions are scored before any parameter of a step changes, or after all have: what is in
                # memory is a whole step, and resuming repeats only the scoring. All processes raise this error.
                self._save()
                raise
            last |= state.stopped_early
            stopping = any(self.world.gather(self.callbacks.should_stop())) and not last
            if stopping or last or (plan.save_steps and state.step % plan.save_steps == 0):
                self._save()
            if stopping:
                raise Interrupted(f"stopped after step {state.step} of {plan.steps}")
        if plan.eval_steps and state.best_step:
            load_best(self.policy, state, self.folder)
        self.policy.train(False)
        return state

    def take(self, steps: int) -> None:
        """Take the first steps of the plan, without validations and checkpoints."""
        while self.state.step < min(steps, self.plan.steps):
            self._step()

    def _save(self) -> None:
        with phase("checkpoints"):
            save(self.policy, self.optimizer, self.state, self.folder)
            self.world.barrier()

    def _step(self) -> None:
        """Take one optimizer step, or several on the same rollouts, and report it."""
        plan, state, world = self.plan, self.state, self.world
        start = self.clock()
        set_rate(self.optimizer, plan.rate(state.step))
        # Outside the retries below: what processes exchange has to be exchanged equally often by all of them.
        sums = added(world.collect(self._step_sums))
        self.alarms.before(state.step, lambda: self.learner.with_sums(self._load(), sums))
        for _ in range(plan.updates):
            parts = world.collect(lambda: self._accumulate(sums))
            world.sum_gradients(plain_parameters(self.policy))
            norm = optimizer_step(self.policy, self.optimizer, clip=plan.clip)
        loss = sum(part["loss"] for part in parts)
        warning = self.alarms.check(state, loss, norm)
        limit = min((part["limit"] for part in parts if part["limit"]), default=0)
        if limit and limit != self._limit:  # memory ran out in another process
            self.batches.at_once(limit)
        peak = peak_bytes(self.policy.device)
        tokens = state.count([part["counts"] for part in parts], seconds=self.clock() - start, peak=peak)
        self._prepared = None
        self.callbacks.on_event(
            StepFinished(
                step=state.step,
                steps=plan.steps,
                loss=loss,
                learning_rate=plan.rate(state.step - 1),
                grad_norm=norm,
                tokens=tokens,
                seconds=state.seconds,
                tokens_per_second=state.tokens / max(state.seconds, 1e-9),
                metrics=mean_metrics([part["metrics"] for part in parts]),
                peak_bytes=state.peak_bytes,
            )
        )
        if warning:
            self.callbacks.on_event(Note(f"warning: {warning}"))

    def _step_sums(self) -> dict[str, float]:
        """Prepare the micro-batches of this step, in sizes that fit into memory, and return their sums."""
        self._prepared = None
        self._limit = 0

        def attempt() -> dict[str, float]:
            if uncounted := [batch for batch in self._load() if not batch.counts]:  # for their passes
                self.learner.step_sums(uncounted, self.policy)
            return self.learner.step_sums([batch for batch in self._load() if batch.counts], self.policy)

        return self._until_it_fits(attempt)

    def _accumulate(self, sums: Mapping[str, float]) -> _StepPart:
        """Run forward and backward over the micro-batches of this step, whose sums are given, in sizes that fit."""

        def attempt() -> tuple[float, dict[str, tuple[float, float]]]:
            prepared = self.learner.with_sums(self._load(), sums)
            return accumulate_gradients(self.policy, self.learner, prepared, units=sums["units"])

        loss, metrics = self._until_it_fits(attempt, recompute=True)
        counts = step_counts(*([b for b in part if b.counts] for part in (self._batches, self._load())))
        return _StepPart(loss=loss, metrics=metrics, counts=counts, limit=self._limit)

    def _load(self) -> Sequence[Batch]:
        """Return the prepared micro-batches of this step; they are made again after an out-of-memory error."""
        if self._prepared is None:
            # Dropout differs by process; everything else that is random has separate seeds.
            torch.manual_seed(self.plan.seed * 1_000_003 + self.state.step + (self.world.rank << 40))
            self._batches = self._window()
            self._prepared = prepare_each(self.policy, self.learner, self._batches)
        return self._prepared

    def _window(self) -> list[Batch]:
        """Return the micro-batches of this process in this step; in lockstep as many as every process has."""
        step = self.state.step
        with among(self.world):
            batches = list(self.batches.window(step))
        if self.lockstep and (missing := max(self.world.gather(len(batches))) - len(batches)):
            with alone():
                shortest = self.batches.window(step)[-1]
            batches += [replace(shortest, counts=False)] * missing
        return batches

    def _until_it_fits(self, attempt: Callable[[], T], *, recompute: bool = False) -> T:
        """Repeat a part of the step while memory runs out: without kept activations, then in smaller micro-batches.

        Rollouts were sampled before any parameter changed, so these batches are cut in half and not made again. In
        lockstep the other processes wait in the middle of a pass, so all end, and the next start keeps less in memory.

        Args:
            attempt: the part of the step.
            recompute: it keeps activations, which could be computed again instead.
        """
        while True:
            try:
                return attempt()
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
            # Outside the except clause, where the error no longer references the tensors of its frames.
            drop_gradients(self.policy)
            before, self._prepared = self._prepared or [], None
            sampled = any(batch.rollout is not None for batch in before)
            kept = list(before)
            if not (recompute and self.batches.recompute(self.state.step)):
                kept = [half for batch in before for half in halve(batch)] if sampled else []
                self._limit = self.batches.halve(self.state.step)
                if not self._limit and len(kept) <= len(before):
                    raise Refused(f"step {self.state.step + 1}: {NOT_ONE_ROW}")
            self._prepared = kept if sampled else None
            if self.lockstep:
                raise ProcessError(
                    f"step {self.state.step + 1}: out of memory; run the same command again, which resumes with less "
                    "in memory at once"
                )

    def _validate(self) -> None:
        """Score the parameters; keep them if they are the best so far, count towards `patience` if not."""
        assert self.validate is not None
        state = self.state
        self.policy.train(False)
        with phase("validation"):
            result = self.validate()
        state.validation_pending = False
        self.callbacks.on_event(
            Validated(state.step, result.loss, result.metrics, result.task_losses, result.gradient_cosines)
        )
        if result.loss < state.best:
            state.best = result.loss
            state.best_step = state.step
            state.bad_validations = 0
            with phase("checkpoints"):
                save_best(self.policy, state, self.folder)
                self.world.barrier()
        else:
            state.bad_validations += 1
            state.stopped_early = state.bad_validations >= self.plan.patience
            self.alarms.check_validation(state, result.loss)


def retry_smaller(step: Callable[[], T], halve: Callable[[], bool]) -> T:
    """Repeat `step` until memory holds it; before each repetition, `halve` halves its batches if that is possible.

    Raises:
        ProcessError: memory ran out in one of several processes that run in lockstep.
    """
    while True:
        try:
            return step()
        except (MemoryError, RuntimeError) as error:
            if out_of_memory(error) and current_world().lockstep:  # the others wait in the middle of this pass
                raise ProcessError(
                    "memory does not hold a pass without gradient; lower schedule.batch_tokens"
                ) from error
            if not out_of_memory(error) or not halve():
                raise


def step(
    policy: Policy, learner: Learner, batches: Sequence[Batch], *, optimizer: torch.optim.Optimizer, clip: float
) -> tuple[float, float]:
    """Take one optimizer step without a plan or a state.

    Args:
        policy: the network that is trained.
        learner: computes the loss.
        batches: micro-batches of the step.
        optimizer: holds the trained parameters.
        clip: maximum gradient norm.

    Returns:
        The loss per unit and the gradient norm before clipping.
    """
    world = current_world()
    prepared = prepare_batches(policy, learner, batches)
    # In lockstep every process has these batches, and the gradients of all of them are added up.
    copies = world.size if world.lockstep else 1
    units = copies * sum(learner.units(batch) for batch in prepared)
    loss, _ = accumulate_gradients(policy, learner, prepared, units=units)
    if world.lockstep:
        world.sum_gradients(plain_parameters(policy))
    return copies * loss, optimizer_step(policy, optimizer, clip=clip)


def drop_gradients(policy: Policy) -> None:
    """Drop the gradients of a step that is not taken, and give what they held back to a GPU."""
    for _, value in policy.trainable():
        value.grad = None
    if policy.device.type != "cpu":
        torch.get_device_module(policy.device).empty_cache()


def plain_parameters(policy: Policy) -> list[nn.Parameter]:
    """Return the trainable parameters that every process has whole; FSDP adds up the gradients of all others."""
    return [value for _, value in policy.trainable() if not is_shard(value)]


def prepare_batches(policy: Policy, learner: Learner, batches: Iterable[Batch]) -> list[Batch]:
    """Prepare all micro-batches of a step, on the policy's device and in evaluation mode.

    The learner adds what needs no gradient, before any parameter changes: rollouts, reference log-probabilities.
    """
    prepared = prepare_each(policy, learner, batches)
    return learner.with_sums(prepared, learner.step_sums(prepared, policy))


def pass_tokens(
    policy: Policy, learner: Learner, largest: Callable[[int], Batch], *, most: int, filled: Callable[[], float]
) -> int:
    """Find how many tokens of a micro-batch fill the memory of a device, within an eighth; at least TOKENS_PER_PASS.

    Args:
        policy: the policy. No parameter changes, no gradient is left, and no random number is used up.
        learner: computes the loss.
        largest: returns the largest micro-batch within a number of tokens.
        most: tokens of a whole step.
        filled: returns the largest share of the memory that was used since it was last called.
    """

    def fits(tokens: int) -> bool:
        ran_out = False
        try:
            accumulate_gradients(policy, learner, prepare_batches(policy, learner, [largest(tokens)]))
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            ran_out = True
        drop_gradients(policy)
        return filled() <= FILLED and not ran_out

    with keep_randomness(policy.device):
        filled()
        fit, full = TOKENS_PER_PASS, 0
        if not fits(fit):  # the run recomputes or halves, as its own steps demand
            return fit
        while fit < most and (not full or full - fit > fit // 8):
            tokens = (fit + full) // 2 if full else 2 * fit
            if fits(tokens):
                fit = tokens
            else:
                full = tokens
    return fit


def prepare_each(policy: Policy, learner: Learner, batches: Iterable[Batch]) -> list[Batch]:
    """Prepare micro-batches as `prepare_batches` does, but for what depends on the whole step."""
    policy.train(False)
    return [learner.prepare(batch.to(policy.device), policy) for batch in batches]


def accumulate_gradients(
    policy: Policy, learner: Learner, prepared: Sequence[Batch], *, units: float | None = None
) -> tuple[float, dict[str, tuple[float, float]]]:
    """Run forward and backward on every micro-batch of one optimizer step and accumulate gradients.

    Losses are sums. Dividing by the units of all micro-batches makes the step independent of how it is cut
    into micro-batches; a mean of means would overweight short rows (61 % gradient error on uneven rows). The
    load-balancing loss of a mixture of experts is the exception: it compares shares of the tokens of one micro-batch.

    Args:
        policy: the policy; gradients are added to its parameters.
        learner: computes the summed loss of a batch.
        prepared: micro-batches as `prepare_batches` returns them.
        units: units of the whole step; by default those of these micro-batches.

    Returns:
        Loss per unit (a token or a row, see `Learner.units`), and the sums and counts of metrics. Both add up over the
        processes of a run.
    """
    units = (sum(learner.units(batch) for batch in prepared) if units is None else units) or 1
    totals, metrics = _backward(policy, learner, prepared, units)
    # Reading a tensor makes the process wait for a GPU, so that is left to the end.
    return (sum(torch.stack(totals).tolist()) if totals else 0.0) / units, sum_metrics(metrics)


def _backward(
    policy: Policy, learner: Learner, prepared: Sequence[Batch], units: float
) -> tuple[list[Tensor], list[StepMetrics]]:
    """Run forward and backward on micro-batches and return their summed losses and metrics, none of them read."""
    totals = list[Tensor]()
    metrics = list[StepMetrics]()
    for batch in prepared:
        # A loss that compares with log-probabilities or vectors taken without dropout must be computed without it, too.
        dropout = batch.reference is None and batch.rollout is None and batch.step_vectors is None
        if policy.network.training is not dropout:
            policy.train(dropout)
        loss = _loss(learner, batch, policy)
        if not loss.total.requires_grad:
            raise Refused(DETACHED)
        ((loss.total if batch.counts else 0 * loss.total) / units).backward()
        if batch.counts:
            totals.append(loss.total.detach())
            metrics.append(loss.metrics)
    return totals, metrics


def _loss(learner: Learner, batch: Batch, policy: Policy) -> Loss:
    """Compute the summed loss of a batch, with the load-balancing loss of a mixture of experts if it is trained with.

    That loss is per unit, as in transformers; a step's is the mean over its micro-batches, weighted by their units.
    """
    if policy.router_loss is None:
        return learner.loss(batch, policy)
    policy.router_loss.begin()
    loss = learner.loss(batch, policy)
    balance = policy.router_loss.value() * loss.units
    metrics = {**loss.metrics, "router_loss": (balance.detach(), loss.units)}
    return Loss(loss.total + balance, loss.units, metrics)


def optimizer_step(policy: Policy, optimizer: torch.optim.Optimizer, *, clip: float) -> float:
    """Clip the gradient to a norm, update the parameters, drop the gradient, and return the norm before clipping.

    Raises:
        Refused: memory does not hold the optimizer's moments.
    """
    norm = clip_gradients([value for _, value in policy.trainable()], clip)
    try:
        optimizer.step()
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise Refused(NOT_ITS_MOMENTS) from error
    optimizer.zero_grad(set_to_none=True)
    return norm
