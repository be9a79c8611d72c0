"""How each kind of objective is measured. The visible table."""

from typing import Any

from tunesmith.workflows.yardsticks.answering import AnswerEvaluator
from tunesmith.workflows.yardsticks.base import Diagnostics, EvalSet, Evaluator, Predictions
from tunesmith.workflows.yardsticks.judging import PreferenceEvaluator
from tunesmith.workflows.yardsticks.reading import PerplexityEvaluator
from tunesmith.workflows.yardsticks.rewarded import RewardEvaluator
from tunesmith.workflows.yardsticks.together import SINGLE_TASK_MODEL, MultitaskEvaluator

EVALUATORS: dict[str, type[Evaluator[Any]]] = {
    "classify": AnswerEvaluator,
    "instruct": AnswerEvaluator,
    "domain": PerplexityEvaluator,
    "preference": PreferenceEvaluator,
    "reward": PreferenceEvaluator,
    "rl": RewardEvaluator,
}


def evaluator_for(eval_set: EvalSet) -> Evaluator[Any]:
    """What measures models on these rows."""
    if eval_set.parts:
        return MultitaskEvaluator({name: evaluator_for(part) for name, part in eval_set.parts.items()})
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
