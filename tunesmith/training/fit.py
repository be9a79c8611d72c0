"""The one training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tunesmith.errors import Refused, RewardError
from tunesmith.model.batch import Batch, halved
from tunesmith.model.device import NOT_ITS_MOMENTS, NOT_ONE_ROW, out_of_memory
from tunesmith.model.policy import Policy
from tunesmith.model.rollout import Figures, added
from tunesmith.objectives.base import Learner, WholeStepLearner
from tunesmith.training.optim import TrainingPlan, make_optimizer, set_rate
from tunesmith.training.state import TrainingState, best_numbers, keep, load_numbers, resume, save


class Interrupted(Exception):
    """The loop was asked to stop; the checkpoint of the last finished step is on disk."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the world outside the loop gives it and hears from it."""

    folder: Path  # checkpoints
    record: Callable[[Mapping[str, Any]], None]
    validate: Callable[[], float] = lambda: 0.0  # lower is better
    resumed: Callable[[int], None] = lambda step: None  # what came after this step is about to happen again
    stop: Callable[[], bool] = lambda: False
    smaller: Callable[[int], bool] = lambda step: False  # less at once from this step on; False: it is one row already
    clock: Callable[[], float] = time.perf_counter


def fit(
    policy: Policy,
    learner: Learner,
    window: Callable[[int], Sequence[Batch]],
    *,
    plan: TrainingPlan,
    hooks: Hooks,
) -> TrainingState:
    """Train to the plan's end or to an early stop, leaving the best numbers seen in `policy`.

    Goes on from a checkpoint in `hooks.folder` when there is one: same machine, threads and versions
    give the same weights to the bit. Where memory runs out, the step is taken again in smaller micro-batches.
    Raises Interrupted after saving, Refused when the loss is not finite or memory does not hold a single row.
    """
    optimizer = make_optimizer(policy, plan)
    state = resume(policy, optimizer, hooks.folder) or TrainingState()
    hooks.resumed(state.step)
    while state.owed or (state.step < plan.steps and not state.stopped_early):
        try:
            if not state.owed:
                _record_step(policy, learner, window, optimizer=optimizer, run=(plan, hooks, state))
            last = state.step == plan.steps
            state.owed = plan.eval_steps > 0 and (state.step % plan.eval_steps == 0 or last)
            if state.owed:
                _validate(policy, state, plan=plan, hooks=hooks)
        except RewardError:  # answers are scored before any number of a step moves, or after all have
            save(policy, optimizer, state, hooks.folder)
            raise
        last |= state.stopped_early
        stopping = hooks.stop() and not last
        if stopping or last or (plan.save_steps and state.step % plan.save_steps == 0):
            save(policy, optimizer, state, hooks.folder)
        if stopping:
            raise Interrupted(f"stopped after step {state.step} of {plan.steps}")
    if plan.eval_steps and state.best_step:
        load_numbers(policy, best_numbers(state, hooks.folder))
    policy.train(False)
    return state


def _record_step(
    policy: Policy,
    learner: Learner,
    window: Callable[[int], Sequence[Batch]],
    *,
    optimizer: torch.optim.Optimizer,
    run: tuple[TrainingPlan, Hooks, TrainingState],
) -> None:
    """One optimizer step, its place in the state, and its line in the journal."""
    plan, hooks, state = run
    began = hooks.clock()
    set_rate(optimizer, plan.rate(state.step))
    batches, prepared, (loss, figures) = _gathered(policy, learner, window, run=run)
    norm = _move(policy, optimizer, clip=plan.clip)
    for _ in range(1, plan.updates):
        prepared, (loss, figures) = _again(policy, learner, prepared, run=run)
        norm = _move(policy, optimizer, clip=plan.clip)
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise Refused(
            f"step {state.step + 1}: the loss is {loss}, the gradient {norm}; lower schedule.learning_rate "
            f"(now {plan.peak:g}) or look at the rows with `tunesmith tune --dry-run`"
        )
    tokens = state.count(batches, prepared, seconds=hooks.clock() - began)
    hooks.record(
        {
            "step": state.step,
            "steps": plan.steps,
            "loss": loss,
            "learning_rate": plan.rate(state.step - 1),
            "grad_norm": norm,
            "tokens": tokens,
            "seconds": state.seconds,
            "tokens_per_second": state.tokens / max(state.seconds, 1e-9),
            **figures,
        }
    )


def _gathered(
    policy: Policy,
    learner: Learner,
    window: Callable[[int], Sequence[Batch]],
    *,
    run: tuple[TrainingPlan, Hooks, TrainingState],
) -> tuple[Sequence[Batch], Sequence[Batch], tuple[float, dict[str, float]]]:
    """The micro-batches of the next step that memory held, the same prepared, and what `accumulate` makes of them.

    Where it did not hold them, all gradients of the step are dropped and it begins again with smaller ones.
    """
    plan, hooks, state = run
    while True:
        torch.manual_seed(plan.seed * 1_000_003 + state.step)
        batches = window(state.step)
        try:
            prepared = ready(policy, learner, batches)
            drawn = any(batch.rollout is not None for batch in prepared)
            if not drawn:
                return batches, prepared, accumulate(policy, learner, prepared)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
        else:
            return batches, *_again(policy, learner, prepared, run=run)
        # Only here, where the error no longer holds the tensors of its frames, is there anything to give back.
        _make_room(policy, run=run)


def _again(
    policy: Policy, learner: Learner, prepared: Sequence[Batch], *, run: tuple[TrainingPlan, Hooks, TrainingState]
) -> tuple[Sequence[Batch], tuple[float, dict[str, float]]]:
    """What `accumulate` makes of rows whose answers were drawn before any number moved, and the batches that memory
    held: they are cut and not made anew."""
    while True:
        try:
            return prepared, accumulate(policy, learner, prepared)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
        smaller = [half for batch in prepared for half in halved(batch)]
        _make_room(policy, run=run, cut=len(smaller) > len(prepared))
        prepared = smaller


def _make_room(policy: Policy, *, run: tuple[TrainingPlan, Hooks, TrainingState], cut: bool = False) -> None:
    """Drop the gradients of a step that memory did not hold, and run less at once from it on. Raises Refused where
    nothing is left to be cut."""
    _, hooks, state = run
    for _, value in policy.trainable():
        value.grad = None
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if not hooks.smaller(state.step) and not cut:
        raise Refused(f"step {state.step + 1}: {NOT_ONE_ROW}")


def step(
    policy: Policy, learner: Learner, batches: Sequence[Batch], *, optimizer: torch.optim.Optimizer, clip: float
) -> tuple[float, float]:
    """Loss per unit over a window of micro-batches, and the gradient's norm, after moving the numbers once."""
    loss, _ = accumulate(policy, learner, ready(policy, learner, batches))
    return loss, _move(policy, optimizer, clip=clip)


def ready(policy: Policy, learner: Learner, batches: Sequence[Batch]) -> list[Batch]:
    """The micro-batches of a window with everything that needs no gradient, made before any number moves."""
    policy.train(False)
    prepared = [learner.prepare(batch.to(policy.device), policy) for batch in batches]
    return learner.together(prepared, policy) if isinstance(learner, WholeStepLearner) else prepared


def accumulate(policy: Policy, learner: Learner, prepared: Sequence[Batch]) -> tuple[float, dict[str, float]]:
    """Loss per unit over a window of prepared micro-batches, its gradient added to what is there; and other figures.

    Losses are sums and the whole window's units divide them, so any cut into micro-batches gives the same step.
    """
    units, total, figures = max(1, sum(learner.units(batch) for batch in prepared)), 0.0, list[Figures]()
    for batch in prepared:
        fresh = batch.reference is None and batch.rollout is None  # else compared with what was said without dropout
        if policy.network.training is not fresh:
            policy.train(fresh)
        loss = learner.loss(batch, policy)
        (loss.total / units).backward()
        total += float(loss.total.detach())
        figures.append(loss.figures)
    return total / units, added(figures)


def _move(policy: Policy, optimizer: torch.optim.Optimizer, *, clip: float) -> float:
    """The gradient's norm, after moving the numbers once and dropping the gradient. Raises Refused."""
    norm = torch.nn.utils.clip_grad_norm_([value for _, value in policy.trainable()], clip)
    try:
        optimizer.step()
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise Refused(NOT_ITS_MOMENTS) from error
    optimizer.zero_grad(set_to_none=True)
    return float(norm)


def _validate(policy: Policy, state: TrainingState, *, plan: TrainingPlan, hooks: Hooks) -> None:
    """Score the numbers as they are; keep them if they are the best so far, count if they are not."""
    policy.train(False)
    score = hooks.validate()
    state.owed = False
    hooks.record({"step": state.step, "validation_loss": score})
    if score < state.best:
        state.best, state.best_step, state.worse = score, state.step, 0
        keep(policy, state, hooks.folder)
    else:
        state.worse += 1
        state.stopped_early = state.worse >= plan.patience
