"""Mixtures of experts: what is adapted, and the losses and gradients of transformers' own forward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from peft.tuners.lora.layer import ParamWrapper

from tests.bases import base, farthest, gradients, policy
from tests.tiny import MIXTURES
from tunesmith.data.tokenization.chat_template import Encoded, Tokens
from tunesmith.models.batch import collate, mean_metrics
from tunesmith.models.kernels.experts_lora import FusedParameter
from tunesmith.models.kernels.fused_lora import FusedLora
from tunesmith.models.mixtures import RouterLoss, find_mixture
from tunesmith.models.policy import Policy
from tunesmith.objectives import Instruct
from tunesmith.techniques import Full, Lora
from tunesmith.training.fit import accumulate_gradients

# Families whose forward adds a load-balancing loss, and those that balance their routers in another way.
BALANCED = [kind for kind in MIXTURES if kind not in ("deepseek_v3", "llama4")]
TECHNIQUES = {"full": Full(), "lora": Lora(rank=4, router=True)}
PREFIX = list(range(20, 45))


def rows() -> list[Encoded]:
    """Rows of different lengths, three of which begin alike, and one that ends with tokens that are not learned."""
    own = [range(60, 72), range(80, 83), range(100, 130)]
    first = [Tokens.of(PREFIX, [*ids]) for ids in own]
    last = Tokens([5, 6, 7, 8, 9], [False, True, True, False, False])
    return [Encoded((row,), "") for row in (*first, last)]


def padded(examples: Sequence[Encoded]) -> dict[str, torch.Tensor]:
    """The same rows as transformers takes them."""
    sequences = [row.sequences[0] for row in examples]
    longest = max(len(row.ids) for row in sequences)
    ids = [row.ids + [0] * (longest - len(row.ids)) for row in sequences]
    labels = [
        [i if learn else -100 for i, learn in zip(row.ids, row.learn, strict=True)] + [-100] * (longest - len(row.ids))
        for row in sequences
    ]
    mask = [[1] * len(row.ids) + [0] * (longest - len(row.ids)) for row in sequences]
    return {
        "input_ids": torch.tensor(ids), "labels": torch.tensor(labels), "attention_mask": torch.tensor(mask),
    }  # fmt: skip


@contextmanager
def by_peft(network: Any) -> Iterator[None]:
    """A context in which PEFT's own layers compute, as it wrote them."""
    plain = {FusedParameter: ParamWrapper, FusedLora: PeftLinear}
    changed = [(module, type(module)) for module in network.modules() if type(module) in plain]
    for module, kind in changed:
        module.__class__ = plain[kind]
    yield
    for module, kind in changed:
        module.__class__ = kind


def lively(made: Policy) -> Policy:
    """With large routers, so that experts are chosen unevenly."""
    made.router_loss = RouterLoss.of(made.network)
    made.network.router_aux_loss_coef = 0.5
    if made.router_loss is not None:
        made.router_loss.coefficient = 0.5
    return made


@pytest.mark.parametrize("kind", MIXTURES)
def test_experts_and_routers_are_found_by_their_shapes(kind: str):
    network = base(kind).network
    mixture = find_mixture(network)
    assert mixture is not None
    assert mixture.per_token == (1 if kind == "llama4" else 2)
    shapes = {name: value.shape for name, value in network.named_parameters()}
    layers = 1 if kind in ("deepseek_v3", "llama4") else 2  # their first layer is dense
    assert len(mixture.experts) == len(mixture.routers) * 2 == layers * 2
    assert all(len(shapes[name]) == 3 and shapes[name][0] == 4 for name in mixture.experts)
    assert all(shapes[name] == (4, 32) and "shared" not in name for name in mixture.routers)
    assert find_mixture(base("llama").network) is None


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("kind", BALANCED)
def test_loss_and_gradients_with_the_router_loss_are_those_of_transformers(kind: str, technique: str):
    made = lively(policy(kind, TECHNIQUES[technique], lively=0.05))
    assert made.router_loss is not None
    assert made.packs == (kind != "gpt_oss")  # its attention has sinks, which packed attention does not support
    batch = collate(rows(), whole=True)
    with by_peft(made.network):
        theirs = made.network(**padded(rows()), output_router_logits=True)
        theirs.loss.backward()
    wanted = gradients(made)
    assert theirs.aux_loss.item() * 0.5 > 0.01 * theirs.loss.item()
    loss, metrics = accumulate_gradients(made, Instruct(), [batch])
    assert loss == pytest.approx(theirs.loss.item(), rel=1e-5)
    assert mean_metrics([metrics])["router_loss"] == pytest.approx(0.5 * theirs.aux_loss.item(), rel=1e-5)
    assert farthest(gradients(made), wanted) < 1e-4


@pytest.mark.parametrize("kind", MIXTURES)
def test_without_a_trained_router_the_loss_is_the_plain_one(kind: str):
    made = policy(kind, Lora(rank=4), lively=0.05)
    assert RouterLoss.of(made.network) is None
    assert not any(part in name for name, _ in made.trainable() for part in (".gate.", ".router."))
    with by_peft(made.network):
        theirs = made.network(**padded(rows()), output_router_logits=False)
        theirs.loss.backward()
    wanted = gradients(made)
    loss, metrics = accumulate_gradients(made, Instruct(), [collate(rows())])
    assert loss == pytest.approx(theirs.loss.item(), rel=1e-5)
    assert "router_loss" not in metrics
    assert farthest(gradients(made), wanted) < 1e-4


def test_a_configuration_that_asks_for_the_router_loss_gets_it_with_frozen_routers():
    made = policy("qwen3_moe", Lora(rank=4), lively=0.05)
    made.network.config.output_router_logits = True
    made.router_loss = RouterLoss.of(made.network)
    theirs = made.network(**padded(rows()))
    loss, _ = accumulate_gradients(made, Instruct(), [collate(rows(), whole=True)])
    assert theirs.aux_loss > 0
    assert loss == pytest.approx(theirs.loss.item(), rel=1e-5)


def test_the_router_loss_of_several_micro_batches_is_their_mean_by_learned_tokens():
    made = lively(policy("mixtral", TECHNIQUES["lora"], lively=0.05))
    parts = [rows()[:1], rows()[1:]]
    each = [accumulate_gradients(made, Instruct(), [collate(part, whole=True)])[0] for part in parts]
    gradients(made)
    both, _ = accumulate_gradients(made, Instruct(), [collate(part, whole=True) for part in parts])
    units = [sum(row.sequences[0].learned for row in part) for part in parts]
    assert both == pytest.approx(sum(a * b for a, b in zip(each, units, strict=True)) / sum(units), rel=1e-6)


def test_a_loss_outside_of_a_training_step_records_no_routers():
    made = lively(policy("mixtral", TECHNIQUES["lora"], lively=0.05))
    assert made.router_loss is not None
    Instruct().loss(collate(rows()), made)
    assert float(made.router_loss.value()) == 0.0


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss", "deepseek_v3"])
def test_the_update_of_experts_makes_no_copy_of_their_weights(kind: str, monkeypatch: pytest.MonkeyPatch):
    made = policy(kind, Lora(rank=4), lively=0.05)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad(), by_peft(made.network):
        wanted = made.network(input_ids=ids).logits
    monkeypatch.setattr("torch.nn.utils.parametrize.register_parametrization", None)  # how PEFT adds them
    with torch.no_grad():
        assert torch.allclose(made.network(input_ids=ids).logits, wanted, atol=1e-5)
