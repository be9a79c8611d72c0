"""What learns in a run: the objective itself, or for `rl` the objective with all that scores its answers."""

from __future__ import annotations

from tunesmith.data.exercises import Exercise
from tunesmith.events import EventHandler, Note, StageStarted
from tunesmith.model.batch import collate
from tunesmith.model.policy import Policy
from tunesmith.objectives import Multitask, Preference, Rl
from tunesmith.objectives.base import Learner
from tunesmith.objectives.practice import Practice
from tunesmith.recipe import AnyObjective
from tunesmith.workflows.prepare import Prepared
from tunesmith.workflows.rewards import scorer_of, watch

# Prompts whose answers are looked at before time is spent.
FIRST = 8
# Validation prompts that are answered each time: enough to see a reward move, few enough to be quick.
JUDGED = 64


def learner_of(prepared: Prepared) -> Learner:
    """The run's objective as the training loop knows it."""
    objective = prepared.recipe.objective
    if not isinstance(objective, Rl):
        return objective
    split = prepared.loaded.split
    known = [e for part in (split.train, split.validation) for e in part if isinstance(e, Exercise)]
    places = {exercise.where: exercise for exercise in known}
    return Practice(objective, prepared.template, places, scorer_of(objective), prepared.recipe.seed, watch)


def needs_start(objective: AnyObjective) -> bool:
    """Whether a step asks what the start would say, so that full fine-tuning has to keep a copy of it."""
    if isinstance(objective, Multitask):
        return any(needs_start(part.objective) for part in objective.tasks.values())
    return isinstance(objective, Preference | Rl) and objective.asks_reference


def compares(objective: AnyObjective) -> bool:
    """Whether what is learned is compared with the start, now or beforehand, so that it has to begin there."""
    if isinstance(objective, Multitask):
        return any(compares(part.objective) for part in objective.tasks.values())
    return isinstance(objective, Rl) or (isinstance(objective, Preference) and objective.needs_reference)


def told_apart(prepared: Prepared, policy: Policy, *, on_event: EventHandler) -> None:
    """Tell the rewards of the first answers in a run of `rl`. Raises Refused where they are all equal."""
    learner = learner_of(prepared)
    assert isinstance(learner, Practice)
    on_event(StageStarted("does the reward tell answers apart?"))
    policy.train(False)
    lowest, highest = learner.check(policy, collate(prepared.train[:FIRST]))
    on_event(Note(f"rewards of the first answers: {lowest:.3g} to {highest:.3g}"))


def held_out_reward(prepared: Prepared, policy: Policy, learner: Practice) -> float:
    """The mean reward of greedy answers to some validation prompts, in full precision as the report takes it."""
    with policy.unmixed():
        return learner.mean_reward(policy, collate(prepared.validation[:JUDGED]))
