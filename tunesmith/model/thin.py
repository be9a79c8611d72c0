"""Products of few rows on a CPU, as in drawing answers: each thread multiplies with its own part of the weight.

MKL takes one thread for a product of few rows, however many there are, and to read the weight takes most of the time
(figures in bench/NOTES.md).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW = 32  # rows; of more, MKL makes good use of all threads


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[..., I] -> [..., O]: x W^T + bias."""
    threads = torch.get_num_threads()
    if not _thin(x, weight, threads):
        return F.linear(x, weight, bias)
    outer, inner = weight.shape
    parts = weight.view(threads, outer // threads, inner)
    out = torch.bmm(x.reshape(-1, inner).expand(threads, -1, -1), parts.mT)
    out = out.transpose(0, 1).reshape(*x.shape[:-1], outer)
    return out if bias is None else out + bias


def _thin(x: Tensor, weight: Tensor, threads: int) -> bool:
    """Whether this is a product of few rows that several threads can share; only float32 was measured."""
    return (
        not torch.is_grad_enabled()
        and threads > 1
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and 0 < x.numel() // x.shape[-1] <= FEW
        and len(weight) % threads == 0
        and weight.is_contiguous()
        and not torch.is_autocast_enabled("cpu")
    )


class ThinLinear(nn.Linear):
    """torch's layer, but for products of few rows."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        return linear(input, self.weight, self.bias)


def install(network: nn.Module) -> None:
    """Let torch's plain layers of a network take this way."""
    for module in network.modules():
        if type(module) is nn.Linear:
            module.__class__ = ThinLinear
