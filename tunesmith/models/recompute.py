"""Recomputation of activations: a layer keeps its inputs and is run again in the backward pass.

Less memory for a third (all weights trained) to a half (adapters) more time; losses and gradients stay the same to
the bit. transformers' own switch (`gradient_checkpointing_enable`) acts in training mode only, and losses with a
reference or rollouts run in evaluation mode. torch's `checkpoint_wrapper` renames the parameters, which saved adapters
do not survive.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer


def recompute_layers(network: nn.Module, on: bool = True) -> bool:
    """Switch on or off that the backward pass computes the activations inside of a network's layers again.

    Returns:
        False if the network does not mark its layers as ones that can run again; it is unchanged then.
    """
    layers = [module for module in network.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:
        layer.__dict__.pop("forward", None)
        if on:
            layer.forward = partial(_run_again, layer.forward)
    return bool(layers)


def recomputes(network: nn.Module) -> bool:
    """Return whether `recompute_layers` is switched on in a network."""
    return any("forward" in m.__dict__ for m in network.modules() if isinstance(m, GradientCheckpointingLayer))


def _run_again(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a layer, and once more when its activations are needed."""
    if not torch.is_grad_enabled():  # generation and scoring keep nothing
        return forward(*args, **kwargs)
    # The first run adds its keys and values to the cache; a second one has to begin from what the first one found.
    found = _separate_caches(args, kwargs)
    pending: list[tuple[Sequence[Any], Mapping[str, Any]]] = [(args, kwargs)]

    def run(*_: Any) -> Any:
        args, kwargs = pending.pop() if pending else _separate_caches(*found)
        with _no_cached_casts():
            return forward(*args, **kwargs)

    return checkpoint(run, *args, use_reentrant=False)


@contextmanager
def _no_cached_casts() -> Iterator[None]:
    """Let autocast cast the weights of a layer each time it runs, instead of keeping all copies to the end of the step.

    With all weights trained in bfloat16, the copies take half of the weights' own memory (bench/NOTES.md).
    """
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


def _separate_caches(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments with copies of the caches among them: same keys and values, nothing added to the others."""
    return [_copy(value) for value in args], {name: _copy(value) for name, value in kwargs.items()}


def _copy(value: Any) -> Any:
    """Return a copy of a cache, and anything else itself."""
    if not isinstance(value, Cache):
        return value
    cache: Any = copy.copy(value)
    cache.layers = [copy.copy(layer) for layer in cache.layers]
    return cache
