"""Rows of different adapters in one forward pass: the base runs once, and each row gets its own adapter's update.

Every adapter has its own tree of modules, as PEFT made it; all trees share the base's parameters. A further, mixed tree
has, wherever an adapter changed a layer, a layer that sends each row to its adapter.

Letters: B rows of the pass, B' rows of one adapter, I and O inner and outer width, S ranks of all adapters together.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunesmith.models.kernels.fused_lora import LowRank

Rows = Tensor  # [B'] int64, index of rows


def share_parameters(network: Any) -> Any:
    """Return a copy of a network's modules that shares its parameters and buffers, for adapters in the copy alone."""
    shared = (*network.parameters(), *network.buffers())
    return copy.deepcopy(network, {id(value): value for value in shared})


class _MixedLayer(nn.Module):
    """A layer of the base with the updates of several adapters.

    LoRA updates are concatenated to one of rank S. Each row uses its own ranks only: two products for all adapters
    instead of two for each (the idea of S-LoRA, arXiv 2311.03285). The adapters' own layers become views of it.
    """

    def __init__(self, plain: nn.Module, changed: Mapping[int, nn.Module], route: _Route) -> None:
        super().__init__()
        self.plain = plain
        # In a plain dict, so that torch does not register the adapters' parameters in this tree.
        lora = {key: layer for key, layer in changed.items() if isinstance(layer, LowRank)}
        self._others = {key: layer for key, layer in changed.items() if key not in lora}
        self._route = route
        self._parts = tuple((key, len(layer.lora_a), layer.scale) for key, layer in lora.items())
        self._lora_layers = tuple(lora.values())
        self._factors = _concatenate(self._lora_layers) if lora else None

    @property
    def weight(self) -> Any:
        """Weight of the layer without any update, [O, I]."""
        return self.plain.weight

    def forward(self, x: Tensor, *args: Tensor) -> Any:
        """[B, ..., I] -> [B, ..., O].

        Experts also take the experts of each row and their weights, and a router returns several tensors.
        """
        out: Any = self.plain(x, *args)
        if self._factors is not None:
            a, b = self._factors
            scales = self._route.scales(self._parts, x)
            out += F.linear(F.linear(x, a) * scales.view(len(x), *[1] * (x.dim() - 2), -1), b)
        for key, rows in self._route.rows:
            if key in self._others:
                rows = self._route.everywhere(rows, x)
                own = self._others[key](x[rows], *(arg[rows] for arg in args))
                for part, own_part in zip(out, own, strict=True) if isinstance(out, tuple) else ((out, own),):
                    part[rows] = own_part
        return out

    def take_apart(self) -> None:
        """Give each update separate memory, so that unloading one adapter frees its memory."""
        self._factors = None
        with torch.inference_mode(False), torch.no_grad():
            for layer in self._lora_layers:
                layer.lora_a.data = layer.lora_a.data.clone()
                layer.lora_b.data = layer.lora_b.data.clone()


def _concatenate(layers: Sequence[LowRank]) -> tuple[Tensor, Tensor]:
    """Return A [S, I] and B [O, S] of several updates, and make the layers' own factors views of them."""
    # Tensors made in inference mode could never be trained again.
    with torch.inference_mode(False), torch.no_grad():
        a = torch.cat([layer.lora_a for layer in layers])
        b = torch.cat([layer.lora_b for layer in layers], dim=1)
        start = 0
        for layer in layers:
            end = start + len(layer.lora_a)
            layer.lora_a.data = a[start:end]
            layer.lora_b.data = b[:, start:end]
            start = end
    return a, b


class _Route:
    """The adapter of each row in the current pass, shared by all mixed layers."""

    def __init__(self) -> None:
        self.rows: Sequence[tuple[int, Rows]] = ()
        self._count = 0
        self._scales: dict[tuple[tuple[int, int, float], ...], Tensor] = {}

    def set(self, rows: Sequence[tuple[int, Rows]], count: int) -> None:
        """Send the rows of each adapter through it from now on, of `count` rows of the pass (see `MultiLora.by`)."""
        self.rows = rows
        self._count = count
        self._scales = {}

    def everywhere(self, rows: Rows, x: Tensor) -> Rows:
        """Return where rows are in the input of a layer, which for some experts is all B rows once per expert."""
        times = len(x) // self._count if self._count else 1
        return rows if times == 1 else torch.cat([rows + copy * self._count for copy in range(times)])

    def scales(self, parts: tuple[tuple[int, int, float], ...], x: Tensor) -> Tensor:
        """Return [B, S]: the adapter's scale on a row's own ranks, 0 on all others; computed once per pass."""
        if parts not in self._scales:
            own = dict(self.rows)
            columns = [x.new_zeros(len(x), rank) for _, rank, _ in parts]
            for (key, _, scale), column in zip(parts, columns, strict=True):
                if key in own:
                    column[own[key]] = scale
            self._scales[parts] = torch.cat(columns, dim=1)
        return self._scales[parts]


class MultiLora:
    """The base's network with the layers of several adapters, each identified by an integer.

    Args:
        base: the network without an adapter.
        adapted: by key, a tree that shares the base's parameters and has one adapter in it.
    """

    def __init__(self, base: Any, adapted: Mapping[int, Any]) -> None:
        self._route = _Route()
        self.network = share_parameters(base)
        modules = {key: dict(other.named_modules(remove_duplicate=False)) for key, other in adapted.items()}
        for name, module in list(self.network.named_modules()):
            others = {key: named[name] for key, named in modules.items() if name in named}
            changed = {key: other for key, other in others.items() if type(other) is not type(module)}
            if changed:
                parent, _, leaf = name.rpartition(".")
                setattr(self.network.get_submodule(parent), leaf, _MixedLayer(module, changed, self._route))

    def by(self, rows: Sequence[tuple[int, Rows]], *, count: int = 0) -> Any:
        """Return the network with these rows sent to these adapters, and all other rows to the base.

        Args:
            rows: the rows of each adapter.
            count: rows of the pass; needed for experts that are computed over all rows once per expert.
        """
        self._route.set(rows, count)
        return self.network

    def take_apart(self) -> None:
        """Give every adapter separate memory again; this network must not be used after it."""
        for module in self.network.modules():
            if isinstance(module, _MixedLayer):
                module.take_apart()
