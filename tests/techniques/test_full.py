"""Full tuning: every number moves, and the result is a folder of plain transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from tests.bases import base, documents, encoded, policy
from tests.tiny import DECODERS, ENCODERS
from tunesmith.errors import CheckpointError
from tunesmith.models.batch import collate
from tunesmith.techniques import Full
from tunesmith.techniques.base import width_rule

IDS = torch.arange(6, 26)[None]


@pytest.mark.parametrize("kind", DECODERS)
def test_a_tuned_decoder_opens_in_transformers_and_here_with_the_same_logits(kind: str, tmp_path: Path):
    made = policy(kind, Full(), lively=0.05)
    Full().save(made, tmp_path / "tuned")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")
    restored = Full().restore(base(kind).network, tmp_path / "tuned", family="decoder")
    with torch.no_grad():
        wanted = made.network(input_ids=IDS).logits
        assert torch.equal(opened(input_ids=IDS).logits, wanted)
        assert torch.equal(restored.network(input_ids=IDS).logits, wanted)
        assert not torch.allclose(base(kind).network(input_ids=IDS).logits, wanted, atol=1e-2)


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_tuned_encoder_opens_in_transformers_and_here_with_the_same_states(kind: str, tmp_path: Path):
    made = policy(kind, Full(), lively=0.05)
    Full().save(made, tmp_path / "tuned")
    opened = AutoModel.from_pretrained(tmp_path / "tuned")
    restored = Full().restore(base(kind).network, tmp_path / "tuned", family="encoder")
    rows = documents(kind, "hi", "The quick brown fox.")
    batch = collate(rows, share=False)
    with torch.no_grad():
        for row, path in zip(rows, batch.row_index, strict=True):
            theirs = opened(input_ids=torch.tensor([row.sequences[0].ids])).last_hidden_state[0]
            assert torch.allclose(theirs, made.states(batch)[path[path >= 0]], atol=1e-5)
        assert torch.equal(restored.states(batch), made.states(batch))


def test_every_number_moves():
    made = policy("llama", Full())
    assert sum(value.numel() for _, value in made.trainable()) == sum(p.numel() for p in made.network.parameters())


def test_the_reference_answers_as_before_where_one_is_kept():
    made = Full().adapt(base("llama").network, family="decoder", keep_reference=True)
    batch = collate(encoded("llama"))
    with torch.no_grad():
        start = made.logprobs(batch)
        for _, value in made.trainable():
            value.add_(0.01)
        moved = made.logprobs(batch)
    assert torch.equal(made.reference_logprobs(batch), start)
    assert torch.equal(made.logprobs(batch).detach(), moved)
    assert not torch.allclose(moved, start)


def test_no_second_copy_is_made_unless_it_is_asked_for():
    made = Full().adapt(base("llama").network, family="decoder", keep_reference=False)
    with pytest.raises(AssertionError, match="has a reference model only if"):
        made.reference()


def test_a_folder_without_weights_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"no model\.safetensors in it; the run was not finished"):
        Full().restore(base("llama").network, tmp_path, family="decoder")


def test_the_rate_is_the_width_rule():
    assert Full().learning_rate(576, "decoder") == width_rule(576, "decoder") == pytest.approx(1.3225e-4, rel=1e-3)
    assert Full().learning_rate(384, "encoder") == width_rule(384, "encoder") == pytest.approx(6.046e-5, rel=1e-3)
