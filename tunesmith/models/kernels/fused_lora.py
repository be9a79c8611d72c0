"""The hot path of LoRA: base product and update in one autograd function, inside PEFT's own layers.

PEFT adds the update in three passes that read and write the layer's output, and under autocast it casts the frozen
weight again in every step. Here the update is added by the matrix product itself, and the cast weight is kept between
steps. The arithmetic is PEFT's (measurements in bench/NOTES.md), but for the products of `install_int8`.

Letters: N tokens, I and O inner and outer width, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn

from tunesmith.models.kernels.int8_products import Int8Weight
from tunesmith.models.kernels.lean_layers import Sources, cast_once, sources_of
from tunesmith.models.kernels.skinny_linear import SkinnyLinear, linear

# Largest relative error of the products of a layer in 8-bit integers, and how many positions it is measured on.
MAX_ERROR, COMPARED = 0.02, 64
# Weight [O, I], bias [O], dtype of the products, and the scale of the update.
Frozen = tuple[Tensor | Int8Weight, Tensor | None, torch.dtype, float]


def _add_update(out: Tensor, x: Tensor, a: Tensor, b: Tensor, *, scale: float) -> Tensor:
    """Add the update of x to the base's output [..., O], in place."""
    low = F.linear(x, a)
    out.view(-1, out.shape[-1]).addmm_(low.view(-1, low.shape[-1]), b.T, alpha=scale)
    return out


class _FusedUpdate(torch.autograd.Function):
    """x W^T + bias + scale (x A^T) B^T for a frozen W."""

    @staticmethod
    def forward(  # noqa: PLR0917 - `apply` takes no keywords
        ctx: Any, x: Tensor, frozen: Frozen, a: Tensor, b: Tensor, made: Sources | None
    ) -> Tensor:
        weight, bias, dtype, scale = frozen
        flat = cast_once(x, dtype).reshape(-1, x.shape[-1])
        a, b = a.to(dtype), b.to(dtype)
        with torch.autocast(flat.device.type, enabled=False):  # everything already has the weight's dtype
            low = flat @ a.T  # [N, R]
            bias = None if bias is None else bias.to(dtype)
            # No view of another tensor: Gemma 3n and DeBERTa change outputs in place, which autograd allows of none.
            if isinstance(weight, Int8Weight):
                out = weight.product(flat.view(x.shape))
                out = out if bias is None else out.add_(bias)
            else:
                out = F.linear(flat.view(x.shape), weight, bias)
            out.view(-1, out.shape[-1]).addmm_(low, b.T, alpha=scale)
            if out._is_view():  # torch makes one where there is a bias
                out = torch.ops.aten._unsafe_view(out, out.shape)
        ctx.make, sources = (None, (flat,)) if made is None else made
        kept = () if isinstance(weight, Int8Weight) else (weight,)
        ctx.save_for_backward(low, a, b, *kept, *sources)
        ctx.weight = None if kept else weight
        ctx.scale = scale
        ctx.shape = x.shape
        ctx.dtype = x.dtype
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, None, Tensor, Tensor, None]:
        low, a, b, *sources = ctx.saved_tensors
        weight: Tensor | Int8Weight = ctx.weight or sources.pop(0)
        grad = grads[0].reshape(-1, grads[0].shape[-1]).to(low.dtype)
        with torch.autocast(grad.device.type, enabled=False):
            grad_low = (grad @ b).mul_(ctx.scale)  # [N, R]
            # The factors are float32 parameters, whatever dtype the products have.
            grad_b = (grad.T @ low).mul_(ctx.scale).float()
            x = sources[0] if ctx.make is None else ctx.make(*sources).to(low.dtype).view(-1, a.shape[1])
            grad_a = (grad_low.T @ x).float()
            grad_x = None
            if ctx.needs_input_grad[0]:
                grad_x = weight.of_gradient(grad) if isinstance(weight, Int8Weight) else grad @ weight
                grad_x = grad_x.addmm_(grad_low, a).view(ctx.shape).to(ctx.dtype)
        return grad_x, None, grad_a, grad_b, None


class FusedLora(PeftLinear):
    """PEFT's LoRA layer, with a faster forward where exactly one plain update is active."""

    cast: Tensor | None = None  # the frozen weight in the dtype of the products
    int8: Int8Weight | None = None  # the frozen weight of training, where `install_int8` has rounded it
    # For generation: versions of A and B, A, and the frozen weight next to B, [O, I + R], in the dtype of the products.
    wide: tuple[tuple[int, int], Tensor, Tensor] | None = None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[..., I] -> [..., O]."""
        name = self._plain_update()
        if name is None or args or kwargs:
            return super().forward(x, *args, **kwargs)
        layer: Any = self.base_layer
        bias = layer.bias
        scale = self.scaling[name]
        a: Tensor
        b: Tensor
        a, b = self._factors(name)
        if torch.is_grad_enabled():
            # A step may follow, and a fused optimizer does not increment the version of what it updates.
            self.wide = None
            frozen: Frozen = (self.int8 or self._frozen_weight(x), bias, self._dtype(x), scale)
            out: Tensor = _FusedUpdate.apply(x, frozen, a, b, sources_of(x))  # type: ignore[no-untyped-call]
            return out
        weight = self._frozen_weight(x)
        outer, inner = weight.shape
        # With many tokens, adding the update to the weight costs less than adding it to the output: from twice the
        # tokens at which both cost the same. Only in float32, where the sum's rounding is negligible.
        if weight.dtype == x.dtype == torch.float32 and x.numel() // inner * (inner + outer) > 2 * inner * outer:
            return F.linear(x, torch.addmm(weight, b, a, alpha=scale), bias)
        # Generation: one product with the weight and B together. The narrow product with B alone takes nearly as long
        # as the one with the weight.
        if weight is self.cast:
            a_cast, wide = self._concatenated(a, b, scale)
            x = x.to(wide.dtype)
            return F.linear(torch.cat([x, F.linear(x, a_cast)], dim=-1), wide, bias)
        return _add_update(linear(x, weight, bias), x, a.to(weight.dtype), b.to(weight.dtype), scale=scale)

    def update_alone(self) -> LowRank | None:
        """Return an inference layer that shares these weights, in the base's dtype; None if only PEFT's is right."""
        name = self._plain_update()
        if name is None:
            return None
        base: Any = self.base_layer
        dtype: torch.dtype = base.weight.dtype
        a, b = (
            value if value.dtype == dtype else nn.Parameter(value.to(dtype), requires_grad=False)
            for value in self._factors(name)
        )
        return LowRank(base, a, b, self.scaling[name])

    def _factors(self, name: str) -> tuple[nn.Parameter, nn.Parameter]:
        """Return A [R, I] and B [O, R]."""
        a: Any = self.lora_A[name]
        b: Any = self.lora_B[name]
        return a.weight, b.weight

    def _concatenated(self, a: Tensor, b: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Return A, and the frozen weight next to the scaled B [O, I + R], rebuilt when A or B has changed."""
        assert self.cast is not None
        versions = (a._version, b._version)
        if self.wide is None or self.wide[0] != versions:
            with torch.inference_mode(False), torch.no_grad():
                wide = torch.cat([self.cast, (b * scale).to(self.cast.dtype)], dim=1)
                self.cast = wide[:, : a.shape[1]]  # a view, so that the weight is in memory once
                self.wide = versions, a.to(wide.dtype), wide
        return self.wide[1:]

    def _plain_update(self) -> str | None:
        """Return the name of the only adapter if it is active, unmerged, and nothing but A and B."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return None
        (name,) = self.active_adapters
        plain = name in self.lora_A and name not in self.lora_variant and not self.lora_bias[name]
        return name if plain and isinstance(self.lora_dropout[name], nn.Identity) else None

    def _dtype(self, x: Tensor) -> torch.dtype:
        """Return the dtype of products: autocast's, or that of the frozen weight."""
        kind = x.device.type
        dtype: Any = self.base_layer.weight.dtype
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else cast(torch.dtype, dtype)

    def _frozen_weight(self, x: Tensor) -> Tensor:
        """Return the frozen weight in autocast's dtype, cached until autocast is off again."""
        weight = self.base_layer.weight
        assert isinstance(weight, Tensor)
        if not torch.is_autocast_enabled(x.device.type):
            self.cast = self.wide = None
            return weight
        dtype = self._dtype(x)
        if self.cast is None or self.cast.dtype != dtype:
            self.wide = None
            with torch.inference_mode(False):  # gradients may later flow through a copy that generation made
                self.cast = weight.detach().to(dtype)
        cast: Tensor = self.cast
        return cast


class LowRank(nn.Module):
    """A linear layer and its update for inference, without the ten modules PEFT keeps per layer (4 MiB a run)."""

    def __init__(self, base_layer: nn.Module, a: nn.Parameter, b: nn.Parameter, scale: float) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora_a = a  # [R, I]
        self.lora_b = b  # [O, R]
        self.scale = scale

    @property
    def weight(self) -> Any:
        """Weight of the layer without the update, [O, I], as PEFT's layers have it."""
        return self.base_layer.weight

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        return _add_update(self.base_layer(x), x, self.lora_a, self.lora_b, scale=self.scale)


def fuse(network: nn.Module, *, devices: Sequence[str] = ("cpu",)) -> None:
    """Switch PEFT's LoRA layers over plain linear ones to the fused path, in place.

    Args:
        network: a network that PEFT has wrapped; DoRA, dropout and other variants keep PEFT's forward.
        devices: only weights on these. On a GPU frozen weights have the dtype of the products, so that training has
            nothing to cast and keep.
    """
    for module in network.modules():
        layer: Any = module.base_layer if type(module) is PeftLinear else None
        if type(layer) in (nn.Linear, SkinnyLinear) and layer.weight.device.type in devices:
            module.__class__ = FusedLora


@dataclass(slots=True)
class _SeenStates:
    """States that a layer has read: the largest of each column, [I], and some of them, [N, I]."""

    largest: Tensor
    some: Tensor

    def rounded(self, weight: Tensor) -> Int8Weight | None:
        """Round a weight [O, I]; None if the products of these states would change too much."""
        found, exact = Int8Weight.of(weight, self.largest), self.some @ weight.detach().float().T
        near = (found.product(self.some) - exact).norm() <= MAX_ERROR * exact.norm()
        return found if near else None


@contextmanager
def _watching(layers: Sequence[FusedLora]) -> Iterator[dict[FusedLora, _SeenStates]]:
    """Note the states that layers read within the context."""
    seen: dict[FusedLora, _SeenStates] = {}

    def look(layer: Any, args: tuple[Tensor, ...]) -> None:
        states = args[0].detach().flatten(0, -2).float()
        largest = states.abs().amax(0)
        if layer in seen:
            seen[layer].largest = torch.maximum(largest, seen[layer].largest)
        else:
            seen[layer] = _SeenStates(largest, states[:: -(-len(states) // COMPARED)].clone())

    hooks = [layer.register_forward_pre_hook(look) for layer in layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True, slots=True)
class Int8Check:
    """Losses of a batch with exact and with rounded weights, and whether the rounded ones are used."""

    exact: float  # loss with the exact weights
    rounded: float  # loss with the rounded ones
    share: float  # of the weights, that of rounded ones
    used: bool

    @property
    def change(self) -> float:
        """Return the relative change of the loss."""
        return (self.rounded - self.exact) / (abs(self.exact) or 1.0)


def install_int8(network: nn.Module, loss: Callable[[], float], *, bound: float) -> Int8Check | None:
    """Let fused layers multiply with frozen weights in 8-bit integers in training, if the loss stays nearly equal.

    A layer whose products would change too much keeps its exact weight.

    Args:
        network: a network that `fuse` has changed.
        loss: computes a loss of some rows, with gradients enabled.
        bound: largest relative change of the loss; above it all layers keep their exact weights.

    Returns:
        What was measured; None if no layer is fused.
    """
    layers = [module for module in network.modules() if isinstance(module, FusedLora)]
    with _watching(layers) as seen:
        exact = loss()
    if not seen:
        return None
    numbers = rounded_numbers = 0
    for layer, states in seen.items():
        weight = cast(Tensor, layer.base_layer.weight)
        layer.int8 = states.rounded(weight)
        numbers += weight.numel()
        if layer.int8 is not None:
            layer.cast = layer.wide = None
            rounded_numbers += weight.numel()
    rounded = loss()
    used = abs(rounded - exact) <= bound * abs(exact)
    if not used:
        for layer in layers:
            layer.int8 = None
    return Int8Check(exact, rounded, rounded_numbers / numbers, used)


def drop_peft_wrappers(network: nn.Module) -> None:
    """Replace PEFT's layers by `LowRank`, in place, in a network that will only be used for inference."""
    fuse(network, devices=("cpu", "cuda", "mps"))
    for name, module in list(network.named_modules()):
        layer = module.update_alone() if isinstance(module, FusedLora) else None
        if layer is not None:
            parent, _, leaf = name.rpartition(".")
            setattr(network.get_submodule(parent), leaf, layer)
