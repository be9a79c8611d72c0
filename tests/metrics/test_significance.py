import math

import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import beta, binom

from tunesmith.errors import DataError
from tunesmith.metrics import significance
from tunesmith.metrics.resampling import ALPHA, STAGES, at_level, bootstrap_p, percentiles
from tunesmith.metrics.scores import accuracy, macro_f1_pair
from tunesmith.metrics.significance import (
    compare_paired,
    compare_to_margin,
    corpus_compare,
    holm,
    interval,
    smallest_margin,
)
from tunesmith.metrics.task_scores import redrawn, score

SEEDS = range(24)
QUICK = 400


def answers(seed: int, *, n: int = 120, right: float = 0.7) -> tuple[list[str], list[str], list[str]]:
    """Gold labels and two models that are right equally often."""
    rng = np.random.default_rng(seed)
    gold = rng.choice(["a", "b", "c"], n)
    sides = [np.where(rng.random(n) < right, gold, rng.choice(["a", "b", "c"], n)) for _ in range(2)]
    return gold.tolist(), sides[0].tolist(), sides[1].tolist()


def clustered(seed: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """20 documents of 10 rows; each document suits one model or the other, neither is better."""
    rng = np.random.default_rng(seed)
    tilt = np.repeat(rng.normal(size=20), 10)
    base, tuned = ((rng.normal(size=200) + sign * tilt > 0).astype(float) for sign in (1, -1))
    return base, tuned, [f"doc {i // 10}" for i in range(200)]


def test_eight_rows_better_and_one_worse_is_mcnemar_by_hand():
    base = np.array([0.0] * 8 + [1.0] * 12)
    tuned = np.array([1.0] * 8 + [0.0] + [1.0] * 11)
    found = compare_paired(base, tuned)
    assert (found.base, found.tuned, found.n, found.clusters) == (0.6, 0.95, 20, 20)
    assert found.delta == pytest.approx(7 / 20)
    assert found.p_value == pytest.approx(20 / 512)
    assert found.test == "McNemar, exact"
    assert found.verdict == "better"
    assert 0 < found.ci95[0] < 7 / 20 < found.ci95[1]


@pytest.mark.parametrize(
    ("rows", "verdict", "reach"), [(3, "inconclusive", 0.56), (60, "inconclusive", 0.06), (300, "no effect", 0.013)]
)
def test_models_that_score_alike_have_no_effect_where_so_many_rows_would_show_one(
    rows: int, verdict: str, reach: float
):
    gold, base, _ = answers(0, n=rows)
    scores = accuracy(gold, base)
    for found in (compare_paired(scores, scores), significance.compare_macro_f1(gold, base, base)):
        assert (found.delta, found.p_value, found.verdict) == (0, 1, verdict)
        assert found.ci95 == (-found.ci95[1], pytest.approx(reach, abs=0.005))  # of nothing in so many rows


def test_models_that_score_alike_are_as_sure_as_their_groups_are_many():
    scores = np.array([0.0, 1.0] * 200)
    found = compare_paired(scores, scores, groups=[str(i // 40) for i in range(400)])
    assert found.ci95 == (-found.ci95[1], pytest.approx(0.278, abs=0.001))


def test_four_rows_that_all_go_one_way_are_no_proof_by_macro_f1_either():
    gold = ["a", "b"] * 30
    base = [*(["b", "a"] * 2), *gold[4:]]
    found = significance.compare_macro_f1(gold, base, gold)
    assert (found.p_value, found.verdict) == (2 / 2**4, "inconclusive")
    assert found.ci95[0] == 0.0


def test_no_difference_of_shares_is_thought_to_go_beyond_one():
    base, tuned, groups = np.zeros(10), np.ones(10), ["a", "b"] * 5
    tuned[1::2] = 0.4
    assert compare_paired(base, tuned, groups=groups).ci95 == (-1.0, 1.0)


@pytest.mark.parametrize("level", [ALPHA, *STAGES.values()])
@pytest.mark.parametrize("metric", ["rouge_l", "macro_f1", "macro_f1 by group"])
def test_no_stage_asks_for_a_smaller_p_value_than_the_resamples_have(level: float, metric: str):
    gold, wrong = ["a", "b"] * 60, ["b", "a"] * 60
    base = [*wrong[:110], *gold[110:]]
    groups = [str(row // 10) for row in range(120)] if metric.endswith("group") else None  # 12
    with at_level(level):
        if metric == "rouge_l":
            scores = np.random.default_rng(0).random((2, 120)) / 5 + [[0.2], [0.7]]
            found = compare_paired(*scores)
        else:
            found = significance.compare_macro_f1(gold, base, gold, groups=groups)
    assert (found.verdict, found.ci95[0] > 0) == ("better", True)


def test_the_interval_at_a_low_level_is_at_least_as_wide_as_students():
    resampled = np.random.default_rng(0).normal(1.0, 1 / 4, 10_000)
    with at_level(0.0000147):  # two-sided, 4.33 standard errors
        low, high = percentiles(resampled, 10_000)
        assert (1 - low, high - 1) == pytest.approx((4.33 / 4, 4.33 / 4), rel=0.02)
        assert bootstrap_p(resampled + 0.5, 10_000) == pytest.approx(2 * ndtr(-4 * 1.5), rel=0.3)


def test_rows_that_all_change_are_never_without_effect():
    base, tuned, groups = np.zeros(400), np.ones(400), [str(row // 50) for row in range(400)]
    with at_level(STAGES[0.5]):
        found = compare_paired(base, tuned, groups=groups)  # eight groups: p = 2 / 2**8, above the level
    assert (found.verdict, found.p_value) == ("inconclusive", pytest.approx(2 / 2**8 * ALPHA / STAGES[0.5]))


def test_shuffled_labels_are_rarely_called_a_difference():
    hits = 0
    for seed in SEEDS:
        gold, base, _ = answers(seed)
        shuffled = np.random.default_rng(seed).permutation(gold).tolist()
        found = compare_paired(accuracy(shuffled, base), accuracy(shuffled, gold), resamples=QUICK)
        hits += found.p_value < 0.05
    assert hits <= 3


def test_macro_f1_of_equal_models_is_rarely_called_a_difference():
    moved = [True] * 120
    found = [corpus_compare(macro_f1_pair(*answers(s)), moved, seed=s, resamples=QUICK) for s in SEEDS]
    assert sum(c.p_value < 0.05 for c in found) <= 3


def test_real_valued_scores_of_equal_models_are_rarely_called_a_difference():
    rng = np.random.default_rng(0)
    found = [compare_paired(*rng.gamma(1.0, size=(2, 60)), seed=s, resamples=QUICK) for s in SEEDS]
    assert sum(c.p_value < 0.05 for c in found) <= 3


def test_groups_keep_the_level_where_rows_taken_alone_do_not():
    alone = within = 0
    for seed in SEEDS:
        base, tuned, groups = clustered(seed)
        alone += compare_paired(base, tuned, resamples=QUICK).p_value < 0.05
        within += compare_paired(base, tuned, groups=groups, resamples=QUICK).p_value < 0.05
    assert within <= 3 < 8 < alone


def test_macro_f1_by_group_keeps_the_level_too():
    hits = 0
    for seed in SEEDS:
        base, tuned, groups = clustered(seed)
        gold = np.random.default_rng(seed).choice(["a", "b"], 200)
        other = np.where(gold == "a", "b", "a")
        sides = [np.where(right == 1, gold, other).tolist() for right in (base, tuned)]
        pair = macro_f1_pair(gold.tolist(), *sides)
        hits += corpus_compare(pair, list(base != tuned), groups=groups, seed=seed, resamples=QUICK).p_value < 0.05
    assert hits <= 3


def test_groups_of_one_row_each_are_no_groups():
    base, tuned, _ = clustered(0)
    single = compare_paired(base, tuned, groups=[str(i) for i in range(200)])
    assert single == compare_paired(base, tuned)


def test_the_order_of_base_and_tuned_turns_the_verdict():
    rng = np.random.default_rng(0)
    low = rng.normal(size=80)
    high = low + 0.5 + 0.1 * rng.normal(size=80)
    up, down = compare_paired(low, high), compare_paired(high, low)
    assert (up.verdict, down.verdict) == ("better", "worse")
    assert up.delta == pytest.approx(-down.delta)
    assert up.p_value == down.p_value == 1 / 10_001


@pytest.mark.parametrize(("n", "points"), [(100, 0.125), (500, 0.056), (1000, 0.040)])
def test_smallest_detectable_difference_at_a_fifth_discordant(n, points):
    # (1.96 + 0.84) * sqrt(0.2 / n)
    base, tuned = np.zeros(n), np.zeros(n)
    tuned[: n // 10] = 1
    base[n // 10 : n // 5] = 1
    assert compare_paired(base, tuned).smallest_detectable == pytest.approx(points, abs=0.002)


def test_a_difference_of_the_smallest_detectable_size_is_found_four_times_in_five():
    rng, hits, n = np.random.default_rng(0), 0, 200
    for seed in range(100):
        noise = rng.normal(size=n)
        size = (1.96 + 0.84) / math.sqrt(n)
        hits += compare_paired(np.zeros(n), noise + size, seed=seed, resamples=QUICK).p_value < 0.05
    assert 70 <= hits <= 90


def test_the_smallest_detectable_difference_does_not_grow_with_the_gain():
    noise = np.random.default_rng(0).normal(size=200)
    small, large = (compare_paired(np.zeros(200), noise + gain, resamples=QUICK) for gain in (0.5, 5.0))
    assert (small.verdict, large.verdict) == ("better", "better")
    assert small.smallest_detectable == pytest.approx(large.smallest_detectable)
    assert small.smallest_detectable == pytest.approx((1.97 + 0.84) * noise.std() / math.sqrt(200), rel=0.01)


def test_too_few_rows_are_inconclusive_and_the_sentence_says_how_many_would_do():
    base, tuned = np.zeros(100), np.zeros(100)
    tuned[:10] = 1
    base[10:20] = 1
    found = compare_paired(base, tuned)
    assert (found.verdict, found.p_value) == ("inconclusive", 1)
    # ((1.98 + 0.845) / 0.02)**2 * 0.2, Student's quantiles at 99 degrees
    assert found.rows_needed == pytest.approx(4000, rel=0.02)
    assert f"to detect a difference of 0.02, use about {found.rows_needed:,} test rows" in found.sentence
    few = compare_paired([0.0, 0.5, 0.0, 0.1], [0.1, 0.6, 0.3, 0.1])
    assert "; a test needs at least 6 groups; to detect a difference of 0.02, use about " in few.sentence


def test_a_base_without_errors_is_not_said_to_need_more_rows():
    found = compare_paired(np.ones(40), np.ones(40))
    assert found.verdict == "inconclusive"
    assert found.sentence.endswith(
        "the base already has the highest score, which more such rows cannot raise; use harder rows"
    )
    assert "test rows" not in found.sentence
    assert "about" in compare_paired(np.zeros(40), np.zeros(40)).sentence


def test_one_changed_row_in_fifty_does_not_measure_to_a_hair():
    base, tuned = np.zeros(50), np.zeros(50)
    tuned[0] = 1
    found = compare_paired(base, tuned)
    # six rows at least must change, all one way
    assert (found.verdict, found.smallest_detectable) == ("inconclusive", 6 / 50)
    # ((1.97 + 0.84) / 0.02)**2 * 0.02: quantiles of 394 degrees
    assert found.rows_needed == 395


def test_enough_rows_without_a_difference_are_no_effect():
    base, tuned = np.zeros(5000), np.zeros(5000)
    tuned[:50] = 1
    base[50:100] = 1
    assert compare_paired(base, tuned).verdict == "no effect"


def test_the_interval_reaches_zero_where_the_test_does_not_reject():
    # five changes, all better: p = 2 / 2**5, yet no resample falls below 0
    base, tuned = np.zeros(30), np.zeros(30)
    tuned[:5] = 1
    found = compare_paired(base, tuned)
    assert found.p_value == pytest.approx(1 / 16)
    assert found.ci95[0] == 0


def test_one_group_alone_tells_nothing():
    found = compare_paired(np.zeros(30), np.ones(30), groups=["x"] * 30)
    assert (found.p_value, found.verdict, found.ci95) == (1, "inconclusive", (-1, 1))
    lone = significance.compare_macro_f1(["a", "b"], ["a", "a"], ["a", "b"], groups=["x", "x"])
    assert (lone.p_value, lone.ci95) == (1, (-1, 1))


def test_a_clear_gain_in_macro_f1_is_better():
    gold, base, _ = answers(1, right=0.4)
    found = significance.compare_macro_f1(gold, base, gold)
    assert (found.tuned, found.verdict, found.test) == (1, "better", "paired bootstrap")


def test_more_rows_may_change_than_a_number_has_bits():
    gold, base, tuned = ["a", "b"] * 1000, ["b", "a"] * 1000, ["a", "b"] * 1000
    found = corpus_compare(macro_f1_pair(gold, base, tuned), [True] * 2000, resamples=50)
    assert (found.delta, found.verdict) == (1.0, "better")


def test_the_same_seed_gives_the_same_numbers():
    base, tuned, groups = clustered(3)
    assert compare_paired(base, tuned, groups=groups, seed=5) == compare_paired(base, tuned, groups=groups, seed=5)


def test_holm_steps_down_and_keeps_the_order_of_names():
    found = holm({"b": 0.04, "a": 0.01, "c": 0.03})
    assert list(found) == ["b", "a", "c"]
    assert found == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})


def test_interval_of_shares_is_wilson_and_of_groups_is_wider():
    scores = np.repeat([1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0], 10)
    low, high = interval(scores)
    wide = interval(scores, groups=[str(i // 10) for i in range(80)])
    assert (low, high) == pytest.approx((0.5147, 0.7231), abs=1e-3)
    assert wide[0] < low < high < wide[1]


def test_interval_of_all_right_is_not_certainty():
    low, high = interval(np.ones(40), groups=[str(i // 10) for i in range(40)])
    # Wilson with four of four
    assert (low, high) == pytest.approx((0.5101, 1.0), abs=1e-3)


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(DataError, match="1 of 2 are not finite"):
        compare_paired([1.0, 2.0], [math.nan, 1.0])


def test_no_rows_are_refused():
    with pytest.raises(DataError, match="no rows"):
        compare_paired([], [])


def test_answers_that_are_all_right_or_all_wrong_claim_no_certainty_on_any_scale():
    labels = ["a", "b"] * 10
    assert score("macro_f1", labels, labels, name="t").ci95 == interval(np.ones(20))
    low, high = score("chrf", ["yes"] * 8, ["yes"] * 8, name="t").ci95 or (0.0, 0.0)
    assert (round(low, 1), high) == (67.6, 100.0)
    low, high = score("chrf", ["yes"] * 8, ["no"] * 8, name="t").ci95 or (0.0, 0.0)
    assert (low, round(high, 1)) == (0.0, 32.4)


def test_an_interval_of_few_groups_is_wide_and_stays_on_the_scale():
    low, high = interval(np.repeat([0.80, 0.82], 500), groups=["a"] * 500 + ["b"] * 500)
    assert low < 0.7
    assert high <= 1.0


def test_the_interval_of_macro_f1_lies_around_its_score_where_rare_labels_are_missed():
    # Ten labels, half of them rare and never found: a draw without their rows is lifted by their absence.
    gold = [str(label) for label in range(5) for _ in range(20)] + [str(label) for label in range(5, 10)]
    given = [label if int(label) < 5 else "0" for label in gold]
    drawn = redrawn("macro_f1", gold, {"one": given}, groups=None)["one"]
    alone = score("macro_f1", gold, given, name="one")
    assert alone.score == pytest.approx(0.49, abs=0.01)
    assert drawn.mean() == pytest.approx(alone.score)
    assert alone.ci95 is not None
    assert alone.ci95[0] < alone.score < alone.ci95[1] < 0.75


def test_bleu_alone_has_an_interval_on_its_own_scale():
    gold = [f"the quick brown fox number {i} jumps over the lazy dog" for i in range(12)]
    given = [text if i % 3 else text.replace("quick brown", "slow") for i, text in enumerate(gold)]
    found = score("bleu", gold, given, name="bleu")
    assert found.ci95 is not None
    assert found.ci95[0] < found.score < found.ci95[1] <= 100
    whole = score("bleu", gold, gold, name="bleu")
    assert whole.ci95 == pytest.approx((75.7, 100), abs=0.1)  # Wilson: 12 of 12


def test_rows_that_a_difference_would_take_are_told_by_the_quantiles_that_so_many_have():
    found = compare_paired(np.array([0.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0]))
    assert found.rows_needed is not None
    # about ((1.96 + 0.84) / 0.02)**2 times the variance of a difference, at most 1; not by the quantiles of 2 degrees
    assert found.rows_needed < 25_000


@pytest.mark.parametrize("count", [2, 4, 5])
def test_fewer_than_six_groups_decide_nothing_by_macro_f1_either(count: int):
    gold = ["a", "b"] * 50
    groups = [str(i % count) for i in range(100)]
    found = corpus_compare(macro_f1_pair(gold, ["b", "a"] * 50, gold), [True] * 100, groups=groups, resamples=QUICK)
    assert (found.delta, found.verdict) == (1.0, "inconclusive")


def test_a_score_alone_is_as_unsure_as_its_one_row_or_group():
    for values, groups in (([0.667], None), ([0.2, 0.9], ["a", "a"]), ([0.5] * 8, None)):
        low, high = interval(values, groups=groups)
        assert 0 <= low < np.mean(values) < high <= 1
    assert interval([50.0], scale=100.0)[1] > 90


@pytest.mark.parametrize(("losses", "rows"), [(0, 299), (0, 298), (3, 400), (9, 2000)])
def test_the_bound_of_a_loss_is_that_of_clopper_and_pearson(losses: int, rows: int):
    found = compare_to_margin(np.ones(rows), np.arange(rows) >= losses, margin=0.01, resamples=40_000)
    upper = beta.ppf(0.95, losses + 1, rows - losses)  # one-sided, of the share of rows lost
    assert found.at_least == pytest.approx(-upper, rel=0.02)
    assert found.delta == -losses / rows
    if losses:  # 299 rows without a loss are the first that exclude 1 % (0.99 ** 299 < 0.05): too close for resamples
        assert found.not_worse == (upper < 0.01) == (rows == 2000)
    assert (found.rows_needed is None) == found.not_worse


def lossy(kind: str, margin: float, rng: np.random.Generator) -> tuple[np.ndarray, list[str] | None]:
    """Differences of a candidate that loses exactly the margin on average, and groups."""
    n = 4000 if kind == "many groups lost as a whole" else 500
    u = rng.random(n)
    tens = [f"doc {i // 10}" for i in range(n)]
    if kind == "losses only":
        return -(u < margin).astype(float), None
    if kind == "gains and losses":
        return np.where(u < 0.03, 1.0, np.where(u < 0.06 + margin, -1.0, 0.0)), None
    if kind == "groups":
        return np.where(u < 0.02, 1.0, np.where(u < 0.04 + margin, -1.0, 0.0)), tens
    if kind == "uneven groups lost as a whole":  # of 1, 5 and 19 rows
        sizes = np.tile([1, 5, 19], n // 25)
        lost = np.repeat(rng.random(len(sizes)) < margin, sizes)
        return -lost.astype(float), [str(i) for i in np.repeat(np.arange(len(sizes)), sizes)]
    if kind.endswith("lost as a whole"):
        return -np.repeat(rng.random(n // 10) < margin, 10).astype(float), tens
    rates = np.repeat(rng.beta(0.5, 0.5 / margin * (1 - margin), n // 10), 10)
    return -(u < rates).astype(float), tens


KINDS = (
    "losses only", "gains and losses", "groups", "groups that lose together", "groups lost as a whole",
    "uneven groups lost as a whole", "many groups lost as a whole",
)  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("margin", [0.01, 0.03])
def test_a_loss_of_exactly_the_margin_is_called_not_worse_in_at_most_five_of_a_hundred(kind: str, margin: float):
    rng, wrong, trials = np.random.default_rng(0), 0, 300
    for _ in range(trials):
        change, groups = lossy(kind, margin, rng)
        wrong += compare_to_margin(np.zeros(len(change)), change, margin=margin, groups=groups, resamples=400).not_worse
    assert wrong <= binom.ppf(0.99, trials, ALPHA)


def test_groups_of_ten_need_ten_times_the_rows_to_exclude_what_was_not_seen():
    needed = [
        compare_to_margin(np.zeros(n), np.zeros(n), margin=0.01, groups=groups, resamples=4000).rows_needed
        for n, groups in ((200, None), (200, [str(i // 10) for i in range(200)]))
    ]
    assert needed == [300, 2996]
    rows = np.zeros(4000)
    assert compare_to_margin(rows, rows, margin=0.01, groups=[str(i // 10) for i in range(4000)]).not_worse


def test_equal_scores_are_not_worse_by_a_margin_above_the_smallest_and_by_no_lower_one():
    groups = [str(i // 10) for i in range(500)]
    for scale, named in ((1.0, None), (5.0, groups)):
        least, equal = smallest_margin(500, scale=scale, groups=named), np.zeros(500)
        shown = [
            compare_to_margin(equal, equal, margin=margin, scale=scale, groups=named).not_worse
            for margin in (0.99 * least, 1.01 * least)
        ]
        assert shown == [False, True]
    assert smallest_margin(500) == pytest.approx(1 - 0.05 ** (1 / 500), rel=0.03)  # Clopper and Pearson


def test_the_rows_that_are_named_show_a_file_that_loses_nothing_in_four_of_five_tests():
    rng = np.random.default_rng(0)
    flips = rng.choice([-1.0, 0.0, 1.0], 200, p=[0.02, 0.96, 0.02])
    first = compare_to_margin(np.zeros(200), flips, margin=0.01, resamples=1000)
    assert not first.not_worse
    assert first.rows_needed is not None
    drawn = [rng.choice(flips - flips.mean(), first.rows_needed) for _ in range(100)]
    found = [compare_to_margin(np.zeros(len(d)), d, margin=0.01, resamples=400).not_worse for d in drawn]
    assert 0.65 < np.mean(found) < 0.95
