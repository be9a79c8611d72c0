"""What a model says to texts, and what two of them differ by."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.bases import base, policy, template
from tests.tiny import SENTENCES
from tunesmith.data.tokenization.masking import Masking
from tunesmith.data.tokenization.windows import windows
from tunesmith.evaluation.perplexity import (
    RATES,
    RESAMPLES,
    TURNS,
    ReadingOptions,
    TokenLikelihood,
    compare,
    rate,
    rate_interval,
    read,
    row_score,
)
from tunesmith.metrics import resampling
from tunesmith.metrics.significance import lower_is_better
from tunesmith.metrics.task_scores import PER_ROW, WHOLE
from tunesmith.objectives import Domain

TEXTS = [" ".join(SENTENCES[i:]) for i in range(4)]


def told(nats: float, tokens: int = 10, *, found: int = 0) -> TokenLikelihood:
    return TokenLikelihood(nats, tokens, 0, 4 * tokens, 5, found)


def test_nats_are_those_of_transformers_over_the_text_without_its_end():
    (found,) = read(policy("llama"), template("llama"), TEXTS[:1], ReadingOptions(512))
    (window,) = windows(TEXTS[0], template("llama"), limit=512)
    ids = torch.tensor([window.ids[:-1]])
    with torch.no_grad():
        mean = float(base("llama").network(input_ids=ids, labels=ids).loss)
    assert found.tokens == len(window.ids) - 2
    assert found.nats == pytest.approx(mean * found.tokens, rel=1e-4)
    assert found.size == window.size


def test_windows_and_company_do_not_change_what_is_said():
    made = policy("llama")
    together = read(made, template("llama"), TEXTS, ReadingOptions(32, ("france", "battery")))
    alone = [read(made, template("llama"), [text], ReadingOptions(32, ("france", "battery")))[0] for text in TEXTS]
    for one, other in zip(together, alone, strict=True):
        assert one.nats == pytest.approx(other.nats, rel=1e-4)
        assert (one.tokens, one.terms, one.size) == (other.tokens, other.terms, other.size)


def test_every_whole_term_is_asked_and_a_model_that_knows_all_finds_all(monkeypatch: pytest.MonkeyPatch):
    text = "Paris is in France. The capital of France is Paris, they say."
    (found,) = read(policy("llama"), template("llama"), [text], ReadingOptions(512, ("france", "capital")))
    assert (found.terms, found.found) == (3, 0)
    know = lambda logits, states, targets: (torch.zeros(len(targets)), torch.ones(len(targets), dtype=torch.bool))  # noqa: E731
    monkeypatch.setattr("tunesmith.evaluation.perplexity.judge", know)
    (found,) = read(policy("llama"), template("llama"), [text], ReadingOptions(512, ("france", "capital")))
    assert (found.terms, found.found, found.first) == (3, 3, found.tokens)


def test_an_encoder_is_asked_for_hidden_words_several_times():
    made, form = policy("bert"), template("bert")
    made.head = Domain().head(made)
    masking = Masking.of(form, share=0.2, seed=0)
    first = read(made, form, TEXTS[:1], ReadingOptions(512, (), masking))
    assert read(made, form, TEXTS[:1], ReadingOptions(512, (), masking)) == first
    (window,) = windows(TEXTS[0], form, limit=512)
    row = window.row("text 0 window 0", next_token=False)
    assert first[0].tokens == sum(len(masking.hide(row, f"held out {turn}").hidden) for turn in range(TURNS))


def test_rates_are_sums_over_sums():
    both = [told(10.0, 10, found=1), told(60.0, 20, found=4)]
    assert rate("nats_per_token", both) == pytest.approx(70 / 30)
    assert rate("perplexity", both) == pytest.approx(math.exp(70 / 30))
    assert rate("bits_per_byte", both) == pytest.approx(70 / math.log(2) / 120)
    assert rate("term_accuracy", both) == pytest.approx(0.5)
    assert row_score("nats_per_token", both[1]) == pytest.approx(-3.0)
    assert row_score("term_accuracy", both[1]) == pytest.approx(0.8)


def test_shares_of_which_all_were_told_or_few_documents_could_be_asked_claim_no_certainty():
    none = [told(10.0, found=0)] * 6
    low, high = rate_interval("term_accuracy", none, groups=None) or (0, 0)
    assert (low, high) == pytest.approx((0.0, 0.39), abs=0.01)  # Wilson's of none in six
    some = [told(10.0, found=4)] * 2 + [told(10.0, found=3)]
    without = [replace(told(10.0), terms=0)] * 17
    assert rate_interval("term_accuracy", [*some, *without], groups=None) == rate_interval(
        "term_accuracy", some, groups=None
    )


def test_a_smaller_loss_is_better_and_keeps_its_sign():
    base_side = [told(30.0 + i) for i in range(12)]
    tuned = [told(20.0 + i) for i in range(12)]
    found = compare("nats_per_token", base_side, tuned)
    assert (found.verdict, found.n, found.test) == ("better", 12, "sign-flip permutation by document")
    assert (found.base, found.tuned, found.delta) == pytest.approx((3.55, 2.55, -1.0))
    assert found.ci95 == pytest.approx((-1.0, -1.0))
    # All 2^12 flips of signs: two of them reach as far.
    assert found.p_value == pytest.approx(2 / 2**12)
    back = compare("nats_per_token", tuned, base_side)
    assert (back.verdict, back.delta) == ("worse", pytest.approx(1.0))
    shown = compare("perplexity", base_side, tuned)
    assert shown.delta == pytest.approx(math.exp(2.55) - math.exp(3.55))
    assert shown.ci95[1] < 0


@pytest.mark.parametrize("metric", ["perplexity", "nats_per_token", "bits_per_byte", "masked_loss"])
@pytest.mark.parametrize(
    ("nats", "verdict"), [(0.09, "no effect"), (-0.09, "no effect"), (0.11, "better"), (-0.11, "worse")]
)
def test_a_significant_difference_below_a_hundredth_of_a_nat_per_token_is_no_effect(
    metric: str, nats: float, verdict: str
):
    found = compare(metric, [told(30.0 + i) for i in range(12)], [told(30.0 + i - nats) for i in range(12)])
    assert found.p_value < 0.01
    assert found.verdict == verdict
    assert found.sentence.endswith("significant, but less than 0.01 nats per token") == (verdict == "no effect")


def test_documents_of_one_group_are_one_witness():
    base_side, tuned = [told(30.0)] * 12, [told(20.0)] * 12
    found = compare("perplexity", base_side, tuned, groups=["a", "b", "c"] * 4)
    assert (found.clusters, found.p_value, found.verdict) == (3, pytest.approx(2 / 2**3), "inconclusive")
    assert found.ci95[1] == 0.0


def test_equal_models_have_no_effect_and_a_share_grows_upwards():
    same = [told(30.0, found=i % 3) for i in range(12)]
    assert compare("perplexity", same, same).verdict == "inconclusive"
    assert compare("perplexity", same * 30, same * 30).verdict == "no effect"
    assert compare("term_accuracy", same, same).ci95[1] > 0.2
    more = [told(30.0, found=i % 3 + 2) for i in range(12)]
    found = compare("term_accuracy", same, more)
    assert (found.verdict, found.delta) == ("better", pytest.approx(0.4))


def test_two_models_that_were_asked_different_things_are_not_compared():
    with pytest.raises(ValueError, match="scored on different tokens"):
        compare("perplexity", [told(1.0, 10)], [told(1.0, 11)])


def test_the_interval_of_a_rate_holds_it_and_one_document_has_none():
    side = [told(20.0 + 3 * i) for i in range(10)]
    low, high = rate_interval("nats_per_token", side, groups=None) or (0.0, 0.0)
    assert low < rate("nats_per_token", side) < high
    assert rate_interval("nats_per_token", side[:1], groups=None) is None


def test_only_losses_are_better_when_they_are_lower():
    losses = {"perplexity", "nats_per_token", "bits_per_byte", "masked_loss"}
    assert {name for name in (*RATES, *PER_ROW, *WHOLE) if lower_is_better(name)} == losses


def test_the_bootstrap_of_a_rate_keeps_to_the_memory_of_all_draws(monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[int, int]] = []
    blocks = resampling._blocks
    monkeypatch.setattr(resampling, "_blocks", lambda *sizes: asked.append(sizes) or blocks(*sizes))
    rate_interval("nats_per_token", [told(20.0 + i) for i in range(10)], groups=["a", "b"] * 5)
    assert asked == [(RESAMPLES, 2)]


def test_the_interval_of_a_few_documents_holds_only_what_can_be():
    some = [told(90.0, 100), told(800.0, 100, found=5), told(95.0, 100, found=1)]
    low, high = rate_interval("perplexity", some, groups=None) or (0.0, 0.0)
    assert 1 <= low < high
    low, high = rate_interval("term_accuracy", some, groups=None) or (0.0, 0.0)
    assert 0 <= low < high <= 1
