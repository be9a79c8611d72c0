"""Prefix cache: keys and values of recent prompts, so that a shared instruction or an earlier turn runs once.

The states of a network that keeps more than keys and values cannot be shortened: they serve prompts that begin with all
tokens of an earlier one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.models.attention.network_cache import RowState
from tunesmith.models.attention.shared_prefix import Past

WORTH = 8  # tokens; recomputing a shorter prefix is faster than a lookup


@dataclass(frozen=True, slots=True)
class _Entry:
    """A prompt of one run and its keys and values in every layer, or its whole state; virtual tokens first."""

    run: int
    ids: list[int]
    past: Past | RowState

    @property
    def bytes(self) -> int:
        """Memory of the keys and values or of the state."""
        if isinstance(self.past, RowState):
            return self.past.bytes
        return sum(part.numel() * part.element_size() for pair in self.past for part in pair)

    def serves(self, ids: Sequence[int]) -> int:
        """Return how many of the first tokens of a prompt this entry stands for."""
        same = alike(self.ids, ids)
        return 0 if isinstance(self.past, RowState) and same < len(self.ids) else same

    def first(self, tokens: int) -> Past | RowState:
        """Return what stands for the virtual tokens and the first of the prompt, `tokens` in all."""
        if isinstance(self.past, RowState):
            return self.past
        return [(keys[:, :, :tokens], values[:, :, :tokens]) for keys, values in self.past]

    def covers(self, other: _Entry) -> bool:
        """Return whether this entry serves every prompt that the other one serves."""
        if isinstance(self.past, RowState):
            return self.run == other.run and self.ids == other.ids
        return self.run == other.run and self.ids[: len(other.ids)] == other.ids


class PrefixCache:
    """A cache with least-recently-used eviction and a limit in bytes."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0
        self._entries: list[_Entry] = []  # least recently used first

    def find(self, run: int, ids: Sequence[int], *, virtual: int = 0) -> tuple[int, Past | RowState]:
        """Find the longest cached prefix of a prompt.

        Args:
            run: number of the run.
            ids: the prompt.
            virtual: number of virtual tokens before it.

        Returns:
            Length of the prefix, less than the prompt, and what stands for the virtual tokens and the prefix.
        """
        best: _Entry | None = None
        size = WORTH - 1
        for entry in self._entries:
            if entry.run == run and (same := entry.serves(ids)) > size:
                best = entry
                size = same
        if best is None:
            return 0, ()
        self._entries.remove(best)
        self._entries.append(best)
        return size, best.first(virtual + size)

    def keep(self, run: int, ids: Sequence[int], past: Past | RowState) -> None:
        """Add a prompt, in place of entries that it covers; the oldest entries are evicted."""
        new = _Entry(run, list(ids), past)
        covering = next((entry for entry in self._entries if entry.covers(new)), None)
        if covering is not None:  # the same prompt, or a longer one
            self._entries.remove(covering)
            self._entries.append(covering)
            return
        if new.bytes > self.most_bytes:
            return
        self._entries = [entry for entry in self._entries if not new.covers(entry)]
        self._entries.append(new)
        self.bytes = sum(entry.bytes for entry in self._entries)
        while self.bytes > self.most_bytes:
            self.bytes -= self._entries.pop(0).bytes

    def forget(self, known: Sequence[int]) -> None:
        """Keep only the entries of these runs."""
        self._entries = [entry for entry in self._entries if entry.run in known]
        self.bytes = sum(entry.bytes for entry in self._entries)


def alike(first: Sequence[int], ids: Sequence[int]) -> int:
    """Return the length of the common prefix of two prompts, at most all but one token of the second."""
    limit = min(len(first), len(ids) - 1)
    return next((i for i in range(limit) if first[i] != ids[i]), max(limit, 0))
