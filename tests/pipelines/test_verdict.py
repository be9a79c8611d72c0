"""The one sentence of a run: who was beaten, and what it is called where nobody was."""

from __future__ import annotations

import random

import pytest

from tunesmith.evaluation.perplexity import TokenLikelihood, compare
from tunesmith.metrics.task_scores import ArmScore, TaskScore, arms, as_task, task_score
from tunesmith.pipelines.tune.build_report import verdict
from tunesmith.report.verdicts import is_not_beaten


def answers(right: int, rows: int) -> list[str]:
    """The first `right` rows answered well."""
    return ["yes"] * right + ["no"] * (rows - right)


def told(rows: int, base: int, tuned: int, **right: int) -> tuple[TaskScore, dict[str, ArmScore]]:
    """The headline, and other ways to answer that get so many of the first rows right."""
    gold, best = ["yes"] * rows, answers(tuned, rows)
    task = task_score("accuracy", gold, base=answers(base, rows), tuned=best, name="run", groups=None)
    ways = {"base": answers(base, rows)} | {name: answers(count, rows) for name, count in right.items()}
    return task, {arm.name: arm for arm in arms("accuracy", gold, ways, best, groups=None)}


def sentence(rows: int, base: int, tuned: int, **right: int) -> str:
    """The verdict where arms named control... are controls."""
    task, found = told(rows, base, tuned, **right)
    controls = [arm for name, arm in found.items() if name.startswith("control")]
    return verdict(task, [arm for arm in found.values() if arm not in controls], controls=controls, broken=[])


def test_all_arms_are_one_family_for_holm():
    # 8, 9 and 10 rows better, none worse: p = 2 / 2^8, 2 / 2^9, 2 / 2^10; the least times 3, the next times 2.
    _, found = told(100, 50, 60, tfidf=51, control=52)
    raw = {name: arm.gain.p_value for name, arm in found.items() if arm.gain}
    assert raw == {"base": 2 / 2**10, "tfidf": 2 / 2**9, "control": 2 / 2**8}
    assert {name: arm.p_adjusted for name, arm in found.items()} == pytest.approx(
        {"base": 3 * 2 / 2**10, "tfidf": 2 * 2 / 2**9, "control": 2 / 2**8}
    )


def test_a_result_that_does_not_beat_its_controls_is_called_no_effect():
    assert sentence(100, 50, 70, control=70).startswith(
        "no effect: a control is not beaten: control scores the same: 0.700, adjusted p = 1.000. "
    )
    # Five rows better than the control: p = 2 / 2^5 = 0.0625, and of two tests the larger stays as it is.
    assert sentence(100, 50, 70, control=65).startswith(
        "no effect: a control is not beaten: not significantly better than control: "
        "0.700 against 0.650, adjusted p = 0.062"
    )
    assert sentence(100, 50, 70, control=50).startswith("better: ")


def test_an_adjusted_p_value_can_take_a_control_out_of_reach_of_one_that_was_not():
    # Six rows better: p = 2 / 2^6 = 0.031 alone; with another such arm beside it, 0.0625.
    assert sentence(100, 50, 70, control=64).startswith("better: ")
    assert sentence(100, 50, 70, control_a=64, control_b=64).startswith(
        "no effect: a control is not beaten: not significantly better than control_a"
    )


def test_a_cheap_way_that_does_as_well_makes_it_no_effect_worth_its_cost():
    found = sentence(100, 50, 70, tfidf=71)
    assert found.startswith(
        "no benefit over the baseline: tfidf scores higher: 0.710 against 0.700, adjusted p = 1.000. "
        "Against the base: better: "
    )


def test_a_cheap_way_that_is_barely_beaten_is_named_after_the_result():
    found = sentence(100, 50, 70, tfidf=67)
    assert found.startswith("better: tuned 0.7, base 0.5")
    assert found.endswith("; but not significantly better than tfidf: 0.700 against 0.670, adjusted p = 0.250")


def test_fewer_rows_than_the_difference_needs_are_called_inconclusive():
    # Five of forty rows better: p = 0.0625. A difference of 2 % needs hundreds of rows.
    found = sentence(40, 20, 25)
    assert found.startswith("inconclusive: tuned 0.625, base 0.5, difference +0.125")
    assert "; this test set detects differences of " in found
    needed = int(found.split(", use about ")[1].partition(" test rows")[0].replace(",", ""))
    assert needed > 300


def test_a_run_that_was_not_better_keeps_its_own_word_whatever_the_controls_did():
    assert sentence(100, 70, 50, control=60).startswith("worse: ")


def test_the_base_is_judged_by_the_headline_alone():
    task, found = told(100, 50, 56, tfidf=50, control=50)
    assert task.verdict == "better"
    assert found["base"].p_adjusted > 0.05  # 3 x 2 / 2^6
    assert not is_not_beaten(found["base"], task)
    assert is_not_beaten(found["control"], task)


def on_texts(**scores: float) -> str:
    """The verdict of a run that took a loss from 3 to 2, beside other ways that are not surely beaten."""
    sides = [[TokenLikelihood(nats + i / 10, 10, 0, 0, 0, 0) for i in range(12)] for nats in (29.45, 19.45)]
    task = as_task(compare("nats_per_token", *sides), name="run", metric="nats_per_token")
    assert (task.base, task.tuned, task.verdict) == (pytest.approx(3), pytest.approx(2), "better")
    beside = [
        ArmScore(name=name, metric=task.metric, score=score, ci95=None, n=12, p_adjusted=0.25)
        for name, score in scores.items()
    ]
    return verdict(task, beside, controls=[], broken=[])


def test_a_cheap_way_with_a_smaller_loss_does_as_well_and_one_with_a_larger_does_not():
    assert on_texts(grown=1.5).startswith(
        "no benefit over the baseline: grown scores better: 1.500 against 2.000, adjusted p = 0.250"
    )
    found = on_texts(grown=2.5)
    assert found.startswith("better: ")
    assert found.endswith("; but not significantly better than grown: 2.000 against 2.500, adjusted p = 0.250")


def test_of_several_cheap_ways_the_one_with_the_smallest_loss_is_named():
    assert "baseline: best scores better: 1.200 against" in on_texts(good=1.5, best=1.2, far=2.5)
    assert on_texts(near=2.2, far=2.5).endswith("than near: 2.000 against 2.200, adjusted p = 0.250")


def test_macro_f1_gets_the_same_interval_and_test_as_every_other_metric():
    chance = random.Random(0)
    gold = [chance.choice("abc") for _ in range(60)]
    given = [label if chance.random() < 0.5 else "a" for label in gold]
    (arm,) = arms("macro_f1", gold, {"tfidf": given}, gold, groups=None)
    low, high = arm.ci95
    assert 0 < low < arm.score < high < 1
    assert (arm.gain.test, arm.gain.verdict) == ("paired bootstrap", "better")
