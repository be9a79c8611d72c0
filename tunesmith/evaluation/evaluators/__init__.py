"""Evaluators: base and tuned model on the same rows. An objective gets one by what it produces, or by its kind."""

from typing import Any

from tunesmith.evaluation.evaluators.answers import AnswerEvaluator
from tunesmith.evaluation.evaluators.base import Diagnostics, EvalSet, Evaluator, Predictions, rowwise
from tunesmith.evaluation.evaluators.multitask import SINGLE_TASK_MODEL, MultitaskEvaluator
from tunesmith.evaluation.evaluators.numbers import NumberEvaluator
from tunesmith.evaluation.evaluators.perplexity import PerplexityEvaluator
from tunesmith.evaluation.evaluators.preferences import PreferenceEvaluator
from tunesmith.evaluation.evaluators.retrieval import RerankEvaluator, RetrievalEvaluator, SimilarityEvaluator
from tunesmith.evaluation.evaluators.rewards import RewardEvaluator
from tunesmith.evaluation.evaluators.spans import SpanEvaluator

# By what the objective's models produce, except for objectives that have another evaluator.
EVALUATORS: dict[str, type[Evaluator[Any]]] = {
    "labels": AnswerEvaluator,
    "number": NumberEvaluator,
    "spans": SpanEvaluator,
    "text": AnswerEvaluator,
    "likelihood": PerplexityEvaluator,
    "score": PreferenceEvaluator,
    "embed": RetrievalEvaluator,
    "rerank": RerankEvaluator,
    "similarity": SimilarityEvaluator,
    "preference": PreferenceEvaluator,
    "rl": RewardEvaluator,
}


def evaluator_for(eval_set: EvalSet[Any]) -> Evaluator[Any]:
    """Return the evaluator of the objective of these rows."""
    if eval_set.subtasks:
        return MultitaskEvaluator({name: evaluator_for(task) for name, task in eval_set.subtasks.items()})
    objective = eval_set.objective
    return EVALUATORS[key if (key := objective.evaluated_as) in EVALUATORS else objective.produces](eval_set)


__all__ = [
    "SINGLE_TASK_MODEL",
    "EVALUATORS",
    "EvalSet",
    "Predictions",
    "MultitaskEvaluator",
    "Diagnostics",
    "Evaluator",
    "evaluator_for",
    "rowwise",
]
