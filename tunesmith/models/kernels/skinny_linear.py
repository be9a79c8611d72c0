"""Matrix products of few rows on a CPU, as in generation: each thread multiplies with its own part of the weight.

MKL uses one thread for a product of few rows, however many there are, and reading the weight takes most of the time
(measurements in bench/NOTES.md). oneDNN (`float32_products`) uses all of them by itself.

Letters: I and O inner and outer width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunesmith.models.kernels.float32_products import by_onednn
from tunesmith.models.kernels.lean_layers import cast_once

# Largest number of rows; with more, MKL uses all threads well.
MAX_ROWS = 32


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute x W^T + bias, [..., I] -> [..., O]."""
    threads = torch.get_num_threads()
    if not _applies(x, weight, threads):
        return F.linear(x, weight, bias)
    outer, inner = weight.shape
    parts = weight.view(threads, outer // threads, inner)
    out = torch.bmm(x.reshape(-1, inner).expand(threads, -1, -1), parts.mT)
    out = out.transpose(0, 1).reshape(*x.shape[:-1], outer)
    return out if bias is None else out + bias


def _applies(x: Tensor, weight: Tensor, threads: int) -> bool:
    """Return whether this is a product of few rows that several threads can share; only float32 was measured."""
    return (
        not torch.is_grad_enabled()
        and threads > 1
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and 0 < x.numel() // x.shape[-1] <= MAX_ROWS
        and len(weight) % threads == 0
        and weight.is_contiguous()
        and not torch.is_autocast_enabled("cpu")
        and not by_onednn()
    )


class SkinnyLinear(nn.Linear):
    """nn.Linear with a faster path for products of few rows, which under autocast casts states once for all layers."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        if torch.is_autocast_enabled("cpu") and input.dtype == torch.float32 and input.is_cpu:
            input = cast_once(input, torch.get_autocast_dtype("cpu"))
        return linear(input, self.weight, self.bias)


def install(network: nn.Module) -> None:
    """Replace nn.Linear layers on a CPU, but not subclasses of it, by SkinnyLinear, in place and without copying."""
    for module in network.modules():
        if type(module) is nn.Linear and module.weight.is_cpu:
            module.__class__ = SkinnyLinear
