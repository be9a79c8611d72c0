"""Rows to tensors: padding, and what rows share."""

from __future__ import annotations

import pytest
import torch

from tests.bases import LORA, encoded, farthest, gradients, policy, template, tokens
from tests.tiny import ENCODERS
from tunesmith.data.template import Encoded
from tunesmith.model.batch import WORTH_SHARING, collate, shared_prefix
from tunesmith.techniques import Full, Lora


def rows(*sequences) -> list[Encoded]:
    return [Encoded((one,), f"rows:{i}") for i, one in enumerate(sequences)]


def test_rows_are_padded_on_the_right_and_padding_is_neither_real_nor_learned():
    batch = collate(rows(tokens([5, 6, 7], "..x"), tokens([8, 9], ".x")), pad=1)
    assert batch.ids.tolist() == [[5, 6, 7], [8, 9, 1]]
    assert batch.learn.tolist() == [[False, False, True], [False, True, False]]
    assert batch.real.tolist() == [[True, True, True], [True, True, False]]
    assert batch.prefix is None
    assert (batch.tokens, batch.computed) == (5, 6)


def test_what_rows_share_is_found_up_to_the_first_difference():
    assert shared_prefix([tokens([1, 2, 3, 4, 9], "....x"), tokens([1, 2, 3, 5, 9], "....x")]) == 3


def test_the_token_before_the_first_learned_one_stays_in_every_row():
    same = tokens([1, 2, 3, 4, 5], "...xx")  # id 4 is predicted from id 3: only 1 and 2 may go
    assert shared_prefix([same, same, same]) == 2
    assert shared_prefix([same, tokens([1, 2, 3, 4, 5], ".xxxx")]) == 0


def test_a_row_that_learns_nothing_keeps_its_last_token():
    assert shared_prefix([tokens([1, 2, 3], "..."), tokens([1, 2, 3, 4, 5], ".....")]) == 2


def test_a_text_that_is_learned_from_its_first_token_shares_nothing():
    assert shared_prefix([tokens([1, 2], "xx"), tokens([1, 2], "xx")]) == 0


@pytest.mark.parametrize(("shared", "taken_out"), [(WORTH_SHARING // 2 - 1, 0), (WORTH_SHARING // 2, 48)])
def test_a_prefix_is_taken_out_only_where_it_saves_more_than_a_second_pass_costs(shared: int, taken_out: int):
    start = list(range(10, 10 + shared))
    batch = collate(rows(*(tokens([*start, 3 + i, 2], "." * (shared + 1) + "x") for i in range(3))), pad=0)
    assert (0 if batch.prefix is None else len(batch.prefix)) == taken_out


def test_a_shared_prefix_counts_once_per_row_for_the_user_and_once_for_the_network():
    start = list(range(100))
    batch = collate(rows(tokens([*start, 201, 2], "." * 101 + "x"), tokens([*start, 202], "." * 101)), pad=0)
    assert batch.prefix is not None
    assert batch.ids.tolist() == [[201, 2], [202, 0]]
    assert batch.learn.tolist() == [[False, True], [False, False]]
    assert batch.tokens == 102 + 101
    assert batch.computed == 100 + 4


def test_labels_of_a_head_become_one_row_each():
    made = [Encoded((tokens([1, 2], ".."),), "rows:0", (0.0, 1.0)), Encoded((tokens([3], "."),), "rows:1", (1.0, 0.0))]
    labels = collate(made, pad=0, share=False).labels
    assert labels is not None
    assert labels.tolist() == [[0.0, 1.0], [1.0, 0.0]]


@pytest.mark.parametrize("technique", [Full(), LORA], ids=["full", "lora"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma", "gemma3", "gpt2"])
def test_sharing_a_prefix_changes_neither_the_loss_nor_any_gradient(kind: str, technique: Full | Lora):
    start = template(kind).tokenizer("The quick brown fox jumps. " * 12, add_special_tokens=False)["input_ids"][:64]
    own = [row.sequences[0] for row in encoded(kind)]
    long = rows(*(tokens([*start, *one.ids], "." * 64 + "".join(".x"[mark] for mark in one.learn)) for one in own))
    together, apart = collate(long, pad=0), collate(long, pad=0, share=False)
    assert together.prefix is not None
    assert len(together.prefix) >= 64  # beyond the sliding window of 16
    made = policy(kind, technique, lively=0.05)
    losses, moved = [], []
    for batch in (apart, together):
        loss = made.sum_nll(batch)
        loss.backward()
        losses.append(float(loss.detach()))
        moved.append(gradients(made))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert all(value.norm() > 0 for value in moved[0].values())
    assert farthest(moved[1], moved[0]) < 1e-4


@pytest.mark.parametrize("kind", ["llama", "gemma", "gemma3"])
def test_the_last_state_of_a_row_is_the_same_with_and_without_sharing(kind: str):
    start = list(range(6, 106))
    asked = rows(*(tokens([*start, *end], "." * (100 + len(end))) for end in ([7, 8], [9], [7, 8, 9, 10])))
    together, apart = collate(asked, pad=0), collate(asked, pad=0, share=False)
    assert together.prefix is not None
    made = policy(kind)
    with torch.no_grad():
        assert torch.allclose(made.pooled(together), made.pooled(apart), atol=1e-4)


@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_reads_a_batch_as_it_reads_each_row_alone(kind: str):
    texts = ("hi", "The quick brown fox jumps over the lazy dog.", "I like it, they do not.")
    made = policy(kind)
    read = rows(*(template(kind).document(text) for text in texts))
    with torch.no_grad():
        together = made.pooled(collate(read, pad=0, share=False))
        alone = torch.cat([made.pooled(collate([row], pad=0, share=False)) for row in read])
    assert torch.allclose(together, alone, atol=1e-5)
