"""One cache per row, for networks whose states do not fit into slots: rows run one by one, whatever the network keeps.

It has the interface of `SlotKVCache`, so continuous batching uses either.

Letters: T new tokens of a row, D hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from tunesmith.models.attention.network_cache import RowState, forward_cached, new_cache


class RowCaches:
    """The caches of the active rows by slot. A row may run under another adapter than the others.

        caches = RowCaches(continues=policy.rules.continues)
        states = caches.feed(network, [prompt], slots=range(0, 1), starts=[0])
        states = caches.feed(network, [[token]], slots=range(0, 1), starts=[len(prompt)])

    Args:
        continues: several tokens at once may follow those of a row.
    """

    def __init__(self, *, continues: bool) -> None:
        self._continues = continues
        self._caches: dict[int, Cache | None] = {}

    def feed(
        self, network: Any, rows: Sequence[Sequence[int]], *, slots: Sequence[int], starts: Sequence[int]
    ) -> Sequence[Tensor]:
        """Run new tokens of rows as `SlotKVCache.feed` does, one row after another; start 0 begins a new row."""
        states = []
        for ids, slot, start in zip(rows, slots, starts, strict=True):
            cache = self._caches[slot] if start else new_cache(network)
            # Some networks read several tokens at once only at the beginning of a row.
            pieces = [ids] if self._continues or not start else [[token] for token in ids]
            parts = []
            for column, piece in zip(count(start, len(pieces[0])), pieces, strict=False):
                part, cache = forward_cached(
                    network,
                    cache,
                    input_ids=torch.tensor([list(piece)], device=network.device),
                    position_ids=torch.arange(column, column + len(piece), device=network.device)[None],
                )
                parts.append(part[0])
            self._caches[slot] = cache
            states.append(torch.cat(parts))
        return states

    def put(self, slot: int, state: RowState) -> None:
        """Begin a row in a slot from a copy of the state of its first tokens."""
        self._caches[slot] = state.fresh()

    def take(self, slot: int, size: int) -> RowState:
        """Copy the state of a row, which stands for all of its `size` tokens."""
        cache = self._caches[slot]
        assert cache is not None, f"a row of {size} tokens has run"
        return RowState.of(cache)

    def move(self, slot: int, to: int, size: int) -> None:
        """Move a row of `size` tokens to another slot, over the row that was there."""
        self._caches[to] = self._caches.pop(slot)

    def clear(self) -> None:
        """Free the memory."""
        self._caches.clear()
