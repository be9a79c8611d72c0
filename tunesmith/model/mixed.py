"""Rows under different adapters in one pass: what all share runs once, and each row's own update over that row.

Every adapter lives in a tree of modules of its own, as PEFT made it; the trees share the base's numbers. The mixed tree
has, where any of them changed a layer, a layer that asks each for its rows.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunesmith.model.lowrank import LowRank

Rows = Tensor  # [B'] int64, numbers of rows


def same_numbers(network: Any) -> Any:
    """A tree of modules of its own over the very same parameters and buffers."""
    shared = (*network.parameters(), *network.buffers())
    return copy.deepcopy(network, {id(value): value for value in shared})


class _MixedLayer(nn.Module):
    """A layer of the base, and what some adapters made of it.

    Low-rank updates lie next to each other as one of the rank of all together, of which each row sees its own part: two
    products for all adapters instead of two for each (the idea of S-LoRA, arXiv 2311.03285). Their own layers see the
    same memory.
    """

    def __init__(self, plain: nn.Module, changed: Mapping[int, nn.Module], route: _Route) -> None:
        super().__init__()
        self.plain = plain
        # In a plain dict, so that the adapters' numbers do not count as this tree's.
        low = {key: layer for key, layer in changed.items() if isinstance(layer, LowRank)}
        self._others = {key: layer for key, layer in changed.items() if key not in low}
        self._route = route
        self._parts = tuple((key, len(layer.lora_a), layer.scale) for key, layer in low.items())
        self._apart = tuple(low.values())
        self._low = _side_by_side(self._apart) if low else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, ..., I] -> [B, ..., O]."""
        out: Tensor = self.plain(x)
        if self._low is not None:
            a, b = self._low
            share = self._route.share(self._parts, x)
            out += F.linear(F.linear(x, a) * share.view(len(x), *[1] * (x.dim() - 2), -1), b)
        for key, rows in self._route.rows:
            if key in self._others:
                out[rows] = self._others[key](x[rows])
        return out

    def take_apart(self) -> None:
        """Each update's numbers in memory of their own, so that one that goes takes its memory with it."""
        self._low = None
        with torch.inference_mode(False), torch.no_grad():
            for layer in self._apart:
                layer.lora_a.data, layer.lora_b.data = layer.lora_a.data.clone(), layer.lora_b.data.clone()


def _side_by_side(layers: Sequence[LowRank]) -> tuple[Tensor, Tensor]:
    """A [S, I] and B [O, S] of several updates of S ranks in all; the layers' own numbers are parts of them then."""
    with torch.inference_mode(False), torch.no_grad():
        a = torch.cat([layer.lora_a for layer in layers])
        b = torch.cat([layer.lora_b for layer in layers], dim=1)
        start = 0
        for layer in layers:
            end = start + len(layer.lora_a)
            layer.lora_a.data, layer.lora_b.data, start = a[start:end], b[:, start:end], end
    return a, b


class _Route:
    """Which rows go by which adapter in the pass that runs."""

    def __init__(self) -> None:
        self.rows: Sequence[tuple[int, Rows]] = ()
        self._shares: dict[tuple[tuple[int, int, float], ...], Tensor] = {}

    def go(self, rows: Sequence[tuple[int, Rows]]) -> None:
        """These rows by these adapters from now on."""
        self.rows, self._shares = rows, {}

    def share(self, parts: tuple[tuple[int, int, float], ...], x: Tensor) -> Tensor:
        """[B, S]: the scale where a part of the ranks is a row's own, 0 elsewhere; made once a pass."""
        if parts not in self._shares:
            own = dict(self.rows)
            made = [x.new_zeros(len(x), rank) for _, rank, _ in parts]
            for (key, _, scale), part in zip(parts, made, strict=True):
                if key in own:
                    part[own[key]] = scale
            self._shares[parts] = torch.cat(made, dim=1)
        return self._shares[parts]


class Mixed:
    """The base's network with the layers of several adapters, each known by a number."""

    def __init__(self, base: Any, adapted: Mapping[int, Any]) -> None:
        self._route = _Route()
        self.network = same_numbers(base)
        for name, module in list(self.network.named_modules()):
            others = {key: other.get_submodule(name) for key, other in adapted.items() if _has(other, name)}
            changed = {key: other for key, other in others.items() if type(other) is not type(module)}
            if changed:
                parent, _, leaf = name.rpartition(".")
                setattr(self.network.get_submodule(parent), leaf, _MixedLayer(module, changed, self._route))

    def by(self, rows: Sequence[tuple[int, Rows]]) -> Any:
        """The network, in which these rows go by these adapters, and all others by the base."""
        self._route.go(rows)
        return self.network

    def take_apart(self) -> None:
        """Give every adapter its numbers back; nothing is asked of this tree after it."""
        for module in self.network.modules():
            if isinstance(module, _MixedLayer):
                module.take_apart()


def _has(network: nn.Module, name: str) -> bool:
    """Whether a tree has a module of that name."""
    try:
        network.get_submodule(name)
    except AttributeError:
        return False
    return True
