"""The confusion matrix of `tunesmith verify` on tiny models: who is taken for whom."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from bench.verify import answers, half, matrix, rounded
from tests.served import save_run
from tunesmith.inference.saved_model import load
from tunesmith.pipelines.verify import challenge as challenge_module
from tunesmith.pipelines.verify import make
from tunesmith.techniques import Lora

RUNS = 3


def test_no_other_model_is_taken_for_the_tuned_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for module, name, value in (
        (make, "LEAST_LEAD", 0.03), (make, "GENERAL", 160), (make, "PROMPTS", 32),
        (challenge_module, "ROUNDING", 0.01), (challenge_module, "DAMAGE", 0.1),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    runs = [save_run(tmp_path / f"run{seed}", Lora(), seed=seed, lively=1.0) for seed in range(1, RUNS + 1)]
    models = {run.name: load(run, offline=True, threads=None) for run in runs}
    challenges = {run.name: make.challenge_of(run, offline=True) for run in runs}
    ways = {
        "tuned": lambda model: nullcontext(),
        "base": lambda model: model.policy.reference(),
        "half the adapter": half,
        "other template": lambda model: nullcontext(),
        "2 bits": rounded(2),
    }
    found = {}
    for name, challenge in challenges.items():
        found[name] = {}
        for way, context in ways.items():
            with context(models[name]):
                found[name][way] = answers(models[name], challenge.prompts, template=way != "other template")
        for other in models.keys() - {name}:
            found[name][f"another run: {other}"] = answers(models[other], challenge.prompts)
    counts = matrix(challenges, found, 200)
    (tmp_path / "matrix.txt").write_text(str({kind: dict(verdicts) for kind, verdicts in counts.items()}))
    assert counts["tuned"]["tuned"] >= 180
    assert counts["base"]["base"] >= 100  # tiny bases are certain of few answers
    assert (
        sum(verdicts["tuned"] for kind, verdicts in counts.items() if kind != "tuned") <= 60
    )  # of 1,000: resampled challenges may lack what shows the damage
