"""The table of the recommendation, case by case."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tunesmith.pipelines.plan.recommend import ENCODERS, RULES, STANDINGS, Case, recommend

EVERYTHING = frozenset(STANDINGS)
DECODER = Case("decoder", 1862, 134_515_008, 3_724, 4_884_480, EVERYTHING)
ENCODER = replace(DECODER, family="encoder", parameters=22_713_216, learned_tokens=0, lora_numbers=589_824)


@pytest.mark.parametrize(
    ("case", "technique", "why"),
    [
        (DECODER, "lora", "as good as full tuning"),
        (replace(DECODER, learned_tokens=50_000), "lora", "as good as full tuning"),
        (ENCODER, "full", "a small encoder"),
        (replace(ENCODER, parameters=110_000_000), "lora", "as good as full tuning"),
        (replace(DECODER, learned_tokens=9_768_960), "lora", "as good as full tuning"),
        (replace(DECODER, learned_tokens=9_768_961), "full", "exceed the capacity of a low-rank update"),
        (replace(DECODER, learned_tokens=10**8, fits=EVERYTHING - {"full"}), "lora", "has the largest capacity"),
        (replace(DECODER, learned_tokens=10**8, fits=frozenset({"qlora", "ia3"})), "qlora", "has the largest capacity"),
        (replace(DECODER, fits=frozenset({"qlora", "ia3", "prompt"})), "qlora", "does not fit into memory"),
        (replace(ENCODER, fits=frozenset({"ia3", "prompt"})), "ia3", "no form of LoRA fits"),
        (replace(DECODER, fits=frozenset({"prefix", "prompt"})), "prefix", "no form of LoRA fits"),
        (replace(DECODER, fits=frozenset({"p-tuning", "prompt"})), "p-tuning", "no form of LoRA fits"),
        (replace(DECODER, fits=frozenset({"prompt"})), "prompt", "no form of LoRA fits"),
    ],
)
def test_the_first_rule_that_holds_and_fits_decides(case: Case, technique: str, why: str):
    found = recommend(case)
    assert found is not None
    assert found.technique == technique
    assert why in found.reasons[0]


@pytest.mark.parametrize(("parameters", "word"), [(9_999_999_999, "score lower"), (10_000_000_000, "score as high")])
def test_soft_prompts_stay_behind_on_models_below_ten_billion_numbers(parameters: int, word: str):
    found = recommend(replace(DECODER, parameters=parameters))
    assert found is not None
    assert any("soft prompts" in reason and word in reason for reason in found.reasons)


def test_where_nothing_fits_nothing_is_recommended():
    assert recommend(replace(DECODER, fits=frozenset())) is None


def test_what_does_not_fit_and_rows_that_are_few_are_said():
    found = recommend(replace(DECODER, fits=EVERYTHING - {"full"}, rows=120))
    assert found is not None
    assert "full tuning does not fit into memory" in found.reasons
    assert any(reason.startswith("only 120 rows") for reason in found.reasons)


def test_every_technique_has_a_standing_and_every_rule_names_one():
    assert {rule.technique for rule in RULES} <= set(STANDINGS)
    assert ENCODERS.keys() == STANDINGS.keys()
    assert {one.word for one in (*STANDINGS.values(), *ENCODERS.values())} == {"level", "behind", "far behind"}
