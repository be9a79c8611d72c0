"""Both measures of general ability on the real decoder: it stands well above chance, and a wreck does not."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from tests.models.test_bundled_models import needs
from tunesmith.data.tokenization.chat_template import Template
from tunesmith.evaluation import retention
from tunesmith.evaluation.retention import GeneralAbility, flips, general_nll, items, probe
from tunesmith.models.loading.load import load_base
from tunesmith.models.policy import Policy

pytestmark = [pytest.mark.real, needs("smollm2-135m")]
CHANCE = 0.25  # four options an item


@pytest.fixture
def decoder() -> tuple[Policy, Template]:
    """The always-there decoder, untouched and nobody else's."""
    base = load_base("smollm2-135m", offline=True)
    return Policy.over(base.network, family=base.family, reference=nullcontext), Template(base.tokenizer, chat=True)


def wreck(policy: Policy, layers: range) -> None:
    """Noise as large as the weights themselves, in a few layers."""
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in layers:
            for weight in policy.network.model.layers[layer].parameters():
                weight.add_(torch.randn(weight.shape, generator=chance) * weight.std())


@pytest.mark.long
def test_a_wrecked_model_loses_clearly_on_both_measures(
    decoder: tuple[Policy, Template], monkeypatch: pytest.MonkeyPatch
):
    policy, template = decoder
    monkeypatch.setattr(retention, "WINDOWS", 2)
    some = items()[::8]  # six or seven of each field
    before = GeneralAbility(general_nll(policy, template), probe(policy, template, some))
    wreck(policy, range(10, 13))
    after = GeneralAbility(general_nll(policy, template), probe(policy, template, some))
    assert after.nll > before.nll + 1
    lost, won, p_value = flips(before, after)
    assert lost > 2 * won
    assert p_value < 0.001
    assert sum(after.right) / len(some) < sum(before.right) / len(some) - 0.15


@pytest.mark.slow
def test_the_untouched_decoder_stands_at_least_15_points_above_chance_in_every_field(
    decoder: tuple[Policy, Template],
):
    policy, template = decoder
    right = probe(policy, template, items())
    assert sum(right) / len(right) == pytest.approx(0.6425, abs=0.01)
    fields = retention.by_field(items(), right)
    assert len(fields) == 8
    assert min(fields.values()) >= CHANCE + 0.15
