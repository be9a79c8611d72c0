"""Rows to one pack: what runs once, what is learned, and that no row notices the others."""

from __future__ import annotations

import pytest
import torch

from tests.bases import LORA, base, encoded, farthest, gradients, policy, template, tokens
from tests.tiny import DECODERS, ENCODERS
from tunesmith.data.tokenization.chat_template import Encoded, Tokens
from tunesmith.models.attention.packed import NAME, install
from tunesmith.models.batch import MIN_SHARED_TOKENS, Batch, collate, pack
from tunesmith.models.policy import Policy
from tunesmith.techniques import Full, Lora

KEY_BIAS = ("key.bias", "k_lin.bias")


def rows(*sequences: Tokens) -> list[Encoded]:
    return [Encoded((one,), f"rows:{i}") for i, one in enumerate(sequences)]


def read_back(batch: Batch) -> list[list[int]]:
    """The ids of each row as the network sees them."""
    return [batch.ids[path[path >= 0]].tolist() for path in batch.row_index]


def loss_and_gradients(made: Policy, batches: list[Batch]) -> tuple[float, dict[str, torch.Tensor]]:
    total = 0.0
    for batch in batches:
        loss = made.sum_nll(batch)
        loss.backward()
        total += float(loss.detach())
    return total, gradients(made)


def test_rows_lie_one_behind_the_other_without_padding():
    batch = collate(rows(tokens([5, 6, 7], "..."), tokens([8, 9], "..")))
    assert batch.ids.tolist() == [5, 6, 7, 8, 9]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1]
    assert batch.row_index.tolist() == [[0, 1, 2], [3, 4, -1]]
    assert batch.last_index.tolist() == [2, 4]
    assert (batch.rows, batch.tokens, batch.forward_tokens) == (2, 5, 5)


def test_each_learned_id_knows_its_row_and_the_token_before_it():
    batch = pack([tokens([5, 6, 7, 8], "..xx"), tokens([9, 4, 3], ".x.")])
    assert batch.targets.tolist() == [7, 8, 4]
    assert batch.row_ids.tolist() == [0, 0, 1]
    assert batch.ids[batch.prev_index].tolist() == [6, 7, 9]


def test_a_last_learned_id_and_what_follows_it_do_not_run_but_count_as_the_rows_tokens():
    batch = pack([tokens([5, 6, 7, 2, 9], "..xx.")])
    assert read_back(batch) == [[5, 6, 7]]
    assert batch.tokens == 5


def test_the_first_id_of_a_text_is_never_learned_since_nothing_stands_before_it():
    batch = pack([tokens([5, 6, 7], "xxx")])
    assert batch.targets.tolist() == [6, 7]


@pytest.mark.parametrize(("shared", "runs_once"), [(MIN_SHARED_TOKENS - 1, False), (MIN_SHARED_TOKENS, True)])
def test_what_rows_begin_with_runs_once_where_it_is_long_enough(shared: int, runs_once: bool):
    start = list(range(10, 10 + shared))
    batch = pack([tokens([*start, 100 + i, 2], "." * (shared + 1) + "x") for i in range(3)])
    assert batch.forward_tokens == (shared + 3 if runs_once else 3 * (shared + 1))
    assert read_back(batch) == [[*start, 100 + i] for i in range(3)]


def test_sharing_nests_to_any_depth():
    start, prompt, other = list(range(10, 30)), list(range(30, 50)), list(range(50, 70))
    made = [[*start, *prompt, 90], [*start, *other, 91, 92], [*start, *prompt, 93], [*start, 94]]
    batch = pack([Tokens(ids, [False] * len(ids)) for ids in made])
    assert read_back(batch) == made
    assert batch.forward_tokens == 20 + 20 + 22 + 1 + 1 + 1
    assert [level.size for level in batch.layout.levels] == [20, 20 + 22 + 1, 2]


def test_nothing_that_a_row_learns_is_shared():
    ids = list(range(10, 50))
    same = tokens(ids, "." * 20 + "x" * 20)
    batch = pack([same, same, tokens(ids, "x" * 40)])
    assert batch.layout.levels[0].size == 20 + 39
    assert len(batch.targets) == 20 + 20 + 39


def test_two_equal_rows_run_once():
    ids = list(range(10, 50))
    batch = pack([tokens(ids, "." * 40), tokens(ids, "." * 40)])
    assert batch.forward_tokens == 40
    assert batch.last_index.tolist() == [39, 39]


def test_without_sharing_every_row_runs_for_itself():
    ids = list(range(10, 50))
    assert pack([tokens(ids, "." * 40)] * 2, share=False).forward_tokens == 80


def test_labels_of_a_head_become_one_row_each():
    made = [Encoded((tokens([1, 2], ".."),), "rows:0", (0.0, 1.0)), Encoded((tokens([3], "."),), "rows:1", (1.0, 0.0))]
    labels = collate(made, share=False).labels
    assert labels is not None
    assert labels.tolist() == [[0.0, 1.0], [1.0, 0.0]]


def nested(kind: str) -> list[Tokens]:
    """Rows that share an instruction longer than the sliding window of 16, two pairs of them a prompt as well."""
    form = template(kind)

    def ids(text: str) -> list[int]:
        return form.tokenizer(text, add_special_tokens=False)["input_ids"]

    start = ids("The quick brown fox jumps. " * 12)[:64]
    prompts = [ids("Is this review positive or negative? This battery is bad." * 2)[:24], ids("the lazy dog " * 9)[:17]]
    made = [[*start, *prompt, *row.sequences[0].ids] for prompt in prompts for row in encoded(kind, 2)]
    learn = [row.sequences[0].learn for _ in prompts for row in encoded(kind, 2)]
    return [Tokens(one, [False] * (len(one) - len(mark)) + mark) for one, mark in zip(made, learn, strict=True)]


@pytest.mark.parametrize("technique", [Full(), LORA], ids=["full", "lora"])
@pytest.mark.parametrize("kind", DECODERS)
def test_packing_and_sharing_change_neither_the_loss_nor_any_gradient(kind: str, technique: Full | Lora):
    made, sequences = policy(kind, technique, lively=0.05), nested(kind)
    alone = loss_and_gradients(made, [pack([one]) for one in sequences])
    packed = loss_and_gradients(made, [pack(sequences, share=False)])
    together = loss_and_gradients(made, [pack(sequences)])
    assert len(pack(sequences).layout.levels) == 3
    assert all(value.norm() > 0 for value in alone[1].values())
    for loss, moved in (packed, together):
        assert loss == pytest.approx(alone[0], rel=1e-5)
        assert farthest(moved, alone[1]) < 1e-4


@pytest.mark.parametrize("kind", DECODERS)
def test_a_network_that_takes_no_layout_runs_padded_with_the_same_loss_and_gradients(kind: str):
    made, sequences = policy(kind), nested(kind)
    wanted = loss_and_gradients(made, [pack(sequences)])
    made.packs = False
    made.network.set_attn_implementation("eager")
    loss, moved = loss_and_gradients(made, [pack(sequences)])
    assert loss == pytest.approx(wanted[0], rel=1e-5)
    assert farthest(moved, wanted[1]) < 1e-4


@pytest.mark.parametrize("technique", [Full(), LORA], ids=["full", "lora"])
@pytest.mark.parametrize("kind", ENCODERS)
def test_packing_changes_no_gradient_of_an_encoder(kind: str, technique: Full | Lora):
    made = policy(kind, technique, lively=0.05)
    texts = ("hi", "The quick brown fox jumps over the lazy dog. " * 4, "I like it, they do not.")
    read = [template(kind).document(text) for text in texts]
    found = []
    for batches in ([pack([one], share=False) for one in read], [pack(read, share=False)]):
        for batch in batches:
            made.pooled(batch).pow(3).sum().backward()
        # A key's bias moves nothing, since softmax takes it out: its gradient is rounding.
        found.append({name: value for name, value in gradients(made).items() if not name.endswith(KEY_BIAS)})
    assert farthest(found[1], found[0]) < 1e-4


@pytest.mark.parametrize("kind", ["llama", "gemma", "gemma3"])
def test_the_last_state_of_a_row_is_the_same_with_and_without_sharing(kind: str):
    start = list(range(6, 106))
    asked = rows(*(tokens([*start, *end], "." * (100 + len(end))) for end in ([7, 8], [9], [7, 8, 9, 10])))
    made = policy(kind)
    with torch.no_grad():
        assert torch.allclose(made.pooled(collate(asked)), made.pooled(collate(asked, share=False)), atol=1e-4)


@pytest.mark.parametrize(("kind", "takes"), [("llama", True), ("gemma3", True), ("bert", True), ("gemma", False)])
def test_whether_an_attention_takes_a_layout_is_measured_and_another_is_left_alone(kind: str, takes: bool):
    found = base(kind)  # the tiny gemma caps its attention scores, which fused kernels cannot
    before = found.network.config._attn_implementation
    assert install(found.network, causal=found.family == "decoder") == takes
    assert found.network.config._attn_implementation == (NAME if takes else before)
