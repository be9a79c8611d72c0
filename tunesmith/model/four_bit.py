"""Weights in four bits: one arithmetic for training and answers, and what they count and weigh."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


def settle(network: nn.Module) -> None:
    """The network without bitsandbytes' second arithmetic for answers on a CPU, and with memory of its own.

    Weights that stay whole were windows into the file, which held all of it in memory, four times what 4 bits take.

    On a CPU with AVX512-BF16, version 0.50 packs a weight anew the first time it answers without gradient: its scales
    are rounded to bfloat16 for good, double quantisation is undone, and no gradient flows through the layer any more.
    """
    from bitsandbytes.nn.modules import Linear4bit

    for module in network.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    for value in network.parameters():
        if value.is_cpu and value.is_floating_point():
            value.data = value.data.clone()


def experts(network: nn.Module) -> int:
    """Numbers that lie in parameters of several matrices each, as those of experts do; convolutions are none."""
    parts = (module for module in network.modules() if not isinstance(module, nn.Conv1d))
    return sum(value.numel() for part in parts for value in part.parameters(recurse=False) if value.dim() == 3)


def left_whole(network: nn.Module) -> str:
    """Why 4 bits save next to nothing here; empty where they do."""
    if experts(network) <= numbers(value for value in network.parameters() if value.dtype == torch.uint8):
        return ""
    return "most of it are experts that share parameters, which bitsandbytes leaves whole; leave `quantize` out"


def unpacked(network: Any) -> Any:
    """The network with the plain weights that its packed ones stand for, in layers of the kinds its family has.

    Packed layers are nn.Linear underneath. GPT-2's own keep a weight turned round, and are saved and read that way.
    """
    plain = network.dequantize()
    with torch.device("meta"):
        own = type(plain)(plain.config)
    for name, module in own.named_modules():
        packed = plain.get_submodule(name)
        if isinstance(module, Conv1D) and isinstance(packed, nn.Linear):
            layer = Conv1D(packed.out_features, packed.in_features)
            layer.weight = nn.Parameter(packed.weight.T.contiguous(), requires_grad=False)
            layer.bias = packed.bias
            plain.set_submodule(name, layer)
    return plain


def numbers(values: Iterable[Tensor]) -> int:
    """How many numbers tensors stand for: two in a byte where they are packed."""
    return sum(value.numel() * (2 if value.dtype == torch.uint8 else 1) for value in values)


def resident_bytes(network: nn.Module) -> int:
    """Bytes of weights, buffers and scales as they lie in memory, what is shared once."""
    held: dict[int, int] = {}
    scales = [part for value in network.parameters() for part in _scales(value)]
    for part in (*network.parameters(), *network.buffers(), *scales):
        held[part.data_ptr()] = part.nbytes
    return sum(held.values())


def _scales(value: Any) -> list[Tensor]:
    """What it takes to read a packed weight; nothing for any other."""
    if value.dtype != torch.uint8:
        return []
    state = value.quant_state
    again = [state.offset, state.state2.absmax, state.state2.code] if state.nested else []
    return [state.absmax, state.code, *again]
