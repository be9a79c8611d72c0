"""The learner of a run: the objective itself, or for `rl` a learner that samples and scores completions."""

from __future__ import annotations

from tunesmith.data.exercises import RLPrompt
from tunesmith.events import EventHandler, Note, StageStarted
from tunesmith.model.batch import collate
from tunesmith.model.policy import Policy
from tunesmith.objectives import Rl
from tunesmith.objectives.base import Learner
from tunesmith.objectives.practice import OnlineRLLearner
from tunesmith.workflows.prepare import TrainingContext
from tunesmith.workflows.rewards import completion_metrics, scorer_of

# Prompts whose completions are scored before training starts.
FIRST = 8
# Prompts per validation: enough to measure a change of the reward, few enough to be quick.
JUDGED = 64


def learner_of(prepared: TrainingContext) -> Learner:
    """Return the learner that the training loop calls."""
    objective = prepared.recipe.objective
    if not isinstance(objective, Rl):
        return objective
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
