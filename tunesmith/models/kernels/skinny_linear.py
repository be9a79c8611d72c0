"""Matrix products of few rows on a CPU, as in generation: each thread multiplies with its own part of the weight.

MKL uses one thread for a product of few rows, however many there are, and reading the weight takes most of the time
(measurements in bench/NOTES.md). oneDNN (`float32_products`) uses all of them by itself.

Letters: I and O inner and outer width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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

    keeps = False  # the cast weight is kept between passes
    cast: Tensor | None = None  # the weight in autocast's dtype

    def forward(self, input: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        weight: Tensor = self.weight
        if torch.is_autocast_enabled("cpu") and input.is_cpu:
            dtype = torch.get_autocast_dtype("cpu")
            if input.dtype == torch.float32:
                input = cast_once(input, dtype)
            if self.keeps and weight.dtype == torch.float32 and not torch.is_grad_enabled():
                self.cast = weight.to(dtype) if self.cast is None else self.cast
                weight = self.cast
        return linear(input, weight, self.bias)


@contextmanager
def cast_weights_kept(network: nn.Module) -> Iterator[None]:
    """Enter a context without gradients in which autocast casts a weight once instead of in every pass.

    The weights do not change in it. A pass of 1,000 positions spends a twentieth of its time on casting them.
    """
    layers = [module for module in network.modules() if isinstance(module, SkinnyLinear) and not module.keeps]
    for layer in layers:
        layer.keeps = True
    try:
        yield
    finally:
        for layer in layers:
            layer.keeps, layer.cast = False, None


def install(network: nn.Module) -> None:
    """Replace nn.Linear layers on a CPU, but not subclasses of it, by SkinnyLinear, in place and without copying."""
    for module in network.modules():
        if type(module) is nn.Linear and module.weight.is_cpu:
            module.__class__ = SkinnyLinear
