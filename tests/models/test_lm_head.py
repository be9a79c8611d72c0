"""The language head: the loss and gradients of plain cross-entropy, whatever the family does to its logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.bases import base, farthest
from tests.tiny import DECODERS, HIDDEN, WORDS
from tunesmith.errors import ModelError
from tunesmith.models.lm_head import CHUNK, LanguageHead


def matrix(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def targets(count: int) -> torch.Tensor:
    return torch.arange(count) * 37 % WORDS


@pytest.mark.parametrize("count", [1, CHUNK, 2 * CHUNK + 5])
def test_loss_and_both_gradients_are_those_of_cross_entropy(count: int):
    layer, states = nn.Linear(HIDDEN, WORDS, bias=False), matrix(count, HIDDEN, 1).requires_grad_()
    wanted = F.cross_entropy(layer(states), targets(count), reduction="sum")
    expected = torch.autograd.grad(3 * wanted, [states, layer.weight])
    found = LanguageHead(layer).sum_nll(states, targets(count))
    gradients = torch.autograd.grad(3 * found, [states, layer.weight])
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_two_words_with_equal_logits_cost_the_logarithm_of_two_each():
    layer = nn.Linear(3, 2, bias=False)
    nn.init.zeros_(layer.weight)
    states = torch.tensor([[1.0, 2.0, 4.0]] * 5, requires_grad=True)
    loss = LanguageHead(layer).sum_nll(states, torch.tensor([0, 0, 0, 0, 1]))
    loss.backward()
    assert loss.item() == pytest.approx(5 * 0.693147)
    # softmax - onehot is -1/2 for the target: four rows pull towards word 0, one towards word 1
    assert layer.weight.grad is not None
    assert torch.allclose(layer.weight.grad, torch.tensor([[-1.5, -3.0, -6.0], [1.5, 3.0, 6.0]]))


@pytest.mark.parametrize("moves", ["states", "weight", "nothing"])
def test_only_what_moves_gets_a_gradient(moves: str):
    layer, states = nn.Linear(HIDDEN, WORDS, bias=False), matrix(7, HIDDEN, 2)
    layer.weight.requires_grad_(moves == "weight")
    loss = LanguageHead(layer).sum_nll(states.requires_grad_(moves == "states"), targets(7))
    assert loss.requires_grad == (moves != "nothing")
    if loss.requires_grad:
        loss.backward()
    assert (states.grad is not None, layer.weight.grad is not None) == (moves == "states", moves == "weight")


def test_no_learned_position_costs_nothing():
    layer = nn.Linear(HIDDEN, WORDS, bias=False)
    head = LanguageHead(layer)
    states = torch.zeros(0, HIDDEN, requires_grad=True)
    head.sum_nll(states, targets(0)).backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.abs().sum() == 0
    assert head.logprobs(states, targets(0)).tolist() == []


@pytest.mark.parametrize("moves", ["states", "weight", "both"])
def test_log_probabilities_that_count_differently_have_the_gradients_of_their_logits(moves: str):
    layer, states = nn.Linear(HIDDEN, WORDS, bias=False), matrix(CHUNK + 7, HIDDEN, 2)
    layer.weight.requires_grad_(moves != "states")
    states.requires_grad_(moves != "weight")
    goal, counts = targets(CHUNK + 7), torch.linspace(-1, 2, CHUNK + 7)
    moved = [value for value in (states, layer.weight) if value.requires_grad]
    found = LanguageHead(layer).logprobs(states, goal)
    wanted = layer(states).log_softmax(dim=1)[torch.arange(CHUNK + 7), goal]
    assert torch.allclose(found, wanted, atol=1e-5)
    for ours, theirs in zip(
        torch.autograd.grad((found * counts).sum(), moved),
        torch.autograd.grad((wanted * counts).sum(), moved),
        strict=True,
    ):
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("head", ["bias", "scale", "softcap"])
def test_a_head_that_is_not_a_plain_product_costs_what_its_logits_say(head: str):
    layer, states = nn.Linear(4, 3, bias=head == "bias"), matrix(6, 4, 3)
    made = LanguageHead(layer, 0.5 if head == "scale" else 1.0, 2.0 if head == "softcap" else 0.0)
    logits = layer(states)
    logits = {"bias": logits, "scale": logits / 2, "softcap": 2 * torch.tanh(logits / 2)}[head]
    goal = torch.tensor([0, 1, 2, 0, 1, 2])
    assert torch.allclose(made.logits(states), logits)
    assert torch.allclose(made.sum_nll(states, goal), F.cross_entropy(logits, goal, reduction="sum"))
    assert torch.allclose(made.logprobs(states, goal), logits.log_softmax(dim=1)[torch.arange(6), goal])


@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_options_that_follow_one_state_cost_what_they_would_alone(softcap: float):
    made, states = LanguageHead(nn.Linear(4, 3, bias=False), 1.0, softcap), matrix(600, 4, 3)
    index = torch.tensor([599, 0, 300, 300, 255, 256, 300])
    goal = torch.tensor([0, 1, 2, 0, 1, 2, 1])
    found = made.logprobs_at(states, index, goal)
    assert torch.allclose(found, made.logprobs(states[index], goal), atol=1e-6)
    assert not found.requires_grad


def test_no_head_ever_makes_the_logits_of_all_positions_at_once(monkeypatch: pytest.MonkeyPatch):
    made, seen = LanguageHead(nn.Linear(4, 3, bias=True), 1.0, 2.0), list[int]()
    whole = LanguageHead.logits

    def logits(self: LanguageHead, states: torch.Tensor) -> torch.Tensor:
        seen.append(len(states))
        return whole(self, states)

    states, goal = matrix(600, 4, 3).requires_grad_(), torch.arange(600) % 3
    wanted = torch.autograd.grad(F.cross_entropy(made.logits(states), goal, reduction="sum"), states)[0]
    monkeypatch.setattr(LanguageHead, "logits", logits)
    assert torch.allclose(torch.autograd.grad(made.sum_nll(states, goal), states)[0], wanted, atol=1e-5)
    assert max(seen) <= CHUNK
    assert made.sum_nll(states[:0], goal[:0]) == 0


@pytest.mark.parametrize("kind", DECODERS)
def test_every_familys_loss_and_gradients_are_those_of_its_own_logits(kind: str):
    network = base(kind).network
    head = LanguageHead.of(network)
    ids = torch.arange(6, 26)[None]
    network(input_ids=ids, labels=ids).loss.backward()
    wanted = {name: value.grad.clone() for name, value in network.named_parameters()}
    expected = network(input_ids=ids, labels=ids).loss.item()
    network.zero_grad()
    states = network.base_model(input_ids=ids, use_cache=False).last_hidden_state
    loss = head.sum_nll(states[0, :-1], ids[0, 1:]) / 19
    loss.backward()  # the weight of a tied head is the embedding's: both parts of its gradient meet there
    found = {name: value.grad.clone() for name, value in network.named_parameters()}
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert farthest(found, wanted) < 1e-4


@pytest.mark.parametrize("kind", ["gemma", "gemma3"])
def test_the_cap_on_logits_is_read_from_the_configuration(kind: str):
    assert LanguageHead.of(base(kind).network).softcap == 30.0


def test_a_model_that_does_something_unknown_to_its_logits_is_refused():
    network = base("llama").network
    forward = network.forward

    def doubled(**inputs):
        out = forward(**inputs)
        out.logits = out.logits * 2
        return out

    network.forward = doubled
    with pytest.raises(ModelError, match="llama: this family changes its logits in an unsupported way"):
        LanguageHead.of(network)
