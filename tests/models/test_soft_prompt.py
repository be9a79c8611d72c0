"""Virtual tokens: read by every row as if they stood in it, told once, and never answered for."""

from __future__ import annotations

import pytest
import torch

from tests.bases import OPENING, base, documents, farthest, gradients, policy, scrambled, template, tokens
from tests.tiny import DECODERS, HIDDEN
from tunesmith.data.tokenization.chat_template import Encoded, Tokens
from tunesmith.errors import RecipeError
from tunesmith.models.attention.flex import Segment
from tunesmith.models.attention.network_cache import generates
from tunesmith.models.attention.packed import lay_out
from tunesmith.models.batch import collate, pack
from tunesmith.models.generation.generate import generate, option_scores
from tunesmith.models.generation.sampling import Sampling
from tunesmith.models.policy import Policy
from tunesmith.techniques import Prefix, Prompt, PTuning

SOFT = {"prompt": Prompt(tokens=5), "prefix": Prefix(tokens=5), "p-tuning": PTuning(tokens=5)}
TEXT = {"prompt": Prompt(tokens=5), "prefix": Prefix(tokens=5)}
START = list(range(50, 90))  # what rows share, beyond the sliding window of 16


def sequences() -> list[Tokens]:
    """Four rows, of which three begin alike and two of these go on alike."""
    more = list(range(90, 110))
    ids = [[*START, *more, 7, 8], [*START, *more, 9], [*START, 11, 12, 13], [14, 15, 16, 17]]
    return [Tokens(row, [False] * (len(row) - 2) + [True] * 2) for row in ids]


def loss_and_gradients(made: Policy, batches: list) -> tuple[float, dict[str, torch.Tensor]]:
    total = sum(made.sum_nll(batch) for batch in batches)
    total.backward()
    return total.item(), gradients(made)


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("word", SOFT)
def test_a_pack_has_the_loss_and_gradients_of_its_rows_one_by_one(word: str, kind: str):
    made = policy(kind, SOFT[word], lively=0.05)
    loss, moved = loss_and_gradients(made, [pack([one]) for one in sequences()])
    assert all(value.norm() > 0 for value in moved.values())
    for share in (True, False):
        found, together = loss_and_gradients(made, [pack(sequences(), share=share)])
        assert found == pytest.approx(loss, rel=1e-5)
        assert farthest(together, moved) < 1e-4


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("word", TEXT)
def test_what_begins_as_text_reads_as_that_text_before_the_row(word: str, kind: str):
    made, row = policy(kind, TEXT[word]), list(range(6, 30))
    with torch.no_grad():
        wanted = made.network.base_model(input_ids=torch.tensor([[*OPENING, *row]])).last_hidden_state[0, 5:]
        assert torch.allclose(made.states(pack([tokens(row, "." * 24)])), wanted, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gemma", "bert"])
@pytest.mark.parametrize("word", TEXT)
def test_the_reference_reads_nothing_before_the_row(word: str, kind: str):
    made, batch = policy(kind, TEXT[word], lively=0.5), collate(documents("bert", "hi there"), share=False)
    with torch.no_grad():
        tuned = made.states(batch)
        with made.reference():
            before = made.states(batch)
        assert torch.equal(made.states(batch), tuned)
        plain = base(kind).network.base_model(input_ids=batch.ids[None]).last_hidden_state[0]
    assert torch.allclose(before, plain, atol=1e-5)
    assert not torch.allclose(tuned, plain, atol=1e-2)


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("word", TEXT)
def test_greedy_answers_are_those_of_reading_the_whole_row_again_for_each_word(word: str, kind: str):
    made = policy(kind, TEXT[word], lively=0.5)
    scrambled(made.network)
    asked = [[*START[:20], 7, 8, 9], [*START[:20], 10], [11, 12, 13]]
    together = generate(made, asked, sampling=Sampling(max_new_tokens=5), template=template(kind))
    with torch.no_grad():
        for prompt, drawn in zip(asked, together, strict=True):
            ids = list(prompt)
            for token in drawn.ids:
                last = made.states(pack([Tokens(ids, [False] * len(ids))]))[-1]
                assert int(made.words.logits(last).argmax()) == token
                ids.append(token)
    assert any(drawn.ids for drawn in together)


def test_options_are_scored_behind_the_virtual_tokens():
    made = policy("llama", Prefix(tokens=5), lively=0.5)
    found = option_scores(made, [[7, 8, 9]], [[[10], [11, 12]]])
    with torch.no_grad():
        states = made.states(pack([tokens([7, 8, 9, 11], "....")]))
        logs = made.words.logits(states).log_softmax(dim=1)
    assert found[0].tolist() == pytest.approx([float(logs[2, 10]), float(logs[2, 11] + logs[3, 12])], rel=1e-4)


def test_multiplying_in_bfloat16_gives_nearly_the_same_states():
    for technique in SOFT.values():
        made, batch = policy("llama", technique), pack(sequences())
        with torch.no_grad():
            exact = made.states(batch)
            made.autocast_dtype = torch.bfloat16
            assert 0 < float((made.states(batch) - exact).norm() / exact.norm()) < 0.02


def test_virtual_tokens_stand_at_the_positions_before_a_row():
    layout = lay_out([Segment(2, -1, 0), Segment(1, 0, 2), Segment(2, 0, 2)])
    root, own = layout.after_virtual(3).levels
    assert root.keys.tolist() == [[0, 1, 2, 3, 4]]
    assert root.key_positions.tolist() == [[0, 1, 2, 3, 4]]
    assert own.keys.tolist() == [[0, 1, 2, 3, 4, 5, 3], [0, 1, 2, 3, 4, 6, 7]]
    assert own.key_positions.tolist() == [[0, 1, 2, 3, 4, 5, -1], [0, 1, 2, 3, 4, 5, 6]]
    assert own.query_positions.tolist() == [[5, 5], [5, 6]]
    mask = own.mask(causal=True, window=4)
    assert mask is not None
    assert mask[1, 0].int().tolist() == [[0, 0, 1, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1, 1]]


@pytest.mark.parametrize("kind", ["gemma", "gemma3"])
def test_more_tokens_than_a_sliding_window_sees_are_refused(kind: str):
    policy(kind, Prefix(tokens=15))
    with pytest.raises(
        RecipeError,
        match=r"^technique\.tokens: the model's attention window holds 15 virtual tokens, got 16; use at most 15",
    ):
        policy(kind, Prefix(tokens=16))


@pytest.mark.parametrize("kind", DECODERS)
def test_a_decoder_with_keys_and_values_continues_from_them(kind: str):
    assert generates(base(kind).network)


def test_an_encoder_pools_its_rows_own_tokens_only():
    made = policy("bert", Prompt(tokens=5), lively=0.5)
    rows = [Encoded((tokens([2, 8, 9, 3], "...."),), "rows:1"), Encoded((tokens([2, 3], ".."),), "rows:2")]
    with torch.no_grad():
        batch = collate(rows, share=False)
        states = made.states(batch)
        assert states.shape == (6, HIDDEN)
        assert torch.allclose(made.pooled(batch)[1], states[4:].mean(dim=0), atol=1e-6)
