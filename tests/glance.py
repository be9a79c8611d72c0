"""Runs of tiny models that look only in passing at what other rooms' tests look at closely."""

from __future__ import annotations

import pytest

from tunesmith.evaluation import diagnostics as worth
from tunesmith.evaluation import retention
from tunesmith.metrics import significance


def only_a_glance(patch: pytest.MonkeyPatch) -> None:
    """Six probe items, one window of general text, few resamples and no drawings, as long as the patch holds."""
    some = retention.items()[:6]
    for room in (retention, worth):
        patch.setattr(room, "items", lambda: some)
    patch.setattr(retention, "WINDOWS", 1)
    patch.setattr(significance, "DRAWS", 100)
    assert significance.corpus_compare.__kwdefaults__ is not None
    patch.setitem(significance.corpus_compare.__kwdefaults__, "resamples", 200)
    patch.setattr("tunesmith.report.html._plots", lambda facts: dict.fromkeys(PLOTS, ""))


PLOTS = ("loss", "rate", "reliability", "coverage")
