"""Metrics of predicted numbers against SciPy and scikit-learn, their intervals, and ridge regression."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_absolute_error, r2_score

from tunesmith.metrics import numbers, ridge

TIES = ([1, 2, 2, 3, 5, 5, 5], [0.5, 0.4, 2.0, 2.0, 7.0, 1.0, 2.0])


def drawn(seed: int, n: int = 200, *, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    chance = np.random.default_rng(seed)
    gold = chance.normal(size=n).round(1)  # with ties, as ratings have them
    return gold, gold + noise * chance.normal(size=n)


@pytest.mark.parametrize(("gold", "given"), [TIES, drawn(0), drawn(1, noise=9), ([3, 1, 2], [1, 3, 2])])
def test_scores_are_those_of_scipy_and_scikit_learn(gold, given):
    assert numbers.spearman(gold, given) == pytest.approx(spearmanr(gold, given).statistic)
    assert numbers.mae(gold, given) == pytest.approx(mean_absolute_error(gold, given))
    assert numbers.r2(gold, given) == pytest.approx(r2_score(gold, given))


def test_scores_by_hand():
    assert numbers.spearman([1, 2, 3], [10, 30, 20]) == pytest.approx(0.5)  # 1 - 6 * 2 / (3 * 8)
    assert numbers.mae([1, 2, 3], [2, 2, 5]) == 1.0
    assert numbers.r2([1, 2, 3], [1, 2, 4]) == 0.5  # 1 - 1 / 2


def test_constant_predictions_order_nothing_and_have_no_interval():
    gold, _ = drawn(0)
    found = numbers.score("spearman", gold, np.full(len(gold), 2.0), name="mean", groups=None)
    assert (found.score, found.ci95) == (0.0, None)
    assert numbers.r2(gold, np.full(len(gold), gold.mean())) == pytest.approx(0.0)


@pytest.mark.parametrize("metric", numbers.METRICS)
def test_a_resampled_score_is_the_score_of_the_resampled_rows(metric: str):
    gold, given = drawn(2)
    rows = np.random.default_rng(3).integers(len(gold), size=len(gold))
    if metric == "mae":
        return
    pair = (numbers.spearman_pair if metric == "spearman" else numbers.r2_pair)(gold, gold, given)
    assert pair(rows)[1] == pytest.approx(numbers.value(metric, gold[rows], given[rows]))


@pytest.mark.parametrize("metric", numbers.METRICS)
def test_a_better_model_is_better_by_every_metric_and_the_interval_has_the_difference(metric: str):
    gold, worse = drawn(4, noise=2.0)
    _, better = drawn(4, noise=0.5)
    found = numbers.compare(metric, gold, worse, better, groups=None)
    assert found.verdict == "better"
    assert found.p_value < 0.01
    assert found.ci95[0] < found.delta < found.ci95[1]
    assert (found.delta < 0) == (metric == "mae")
    assert found.base == pytest.approx(numbers.value(metric, gold, worse))
    assert numbers.compare(metric, gold, better, worse, groups=None).verdict == "worse"


@pytest.mark.long
@pytest.mark.parametrize("metric", numbers.METRICS)
def test_equal_models_are_rarely_called_different(metric: str):
    calls = 0
    for seed in range(12):
        gold, first = drawn(seed, n=60)
        second = gold + np.random.default_rng(1000 + seed).normal(size=60)
        calls += numbers.compare(metric, gold, first, second, groups=None).p_value < 0.05
    assert calls <= 3  # more than 3 of 12 has a chance of 1 in 400 at a level of 0.05


def test_a_correlation_can_rise_by_more_than_one():
    gold, given = drawn(5, noise=0.2)
    found = numbers.compare("spearman", gold, -given, given, groups=None)
    assert found.delta > 1.5
    assert found.ci95[1] > found.delta


def test_arms_are_compared_with_the_tuned_model_and_adjusted_together():
    gold, tuned = drawn(6, noise=0.5)
    arms = numbers.arms("spearman", gold, {"base": drawn(6, noise=2.0)[1], "mean": np.zeros(200)}, tuned, groups=None)
    assert [arm.name for arm in arms] == ["base", "mean"]
    assert all(arm.gain.verdict == "better" and arm.p_adjusted >= arm.gain.p_value for arm in arms)
    assert arms[0].ci95[0] < arms[0].score < arms[0].ci95[1]


def test_ridge_of_vectors_is_scikit_learns_on_standardised_ones():
    chance = np.random.default_rng(7)
    vectors = chance.normal(size=(120, 8)) * [1, 5, 0.1, 1, 1, 1, 1, 0] + 3
    targets = vectors @ [1, -0.5, 4, 0, 0, 0, 0, 0] + chance.normal(size=120)
    found = ridge.fit_ridge(vectors, targets)
    spread = np.where(vectors.std(axis=0) > 1e-9, vectors.std(axis=0), 1)
    standard = (vectors - vectors.mean(axis=0)) / spread
    wanted = [Ridge(alpha=alpha).fit(standard, targets).predict(standard) for alpha in ridge.VECTOR_STRENGTHS]
    assert any(np.allclose(found.predict(vectors), one, atol=1e-6) for one in wanted)
    assert numbers.r2(targets, found.predict(vectors)) > 0.8


def test_tfidf_ridge_learns_from_words_and_falls_back_to_the_mean():
    texts = [f"the {word} phone number {i}" for i in range(20) for word in ("good", "bad")]
    targets = [1.0, -1.0] * 20
    good, bad = ridge.tfidf_ridge(texts, targets, ["a good phone", "a bad phone"])
    assert good > 0.3
    assert bad < -0.3
    assert ridge.tfidf_ridge(["!", "?"], [1.0, 3.0], ["..."]).tolist() == [2.0]
