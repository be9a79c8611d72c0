"""The command that asks for more data: what it refuses, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import PLAIN, Command, reviews, write_rows
from tunesmith.pipelines.learning_curve.fit_curve import FitCheck, ScoreEstimate
from tunesmith.pipelines.learning_curve.report import LearningCurveReport, Size, Target, page, sentence

LAW = {"ceiling": 0.938, "drop": 1.0, "power": 0.5}


def found(**changes: object) -> LearningCurveReport:
    """The answer of DESIGN's own example."""
    values: dict[str, object] = {
        "data": "<b>rows</b>.jsonl", "model": "m", "objective": "classify", "technique": "lora", "metric": "accuracy",
        "lower_is_better": False, "share": True, "train_rows": 2081, "test_rows": 400,
        "sizes": [Size(rows=2081, scores=[0.92] * 3, mean=0.92)],
        "power_law": LAW,
        "held_out": FitCheck(rows=2081, score=0.921, low=0.91, high=0.93, measured=0.92, inside=True, width=0.02),
        "expected": [ScoreEstimate(rows=4000, score=0.931, low=0.924, high=0.937)], "curve": [],
        "ceiling": ScoreEstimate(rows=0, score=0.938, low=0.93, high=0.945),
        "target": Target(score=0.95, rows=None, out_of_reach=True), "faults": [], "notes": [], "seconds": 60.0,
    }  # fmt: skip
    return LearningCurveReport(**{**values, **changes})


def test_the_sentence_says_now_more_and_never():
    assert sentence(found()) == (
        "at 2,081 rows accuracy (%) 92.0; with 4,000 rows 93.1 (92.4 to 93.7); "
        "95.0 is out of reach of more rows like these"
    )


@pytest.mark.parametrize(
    ("changes", "end"),
    [
        ({"target": Target(score=0.93, rows=3900, out_of_reach=False)}, "93.0 takes about 3,900 rows like these"),
        (
            {"target": Target(score=0.94, rows=None, out_of_reach=False)},
            "94.0 takes more than 8,324 rows, the limit",
        ),
        ({"target": None}, "with 4,000 rows 93.1 (92.4 to 93.7)"),
        ({"faults": ["scores do not rise"]}, "no prediction for more rows: scores do not rise"),
        ({"share": False, "metric": "perplexity"}, "perplexity 0.920; with 4,000 rows 0.931 (0.924 to 0.937)"),
    ],
)
def test_the_sentence_fits_what_was_found(changes: dict[str, object], end: str):
    assert end in sentence(found(**changes))


def test_what_comes_from_files_is_escaped_on_the_page():
    text = page(found(sentence="<i>", curve=[ScoreEstimate(rows=2000, score=0.9, low=0.8, high=1.0)]))
    assert "<b>rows" not in text
    assert "&lt;b&gt;rows" in text
    assert "<i>" not in text.partition("<main")[2].partition('class="verdict">')[2][:10]


@pytest.mark.parametrize("words", [("--rows", "0"), ("--minutes", "0"), ("--minutes", "nan")])
def test_a_bound_that_is_none_is_refused(command: Command, review_file: Path, words: tuple[str, str]):
    done = command("learning-curve", review_file, *words, *PLAIN)
    assert done.code == 2
    assert f"error: {words[0]}: expected" in done.err


@pytest.mark.long
def test_the_answer_is_one_json_document_of_the_printed_shape(command: Command, tiny_bert: Path, tmp_path: Path):
    rows = write_rows(tmp_path / "rows.jsonl", reviews(150))
    fast = ("--set", "schedule.learning_rate=0.01", "--set", "data.audit=note", "--technique", "full")
    done = command("learning-curve", rows, "--model", tiny_bert, "--out", tmp_path / "curve", "--json", *fast, *PLAIN)
    document = json.loads(done.out)
    assert done.code == (1 if document["faults"] else 0)
    assert len(document["sizes"]) == 5
    assert document["sentence"].startswith("at ")
    assert set(json.loads(command("learning-curve", "--schema").out)["properties"]) | {"folder"} == set(document)
