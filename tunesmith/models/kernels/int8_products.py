"""Products with frozen weights in 8-bit integers: for LoRA on processors with VNNI, above all those without bfloat16.

x W^T is (Q(x / c) Q(W c)^T) s_x s_W, with one scale per row of x and of W. c moves a part of the outliers of the states
into the weights, c_j = sqrt(max |x_j| / max |W_j|): Xiao et al. 2023, SmoothQuant, arXiv:2211.10438, equation 4 with
alpha 0.5. Without it the first steps of a run have other losses (bench/NOTES.md).

Letters: N tokens, I and O inner and outer width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST = 127
# Below this, a largest value counts as this, so that nothing is divided by zero.
TINY = 1e-5


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """A frozen weight W in 8-bit integers."""

    values: Tensor  # Q(W c), [O, I] int8
    scale: Tensor  # s_W, [O] float32
    smooth: Tensor  # c, [I] float32

    @classmethod
    def of(cls, weight: Tensor, largest: Tensor) -> Int8Weight:
        """Round a weight [O, I], for states whose largest values of each column are `largest` [I]."""
        weight = weight.detach().float()
        smooth = (largest.clamp(min=TINY) / weight.abs().amax(0).clamp(min=TINY)).sqrt()
        return cls(*_rounded(weight * smooth), smooth)

    def product(self, x: Tensor) -> Tensor:
        """Compute x W^T, [..., I] -> [..., O], in the dtype of x."""
        values, scale = _rounded(x.reshape(-1, x.shape[-1]) / self.smooth)
        out = x.new_empty(*x.shape[:-1], len(self.values))
        torch.mul(torch._int_mm(values, self.values.T) * scale[:, None], self.scale, out=out.view(-1, len(self.values)))
        return out

    def of_gradient(self, grad: Tensor) -> Tensor:
        """Compute the gradient of x from that of x W^T, [N, O] -> [N, I], in its dtype."""
        values, scale = _rounded(grad * self.scale)
        out = grad.new_empty(len(grad), len(self.smooth))
        return torch.div(torch._int_mm(values, self.values) * scale[:, None], self.smooth, out=out)


def _rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row of a float32 matrix to 8 bits; return integers and the scale of each row."""
    scale = torch.linalg.vector_norm(rows, torch.inf, dim=1).clamp_(min=torch.finfo(torch.float32).tiny) / LARGEST
    return (rows / scale[:, None]).round_().to(torch.int8), scale
