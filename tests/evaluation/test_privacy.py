"""What a tuned model remembers of single rows: canaries on request, and personal data and copies in its answers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tunesmith as ts
from tests.tiny import tiny_decoder
from tunesmith.config import make_recipe
from tunesmith.config.checks import check_pair
from tunesmith.data.examples.types import Chat
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import RecipeError
from tunesmith.evaluation.privacy import ALTERNATIVES, COPIED, exposures, leaks

DATA = {"train": "rows.jsonl"}
INSTRUCT = {"kind": "instruct", "max_new_tokens": 8}
SENTENCE = " ".join(f"word{i}" for i in range(COPIED + 5))


def recipe(objective: Any = "instruct", **more: Any) -> Any:
    return make_recipe({"data": DATA, "objective": objective, **more}, place="recipe.yaml")[0]


def test_the_likeliest_of_1024_secrets_is_exposed_by_ten_bits_and_the_least_likely_by_none():
    others = np.linspace(-20.0, -10.0, ALTERNATIVES).tolist()
    base, tuned = [-21.0, -21.0, -21.0, -21.0], [-21.0, -10.5, -9.0, -9.0]
    found = exposures([*base, *others], [*tuned, *others])
    ranked = pytest.approx(10 - np.log2(53))
    assert found == {"1": (0.0, 5.0), "4": (0.0, ranked), "16": (0.0, 10.0)}


def test_a_secret_that_was_never_planted_is_exposed_by_a_bit_and_a_half():
    scores = np.random.default_rng(0).normal(size=300 + ALTERNATIVES).tolist()
    assert np.mean(list(exposures(scores, scores).values())) == pytest.approx(1.44, abs=0.2)


def test_no_canaries_have_no_exposure():
    assert exposures([], []) == {}


@pytest.mark.long
@pytest.mark.parametrize("kind", ["instruct", "domain"])
def test_a_canary_in_many_rows_is_exposed_and_one_that_the_base_has_not_seen_is_not(kind: str, tmp_path: Path):
    rows = [{"prompt": f"number {i}", "answer": f"it is {i % 3}"} for i in range(30)]
    texts = [{"text": f"number {i}: it is {i % 3}, and that is all there is to say about it"} for i in range(30)]
    lines = [json.dumps(row) + "\n" for row in (rows if kind == "instruct" else texts)]
    (tmp_path / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    settings = {
        "model": str(tiny_decoder(tmp_path / "model")),
        "data": {"train": str(tmp_path / "rows.jsonl"), "validation": 0, "test": 0.2},
        "objective": INSTRUCT if kind == "instruct" else kind,
        "technique": "full",
        "schedule": {"epochs": 20, "learning_rate": 0.01, "batch_rows": 16, "probe": False, "save_steps": 0},
        "canaries": 3,
        "retention": False,
        "machine": {"device": "cpu", "dtype": "float32", "threads": 1},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(settings), encoding="utf-8")
    run = ts.tune(tmp_path / "recipe.yaml", out=tmp_path / "run", offline=True, progress=False)
    assert list(run.report.canaries) == ["1", "4", "16"]
    base, tuned = run.report.canaries["16"]
    assert tuned > 8 > base
    assert any("3 canaries planted in 21 rows" in note for note in run.report.data.notes)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert 'id="canaries"' in page


@pytest.mark.parametrize(
    ("objective", "family"), [("domain", "encoder"), ("classify", "decoder"), ("reward", "decoder")]
)
def test_canaries_are_refused_where_no_rows_are_written(objective: str, family: str):
    with pytest.raises(RecipeError, match=r"^canaries: only a decoder .*; use canaries: 0$"):
        check_pair(recipe(objective, canaries=3), family)


@pytest.mark.parametrize(
    ("answer", "question", "warning"),
    [
        ("write to anna.berg@firma.de", "how?", r"^1 of 2 .* personal data or secrets \(email\), first for r:1; mask"),
        ("it is sk-proj-abcdEFGH1234ijklMNOP5678", "key?", r"\(secret\)"),
        ("write to anna.berg@firma.de", "is it anna.berg@firma.de?", ""),
        (f"well: {SENTENCE}", "say it", rf"^1 of 2 answers contain {COPIED} words or more of a training row"),
        (SENTENCE, f"repeat {SENTENCE}", ""),
        (SENTENCE.rpartition(" word20")[0], "say it", ""),
        ("Paris.", "capital?", ""),
    ],
)  # fmt: skip
def test_what_an_answer_must_not_contain_is_a_warning(answer: str, question: str, warning: str):
    train = [Chat("t:1", (Message("user", "go on"), Message("assistant", f"{SENTENCE} and so on")))]
    records = [
        {"where": "r:0", "question": "hi", "gold": "hello", "base": "x", "tuned": "hello"},
        {"where": "r:1", "question": question, "gold": "nothing", "base": "x", "tuned": answer},
    ]
    found = leaks(train, records)
    assert len(found) == bool(warning)
    if warning:
        (text,) = found
        assert re.search(warning, text)
