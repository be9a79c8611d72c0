"""Pairs in one pack: the prompt runs once, and what the start says is the same row by row."""

from __future__ import annotations

import pytest
import torch

from tests.bases import LORA, OPENING, base, farthest, gradients, policy, template, tokens
from tests.tiny import DECODERS
from tunesmith.data.examples.types import Pair
from tunesmith.data.tokenization.chat_template import Encoded
from tunesmith.data.tokenization.messages import Message
from tunesmith.models.batch import collate, mismatched
from tunesmith.objectives import Preference
from tunesmith.techniques import Full, Prefix
from tunesmith.techniques.base import Technique
from tunesmith.training.reference_logprobs import add_reference_logprobs

PAIRS = [
    Pair("r", (Message("user", "What is the capital of France?"),), "It is Paris, I think.", "Rome"),
    Pair("s", (Message("user", "What is the capital of Italy, and why?"),), "Rome", "I do not know the answer."),
]


def rows(kind: str) -> list[Encoded]:
    objective = Preference().bind(PAIRS, "decoder")
    return [objective.encode(pair, template(kind), limit=512) for pair in PAIRS]


def test_both_answers_of_a_pair_run_behind_one_prompt():
    made = rows("llama")
    together, alone = collate(made), collate(made, share=False)
    prompts = [row.sequences[0].learn.index(True) for row in made]
    heads = [row.sequences[0].ids[:n] for row, n in zip(made, prompts, strict=True)]
    common = next(i for i, (a, b) in enumerate(zip(*heads, strict=False)) if a != b)
    # Each prompt once instead of twice, and what both prompts begin with once instead of twice.
    assert alone.forward_tokens - together.forward_tokens == sum(prompts) + common
    assert (together.rows, together.examples, together.group_size) == (4, 2, 2)


@pytest.mark.parametrize("kind", DECODERS)
def test_the_log_probability_of_an_answer_is_that_of_its_row_alone(kind: str):
    made, encoded = policy(kind), rows(kind)
    for row, given in zip(encoded, add_reference_logprobs(encoded, made), strict=True):
        for one, found in zip(row.sequences, given.reference, strict=True):
            ids = torch.tensor([one.ids])
            with torch.no_grad():
                logs = made.network(input_ids=ids).logits[0, :-1].float().log_softmax(dim=1)
            each = logs[torch.arange(len(one.ids) - 1), ids[0, 1:]]
            assert found == pytest.approx(each[torch.tensor(one.learn[1:])].sum().item(), rel=1e-4)


@pytest.mark.parametrize("technique", [LORA, Full(), Prefix(tokens=6)])
def test_a_policy_that_moved_still_says_what_the_start_said(technique: Technique):
    network = base("llama").network
    start = add_reference_logprobs(rows("llama"), policy("llama"))
    made = technique.adapt(network, family="decoder", keep_reference=True, start=OPENING)
    with torch.no_grad():
        for _, value in made.trainable():
            value.add_(0.02)
    batch = collate(start)
    assert batch.reference is not None
    assert torch.allclose(made.reference_logprobs(batch), batch.reference, atol=1e-3)
    assert not torch.allclose(made.logprobs(batch), batch.reference, atol=1e-2)


def test_crossed_rows_have_their_own_beginning_and_the_answer_of_the_example_before():
    two = [tokens([1, 2, 3, 7, 8], "...xx"), tokens([1, 2, 3, 9], "...x")]
    other = [tokens([4, 5, 6], "..x"), tokens([4, 5, 6, 6, 6], "..xxx")]
    (first, second), (third, fourth) = mismatched([Encoded(tuple(two), "r"), Encoded(tuple(other), "s")])
    # The completion of three tokens is cut, so that no row is longer than the longest one before.
    assert [one.ids for one in (first, second, third, fourth)] == [
        [1, 2, 3, 6],
        [1, 2, 3, 6, 6],
        [4, 5, 7, 8],
        [4, 5, 9],
    ]
    assert [one.learned for one in (first, second, third, fourth)] == [1, 2, 2, 1]
    short, long = (Encoded((one,), "r") for one in (tokens([1, 2, 3, 4], "...x"), tokens([5, 6, 7], ".xx")))
    assert [one.ids for (one,) in mismatched([short, long])] == [[1, 2, 3, 6], [5, 4]]


@pytest.mark.parametrize("technique", [LORA, Full(), Prefix(tokens=6)])
def test_a_shared_prompt_changes_neither_a_pairs_loss_nor_its_gradients(technique: Technique):
    objective = Preference(loss="dpo").bind(PAIRS, "decoder")
    made = policy("llama", technique, lively=0.05)
    start = add_reference_logprobs(rows("llama"), policy("llama"))
    found = []
    for share in (True, False):
        loss = objective.make_learner().loss(collate(start, share=share), made)
        loss.total.backward()
        found.append((loss.total.item(), gradients(made)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert farthest(found[0][1], found[1][1]) < 1e-3
