"""Evaluation by predicted values, compared with those of the rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tunesmith.data.examples.types import Example, RatedText, TextExample
from tunesmith.evaluation.diagnostics import SHUFFLED
from tunesmith.evaluation.evaluators.base import EvalSet, RowEvaluator, RowMetrics
from tunesmith.evaluation.predict import BASELINES
from tunesmith.inference.local_model import LocalModel
from tunesmith.metrics import numbers
from tunesmith.metrics.resampling import groups_of
from tunesmith.metrics.ridge import fit_ridge, tfidf_ridge
from tunesmith.models.kept_answers import answer_clock, once
from tunesmith.models.policy import Policy
from tunesmith.objectives import AnyObjective, Regress
from tunesmith.phases import phase
from tunesmith.training.prepare import TrainingContext

CONTROLS = {SHUFFLED: "same recipe, shuffled values"}
MEAN, TFIDF = "mean of the training rows", "TF-IDF + ridge regression"


@dataclass(frozen=True, slots=True)
class NumberPredictions:
    """The values that a model predicts, and for the base model also those of the baselines."""

    given: list[float]
    seconds: float
    ways: dict[str, list[float]] = field(default_factory=dict)


class NumberEvaluator(RowEvaluator[NumberPredictions]):
    """Evaluates `regress` by Spearman's correlation, the mean absolute error and R squared."""

    shape: ClassVar[type[Any]] = NumberPredictions
    row_metrics: ClassVar[RowMetrics] = numbers
    details: ClassVar[Mapping[str, str]] = CONTROLS
    probed: ClassVar[str] = "ridge regression on the frozen model"

    def __init__(self, eval_set: EvalSet[Regress]) -> None:
        self._objective: AnyObjective = eval_set.objective
        rows = [example for example in eval_set.examples if isinstance(example, RatedText)]
        self._examples: Sequence[TextExample] = rows
        self._gold = np.array([example.number for example in rows])
        self._groups = groups_of(rows)
        self._limit = eval_set.limit
        self._metrics: tuple[str, ...] = numbers.METRICS

    def evaluate_base(self, prepared: TrainingContext, policy: Policy, out: Path) -> NumberPredictions:
        """Predict by ridge regression on the states of the base model, and by the baselines."""
        train, seed = prepared.loaded.split.train, prepared.recipe.seed
        policy.train(False)
        found = self.probe(LocalModel(policy, prepared.template, self._objective, self._limit), train, seed=seed)
        texts, numbers = _texts_and_numbers(train)
        tests = [example.text for example in self._examples]
        with phase("baselines"):
            found.ways[MEAN] = [float(np.mean(numbers))] * len(tests)
            found.ways[TFIDF] = once(BASELINES, tfidf_ridge, texts, numbers, tests, seed=seed).tolist()
        return found

    def probe(self, model: LocalModel, train: Sequence[Example], *, seed: int = 0) -> NumberPredictions:
        """Predict by ridge regression on the states of a model that is not tuned, fitted on the training rows."""
        texts, numbers = _texts_and_numbers(train)
        fitted = fit_ridge(model.embed(texts).numpy(), numbers, seed=seed)
        start = answer_clock()  # as for other models, fitting is not counted
        given = fitted.predict(model.embed([example.text for example in self._examples]).numpy()).tolist()
        return NumberPredictions(given, answer_clock() - start)

    def predict(self, model: LocalModel) -> NumberPredictions:
        """Predict the values with a model."""
        start = answer_clock()
        given = model.predict([example.text for example in self._examples])
        return NumberPredictions(given, answer_clock() - start)

    def to_rows(self, predictions: Mapping[str, NumberPredictions]) -> list[dict[str, Any]]:
        """Return each row with its number, and the number and the negative absolute error of each model."""
        records = []
        for i, example in enumerate(self._examples):
            record: dict[str, Any] = {"where": example.where, "group": example.group}
            record |= {"question": example.text, "gold": as_text(float(self._gold[i]))}
            record |= {name: as_text(one.given[i]) for name, one in predictions.items()}
            errors = {f"score_{name}": -abs(one.given[i] - self._gold[i]) for name, one in predictions.items()}
            records.append(record | errors)
        return records


def _texts_and_numbers(examples: Sequence[Example]) -> tuple[list[str], list[float]]:
    """Return the texts of rows, and their values."""
    rows = [example for example in examples if isinstance(example, RatedText)]
    return [row.text for row in rows], [row.number for row in rows]


def as_text(number: float) -> str:
    """Return a number as `predictions.jsonl` stores it: with all digits that `float` reads back."""
    return repr(int(number)) if math.isfinite(number) and number == int(number) else repr(number)
