"""Layers of decoders that keep less for the backward pass on a CPU, and read memory fewer times.

The forward pass has the bits of transformers. RMSNorm keeps its input and one number per position, not the normalized
states too; a gated MLP keeps gate and up, and computes the activation again. A layer that reads their output can save
the tensors it is computed from (`sources_of`) and compute it again. Under autocast, layers that read the same states
share one cast copy of them. Measurements are in bench/NOTES.md.

Letters: N tokens, D width of the states, F width of the MLP.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from types import CodeType
from typing import Any, cast

import torch
from torch import Tensor, nn

# A function and the tensors that it makes a tensor of.
Sources = tuple[Callable[..., Tensor], tuple[Tensor, ...]]


def sources_of(x: Tensor) -> Sources | None:
    """Return what makes x again with the same bits, of tensors that the backward pass needs anyway; None if unknown."""
    version, sources = getattr(x, "made", (None, None))
    return None if x.is_inference() or version != x._version else sources


def _from(out: Tensor, make: Callable[..., Tensor], *sources: Tensor) -> Tensor:
    """Return `out`, noting what makes it again."""
    out.made = out._version, (make, tuple(source.detach() for source in sources))  # type: ignore[attr-defined]
    return out


def cast_once(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return x in a dtype, cast once for all layers that read it, such as those of query, key and value."""
    if x.dtype == dtype or x.is_inference():  # inference tensors do not say when they change
        return x.to(dtype)
    state = (x._version, torch.is_grad_enabled(), dtype)
    known: tuple[tuple[int, bool, torch.dtype], Tensor] | None = getattr(x, "cast", None)
    if known is None or known[0] != state:
        known = state, x.to(dtype)
        x.cast = known  # type: ignore[attr-defined]  # ends with x, unless the backward pass needs it
    return known[1]


def _normed(x: Tensor, gain: Tensor, scale: Tensor) -> Tensor:
    return (x * scale).mul_(gain)


class _RMSNorm(torch.autograd.Function):
    """gain * x / rms(x) over the last dimension (Zhang and Sennrich 2019, arXiv:1910.07467), and 1 / rms(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon)  # [..., 1]
        ctx.save_for_backward(x, gain, scale)
        ctx.mark_non_differentiable(scale)
        return _normed(x, gain, scale), scale

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, Tensor | None, None]:
        x, gain, scale = ctx.saved_tensors
        grad = grads[0]
        normed = x * scale
        of_gain = (grad * normed).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, of_gain, None
        grad = grad * gain
        along = torch.linalg.vecdot(grad, normed).unsqueeze(-1).div_(x.shape[-1])
        return grad.addcmul_(normed, along, value=-1).mul_(scale), of_gain, None


class _Gated(torch.autograd.Function):
    """activation(gate) * up, [..., F]."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return activation(gate) * up

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, None]:
        gate, up = ctx.saved_tensors
        (grad,) = grads
        gate = gate.detach().requires_grad_()
        with torch.enable_grad():
            active = ctx.activation(gate)
        (of_gate,) = torch.autograd.grad(active, gate, grad * up)
        return of_gate, active.detach() * grad, None


class _Lean(nn.Module):
    """Pickle as the class from transformers, because `_lean` makes the class of the layer at run time."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (type(self).__bases__[-1],), self.__dict__


class LeanNorm(_Lean):
    """Forward pass of an RMSNorm that is trained through, before that of the class from transformers."""

    weight: nn.Parameter

    def gain(self) -> tuple[Tensor, float]:
        """Return the factors [D], and epsilon."""
        return self.weight, cast(float, self.variance_epsilon)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        if not (torch.is_grad_enabled() and hidden_states.dtype == self.weight.dtype == torch.float32):
            return cast(Tensor, super().forward(hidden_states))
        gain, epsilon = self.gain()
        out, scale = _RMSNorm.apply(hidden_states, gain, epsilon)  # type: ignore[no-untyped-call]
        return _from(out, _normed, hidden_states, gain, scale)


class LeanShiftedNorm(LeanNorm):
    """An RMSNorm whose factors are stored minus one, as Gemma has it."""

    def gain(self) -> tuple[Tensor, float]:
        """Return the factors [D], and epsilon."""
        return 1.0 + self.weight, cast(float, self.eps)


class LeanMLP(_Lean):
    """Forward pass of a gated MLP that is trained through, before that of the class from transformers."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        if not torch.is_grad_enabled():
            return cast(Tensor, super().forward(x))
        parts: Any = self
        gate, up, activation = parts.gate_proj(x), parts.up_proj(x), parts.act_fn
        product = _Gated.apply(gate, up, activation)  # type: ignore[no-untyped-call]
        return cast(Tensor, parts.down_proj(_from(product, lambda gate, up: activation(gate) * up, gate, up)))


def install(network: nn.Module) -> None:
    """Give the norms and MLPs of a network on a CPU these forward passes, in place.

    Layers are recognized by the code of their forward pass, which transformers copies from family to family; all others
    stay as they are.
    """
    made = {kind: _lean(kind) for kind in {type(module) for module in network.modules()}}
    for module in network.modules():
        if (lean := made.get(type(module))) is not None and _plain(module):
            module.__class__ = lean


def _unpickled(kind: type[nn.Module]) -> nn.Module:
    """Return a layer without its state, with the forward pass of this file if it has one for the class."""
    lean = _lean(kind) or kind
    return lean.__new__(lean)


def _lean(kind: type[nn.Module]) -> type[nn.Module] | None:
    """Return the class of a layer with the forward pass of this file; None if it is another layer."""
    from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

    same = partial(_same, getattr(kind.forward, "__code__", None))
    mixin = LeanNorm if same(LlamaRMSNorm) else LeanMLP if same(LlamaMLP) else None
    if mixin is None and kind.__name__.endswith("RMSNorm"):
        from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm  # takes a while

        mixin = LeanShiftedNorm if same(Gemma3RMSNorm) else None
    bases: tuple[Any, ...] = (mixin, kind)  # mypy takes no class for hashable
    return None if mixin is None else _combined(*bases)


@cache
def _combined(mixin: Any, kind: Any) -> type[nn.Module]:
    """Return the class of a layer with the forward pass of a mixin, the same class each time."""
    return type(kind.__name__, (mixin, kind), {"__module__": kind.__module__})


def _same(code: CodeType | None, other: type[nn.Module]) -> bool:
    """Return whether a forward pass does what that of another class does, whatever its variables are called."""
    like = other.forward.__code__
    return code is not None and (code.co_code, code.co_names, code.co_consts) == (
        like.co_code,
        like.co_names,
        like.co_consts,
    )


def _plain(module: nn.Module) -> bool:
    """Return whether the layer is on a CPU, and its activation, if it has one, has no parameters."""
    return all(value.is_cpu for value in module.parameters()) and not any(
        True for value in getattr(module, "act_fn", nn.Identity()).parameters()
    )
