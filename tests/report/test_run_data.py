import pytest

from tests.report.conftest import MakeRun, task_of, with_objective
from tunesmith.errors import CheckpointError, Refused
from tunesmith.objectives import Classify, Instruct
from tunesmith.report.predictions import Prediction, row_scores
from tunesmith.report.run_data import (
    confusion,
    confusions,
    contenders,
    coverage,
    curve,
    groups_to_read,
    label_scores,
    read_run_data,
    reliability,
)
from tunesmith.report.schema import read_report, write_report


def test_a_report_that_could_not_be_read_again_is_not_written(make_run: MakeRun):
    run = make_run()
    report = read_report(run)
    broken = report.model_copy(update={"task": report.task.model_copy(update={"tuned": float("nan")})})
    with pytest.raises(Refused, match=r"report\.json: task\.tuned is not a finite number; tune with a lower"):
        write_report(run, broken)
    write_report(run, report)
    assert read_report(run) == report


def test_rows_are_sorted_into_fixed_broken_and_wrong_in_both(make_run: MakeRun):
    fixed, broken, wrong = groups_to_read(read_run_data(make_run()))
    assert (fixed.total, broken.total, wrong.total) == (3, 1, 1)
    # The surest first, and the later rows are surer here.
    assert [row.question for row in fixed.rows] == ["the hinge is loose", "lovely sound", "it broke at once"]
    assert [row.question for row in wrong.rows] == ["meh"]


def test_scores_between_right_and_wrong_are_sorted_by_how_much_they_changed(make_run: MakeRun):
    rows = [
        ("up", "a b c d", "a x x x", "a b c d"),
        ("down", "a b c d", "a b c d", "x x x x"),
        ("low", "a b c d", "x", "y"),
        ("some", "a b c d", "a b x x", "a b c x"),
    ]
    run = make_run(rows=rows, task=task_of("rouge_l", 0.4, 0.5), objective="instruct")
    with_objective(run, Instruct())
    improved, worsened, weak = groups_to_read(read_run_data(run))
    assert [row.question for row in improved.rows] == ["up", "some"]
    assert [row.question for row in worsened.rows] == ["down"]
    assert weak.rows[0].question == "low"
    assert (improved.total, worsened.total, weak.total) == (2, 1, None)


def test_the_confusion_counts_gold_down_and_answers_across(make_run: MakeRun):
    found = confusion(read_run_data(make_run()))
    assert found is not None
    assert found.labels == ["bad", "good"]
    assert found.base == [[2, 3], [1, 4]]
    assert found.tuned == [[4, 1], [1, 4]]


def test_many_labels_give_a_list_of_confusions_instead_of_a_matrix(make_run: MakeRun):
    rows = [(f"q{n}", f"label {n}", "label 0", f"label {n}" if n < 9 else "label 1") for n in range(12)]
    facts = read_run_data(make_run(rows=rows))
    assert confusion(facts) is None
    assert confusions(facts)[0] == ("label 10", "label 1", 0, 1)
    assert confusions(facts)[3] == ("label 1", "label 0", 1, 0)


def test_labels_are_listed_with_their_f1_the_weakest_first(make_run: MakeRun):
    first, second = label_scores(read_run_data(make_run()))
    # bad: base finds 2 of 5 and says it 3 times, 2*2/8; good: 4 of 5, said 7 times, 2*4/12.
    assert (first.label, first.support, first.base, first.tuned) == ("bad", 5, 0.5, 0.8)
    assert (second.label, second.base) == ("good", pytest.approx(8 / 12))


def test_each_of_several_labels_counts(make_run: MakeRun):
    run = make_run(rows=[("q", "x\ny", "x", "x\ny"), ("r", "y", "", "y\nz")], task=task_of("sample_f1", 0.5, 0.8))
    with_objective(run, Classify(labels=("x", "y", "z"), multi=True, output="linear"))
    facts = read_run_data(run)
    assert {line.label: (line.support, line.base, line.tuned) for line in label_scores(facts)} == {
        "x": (1, 1.0, 1.0),
        "y": (2, 0.0, 1.0),
    }
    assert confusion(facts) is None
    assert confusions(facts) == []


def test_the_tuned_model_comes_last_and_what_it_does_not_beat_is_marked(make_run: MakeRun):
    found = contenders(read_run_data(make_run()))
    assert [(one.name, one.kind, one.not_beaten) for one in found] == [
        ("base", "base", True),
        ("oracle", "baseline", True),
        ("tuned", "tuned", False),
    ]
    low, high = found[-1].ci95 or (0, 0)
    # Wilson's interval of 8 in 10, as in Agresti & Coull's tables.
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)


def test_of_perplexity_less_is_better(make_run: MakeRun):
    from tunesmith.metrics.task_scores import ArmScore

    lines = [ArmScore(name=n, metric="perplexity", score=s, ci95=None, n=10) for n, s in (("base", 20), ("low", 5))]
    found = contenders(read_run_data(make_run(task=task_of("perplexity", 20, 12), baselines=lines)))
    assert [(one.name, one.not_beaten) for one in found] == [("base", False), ("low", True), ("tuned", False)]


def test_reliability_is_taken_over_bins_of_equally_many_rows(make_run: MakeRun):
    # Confidences 0.5, 0.54 ... 0.86; rows 3 and 4 in file order (the third, the fourth) are wrong.
    low, high = reliability(read_run_data(make_run()))
    assert low == (pytest.approx(0.58), pytest.approx(0.6), 5)
    assert high == (pytest.approx(0.78), pytest.approx(1.0), 5)


def test_coverage_goes_from_the_surest_row_to_all_rows(make_run: MakeRun):
    found = coverage(read_run_data(make_run()))
    assert found[0] == (pytest.approx(0.1), 1.0)
    assert found[-1] == (1.0, pytest.approx(0.8))


def test_a_loss_that_is_not_a_number_leaves_a_hole_in_the_curve(make_run: MakeRun):
    run = make_run()
    with (run / "journal.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": NaN}\n{"step": 6, "loss": 0.1}\n')
    assert [step for step, _ in curve(read_run_data(run), "loss")] == [1, 2, 3, 4, 6]


def test_a_faulty_line_of_answers_is_refused_with_its_place(make_run: MakeRun):
    run = make_run()
    with (run / "predictions.jsonl").open("a") as file:
        file.write('{"where": "x"}\n')
    with pytest.raises(CheckpointError, match=r"predictions\.jsonl:11: question: Field required; "):
        read_run_data(run)


def test_a_line_separator_inside_a_text_does_not_end_its_line(make_run: MakeRun):
    run = make_run()
    text = (run / "predictions.jsonl").read_text().replace("dull", "du\u2028ll")
    (run / "predictions.jsonl").write_text(text, encoding="utf-8")
    assert read_run_data(run).predictions[-1].question == "du\u2028ll"


def test_a_score_that_nobody_can_read_off_the_text_is_not_guessed():
    row = Prediction(where="a:1", question="q", gold="", base="", tuned="")
    assert row_scores([row], "perplexity") is None
    told = row.model_copy(update={"score_base": -2.0, "score_tuned": -1.0})
    base, tuned = row_scores([told], "perplexity") or ([], [])
    assert (list(base), list(tuned)) == ([-2.0], [-1.0])
