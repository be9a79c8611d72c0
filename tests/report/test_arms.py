"""Raw and adjusted p-values of every way to answer, wherever a report compares several."""

import io

from rich.console import Console

from tests.report.conftest import MakeRun
from tunesmith.metrics.task_scores import ArmScore, arms
from tunesmith.report.html import page
from tunesmith.report.model_card import card
from tunesmith.report.run_data import contenders, read_run_data
from tunesmith.report.schema import read_report
from tunesmith.report.terminal import render

# Ten rows of which tuned gets all right, base none and TF-IDF four: p = 2 / 2^10 and 2 / 2^6.
ROWS = [(f"row {n}", "good", "bad", "good") for n in range(10)]
WAYS = {"base": ["bad"] * 10, "TF-IDF": ["good"] * 4 + ["bad"] * 6}


def compared() -> list[ArmScore]:
    return arms("accuracy", ["good"] * 10, WAYS, ["good"] * 10, groups=None)


def test_the_adjusted_p_value_stands_beside_the_raw_one_everywhere(make_run: MakeRun):
    run = make_run(rows=ROWS, baselines=compared())
    facts = read_run_data(run)
    screen = io.StringIO()
    for part in render(read_report(run), run):
        Console(file=screen, width=100).print(part)
    for text in (page(facts), card(facts), screen.getvalue()):
        line = text[text.rindex("TF-IDF") :][:400]
        assert line.index("0.031") < line.index("0.031", line.index("0.031") + 1)  # the largest p stays as it is
        base = text[text.rindex("base", 0, text.rindex("TF-IDF")) :][:400]
        assert base.index("0.002") < base.index("0.004")  # 2 tests x 2 / 2^10
        assert "2 tests" in text


def test_an_arm_that_is_barely_beaten_is_marked_by_its_adjusted_p_value(make_run: MakeRun):
    sure = {"base": ["bad"] * 10, "close": ["good"] * 5 + ["bad"] * 5}  # close: p = 2 / 2^5 = 0.0625
    facts = read_run_data(
        make_run(rows=ROWS, baselines=arms("accuracy", ["good"] * 10, sure, ["good"] * 10, groups=None))
    )
    assert {one.name: one.not_beaten for one in contenders(facts)} == {"base": False, "close": True, "tuned": False}


def test_a_report_of_an_older_version_is_judged_by_the_scores_alone(make_run: MakeRun):
    old = [ArmScore(name="base", metric="accuracy", score=0.6, ci95=None, n=10)]
    old += [ArmScore(name="close", metric="accuracy", score=0.79, ci95=None, n=10)]
    facts = read_run_data(make_run(baselines=old))
    assert [one.name for one in contenders(facts) if one.not_beaten] == ["base"]  # by the headline's own test
    assert "Holm" not in page(facts)
