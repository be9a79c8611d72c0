import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.report.conftest import ROWS, SHA, MakeRun, report_of, task_of
from tunesmith.config import Data, Recipe, load_recipe, save_recipe
from tunesmith.errors import CheckpointError
from tunesmith.evaluation.results import ScoredRows
from tunesmith.metrics.resampling import ALPHA, STAGES, groups_of
from tunesmith.objectives import Rl
from tunesmith.report.predictions import Prediction
from tunesmith.report.run_diff import RunDiff, diff_runs, lines, pair_with_base
from tunesmith.report.schema import DataReport


def other_hash() -> DataReport:
    known = report_of(ROWS, "x", {}).data
    return known.model_copy(update={"sha256": {**SHA, "test": "d" * 64}})


def flipped(*numbers: int) -> list[tuple[str, ...]]:
    """The rows with another answer of the tuned model in these places."""
    other = {"good": "bad", "bad": "good"}
    return [(*row[:3], other[row[3]] if n in numbers else row[3]) for n, row in enumerate(ROWS)]


def test_identical_runs_differ_in_nothing(make_run: MakeRun):
    found = diff_runs(make_run("a"), make_run("b"))
    assert found.changed == ()
    assert found.delta == 0
    assert found.p_value == 1
    assert found.settings == ()
    assert "0 answers differ" in found.sentence


def test_each_changed_answer_is_told_with_who_was_right(make_run: MakeRun):
    # Row 2 is mended, rows 0 and 1 are broken: 8 of 10 become 7.
    found = diff_runs(make_run("a"), make_run("b", rows=flipped(0, 1, 2)))
    assert [(row.where, row.better) for row in found.changed] == [
        ("reviews.jsonl:1", "a"),
        ("reviews.jsonl:2", "a"),
        ("reviews.jsonl:3", "b"),
    ]
    assert found.score_a == pytest.approx(0.8)
    assert found.delta == pytest.approx(-0.1)
    # McNemar with one row against two: 2 * (1 + 3) / 8, at most 1.
    assert found.p_value == pytest.approx(1)
    assert "3 answers differ, 1 for the better, 2 for the worse" in found.sentence


def test_a_run_stands_beside_its_own_base_row_by_row(make_run: MakeRun):
    pairs = pair_with_base(make_run("a"))
    assert pairs.metric == "accuracy"
    assert list(pairs.base) == [float(row[2] == row[1]) for row in ROWS]
    assert list(pairs.tuned) == [float(row[3] == row[1]) for row in ROWS]
    assert len(pairs.rows) == len(ROWS)


def test_a_run_whose_answers_are_gone_is_told_so(make_run: MakeRun):
    run = make_run("a")
    (run / "predictions.jsonl").unlink()
    with pytest.raises(CheckpointError, match=r"a: predictions\.jsonl is missing or empty; tune the run again"):
        pair_with_base(run)


def test_a_run_that_mends_enough_rows_is_better(make_run: MakeRun):
    rows = [(f"row {n}", "good", "bad", "bad") for n in range(10)]
    better = [(*row[:3], "good") for row in rows]
    found = diff_runs(make_run("a", rows=rows), make_run("b", rows=better))
    # Ten rows all one way: 2 / 2**10.
    assert found.p_value == pytest.approx(2 / 1024)
    assert found.sentence.startswith("b is better: accuracy 0.000 of a, 1.000 of b, difference +1.000")


@pytest.mark.parametrize(
    ("level", "base", "bias"),
    [
        (STAGES[0.5], "bad", "; b stopped scoring early, so the difference is biased in its favor"),
        (STAGES[0.5], "good", "; b stopped scoring early, so the difference is biased against it"),
        (STAGES[1.0], "bad", "for the worse"),
        (ALPHA, "bad", "for the worse"),
    ],
)
def test_a_run_that_stopped_early_is_marked(level: float, base: str, bias: str, make_run: MakeRun):
    rows = [(f"row {n}", "good", base, "good" if base == "bad" else "bad") for n in range(10)]
    extent = ScoredRows(scored=10, available=40, detectable=0.2, questions=0, level=level, sentence="10 of 40")
    found = diff_runs(make_run("a", rows=rows), make_run("b", rows=rows, scored_rows=extent))
    assert found.sentence.endswith(bias)
    assert found.sentence in lines(found)


def test_runs_on_other_test_rows_are_refused(make_run: MakeRun):
    with pytest.raises(
        CheckpointError, match=r"b: scored on other test rows than .*a \(sha256 dddddddd, not cccccccc\)"
    ):
        diff_runs(make_run("a"), make_run("b", data=other_hash()))


def test_a_run_without_its_answers_is_refused(make_run: MakeRun):
    first, second = make_run("a"), make_run("b")
    (second / "predictions.jsonl").unlink()
    with pytest.raises(CheckpointError, match=r"b: predictions\.jsonl is missing"):
        diff_runs(first, second)


def test_the_order_of_the_rows_does_not_matter(make_run: MakeRun):
    assert diff_runs(make_run("a"), make_run("b", rows=ROWS[::-1])).changed == ()


def test_settings_that_differ_are_told_by_their_keys(make_run: MakeRun):
    first, second = make_run("a"), make_run("b")
    recipe = (second / "recipe.yaml").read_text().replace("rank: 16", "rank: 4").replace("threads: 0", "threads: 2")
    (second / "recipe.yaml").write_text(recipe)
    assert diff_runs(first, second).settings == (("technique.rank", "16", "4"),)


def test_scores_that_a_run_states_itself_are_compared_as_they_are(make_run: MakeRun):
    first, second = make_run("a"), make_run("b")
    for run, value in ((first, -2.0), (second, -1.5)):
        path = run / "predictions.jsonl"
        told = [json.loads(line) | {"score_base": -9, "score_tuned": value} for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(line) + "\n" for line in told))
    found = diff_runs(first, second)
    assert (found.metric, found.score_a, found.delta) == ("row_score", -2.0, 0.5)
    assert (found.changed[0].a, found.changed[0].b) == (f"{ROWS[0][3]} (−2.000)", f"{ROWS[0][3]} (−1.500)")


def test_a_score_that_one_run_alone_states_is_left_and_the_answers_are_compared(make_run: MakeRun):
    first, second = make_run("a"), make_run("b", rows=flipped(0))
    path = second / "predictions.jsonl"
    told = [json.loads(line) | {"score_base": 0.1, "score_tuned": 0.2} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in told))
    found = diff_runs(first, second)
    assert (found.metric, found.delta) == ("accuracy", pytest.approx(-0.1))


def stating(run: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """The run with these parts in its rows."""
    path = run / "predictions.jsonl"
    told = [json.loads(line) | dict(row) for line, row in zip(path.read_text().splitlines(), rows, strict=True)]
    path.write_text("".join(json.dumps(line) + "\n" for line in told))
    return run


def test_thumbs_are_compared_by_how_often_a_good_answer_is_ahead_of_a_bad_one(make_run: MakeRun):
    """b finds every answer less likely; by the mean of scores with the sign turned for bad ones it would be ahead."""
    good = [n % 5 == 0 for n in range(len(ROWS))]
    sides = {"a": [-1.0 if one else -2.0 for one in good], "b": [-9.0 if one else -5.0 for one in good]}
    task = task_of("thumbs_auc", 0.5, 0.5)
    runs = [
        stating(
            make_run(name, task=task, tasks=[task]),
            [
                {"gold": "good" if one else "bad", "score_base": 0.0, "score_tuned": value if one else -value}
                for one, value in zip(good, values, strict=True)
            ],
        )
        for name, values in sides.items()
    ]
    found = diff_runs(*runs)
    assert (found.metric, found.score_a, found.score_b) == ("thumbs_auc", 1.0, 0.0)


def test_scores_that_are_measured_otherwise_are_refused(make_run: MakeRun):
    def with_tokens(name: str, tokens: int, metric: str = "perplexity", model: str = "smollm2-135m") -> Path:
        task = task_of(metric, 9.0, 8.0)
        row = {"score_base": -2.0, "score_tuned": -1.5, "counts": {"tuned": {"tokens": tokens}}}
        run = stating(make_run(name, task=task, tasks=[task]), [row] * len(ROWS))
        save_recipe(load_recipe(run / "recipe.yaml", changes=[f"model={model}"])[0], run / "recipe.yaml")
        return run

    a = with_tokens("a", 10)
    assert diff_runs(a, with_tokens("same", 10)).delta == 0
    with pytest.raises(CheckpointError, match="finer: texts are tokenized differently than in .*a; tune both"):
        diff_runs(a, with_tokens("finer", 15, model="other/model"))
    assert diff_runs(a, with_tokens("virtual", 9)).delta == 0  # virtual tokens leave rows of one model less room
    with pytest.raises(CheckpointError, match=r"row scores are another metric \(masked loss, not perplexity\)"):
        diff_runs(a, with_tokens("masked", 10, "masked_loss"))


def test_rewards_that_are_weighed_otherwise_are_refused(make_run: MakeRun):
    runs = [stating(make_run(name), [{"score_base": 0.1, "score_tuned": 0.2}] * len(ROWS)) for name in "ab"]

    def rewarded(*rewards: str | dict[str, float]) -> RunDiff:
        for run, reward in zip(runs, rewards, strict=True):
            objective = Rl(prompt="q", answer="a", reward=reward)
            save_recipe(Recipe(data=Data(train="r.jsonl"), objective=objective), run / "recipe.yaml")
        return diff_runs(*runs)

    assert rewarded("rules.py:score", {"rules.py:score": 1.0}).delta == 0
    for other in ({"rules.py:score": 2.0}, "rules.py:other"):
        with pytest.raises(CheckpointError, match="completions have another reward than in"):
            rewarded("rules.py:score", other)


def test_the_lines_are_for_people_and_cannot_drive_the_terminal(make_run: MakeRun):
    rows = [("a\x1b[31mb", *row[1:]) for row in flipped(0)]
    told = lines(diff_runs(make_run("a", rows=[("a\x1b[31mb", *row[1:]) for row in ROWS]), make_run("b", rows=rows)))
    assert told[2].startswith("inconclusive: accuracy 0.800 of a, 0.700 of b")
    assert "right or better only in a: 1 rows" in told
    assert not any("\x1b" in line for line in told)


def test_rows_without_a_group_are_each_alone_and_not_together_in_one():
    rows = [
        Prediction(where=f"r:{i}", group="a" if i < 2 else "", question="q", gold="g", base="g", tuned="g")
        for i in range(4)
    ]
    found = groups_of(rows)
    assert found is not None
    assert found[:2] == ["a", "a"]
    assert len(set(found)) == 3
    assert groups_of(rows[2:]) is None
