from tests.report.conftest import MakeRun
from tunesmith.metrics.task_scores import ArmScore
from tunesmith.report.schema import Report, read_report
from tunesmith.report.verdicts import status

# Ten rows, all mended: p = 2 / 1024.
MENDED = [(f"row {n}", "good", "bad", "good") for n in range(10)]


def won(make_run: MakeRun, **changes) -> Report:
    return read_report(make_run(rows=MENDED, **{"baselines": [], **changes}))


def test_a_better_model_that_nothing_cheap_reaches_looks_good(make_run: MakeRun):
    assert status(won(make_run)) == "good"


def test_a_control_that_does_as_well_takes_the_shine_off(make_run: MakeRun):
    control = ArmScore(name="shuffled labels", metric="accuracy", score=1.0, ci95=None, n=10)
    assert status(won(make_run, controls=[control])) == "unsure"
    other = control.model_copy(update={"metric": "macro_f1"})
    assert status(won(lambda **found: make_run("again", **found), controls=[other])) == "good"


def test_a_broken_gate_looks_bad_whatever_was_won(make_run: MakeRun):
    assert status(won(make_run, broken_gates=["max_general_nats: ..."])) == "bad"


def test_too_few_rows_to_tell_looks_unsure(make_run: MakeRun):
    assert status(read_report(make_run())) == "unsure"
