"""The bench of the recommendation: a tie is no more than what the rows can tell."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.recommend import __main__ as bench


def test_pairs_that_so_few_rows_do_not_tell_apart_are_counted_by_themselves(monkeypatch: pytest.MonkeyPatch):
    came = {
        "full": ("no effect", (-0.01, 0.02)),
        "prefix": ("inconclusive", (-0.2, 0.1)),
        "prompt": ("worse", (-0.3, -0.1)),
        "ia3": ("inconclusive", (-0.1, 0.1)),
    }
    report = SimpleNamespace(
        model="m", objective="classify", data=SimpleNamespace(train=9), speed=SimpleNamespace(seconds=1.5),
        task=SimpleNamespace(n=50, metric="accuracy", base=0.5, tuned=0.8),
    )  # fmt: skip

    def compared(rows: str) -> Any:
        verdict, ci95 = came[rows]
        return SimpleNamespace(verdict=verdict, ci95=ci95, delta=sum(ci95) / 2, p_value=0.5)

    monkeypatch.setattr(bench, "_ended", lambda task, name: name in {"lora", *came})
    monkeypatch.setattr(bench, "read_report", lambda run: report)

    def pair_runs(a: Path, b: Path) -> Any:
        return SimpleNamespace(metric="accuracy", compare=lambda: compared(b.name.removeprefix("movies-")))

    monkeypatch.setattr(bench, "pair_runs", pair_runs)
    told = bench.table({"movies": {"technique": "lora"}})
    assert "## movies: lora wins or ties" in told
    assert "| ia3 | 0.800 | 0.000 (\u22120.100 to +0.100) | p = 0.500 | not significant | 2 s |" in told
    assert told.endswith(
        "wins or ties in 1 of 1 tasks that ran: no other technique is significantly better. Of all 4 pairs, the "
        "other technique is better in 0, worse in 1, equivalent within 3 points in 1 "
        "and not significant in 2.\n"
    )
    came["ia3"] = ("better", (0.001, 0.02))
    assert "## movies: lora beaten by ia3\n" in bench.table({"movies": {"technique": "lora"}})
