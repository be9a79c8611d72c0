"""The confusion matrix of `tunesmith verify` on tiny models: who is taken for whom."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from bench.verify import WAYS, answers
from tests.served import save_run
from tunesmith.inference.saved_model import load
from tunesmith.pipelines.verify import make
from tunesmith.pipelines.verify.verdict import judge
from tunesmith.techniques import Lora

RUNS = 12


@pytest.mark.long
def test_no_other_model_is_taken_for_the_tuned_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(make, "LEAST_LEAD", 0.01)  # leads of random models are small
    monkeypatch.setattr(make, "GENERAL", 128)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    last = None
    for seed in range(1, RUNS + 1):
        run = save_run(tmp_path / f"run{seed}", Lora(), seed=seed, lively=0.5)
        challenge, model = make.challenge_of(run, offline=True), load(run, offline=True, threads=None)
        for way, context in WAYS.items():
            with context(model):
                counts[way][judge(challenge.prompts, answers(model, challenge, way)).verdict] += 1
        if last is not None:
            counts["another run"][judge(challenge.prompts, answers(last, challenge, "")).verdict] += 1
        last = model
    (tmp_path / "matrix.json").write_text(json.dumps(counts))
    wrong = sum(counts[way]["tuned"] for way in ("base", "half the adapter", "other template", "2 bits", "another run"))
    assert wrong <= 0.01 * RUNS * 5
    assert counts["tuned"]["tuned"] == RUNS
    assert counts["base"]["tuned"] == counts["base"]["damaged"] == 0
