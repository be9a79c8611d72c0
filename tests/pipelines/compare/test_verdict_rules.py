"""The verdict is a function of figures: swap the figures and it flips."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tunesmith.pipelines.compare.verdict import Candidate, choose, needed, shares, verdict

SURE, UNSURE = 0.001, 0.4


def arm(name: str, score: float, seconds: float, drawn: list[float] | None = None) -> Candidate:
    redrawn = np.array(drawn if drawn is not None else [score] * 4)
    return Candidate(name, score, seconds, redrawn, tuned=name == "tuned")


def pair(p: float) -> dict[tuple[str, str], float]:
    return {("prompt", "tuned"): p}


def test_a_tenfold_of_cost_asks_for_the_margin_once_more():
    assert needed(0.02, 10.0, 5.0) == pytest.approx(0.02)
    assert needed(0.02, 10.0, 100.0) == pytest.approx(0.04)
    assert needed(0.02, 10.0, 1000.0) == pytest.approx(0.06)


def test_a_tuned_arm_that_surely_gains_more_than_its_cost_asks_for_is_taken():
    found = verdict([arm("prompt", 0.50, 10), arm("tuned", 0.60, 1000)], pair(SURE), margin=0.02)
    assert (found.arm, found.text) == ("tuned", "fine-tune")
    assert "prompt (0.500) is cheaper, but tuned (0.600) scores significantly higher by 0.100" in found.reasons[0]


def test_with_the_scores_swapped_the_verdict_flips():
    found = verdict([arm("prompt", 0.60, 10), arm("tuned", 0.50, 1000)], pair(SURE), margin=0.02)
    assert (found.arm, found.text) == ("prompt", "prompt, do not fine-tune")
    assert found.reasons == ["tuned (0.500) scores no higher than prompt (0.600) at 200.0 times the cost"]


def test_a_verdict_is_no_surer_than_its_figures():
    nothing = verdict([arm("prompt", 0.0, 10), arm("rag", 0.0, 20)], {}, margin=0.02)
    assert nothing.text.startswith("every arm scores 0")
    assert verdict([arm("prompt", 0.5, 10), arm("rag", 0.4, 20)], {}, margin=0.02).text == "prompt"  # nothing was tuned
    torn = verdict([arm("prompt", 0.5, 10, [0.1, 0.1, 0.5]), arm("tuned", 0.5, 20, [0.9, 0.9, 0.5])], {}, margin=0.02)
    assert torn.text == "undecided (too few test rows); for now: prompt, do not fine-tune"
    assert torn.confidence == pytest.approx(1 / 3)


def test_rows_of_too_few_groups_to_draw_from_decide_nothing():
    found = verdict([arm("tuned", 0.5, 5, []), arm("prompt", 0.6, 20, [])], pair(UNSURE), margin=0.02)
    assert (found.arm, found.confidence) == ("tuned", None)
    assert found.text == "undecided (too few groups in the test rows); for now: fine-tune"


def test_a_verdict_without_tuning_says_on_which_part_of_the_rows_was_tuned():
    found = verdict([arm("prompt", 0.60, 10), arm("tuned", 0.50, 1000)], pair(SURE), margin=0.02, learned="6 of 9 rows")
    assert found.text == "prompt, compared with tuning on 6 of 9 rows"


def test_a_tuned_model_that_is_a_little_faster_does_not_win_by_a_tie():
    slow, fast = arm("prompt", 0.95, 514), replace(arm("tuned", 0.90, 461, [0.90, 0.95, 0.90, 0.95]), tuned=True)
    assert verdict([slow, fast], pair(UNSURE), margin=0.02).arm == "prompt"
    assert verdict([slow, replace(fast, seconds=200)], pair(UNSURE), margin=0.02).arm == "tuned"


def test_seconds_do_not_take_an_arm_that_redrawn_test_sets_hardly_ever_take():
    drawn = [0.90] * 9 + [0.96]
    fast, slow = arm("tuned", 0.90, 217, drawn), arm("prompt", 0.955, 514, [0.955] * 10)
    found = verdict([fast, slow], {("prompt", "tuned"): 0.069}, margin=0.02)
    assert (found.arm, found.text, found.confidence) == ("prompt", "prompt, do not fine-tune", pytest.approx(0.9))
    assert found.reasons == [
        "tuned (0.900) and prompt (0.955) do not differ significantly, but 10% of resampled test sets choose tuned and "
        "90% prompt"
    ]
    cheap, tuned = arm("prompt", 0.85, 100, [0.85] * 10), arm("tuned", 1.0, 1000, [1.0] * 10)
    assert verdict([cheap, tuned], {("prompt", "tuned"): 0.25}, margin=0.02).text.startswith("undecided (too few")
    torn = replace(fast, resampled=np.array([0.90] * 8 + [0.96] * 2))
    unsure = verdict([torn, slow], {("prompt", "tuned"): 0.069}, margin=0.02)
    assert unsure.text == "undecided (too few test rows); for now: fine-tune"


@pytest.mark.parametrize(("gain", "p"), [(0.10, UNSURE), (0.05, SURE)])
def test_a_gain_that_is_unsure_or_not_worth_its_cost_leaves_the_cheap_arm(gain: float, p: float):
    chosen, passed = choose([arm("prompt", 0.5, 10), arm("tuned", 0.5 + gain, 1000)], pair(p), margin=0.02)
    assert chosen.name == "prompt"
    assert passed == []


def test_with_the_costs_swapped_the_tuned_arm_needs_no_gain_at_all():
    chosen, _ = choose([arm("prompt", 0.5, 1000), arm("tuned", 0.5, 10)], pair(UNSURE), margin=0.02)
    assert chosen.name == "tuned"


def test_a_cheap_winner_is_taken_before_dearer_arms_that_are_as_good():
    arms = [arm("prompt", 0.2, 10), arm("rag", 0.8, 30), arm("raft", 0.81, 2000)]
    p_values = {("prompt", "rag"): SURE, ("prompt", "raft"): SURE, ("rag", "raft"): UNSURE}
    found = verdict(arms, p_values, margin=0.02)
    assert found.arm == "rag"
    assert any(reason.startswith("raft gains 0.010 over rag, not significantly") for reason in found.reasons)


def test_without_a_margin_any_sure_gain_is_taken_and_equal_scores_are_none():
    assert choose([arm("prompt", 0.50, 10), arm("tuned", 0.51, 1000)], pair(SURE), margin=0.0)[0].name == "tuned"
    arms = [arm("prompt", 0.5, 10, [0.5, 0.5]), arm("tuned", 0.5, 1000, [0.5, 0.6])]
    assert choose(arms, pair(SURE), margin=0.0)[0].name == "prompt"
    assert shares(arms, margin=0.0)[arms[0].name] == pytest.approx(1 / 2)


def test_pairs_may_be_named_in_either_order():
    arms = [arm("prompt", 0.2, 10), arm("tuned", 0.9, 20)]
    assert choose(arms, {("tuned", "prompt"): SURE}, margin=0.02)[0].name == "tuned"


def test_confidence_is_the_share_of_redraws_with_the_same_choice():
    # At equal cost tuned has to gain 0.1: it does in the first, third and fourth redraw, not in the second.
    arms = [arm("prompt", 0.5, 10, [0.5, 0.5, 0.5, 0.5]), arm("tuned", 0.7, 10, [0.7, 0.55, 0.65, 0.9])]
    assert shares(arms, margin=0.1) == pytest.approx({arms[1].name: 3 / 4, arms[0].name: 1 / 4})


SEARCH_PAIRS = [("rag", "tuned-retriever"), ("rag", "tuned+rag"), ("tuned-retriever", "tuned+rag")]


@pytest.mark.parametrize(
    ("p_values", "scores", "expected"),
    [
        ((SURE, SURE, UNSURE), (0.4, 0.6, 0.62), ("tuned-retriever", "tune the search, not the answers")),
        ((UNSURE, SURE, UNSURE), (0.4, 0.6, 0.62), ("tuned-retriever", "tune the search")),
        ((UNSURE, UNSURE, UNSURE), (0.4, 0.43, 0.42), ("rag", "retrieve, do not fine-tune")),
        ((SURE, SURE, SURE), (0.4, 0.6, 0.8), ("tuned+rag", "fine-tune, and retrieve")),
    ],
)
def test_the_search_alone_is_tuned_where_tuned_answers_add_nothing_to_it(
    p_values: tuple[float, ...], scores: tuple[float, ...], expected: tuple[str, str]
):
    rag, retriever, tuned = (
        arm(*figures) for figures in zip(("rag", *SEARCH_PAIRS[2]), scores, (10, 40, 300), strict=True)
    )
    found = verdict(
        [rag, retriever, replace(tuned, tuned=True)], dict(zip(SEARCH_PAIRS, p_values, strict=True)), margin=0.02
    )
    assert (found.arm, found.text) == expected


def test_without_tuned_answers_the_verdict_says_nothing_of_them():
    arms = [arm("rag", 0.4, 10), arm("tuned-retriever", 0.6, 40)]
    assert verdict(arms, {("rag", "tuned-retriever"): SURE}, margin=0.02).text == "tune the search"


def test_a_better_ranking_and_a_part_of_the_rows_are_named():
    arms = [arm("rag", 0.4, 10), arm("tuned-retriever+rerank", 0.6, 40), replace(arm("tuned", 0.5, 900), tuned=True)]
    p_values = {("rag", "tuned-retriever+rerank"): SURE}
    found = verdict(arms, p_values, margin=0.02, learned="6 of 9 rows")
    assert found.text == "tune the search and rank again what it finds, not the answers (both on 6 of 9 rows)"
