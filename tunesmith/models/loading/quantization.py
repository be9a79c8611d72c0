"""4-bit (NF4) weights: the same arithmetic in training and generation, and their size in parameters and bytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


def normalize_quantized(network: nn.Module) -> None:
    """Make a freshly loaded 4-bit network compute the same in training and generation, in separate memory.

    On a CPU with AVX512-BF16, bitsandbytes 0.50 repacks a weight the first time it runs without gradient: scales are
    rounded to bfloat16 for good, double quantization is undone, and no gradient flows through the layer any more. That
    is switched off here. Weights that are not quantized were views of the file, which kept all of it in memory, four
    times the size of the 4-bit weights; they are copied.

    Args:
        network: changed in place.
    """
    from bitsandbytes.nn.modules import Linear4bit

    for module in network.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    for value in network.parameters():
        if value.is_cpu and value.is_floating_point():
            value.data = value.data.clone()


def experts(network: nn.Module) -> int:
    """Count the weights in parameters that hold several matrices each, as mixture-of-experts layers have them.

    Args:
        network: a transformers model. Its convolutions also have three dimensions and do not count.
    """
    modules = (module for module in network.modules() if not isinstance(module, nn.Conv1d))
    return sum(value.numel() for module in modules for value in module.parameters(recurse=False) if value.dim() == 3)


def left_whole(network: nn.Module) -> str:
    """Return why 4 bits save next to nothing in this network; empty if they do save memory."""
    if experts(network) <= count_parameters(value for value in network.parameters() if value.dtype == torch.uint8):
        return ""
    return "most weights are experts in shared parameters, which bitsandbytes does not quantize; leave `quantize` out"


def dequantized(network: Any) -> Any:
    """Return the network with plain weights in place of its 4-bit ones, in the layer types of its family.

    Args:
        network: a quantized model. bitsandbytes replaces every layer by an nn.Linear, but GPT-2's own Conv1D stores
            the transposed weight, and its checkpoints are saved and read that way.
    """
    plain = network.dequantize()
    with torch.device("meta"):
        original = type(plain)(plain.config)
    for name, module in original.named_modules():
        linear = plain.get_submodule(name)
        if isinstance(module, Conv1D) and isinstance(linear, nn.Linear):
            layer = Conv1D(linear.out_features, linear.in_features)
            layer.weight = nn.Parameter(linear.weight.T.contiguous(), requires_grad=False)
            layer.bias = linear.bias
            plain.set_submodule(name, layer)
    return plain


def count_parameters(values: Iterable[Tensor]) -> int:
    """Count the parameters that tensors represent: two per byte where they are packed.

    Args:
        values: plain or 4-bit tensors.
    """
    return sum(value.numel() * (2 if value.dtype == torch.uint8 else 1) for value in values)


def resident_bytes(network: nn.Module) -> int:
    """Return the bytes of weights, buffers and quantization scales in memory; shared ones count once.

    Args:
        network: plain or quantized.
    """
    parts = [*network.parameters(), *network.buffers()]
    for value in network.parameters():
        if value.dtype == torch.uint8:
            state: Any = value.quant_state  # type: ignore[attr-defined]
            parts += [state.absmax, state.code]
            if state.nested:  # the scales are quantized too
                parts += [state.offset, state.state2.absmax, state.state2.code]
    return sum({part.data_ptr(): part.nbytes for part in parts}.values())
