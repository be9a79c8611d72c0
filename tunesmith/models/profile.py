"""Profile of a network: its matrix products, and the memory that a training pass keeps.

Letters: I and O inner and outer width.
"""

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

from tunesmith.data.tokenization.chat_template import Tokens
from tunesmith.models.attention.network_cache import cached_values
from tunesmith.models.batch import pack
from tunesmith.models.loading.device import keep_randomness, wait_for
from tunesmith.models.loading.quantization import count_parameters
from tunesmith.models.loading.text_part import part_of
from tunesmith.models.policy import Policy
from tunesmith.models.sharded import run_body
from tunesmith.progress import track

# Row lengths in tokens at which memory is measured: three points determine terms per pass, token and pair of tokens.
LENGTHS = (4, 12, 20)
# Tokens that a recurrent layer may compute at once; it computes whole blocks, however short the row is.
BLOCKS = (16, 32, 64, 128, 256)
COPY_BYTES, GPU_COPY_BYTES, COPIES = 32_000_000, 1_000_000_000, 5


@dataclass(frozen=True, slots=True)
class ActivationMemory:
    """Bytes of activations that a forward pass keeps for the backward pass.

    Measured on short rows. If the weights are frozen, a decoder keeps about a tenth more for rows from 160 tokens on,
    whose attention is computed by another kernel.
    """

    token: float  # for each token
    once: float  # for the whole pass
    pair: float = 0.0  # for each pair of query and key, where attention keeps its scores
    block: int = 1  # tokens of each row are rounded up to a multiple of this

    def stored(self, tokens: float, rows: int) -> float:
        """Return the number of tokens whose activations are stored, given the padded tokens of a number of rows."""
        return rows * math.ceil(tokens / rows / self.block) * self.block if self.block > 1 and rows else tokens


UNKNOWN = ActivationMemory(math.nan, math.nan)


@dataclass(frozen=True, slots=True)
class NetworkSize:
    """The sizes from which time and memory are estimated."""

    kind: str  # transformers' model_type
    causal: bool  # a decoder
    layers: int
    hidden: int  # width of the states
    embedded: int  # width of the word embeddings, narrower than `hidden` in some families
    words: int  # size of the vocabulary that a decoder predicts, or an encoder at masked positions
    parameters: int
    linear: tuple[tuple[str, int, int], ...]  # name, I and O of the layers that LoRA adapts by default
    named: tuple[tuple[str, int, int], ...]  # the same of layers adapted only on request: embeddings, output layer
    matmul_parameters: int  # weights that each token is multiplied with: those of `linear`, once per use in a pass
    past: int  # values of one token's keys and values in all layers
    moving: ActivationMemory  # if weights are trained, or adapters that need the layers' inputs
    frozen: ActivationMemory  # if only virtual tokens or scaling factors are trained
    state: int = 0  # values of a row's states in all layers that do not grow with its tokens
    multimodal: bool = False  # the text part of a multimodal checkpoint
    trained: int = 0  # parameters that a technique without a formula says it trains; 0: not known

    @property
    def matrices(self) -> int:
        """Number of weights in the layers that LoRA adapts by default."""
        return sum(inner * outer for _, inner, outer in self.linear)


def measure_size(policy: Policy, *, modes: Sequence[bool] = (True, False)) -> NetworkSize:
    """Measure the sizes of a network without adapters, with the dtypes it is trained in.

    The `modes` are whether to measure activations with trained weights (True), with frozen ones (False), or both. What
    is not measured is NaN, so that an estimate made from it is NaN too.
    """
    network = policy.network
    config = network.config
    causal = policy.family == "decoder"
    layers = list(linear_layers(network))
    bypassed = bypassed_layers(network)
    # An encoder has as many keys as queries, and many encoders do not return them.
    past, state = cached_values(network) if causal else (2 * config.hidden_size * config.num_hidden_layers, 0)
    return NetworkSize(
        kind=config.model_type,
        causal=causal,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        embedded=network.get_input_embeddings().embedding_dim,
        words=config.vocab_size,
        parameters=count_parameters(network.parameters()),
        linear=tuple(layer for layer in layers if layer[0] not in bypassed),
        named=(*named_layers(network), *(layer for layer in layers if layer[0] in bypassed)),
        matmul_parameters=matmul_parameters(policy),
        past=past,
        state=state,
        multimodal=part_of(network) is not None,
        moving=_activation_memory(policy, weights=True) if True in modes else UNKNOWN,
        frozen=_activation_memory(policy, weights=False) if False in modes else UNKNOWN,
    )


@torch.no_grad()
def matmul_parameters(policy: Policy, *, moving: bool = False) -> int:
    """Count the weights of linear layers that a token is multiplied with; with `moving` only trainable ones.

    A layer that is used at several depths (ALBERT has one for all) counts once per use.
    """
    network = policy.network
    uses = Counter[str]()
    sizes = {name: inner * outer for name, inner, outer in linear_layers(network)}
    if moving:
        sizes = {name: size for name, size in sizes.items() if network.get_submodule(name).weight.requires_grad}
    hooks = [
        network.get_submodule(name).register_forward_hook(lambda *_, name=name: uses.update((name,))) for name in sizes
    ]
    policy.states(pack([Tokens([1, 2], [False] * 2)]).to(policy.device))
    for hook in hooks:
        hook.remove()
    return sum(size * max(1, uses[name]) for name, size in sizes.items())


def linear_layers(network: Any) -> Iterator[tuple[str, int, int]]:
    """Yield name, I and O of every linear layer except the output layer and an encoder's unused pooler."""
    last = network.get_output_embeddings()
    for name, module in network.named_modules():
        if module is last or "pooler" in name:
            continue
        if isinstance(module, nn.Linear):
            yield name, module.in_features, module.out_features
        elif isinstance(module, Conv1D):
            yield name, *module.weight.shape


@torch.no_grad()
def bypassed_layers(network: Any) -> set[str]:
    """Return the names of linear layers in which an adapter would be bypassed or would not fit.

    A state space mixer multiplies by the weight of some layers instead of calling them; which ones, a training pass
    shows. Its last layer always counts: fused kernels do the same with it, and PEFT refuses an adapter there. A
    block-diagonal layer multiplies each group of its inputs by another block of its weight, which the two matrices of
    an adapter cannot add to.
    """
    diagonal = {
        name for name, _, _ in linear_layers(network) if getattr(network.get_submodule(name), "n_groups", 1) > 1
    }
    # A state space has a decay A and a skip connection D; a linear attention has no D, and calls its layers.
    mixers = {name for name, module in network.named_modules() if hasattr(module, "A_log") and hasattr(module, "D")}
    inside = {name for name, _, _ in linear_layers(network) if name.rpartition(".")[0] in mixers}
    if not inside:
        return diagonal
    called = set[str]()
    hooks = [
        network.get_submodule(name).register_forward_hook(lambda *_, name=name: called.add(name)) for name in inside
    ]
    mode = network.training
    network.train()
    try:
        with torch.random.fork_rng(devices=[]):
            run_body(network, input_ids=torch.ones(1, 4, dtype=torch.int64, device=network.device), use_cache=False)
    finally:
        network.train(mode)
        for hook in hooks:
            hook.remove()
    return diagonal | {name for name in inside if name not in called or name.endswith(".out_proj")}


def named_layers(network: Any) -> Iterator[tuple[str, int, int]]:
    """Yield name, I and O of every embedding and of the output layer."""
    last = network.get_output_embeddings()
    for name, module in network.named_modules():
        if isinstance(module, nn.Embedding):
            yield name, module.num_embeddings, module.embedding_dim
        elif module is last and isinstance(module, nn.Linear):
            yield name, module.in_features, module.out_features


def _activation_memory(policy: Policy, *, weights: bool) -> ActivationMemory:
    """Fit a parabola through the activations of rows of three lengths."""
    block = 1 if policy.rules.keys_only else _block(policy, weights=weights)
    lengths = LENGTHS if block == 1 else (block, 2 * block, 3 * block)
    tracked = track(lengths, "measuring activations", unit="lengths")
    sizes = [_kept_bytes(policy, length, weights=weights) for length in tracked]
    pair, token, once = np.linalg.solve(np.vander(lengths), sizes)
    return ActivationMemory(float(token), max(0.0, float(once)), float(pair), block)


def _block(policy: Policy, *, weights: bool) -> int:
    """Return the tokens that a recurrent layer computes at once: memory jumps where another block begins."""
    first, second = (_kept_bytes(policy, length, weights=weights) for length in LENGTHS[:2])
    step = (second - first) / (LENGTHS[1] - LENGTHS[0])
    for block in BLOCKS:
        full, more = (_kept_bytes(policy, length, weights=weights) for length in (block, block + 1))
        if more - full > 2 * step:
            return block
    return 1


def _kept_bytes(policy: Policy, length: int, *, weights: bool) -> int:
    """Return the bytes of all tensors that autograd keeps for a row of this length, without the network's own."""
    # By the storage itself and not its address, which is 0 on the meta device.
    own = {part.untyped_storage()._cdata for part in (*policy.network.parameters(), *policy.network.buffers())}
    saved: dict[int, Tensor] = {}

    def record(value: Tensor) -> Tensor:
        value = value.detach()  # a saved output refers to its own graph node, a cycle that is never freed
        storage = value.untyped_storage()._cdata
        if storage not in own:
            saved[storage] = value
        return value

    row = Tokens([1 + i % LENGTHS[-1] for i in range(length)], [False] * length)
    with _training(policy, weights=weights), torch.autograd.graph.saved_tensors_hooks(record, lambda x: x):
        policy.states(pack([row]).to(policy.device))
        return sum(value.untyped_storage().nbytes() for value in saved.values())


@contextmanager
def _training(policy: Policy, *, weights: bool) -> Iterator[None]:
    """Enter a context in which gradients flow through the whole network, and into its weights if `weights`.

    Dropout is on, as in training, but the state of the random generators is restored.
    """
    network = policy.network
    mode = network.training
    device = torch.device(policy.device)
    trainable = {name: value.requires_grad for name, value in network.named_parameters()}
    for value in network.parameters():
        value.requires_grad_(weights and value.is_floating_point())
    hook = network.get_input_embeddings().register_forward_hook(lambda _, __, out: out.detach().requires_grad_())
    policy.train(True)
    try:
        with keep_randomness(device):
            yield
    finally:
        policy.train(mode)
        hook.remove()
        for name, value in network.named_parameters():
            value.requires_grad_(trainable[name])


def copy_rate(device: str) -> float:
    """Measure the memory bandwidth of a device, in bytes per second read and written, best of a few copies."""
    size = GPU_COPY_BYTES if device.startswith("cuda") else COPY_BYTES  # a GPU would copy the smaller one in its cache
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(COPIES):
        start = time.perf_counter()
        target.copy_(source)
        wait_for(source.device)
        best = max(best, 2 * size / max(time.perf_counter() - start, 1e-9))
    return best
