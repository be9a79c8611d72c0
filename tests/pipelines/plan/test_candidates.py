"""Models are compared before any is tuned, and the cheapest that is expected to hold is chosen."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.cli.conftest import write_rows
from tunesmith.config.scaffold import inspect_rows
from tunesmith.metrics.cross_validation import LabelledRows, MeasuredScore, majority_score, probe_score, tfidf_score
from tunesmith.pipelines.init import draft_with_candidates
from tunesmith.pipelines.plan import candidates
from tunesmith.pipelines.plan.candidates import DECODER, ENCODER, MARGIN, TFIDF, Job, choose_model
from tunesmith.pipelines.plan.gains import GAINS, expected_score
from tunesmith.pipelines.plan.report import Bounds, ModelChoice
from tunesmith.report.formatting import duration

WORDS = ("pump", "valve", "cable", "filter", "hinge", "screen")


def rows_of(kind: str, count: int = 240) -> list[dict[str, str]]:
    """Rows whose label a bag of words predicts exactly, in part or not at all."""
    source = random.Random(0)
    rows = []
    for number in range(count):
        label = source.choice(["good", "bad"])
        shown = {"easy": label, "chance": source.choice(["good", "bad"])}.get(kind, label)
        if kind == "hard" and source.random() < 0.3:
            shown = "good" if label == "bad" else "bad"
        rows.append({"text": f"the {source.choice(WORDS)} is {shown} {number}", "label": label})
    return rows


def choose(rows: list[dict[str, str]], folder: Path, *changes: str) -> ModelChoice:
    file = write_rows(folder / "rows.jsonl", rows)
    return draft_with_candidates(
        str(file), changes=changes, quick=True, offline=True, on_event=lambda event: None
    ).choice


def test_a_task_that_words_decide_names_tf_idf_first_and_still_tunes_the_cheapest_network(tmp_path: Path) -> None:
    choice = choose(rows_of("easy"), tmp_path)
    assert (choice.sufficient, choice.model) == (TFIDF, ENCODER)
    assert choice.reasons[0].startswith("TF-IDF with logistic regression scores 1.000 in ")
    assert choice.reasons[0].endswith("fine-tuning is expected to add 0.00 to 0.00")


def test_labels_that_words_predict_in_part_take_the_encoder_with_bounds_around_each_forecast(tmp_path: Path) -> None:
    choice = choose(rows_of("hard"), tmp_path)
    assert (choice.sufficient, choice.model) == (ENCODER, ENCODER)
    named = {part.name: part for part in choice.candidates}
    assert (named[TFIDF].basis, named[ENCODER].basis, named[DECODER].basis) == ("measured", "expected", "expected")
    assert not named[TFIDF].holds
    for part in choice.candidates:
        assert part.score is not None
        assert part.seconds is not None
        assert part.memory is not None
        assert part.score.low < part.score.expected < part.score.high
    assert named[ENCODER].seconds.expected < named[DECODER].seconds.expected  # type: ignore[union-attr]
    assert named[ENCODER].memory.expected < named[DECODER].memory.expected  # type: ignore[union-attr]


def test_a_time_that_was_measured_is_the_same_in_the_table_and_in_the_reasons(tmp_path: Path) -> None:
    seen = inspect_rows(str(write_rows(tmp_path / "rows.jsonl", rows_of("hard"))), offline=True)
    known = Bounds.around(3600.0, 0.5, 2.0), Bounds.around(5e9, 0.8, 1.2)
    job = Job(
        seen.recipe.objective.bind(seen.examples, "encoder"),
        seen.examples,
        test_rows=40,
        validation_rows=20,
        train_rows=180,
        costs={ENCODER: known},
    )
    choice = choose_model(job, on_event=lambda event: None, probe=False)
    named = {part.name: part for part in choice.candidates}
    assert (named[ENCODER].seconds, named[ENCODER].memory) == known
    (reason,) = [reason for reason in choice.reasons if reason.startswith(ENCODER)]
    assert reason.endswith(f"in about {duration(3600.0)}")


def test_labels_at_chance_promise_no_gain_and_ask_to_check_the_labels(tmp_path: Path) -> None:
    choice = choose(rows_of("chance"), tmp_path)
    assert choice.model == ENCODER
    assert choice.reasons[0].startswith("nothing that was measured is better than the most frequent label")
    named = {part.name: part for part in choice.candidates}
    tfidf, encoder = named[TFIDF].score, named[ENCODER].score
    assert tfidf is not None
    assert encoder is not None
    assert encoder.expected == tfidf.expected


def test_a_language_that_no_bundled_model_represents_counts_against_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "_fragments", lambda name, texts: 0.9)
    choice = choose(rows_of("hard"), tmp_path)
    named = {part.name: part for part in choice.candidates}
    assert named[ENCODER].note.startswith("90% of the tokens are bytes or unknown")
    assert choice.sufficient == TFIDF
    assert choice.reasons[-1].startswith("a multilingual model, named with --model")
    monkeypatch.setattr(candidates, "_fragments", lambda name, texts: 0.9 * (name == ENCODER))
    assert choose(rows_of("hard"), tmp_path).model == DECODER


def test_a_model_of_the_command_line_is_kept(tmp_path: Path) -> None:
    assert choose(rows_of("easy"), tmp_path, f"model={DECODER}").model == DECODER
    words = choose(rows_of("easy"), tmp_path, "objective={kind: classify, output: words}")
    assert words.model == DECODER


def test_rows_that_ask_for_text_list_the_decoder_and_why_no_other_can(tmp_path: Path) -> None:
    choice = choose([{"prompt": f"question {i}", "answer": f"the answer is {i}"} for i in range(40)], tmp_path)
    assert [part.name for part in choice.candidates] == [DECODER]
    assert choice.reasons == [
        "the rows ask for text, which only a decoder generates; TF-IDF, a probe and an encoder predict labels"
    ]
    texts = choose([{"text": f"some words about number {i}"} for i in range(40)], tmp_path)
    assert [part.name for part in texts.candidates] == [ENCODER, DECODER]
    assert texts.model == DECODER


def test_the_reason_stands_above_the_model_in_the_recipe(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", rows_of("easy"))
    made = draft_with_candidates(str(file), quick=True, offline=True, on_event=lambda event: None).made
    lines = made.text(tmp_path).splitlines()
    above = "\n".join(lines[: lines.index(f"model: {ENCODER}")])
    assert "TF-IDF with logistic regression scores 1.000" in above
    assert "to tune it instead: --model smollm2-135m" in above.replace("\n# ", " ")
    assert (made.recipe.technique.kind, made.recipe.compare.model) == ("full", DECODER)


def test_several_labels_of_a_row_are_measured_too(tmp_path: Path) -> None:
    rows = [
        {
            "text": f"{'pump ' * (i % 2)}{'cable ' * (i % 3 == 0)}item {i}",
            "label": ["a"] * (i % 2) + ["b"] * (i % 3 == 0) or ["c"],
        }
        for i in range(120)
    ]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    choice = draft_with_candidates(str(file), quick=True, offline=True, on_event=lambda event: None).choice
    assert choice.metric == "sample_f1"
    assert choice.candidates[0].score is not None
    assert choice.candidates[0].score.expected > 0.9


def test_a_group_is_never_split_between_folds(tmp_path: Path) -> None:
    # The text of a row is only shared within its group, so that no fold can learn it.
    source = random.Random(0)
    words = ["".join(source.choices("abcdefghijklmnopqrstuvwxyz", k=12)) for _ in range(30)]
    texts = [words[i // 4] for i in range(120)]
    labels = [("ab"[i // 4 % 2],) for i in range(120)]
    alone = tfidf_score(LabelledRows(texts, labels, None, "accuracy"))
    grouped = tfidf_score(LabelledRows(texts, labels, texts, "accuracy"))
    assert alone is not None
    assert grouped is not None
    assert alone.score > 0.95
    assert grouped.score < 0.7


def test_a_probe_and_macro_f1_are_cross_validated() -> None:
    source = random.Random(1)
    labels = [("rare",) if i % 6 == 0 else ("common",) for i in range(120)]
    vectors = [[float(label == ("rare",)) + source.gauss(0, 0.1) for _ in range(100)] for label in labels]
    rows = LabelledRows([""] * 120, labels, None, "macro_f1")
    probe = probe_score(rows, vectors)
    assert probe is not None
    assert probe.score > 0.9 > majority_score(rows)
    assert tfidf_score(rows) is None  # no words


def test_too_few_rows_for_three_folds_are_not_measured() -> None:
    assert tfidf_score(LabelledRows(["one", "two"], [("a",), ("b",)], None, "accuracy")) is None


def test_a_forecast_contains_the_gain_of_every_recorded_run_and_narrows_with_test_rows() -> None:
    cheap = MeasuredScore(0.8, 0.77, 0.83, 700)
    for gain in GAINS.values():
        few, many = (expected_score(cheap, gain, chance=0.5, fragments=0, test_rows=rows) for rows in (100, 2000))
        assert few.low < many.low < 0.8 + 0.2 * gain.low
        assert 0.8 + 0.2 * gain.high < many.high < few.high <= 1
    assert MARGIN > 0


def test_the_sample_keeps_whole_groups(tmp_path: Path) -> None:
    rows = [{"text": "x" * 500, "label": "ab"[i % 2], "source": f"s{i // 5}"} for i in range(2000)]
    seen = inspect_rows(str(write_rows(tmp_path / "rows.jsonl", rows)))
    job = candidates.Job(seen.recipe.objective.bind(seen.examples, "encoder"), seen.examples, 1, 1, 1)
    sample = candidates._sampled(job, 100_000, 600)
    assert sample.groups is not None
    assert len(sample.texts) == 200
    assert all(sample.groups.count(group) == 5 for group in set(sample.groups))


def test_groups_of_very_different_sizes_are_scored_with_the_folds_that_have_rows():
    labels = [("a",), ("b",)] * 60
    groups = ["large"] * 116 + ["x", "x", "y", "z"]
    measured = tfidf_score(LabelledRows([f"text {label[0]}" for label in labels], labels, groups, "accuracy"))
    assert measured is None or measured.rows == 120
