"""A network in numbers: what its layers multiply, and what a training pass over it keeps in memory."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunesmith.data.template import Tokens
from tunesmith.model.batch import pack
from tunesmith.model.four_bit import numbers
from tunesmith.model.policy import Policy
from tunesmith.model.virtual import key_sizes

# Lengths of the rows that memory is counted on: one more than what tokens keep, pairs of them and a whole pass.
LENGTHS = (4, 12, 20)
COPY_BYTES, COPIES = 32_000_000, 5


@dataclass(frozen=True, slots=True)
class Kept:
    """Bytes that a forward pass keeps for the backward one: for each token, and once for all.

    Where attention has dropout, for each pair of a query and a key too.
    """

    token: float
    once: float
    pair: float = 0.0


UNKNOWN = Kept(math.nan, math.nan)


@dataclass(frozen=True, slots=True)
class NetworkSize:
    """What formulas of time and memory need to know of a network."""

    kind: str  # its family's name
    causal: bool  # a decoder
    layers: int
    hidden: int
    embedded: int  # width of a word's embedding, narrower than `hidden` in some families
    words: int  # of the vocabulary, which a decoder predicts, and an encoder where it finds hidden words
    parameters: int
    linear: tuple[tuple[str, int, int], ...]  # name, inner and outer width of the layers that a low-rank update reaches
    named: tuple[tuple[str, int, int], ...]  # the same of embeddings and the output layer, reached only where named
    multiplied: int  # numbers that each token is multiplied with: those of `linear`, as often as a pass meets them
    past: int  # numbers of one token's keys and values in all layers
    moving: Kept  # where weights learn, or something beside them that needs what they read
    frozen: Kept  # where only what stands before or between the layers learns

    @property
    def matrices(self) -> int:
        """Numbers of the layers that a low-rank update reaches."""
        return sum(inner * outer for _, inner, outer in self.linear)


def measure_size(policy: Policy, *, modes: Sequence[bool] = (True, False)) -> NetworkSize:
    """The size of a network that nothing was put into, as it computes while it is trained.

    What a pass keeps is measured where weights learn (True), where they do not (False), or both; what was not
    measured is not a number, so that nobody reckons with it.
    """
    network, config = policy.network, policy.network.config
    causal = policy.family == "decoder"
    # An encoder has as many keys as queries, and need not give them out.
    keys = key_sizes(network) if causal else [(1, config.hidden_size)] * config.num_hidden_layers
    return NetworkSize(
        kind=config.model_type,
        causal=causal,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        embedded=network.get_input_embeddings().embedding_dim,
        words=config.vocab_size,
        parameters=numbers(network.parameters()),
        linear=tuple(linear_layers(network)),
        named=tuple(named_layers(network)),
        multiplied=multiplied(policy),
        past=2 * sum(heads * width for heads, width in keys),
        moving=_kept(policy, weights=True) if True in modes else UNKNOWN,
        frozen=_kept(policy, weights=False) if False in modes else UNKNOWN,
    )


@torch.no_grad()
def multiplied(policy: Policy, *, moving: bool = False) -> int:
    """Numbers of linear layers that a token is multiplied with, or those of them that move.

    A layer that stands in several places (ALBERT has one for all depths) counts as often as a pass comes through it.
    """
    network, met = policy.network, Counter[str]()
    sizes = {name: inner * outer for name, inner, outer in linear_layers(network)}
    if moving:
        sizes = {name: size for name, size in sizes.items() if network.get_submodule(name).weight.requires_grad}
    hooks = [
        network.get_submodule(name).register_forward_hook(lambda *_, name=name: met.update((name,))) for name in sizes
    ]
    policy.states(pack([Tokens([1, 2], [False] * 2)]).to(policy.device))
    for hook in hooks:
        hook.remove()
    return sum(size * max(1, met[name]) for name, size in sizes.items())


def linear_layers(network: Any) -> Iterator[tuple[str, int, int]]:
    """Name, inner and outer width of every linear layer but the output layer and an encoder's unused pooler."""
    last = network.get_output_embeddings()
    for name, module in network.named_modules():
        if module is last or "pooler" in name:
            continue
        if isinstance(module, nn.Linear):
            yield name, module.in_features, module.out_features
        elif isinstance(module, Conv1D):
            yield name, *module.weight.shape


def named_layers(network: Any) -> Iterator[tuple[str, int, int]]:
    """Name, inner and outer width of every embedding and of the output layer."""
    last = network.get_output_embeddings()
    for name, module in network.named_modules():
        if isinstance(module, nn.Embedding):
            yield name, module.num_embeddings, module.embedding_dim
        elif module is last and isinstance(module, nn.Linear):
            yield name, module.in_features, module.out_features


def _kept(policy: Policy, *, weights: bool) -> Kept:
    """What autograd keeps of a pass: the parabola through what it keeps of rows of three lengths."""
    found = [_kept_bytes(policy, length, weights=weights) for length in LENGTHS]
    pair, token, once = np.linalg.solve(np.vander(LENGTHS), found)
    return Kept(float(token), max(0.0, float(once)), float(pair))


def _kept_bytes(policy: Policy, length: int, *, weights: bool) -> int:
    """Bytes of all tensors kept for the backward pass over a row of this length, the network's own left out."""
    own = {part.untyped_storage().data_ptr() for part in (*policy.network.parameters(), *policy.network.buffers())}
    held: dict[int, Tensor] = {}

    def keep(value: Tensor) -> Tensor:
        value = value.detach()  # a result that its own step keeps would hold the step, and never be let go of
        place = value.untyped_storage().data_ptr()
        if place not in own:
            held[place] = value
        return value

    row = Tokens(list(range(1, length + 1)), [False] * length)
    with _learning(policy, weights=weights), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        policy.states(pack([row]).to(policy.device))
        return sum(value.untyped_storage().nbytes() for value in held.values())


@contextmanager
def _learning(policy: Policy, *, weights: bool) -> Iterator[None]:
    """A context in which gradients flow through the whole network, into its weights or only through them.

    Dropout is on, as in training, and takes nothing from the random numbers of what comes after.
    """
    network, mode, device = policy.network, policy.network.training, torch.device(policy.device)
    before = {name: value.requires_grad for name, value in network.named_parameters()}
    for value in network.parameters():
        value.requires_grad_(weights and value.is_floating_point())
    hook = network.get_input_embeddings().register_forward_hook(lambda _, __, out: out.detach().requires_grad_())
    policy.train(True)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        policy.train(mode)
        hook.remove()
        for name, value in network.named_parameters():
            value.requires_grad_(before[name])


def copy_rate(device: str) -> float:
    """Bytes per second that memory moves, read and written ones counted, best of a few copies."""
    source = torch.ones(COPY_BYTES // 4, device=device)
    target, best = torch.empty_like(source), 0.0
    for _ in range(COPIES):
        began = time.perf_counter()
        target.copy_(source)
        if source.is_cuda:
            torch.cuda.synchronize(source.device)
        best = max(best, 2 * COPY_BYTES / max(time.perf_counter() - began, 1e-9))
    return best
