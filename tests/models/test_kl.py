"""How far a policy is from its start."""

from __future__ import annotations

import pytest
import torch

from tests.bases import LORA, encoded, policy
from tunesmith.models.batch import collate
from tunesmith.training.reference_logprobs import kl_to_reference


def test_nothing_has_moved_at_the_start():
    total, count = kl_to_reference(policy("llama", LORA), collate(encoded("llama")))
    assert total == pytest.approx(0.0, abs=1e-4)
    assert count == sum(sum(one.learn) for row in encoded("llama") for one in row.sequences)


def test_the_kl_is_taken_over_all_words():
    made, batch = policy("llama", LORA, lively=0.1), collate(encoded("llama"))
    with torch.no_grad():
        now = made.words.logits(made.learned(batch)).log_softmax(dim=1)
        with made.reference():
            before = made.words.logits(made.learned(batch)).log_softmax(dim=1)
    wanted = torch.nn.functional.kl_div(before, now, log_target=True, reduction="sum").item()
    total, _ = kl_to_reference(made, batch)
    assert total == pytest.approx(wanted, rel=1e-4)
    assert total > 0.01
