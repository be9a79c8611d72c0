"""The hot path of LoRA: base product and update in one function, in PEFT's arithmetic, inside PEFT's own layers.

PEFT adds the update in three passes over the layer's output, each read from memory and written back, and under
autocast casts the frozen weight anew in every step. Here the update is added by the product itself, and the frozen
weight is kept in the type that training multiplies in (figures in bench/NOTES.md).

Letters: N tokens, I and O inner and outer width, R rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn

from tunesmith.model.thin import ThinLinear, linear

Frozen = tuple[Tensor, Tensor | None, float]  # weight [O, I], bias, and the scale of the update


def _product(flat: Tensor, frozen: Frozen, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """[N, O], and [N, R] on the way to it, of [N, I]; all are in the weight's type."""
    weight, bias, scale = frozen
    with torch.autocast(flat.device.type, enabled=False):
        low = flat @ a.T
        bias = None if bias is None else bias.to(weight.dtype)
        return F.linear(flat, weight, bias).addmm_(low, b.T, alpha=scale), low


def _add_update(out: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """[..., O]: the base's output, with the update of x added in place."""
    low = F.linear(x, a)
    out.view(-1, out.shape[-1]).addmm_(low.view(-1, low.shape[-1]), b.T, alpha=scale)
    return out


class _Updated(torch.autograd.Function):
    """x W^T + bias + scale (x A^T) B^T for a frozen W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, frozen: Frozen, a: Tensor, b: Tensor) -> Tensor:
        weight, _, scale = frozen
        flat = x.reshape(-1, x.shape[-1]).to(weight.dtype)
        a, b = a.to(weight.dtype), b.to(weight.dtype)
        out, low = _product(flat, frozen, a, b)
        ctx.save_for_backward(flat, low, a, b, weight)
        ctx.scale, ctx.shape, ctx.dtype = scale, x.shape, x.dtype
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, None, Tensor, Tensor]:
        flat, low, a, b, weight = ctx.saved_tensors
        grad = grads[0].reshape(-1, grads[0].shape[-1]).to(weight.dtype)
        with torch.autocast(grad.device.type, enabled=False):
            grad_low = (grad @ b).mul_(ctx.scale)  # [N, R]
            grad_b = (grad.T @ low).mul_(ctx.scale).float()
            grad_a = (grad_low.T @ flat).float()
            grad_x = None
            if ctx.needs_input_grad[0]:
                grad_x = (grad @ weight).addmm_(grad_low, a).view(ctx.shape).to(ctx.dtype)
        return grad_x, None, grad_a, grad_b


def _many(x: Tensor, weight: Tensor) -> bool:
    """Whether the update costs less added to the weight than to the output: twice as many tokens as make it equal.

    Only in full precision, where the sum's rounding is nothing.
    """
    outer, inner = weight.shape
    return weight.dtype == x.dtype == torch.float32 and x.numel() // inner * (inner + outer) > 2 * inner * outer


class FusedLora(PeftLinear):
    """PEFT's layer; its forward is ours where one plain update is on, PEFT's everywhere else."""

    cast: Tensor | None = None  # the frozen weight in the type of the products
    wide: tuple[tuple[int, int], Tensor, Tensor] | None = None  # the same beside B, A, and of when they are

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[..., I] -> [..., O]."""
        name = self._one_plain_update()
        if name is None or args or kwargs:
            return super().forward(x, *args, **kwargs)
        layer: Any = self.base_layer
        frozen = weight, bias, scale = self._weight(x), layer.bias, self.scaling[name]
        a: Tensor
        b: Tensor
        a, b = self._factors(name)
        if torch.is_grad_enabled():
            self.wide = None  # a step may follow, and a fused optimizer does not count what it moves
            out: Tensor = _Updated.apply(x, frozen, a, b)  # type: ignore[no-untyped-call]
            return out
        if _many(x, weight):
            return F.linear(x, torch.addmm(weight, b, a, alpha=scale), bias)
        if weight is self.cast:  # drawing: one product, as the thin one of B takes nearly as long as the weight's
            inner, wide = self._side_by_side(a, b, scale)
            x = x.to(wide.dtype)
            return F.linear(torch.cat([x, F.linear(x, inner)], dim=-1), wide, bias)
        return _add_update(linear(x, weight, bias), x, a.to(weight.dtype), b.to(weight.dtype), scale)

    def update_alone(self) -> LowRank | None:
        """The same layer to answer with, its base's and its update's numbers shared; None where only PEFT can tell."""
        name = self._one_plain_update()
        if name is None:
            return None
        return LowRank(self.base_layer, *self._factors(name), self.scaling[name])

    def _factors(self, name: str) -> tuple[nn.Parameter, nn.Parameter]:
        """A [R, I] and B [O, R]."""
        a: Any = self.lora_A[name]
        b: Any = self.lora_B[name]
        return a.weight, b.weight

    def _side_by_side(self, a: Tensor, b: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """A, and the frozen weight beside the scaled B, [O, I + R], in the type of the products, as A and B are now."""
        assert self.cast is not None
        moved, inner = (a._version, b._version), a.shape[1]
        if self.wide is None or self.wide[0] != moved:
            with torch.inference_mode(False), torch.no_grad():
                wide = torch.cat([self.cast, (b * scale).to(self.cast.dtype)], dim=1)
                self.cast = wide[:, :inner]  # the same numbers, kept once
                self.wide = moved, a.to(wide.dtype), wide
        return self.wide[1:]

    def _one_plain_update(self) -> str | None:
        """The name of the only update, if it is on, apart from the base's numbers, and nothing but A and B."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return None
        (name,) = self.active_adapters
        plain = name in self.lora_A and name not in self.lora_variant and not self.lora_bias[name]
        return name if plain and isinstance(self.lora_dropout[name], nn.Identity) else None

    def _weight(self, x: Tensor) -> Tensor:
        """The frozen weight in the type that products are made in, kept until they are made in its own again."""
        weight = self.base_layer.weight
        assert isinstance(weight, Tensor)
        if not torch.is_autocast_enabled(x.device.type):
            self.cast = self.wide = None
            return weight
        dtype = torch.get_autocast_dtype(x.device.type)
        if self.cast is None or self.cast.dtype != dtype:
            self.wide = None
            with torch.inference_mode(False):  # answers may be drawn before a gradient flows through the same copy
                self.cast = weight.detach().to(dtype)
        cast: Tensor = self.cast
        return cast


class LowRank(nn.Module):
    """A linear layer and its update, without the ten modules that PEFT keeps for each: they take 4 MiB a run."""

    def __init__(self, base_layer: nn.Module, a: nn.Parameter, b: nn.Parameter, scale: float) -> None:
        super().__init__()
        self.base_layer, self.scale = base_layer, scale
        self.lora_a, self.lora_b = a, b  # [R, I] and [O, R]

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        return _add_update(self.base_layer(x), x, self.lora_a, self.lora_b, self.scale)


def fuse(network: nn.Module) -> None:
    """Let PEFT's layers over plain linear ones take our path."""
    for module in network.modules():
        if type(module) is PeftLinear and type(module.base_layer) in (nn.Linear, ThinLinear):
            module.__class__ = FusedLora


def shed(network: nn.Module) -> None:
    """Put `LowRank` in the place of PEFT's layers, in a network that answers and learns no more."""
    for name, module in list(network.named_modules()):
        alone = module.update_alone() if isinstance(module, FusedLora) else None
        if alone is not None:
            parent, _, leaf = name.rpartition(".")
            setattr(network.get_submodule(parent), leaf, alone)
