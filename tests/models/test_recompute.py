"""Recomputed activations: the same loss and gradients to the bit, and little that is kept for the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.modeling_layers import GradientCheckpointingLayer

from tests.bases import LORA, chats, documents, encoded, gradients, pairs, policy, template, with_mismatched
from tests.objectives.test_online_rl import practice, prompts
from tests.tiny import ENCODERS
from tunesmith.data.examples.types import UnpairedPreference
from tunesmith.models.batch import Batch, collate
from tunesmith.models.policy import Policy
from tunesmith.models.recompute import recompute_layers, recomputes
from tunesmith.objectives import Instruct, Preference
from tunesmith.objectives.base import Learner
from tunesmith.techniques import Full, Lora, Prefix, Prompt, PTuning
from tunesmith.techniques.base import Technique
from tunesmith.training.fit import accumulate_gradients, prepare_batches

# Dense decoders, encoders, a mixture of experts, and hybrids: linear attention, state space, convolution.
KINDS = ("llama", "gpt2", "gemma3", "bert", "distilbert", "qwen3_moe", "qwen3_next", "falcon_h1", "lfm2")
SOFT = {"prompt": Prompt(tokens=4), "prefix": Prefix(tokens=4), "p-tuning": PTuning(tokens=4)}


def rows(kind: str) -> Batch:
    if kind in ENCODERS:
        return collate(documents(kind, "I like it.", "This battery is bad and the phone is good."), share=False)
    return collate(encoded(kind))


def kept(made: Policy, compute: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """The result, and the bytes kept for its gradient: what autograd saves, and the inputs of recomputed layers."""
    own = {part.untyped_storage().data_ptr() for part in (*made.network.parameters(), *made.network.buffers())}
    saved: dict[int, Tensor] = {}

    def keep(value: Tensor) -> Tensor:
        address = value.untyped_storage().data_ptr()
        if address not in own:
            saved[address] = value.detach()
        return value

    def inputs(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor):
                keep(value)

    layers = [module for module in made.network.modules() if isinstance(module, GradientCheckpointingLayer)]
    hooks = [layer.register_forward_pre_hook(inputs, with_kwargs=True) for layer in layers if recomputes(made.network)]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        result = compute()
    for hook in hooks:
        hook.remove()
    return result, sum(value.untyped_storage().nbytes() for value in saved.values())


def both(made: Policy, batch: Batch, *, training: bool) -> tuple[float, float]:
    """Bytes kept without and with recomputation, after a check that nothing else differs."""
    found, sizes = [], []
    for on in (False, True):
        assert recompute_layers(made.network, on=on)
        torch.manual_seed(0)
        made.train(training)
        loss, size = kept(made, lambda: made.states(batch).square().sum())
        loss.backward()
        found.append({"loss": loss.detach(), **gradients(made)})
        sizes.append(size)
    without, recomputed = found
    assert without.keys() == recomputed.keys()
    assert [name for name, value in without.items() if not torch.equal(value, recomputed[name])] == []
    assert any(value.abs().max() > 0 for name, value in without.items() if name != "loss")
    return sizes[0], sizes[1]


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("technique", [Full(), Lora(rank=4, dropout=0.3)], ids=["full", "lora"])
def test_loss_and_gradients_stay_the_same_to_the_bit_and_a_quarter_is_kept(kind: str, technique: Technique):
    if kind in ("qwen3_moe", "qwen3_next") and technique.kind == "lora":  # PEFT supports no dropout for experts
        technique = LORA
    made, batch = policy(kind, technique), rows(kind)
    for training in (True, False):
        whole, recomputed = both(made, batch, training=training)
        assert recomputed < whole / 4


@pytest.mark.parametrize("technique", SOFT.values(), ids=SOFT)
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_virtual_tokens_in_a_cache_are_read_once_more_and_not_added_twice(kind: str, technique: Technique):
    if kind == "bert" and technique.kind == "p-tuning":
        kind = "qwen3"
    both(policy(kind, technique, lively=0.05), rows(kind), training=True)


class Casts(TorchDispatchMode):
    """Counts copies of parameters in another dtype: all that were made, and the most that existed at a time."""

    def __init__(self, made: Policy) -> None:
        super().__init__()
        self.weights = {part.data_ptr() for part in made.network.parameters() if part.ndim == 2}
        self.copies: list[StorageWeakRef] = []
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and args[0].data_ptr() in self.weights:
            self.copies.append(StorageWeakRef(out.untyped_storage()))
            self.most = max(self.most, sum(not copy.expired() for copy in self.copies))
        return out


def test_recomputed_layers_do_not_keep_their_weights_in_half_precision():
    made, batch = policy("llama", Full()), rows("llama")
    made.autocast_dtype = torch.bfloat16
    most, found = [], []
    for on in (False, True):
        recompute_layers(made.network, on=on)
        with Casts(made) as casts:
            made.states(batch).square().sum().backward()
        most.append(casts.most)
        found.append(gradients(made))
    layers = made.network.config.num_hidden_layers
    assert layers > 1
    assert 0 < most[1] <= most[0] / layers
    assert [name for name, value in found[0].items() if not torch.equal(value, found[1][name])] == []


def dpo() -> tuple[Learner, list[Batch]]:
    objective = Preference().bind(pairs(4), "decoder")
    encoded = [objective.encode(pair, template("llama"), limit=200) for pair in pairs(4)]
    return objective.make_learner(), [collate(encoded[:2]), collate(encoded[2:])]


def kto() -> tuple[Learner, list[Batch]]:
    examples = [
        UnpairedPreference(f"r:{i}", c.messages[:1], c.messages[1].content, i % 2 == 0) for i, c in enumerate(chats())
    ]
    objective = Preference().bind(examples, "decoder")
    rows = [objective.encode(e, template("llama"), limit=200) for e in examples]
    return objective.make_learner(), [with_mismatched(rows)]


def grpo() -> tuple[Learner, list[Batch]]:
    return practice(updates=2), [prompts(2)]


def instruct() -> tuple[Learner, list[Batch]]:
    return Instruct(), [collate(encoded("llama")[:2]), collate(encoded("llama")[2:])]


@pytest.mark.parametrize("case", [instruct, dpo, kto, grpo], ids=lambda case: case.__name__)
def test_steps_with_a_reference_or_rollouts_recompute_too(case: Callable[[], tuple[Learner, list[Batch]]]):
    learner, batches = case()
    made = policy("llama", LORA, lively=0.05)
    steps, sizes = [], []
    for on in (False, True):
        torch.manual_seed(0)
        recompute_layers(made.network, on=on)
        prepared = prepare_batches(made, learner, batches)
        loss, metrics = accumulate_gradients(made, learner, prepared)
        steps.append((loss, metrics, gradients(made)))
        _, size = kept(made, lambda batch=prepared[0]: learner.loss(batch, made).total)
        sizes.append(size)
    assert steps[0][:2] == steps[1][:2]
    assert [name for name, value in steps[0][2].items() if not torch.equal(value, steps[1][2][name])] == []
    assert sizes[1] < sizes[0] / 4


def test_recomputation_can_be_switched_off_and_a_network_without_such_layers_says_so():
    made = policy("llama", LORA)
    assert recompute_layers(made.network)
    assert recomputes(made.network)
    assert recompute_layers(made.network, on=False)
    assert not recomputes(made.network)
    assert not recompute_layers(torch.nn.Sequential(torch.nn.Linear(2, 2)))
