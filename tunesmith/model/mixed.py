"""Rows under different adapters in one pass: what all share runs once, and each row's own update over that row.

Every adapter lives in a tree of modules of its own, as PEFT made it; the trees share the base's numbers. The mixed tree
has, where any of them changed a layer, a layer that asks each for its rows.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from tunesmith.model.lowrank import LowRank

Rows = Tensor  # [B'] int64, numbers of rows


def same_numbers(network: Any) -> Any:
    """A tree of modules of its own over the very same parameters and buffers."""
    shared = (*network.parameters(), *network.buffers())
    return copy.deepcopy(network, {id(value): value for value in shared})


class _MixedLayer(nn.Module):
    """A layer of the base, and what some adapters made of it."""

    def __init__(self, plain: nn.Module, changed: Mapping[int, nn.Module], route: _Route) -> None:
        super().__init__()
        self.plain = plain
        # In a plain dict, so that the adapters' numbers do not count as this tree's.
        self._changed, self._route = dict(changed), route

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, I] -> [B, T, O]."""
        out: Tensor = self.plain(x)
        for key, rows in self._route.rows:
            layer = self._changed.get(key)
            if layer is None:
                continue
            if isinstance(layer, LowRank):
                out[rows] += layer.update(x[rows])
            else:
                out[rows] = layer(x[rows])
        return out


class _Route:
    """Which rows go by which adapter in the pass that runs."""

    def __init__(self) -> None:
        self.rows: Sequence[tuple[int, Rows]] = ()


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
        self._route.rows = rows
        return self.network


def _has(network: nn.Module, name: str) -> bool:
    """Whether a tree has a module of that name."""
    try:
        network.get_submodule(name)
    except AttributeError:
        return False
    return True
