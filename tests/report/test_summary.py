"""The plain sentences at the head of a report."""

from tests.report.conftest import ROWS, MakeRun, everything
from tunesmith.metrics.task_scores import ArmScore
from tunesmith.report.html import page
from tunesmith.report.model_card import card
from tunesmith.report.run_data import read_run_data
from tunesmith.report.schema import read_report
from tunesmith.report.summary import in_short

MENDED = [(f"row {n}", "good", "bad", "good") for n in range(10)]


def test_rows_are_counted_and_chance_is_named(make_run: MakeRun):
    gain = in_short(read_report(make_run()))[0]
    assert gain == (
        "Of 10 test rows the base answers 6 correctly, the tuned model 8. The test set is too small to rule out chance."
    )
    better = in_short(read_report(make_run("better", rows=MENDED)))[0]
    assert better == "Of 10 test rows the base answers 0 correctly, the tuned model 10. The difference is significant."


def test_what_is_not_beaten_is_named_and_the_base_is_no_rival(make_run: MakeRun):
    assert in_short(read_report(make_run()))[1] == ("Oracle scores higher: 1.000 against 0.800, adjusted p = 1.000.")
    weak = ArmScore(name="shuffled labels", metric="accuracy", score=0.4, ci95=None, n=10, p_adjusted=0.01)
    beaten = read_report(make_run("beaten", baselines=[], controls=[weak]))
    assert in_short(beaten)[1] == "Better than every baseline and control: shuffled labels."
    assert in_short(read_report(make_run("alone", baselines=[])))[1] == "No baseline was evaluated."


def test_what_it_cost_and_how_it_sounds_are_told(make_run: MakeRun):
    *_, cost, sound = in_short(read_report(make_run(**everything())))
    # e^0.1 - 1 = 10.5 %; 30 lost and 10 won: p = 0.002 in the fixture.
    assert cost == (
        "Its perplexity on general text is 10.5\N{NO-BREAK SPACE}% higher than that of the base. "
        "Of 400 general questions, 30 became wrong and 10 became right. This change is significant."
    )
    assert "the base in 97.0\N{NO-BREAK SPACE}% of pairs, that of the tuned model in 61.0" in sound
    assert "was not measured" in in_short(read_report(make_run("bare")))[2]


def test_the_sentences_stand_on_the_page_and_in_the_card(make_run: MakeRun):
    facts = read_run_data(make_run())
    assert len(ROWS) == 10
    for text in (page(facts), card(facts)):
        assert "Of 10 test rows the base answers 6 correctly, the tuned model 8." in text
