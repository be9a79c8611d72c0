"""The verdict on two models that are equally good, and on one that is better, for every kind of answer.

`python -m bench.noise --paired N` draws more of them, and `python -m bench.noise` trains on noise.
"""

from __future__ import annotations

from collections import Counter

import pytest

from bench.noise.paired import DESIGNS, KINDS, clopper_pearson, judged, resampling

RESAMPLES, EACH = 200, 400
SMALL, MANY, GROUPED = "12 rows", "40 rows", "15 groups of 8"
# A value of the whole set is computed again in every resample.
SLOW = {
    "classify, accuracy",
    "preference, thumbs AUC",
    "regress, Spearman",
    "instruct, chrF",
    "instruct, ROUGE-L",
    "tag, entity F1",
}


@pytest.mark.long
@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.slow] * (k in SLOW)) for k in KINDS])
def test_equal_models_are_called_better_in_less_than_one_comparison_of_twenty(kind: str):
    better: Counter[str] = Counter()
    with resampling(RESAMPLES):
        for seed in range(EACH):
            for name in (SMALL, MANY, GROUPED):
                better.update(
                    task.metric for task in judged(kind, DESIGNS[name], seed=seed) if task.verdict == "better"
                )
    bounds = {metric: clopper_pearson(hits, 3 * EACH)[1] for metric, hits in better.items()}
    assert max(bounds.values(), default=0.0) < 0.05


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.slow] * (k in SLOW)) for k in KINDS])
def test_the_larger_an_effect_the_more_often_it_is_found(kind: str):
    with resampling(RESAMPLES):
        found = [
            sum(
                judged(kind, DESIGNS["150 rows"], effect=effect, seed=seed)[0].verdict == "better" for seed in range(12)
            )
            for effect in (0.0, 0.4, 2.0)
        ]
    assert found[0] <= found[1] <= found[2]
    assert found[2] == 12


def test_the_interval_of_a_share_is_that_of_the_tables():
    # 1 - 0.025 ** (1 / n) without a hit; 3 of 20 by the tables of Clopper and Pearson.
    assert clopper_pearson(0, 72)[1] == pytest.approx(0.0499, abs=1e-4)
    assert clopper_pearson(3, 20) == (pytest.approx(0.0321, abs=1e-4), pytest.approx(0.3789, abs=1e-4))
    assert clopper_pearson(5, 5)[1] == 1.0
