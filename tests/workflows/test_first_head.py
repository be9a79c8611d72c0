"""A head of labels begins where a linear probe of the untouched network ends."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression

from tunesmith.evaluation.baselines import fit_linear


def test_folded_weights_answer_as_the_standardised_regression_they_come_from():
    chance = np.random.default_rng(0)
    known = chance.normal(size=(90, 6)) * [1, 10, 0.1, 1, 1, 0] + [0, 5, 0, 0, 0, 1e-3]
    known[:, 4] = chance.normal(size=90) * 1e-30  # the last bits of nothing
    labels = [("red", "green", "blue")[int(x[0] + x[1] / 10 > 0) + int(x[2] > 0.05)] for x in known]
    fit = fit_linear(known, labels)
    assert fit.labels == ("blue", "green", "red")
    assert np.abs(fit.weight[:, 4:]).max() < 1e-6
    middle, spread = known[:, :4].mean(axis=0), known[:, :4].std(axis=0)
    scaled = (known[:, :4] - middle) / spread
    same = [LogisticRegression(C=c, max_iter=2000).fit(scaled, labels).predict(scaled).tolist() for c in (0.01, 0.1)]
    assert fit.label(known) in same
    assert fit_linear(known, ["red"] * 90).label(known[:2]) == ["red", "red"]
