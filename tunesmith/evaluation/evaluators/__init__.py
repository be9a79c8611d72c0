"""The evaluator of each kind of objective. The visible table."""

from typing import Any

from tunesmith.evaluation.evaluators.answers import AnswerEvaluator
from tunesmith.evaluation.evaluators.base import Diagnostics, EvalSet, Evaluator, Predictions
from tunesmith.evaluation.evaluators.multitask import SINGLE_TASK_MODEL, MultitaskEvaluator
from tunesmith.evaluation.evaluators.perplexity import PerplexityEvaluator
from tunesmith.evaluation.evaluators.preferences import PreferenceEvaluator
from tunesmith.evaluation.evaluators.rewards import RewardEvaluator

EVALUATORS: dict[str, type[Evaluator[Any]]] = {
    "classify": AnswerEvaluator,
    "instruct": AnswerEvaluator,
    "domain": PerplexityEvaluator,
    "preference": PreferenceEvaluator,
    "reward": PreferenceEvaluator,
    "rl": RewardEvaluator,
}


def evaluator_for(eval_set: EvalSet[Any]) -> Evaluator[Any]:
    """Return the evaluator of the objective of these rows."""
    if eval_set.subtasks:
        return MultitaskEvaluator({name: evaluator_for(task) for name, task in eval_set.subtasks.items()})
    return EVALUATORS[eval_set.objective.kind](eval_set)


__all__ = [
    "SINGLE_TASK_MODEL",
    "EVALUATORS",
    "EvalSet",
    "Predictions",
    "MultitaskEvaluator",
    "Diagnostics",
    "Evaluator",
    "evaluator_for",
]
