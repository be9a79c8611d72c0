import math

import numpy as np
import pytest

from tunesmith.errors import DataError
from tunesmith.metrics import scores as metrics
from tunesmith.metrics.task_scores import PER_ROW, first_of

GOLD = ["yes", "yes", "yes", "no", "no", "maybe"]
GIVEN = ["yes", "yes", "no", "no", "yes", "no"]


def test_accuracy_is_one_for_each_label_given_letter_for_letter():
    assert metrics.accuracy(["Yes", "no"], ["yes", "no"]).tolist() == [0.0, 1.0]


def test_macro_f1_is_the_plain_mean_over_the_gold_labels():
    assert metrics.macro_f1(GOLD, GIVEN) == pytest.approx((0 + 2 / 5 + 4 / 6) / 3)


def test_macro_f1_is_that_of_scikit_learn_where_no_label_is_made_up():
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(0)
    gold, given = (rng.choice(["a", "b", "c"], 50).tolist() for _ in range(2))
    assert metrics.macro_f1(gold, given) == pytest.approx(f1_score(gold, given, average="macro"))


def test_ten_made_up_labels_cost_no_more_than_one_made_up_label():
    gold = ["a"] * 10 + ["b"] * 10
    one, ten = (["?"] * 10 + ["b"] * 10, [f"?{i}" for i in range(10)] + ["b"] * 10)
    assert metrics.macro_f1(gold, one) == metrics.macro_f1(gold, ten) == 0.5


def test_macro_f1_of_drawn_rows_is_macro_f1_of_those_rows():
    rows = np.array([0, 0, 3, 4, 5, 5])
    drawn = [[side[i] for i in rows] for side in (GOLD, GIVEN)]
    base, tuned = metrics.macro_f1_pair(GOLD, GIVEN, GOLD)(rows)
    assert base == pytest.approx(metrics.macro_f1(*drawn))
    assert tuned == 1.0


def test_multilabel_f1_scores_sets_of_labels_row_by_row():
    scores = metrics.multilabel_f1([("a", "b"), (), ("c",)], [("b", "a"), (), ("c", "d")])
    assert scores.tolist() == pytest.approx([1.0, 1.0, 2 / 3])


def test_exact_match_forgets_case_punctuation_articles_and_spaces():
    gold = ["The Eiffel Tower", "Straße", "42", "+"]
    assert metrics.exact_match(gold, ["eiffel  tower.", "STRASSE", "43", "-"]).tolist() == [1, 1, 0, 0]


def test_an_empty_answer_matches_nothing_but_an_empty_one():
    assert metrics.exact_match(["the", ""], ["", ""]).tolist() == [0, 1]
    assert metrics.token_f1(["the", ""], ["", ""]).tolist() == [0, 1]


def test_token_f1_shares_words_counted_with_repeats():
    # gold red red car, given red car car: two words in common of three each
    assert metrics.token_f1(["a red red car"], ["the red car, car"]).tolist() == pytest.approx([2 / 3])


# Values of rouge-score 0.1.2, RougeScorer(["rougeL"], use_stemmer=False).
REFERENCE = [
    ("The quick brown fox jumps over the lazy dog.", "A quick dog jumps over a lazy brown fox!", 0.444444),
    ("state-of-the-art GPU_driver 2.0 for X11", "driver for the X11 GPU, state of the art (2.0)", 0.571429),
    ("one", "two", 0.0),
    ("to be or not to be", "to be to be to be not or", 0.571429),
]


@pytest.mark.parametrize(("gold", "given", "wanted"), REFERENCE)
def test_rouge_has_the_values_of_the_reference_program(gold, given, wanted):
    assert metrics.rouge_l([gold], [given]).tolist() == pytest.approx([wanted], abs=1e-6)


def test_rouge_keeps_accented_letters_inside_words():
    # die große größe of four and three words: two in order, were "ö" a break there would be more
    assert metrics.rouge_l(["die große größe"], ["Die große Straße"]).tolist() == pytest.approx([2 / 3])


def test_rouge_of_a_long_text_takes_no_time():
    text = " ".join(str(i % 997) for i in range(20_000))
    assert metrics.rouge_l([text], [text]).tolist() == [1.0]


def test_chrf_and_bleu_are_those_of_sacrebleu():
    import sacrebleu

    gold, given = ["the cat sat on the mat", "it rains today"], ["the cat sat on a mat", "it is raining"]
    wanted = [sacrebleu.sentence_chrf(h, [g]).score for g, h in zip(gold, given, strict=True)]
    assert metrics.chrf(gold, given).tolist() == pytest.approx(wanted)
    assert metrics.corpus_bleu(gold, given) == pytest.approx(sacrebleu.corpus_bleu(given, [gold]).score)


def test_bleu_of_drawn_rows_is_bleu_of_those_rows():
    gold = ["the cat sat on the mat", "a small tool to copy files", "it rains"]
    given = ["the cat sat on a mat", "small tool to copy files", "it is raining"]
    rows = np.array([2, 0, 0])
    base, tuned = metrics.corpus_bleu_pair(gold, given, gold)(rows)
    assert base == pytest.approx(metrics.corpus_bleu([gold[i] for i in rows], [given[i] for i in rows]))
    assert tuned == pytest.approx(100.0)
    assert math.isclose(metrics.corpus_bleu(gold, given), metrics.corpus_bleu_pair(gold, given, gold)(np.arange(3))[0])


def test_a_test_set_without_rows_is_refused():
    with pytest.raises(DataError, match="no rows"):
        metrics.accuracy([], [])


def test_sides_of_different_length_are_a_bug():
    with pytest.raises(ValueError, match="2 references for 1 answers"):
        metrics.rouge_l(["a", "b"], ["a"])


def test_macro_f1_of_answers_that_all_differ_needs_no_table_of_them():
    gold = ["a", "b"] * 1500
    given = [gold[i] if i % 3 else f"free text {i}" for i in range(3000)]
    # 2,000 of 3,000 are right and nothing else names a label: F1 = 2 x 2/3 / (1 + 2/3) for either
    assert metrics.macro_f1(gold, given) == pytest.approx(0.8)
    pair = metrics.macro_f1_pair(gold, given, gold)
    assert [pair(np.arange(size))[0] for size in (3000, 30)] == [pytest.approx(0.8)] * 2


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("3.5", "35", 0),
        ("3.5", "3.5", 1),
        ("-5", "5", 0),
        ("-5", "\N{MINUS SIGN}5", 1),
        ("1,234,567", "1234567", 1),
        ("1,5", "15", 0),
        ("1,5", "1.5", 1),
        (".5", "5", 0),
        (".5", "0.5", 1),
        ("-$5", "$5", 0),
        ("01.02.2020", "01/02/2020", 1),
        ("0,125", "0.125", 1),
        ("in 2023.", "2023", 1),
        ("well-known", "wellknown", 1),
        ("2020-01", "2020/01", 1),
        ("1.11.2020", "11.1.2020", 0),
        ("It needs 11.0.0 or later.", "1.10.0", 0),
        ("since 1.10.0", "10", 0),
        ("10.1.1.1", "101.1.1", 0),
        ("1.234.567", "1234567", 1),
        ("Es sind 1.234.567.", "1.234.567", 1),
        ("1.234.567,89", "1234567.89", 1),
        ("3\N{MULTIPLICATION SIGN}4", "3\N{DIVISION SIGN}4", 0),
        ("1'000", "1000", 1),
        ("3-5", "35", 0),
        ("3\N{EN DASH}5 days", "3-5", 1),
    ],
)
def test_a_mark_that_makes_another_number_of_it_counts(answer: str, gold: str, right: int):
    assert metrics.contains([gold], [answer]).tolist() == [right]


ACCEPTED = [("Paris", "Paris, France"), "a dog", ("no", "never", "not at all")]
TRIES = ["paris france", "the dog", "not at all today"]


@pytest.mark.parametrize("name", ["exact_match", "token_f1", "rouge_l", "contains", "chrf"])
def test_of_several_accepted_answers_the_best_counts(name: str):
    rows = [(one,) if isinstance(one, str) else one for one in ACCEPTED]
    alone = [max(PER_ROW[name]([r], [a])[0] for r in row) for row, a in zip(rows, TRIES, strict=True)]
    assert PER_ROW[name](ACCEPTED, TRIES).tolist() == alone
    assert PER_ROW[name](first_of(ACCEPTED), TRIES).tolist() != alone


def test_chrf_and_bleu_with_several_references_are_those_of_sacrebleu():
    from sacrebleu.metrics import BLEU, CHRF

    rows = [[one] if isinstance(one, str) else list(one) for one in ACCEPTED]
    expected = [CHRF().sentence_score(a, row).score for a, row in zip(TRIES, rows, strict=True)]
    assert PER_ROW["chrf"](ACCEPTED, TRIES).tolist() == pytest.approx(expected)
    streams = [["Paris", "a dog", "no"], ["Paris, France", None, "never"], [None, None, "not at all"]]
    bleu = BLEU().corpus_score(TRIES, streams).score
    assert metrics.corpus_bleu(ACCEPTED, TRIES) == pytest.approx(bleu)
    assert metrics.corpus_bleu_pair(ACCEPTED, TRIES, TRIES)(np.arange(3))[0] == pytest.approx(bleu)
    assert metrics.corpus_bleu(["a b c d e"], ["a b c d e"]) == pytest.approx(100)


ONE, TWO = (f'<tool_call>{{"name": "{name}", "arguments": {{"a": 1}}}}</tool_call>' for name in "fg")


@pytest.mark.parametrize(
    ("reference", "answer", "outcome"),
    [
        (ONE, f"Wait. {ONE}", "exact"),
        ("Hello.", "Hi!", "exact"),
        (ONE, ONE[:-14], "unparsed"),
        ("Hello.", ONE[:-14], "unparsed"),
        (ONE + TWO, f"{ONE}<tool_call>", "unparsed"),
        (ONE, "It is 1.", "missing"),
        ("Hello.", ONE, "not due"),
        (ONE + TWO, ONE, "number"),
        (ONE, ONE + ONE, "number"),
        (ONE, TWO, "name"),
        (ONE + TWO, TWO + ONE, "name"),
        (ONE, ONE.replace("1", '"1"'), "arguments"),
        ('{"name": ', '{"name": ', "exact"),  # an answer about JSON, which the reference gives too
    ],
)
def test_what_became_of_a_call_has_one_name_and_only_exact_scores(reference: str, answer: str, outcome: str):
    assert metrics.call_outcome(reference, answer) == outcome
    assert metrics.tool_calls([reference], [answer]).tolist() == [float(outcome == "exact")]
