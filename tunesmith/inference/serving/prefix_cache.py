"""Prefix cache: keys and values of recent prompts, so that a shared instruction or an earlier turn runs once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.models.attention.shared_prefix import Past

WORTH = 8  # tokens; recomputing a shorter prefix is faster than a lookup


@dataclass(frozen=True, slots=True)
class _Entry:
    """A prompt of one run and its keys and values in every layer, virtual tokens first."""

    run: int
    ids: list[int]
    past: Past

    @property
    def bytes(self) -> int:
        """Memory of the keys and values."""
        return sum(part.numel() * part.element_size() for pair in self.past for part in pair)


class PrefixCache:
    """A cache with least-recently-used eviction and a limit in bytes."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0
        self._entries: list[_Entry] = []  # least recently used first

    def find(self, run: int, ids: Sequence[int], *, virtual: int = 0) -> tuple[int, Past]:
        """Find the longest cached prefix of a prompt.

        Args:
            run: number of the run.
            ids: the prompt.
            virtual: number of virtual tokens before it.

        Returns:
            Length of the prefix, less than the prompt, and keys and values of the virtual tokens and the prefix.
        """
        best: _Entry | None = None
        size = WORTH - 1
        for entry in self._entries:
            if entry.run == run and (same := alike(entry.ids, ids)) > size:
                best = entry
                size = same
        if best is None:
            return 0, ()
        self._entries.remove(best)
        self._entries.append(best)
        return size, [(k[:, :, : virtual + size], v[:, :, : virtual + size]) for k, v in best.past]

    def keep(self, run: int, ids: Sequence[int], past: Past) -> None:
        """Add a prompt, in place of its own prefixes; the oldest entries are evicted."""
        new = _Entry(run, list(ids), past)
        same_run = (entry for entry in self._entries if entry.run == run)
        covering = next((entry for entry in same_run if entry.ids[: len(ids)] == new.ids), None)
        if covering is not None:  # the same prompt, or a longer one
            self._entries.remove(covering)
            self._entries.append(covering)
            return
        if new.bytes > self.most_bytes:
            return
        self._entries = [entry for entry in self._entries if entry.run != run or entry.ids != new.ids[: len(entry.ids)]]
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
