"""Keys and values of what questions begin with, kept so that a shared instruction or an earlier turn runs once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.model.fork import Past

WORTH = 8  # fewer ids are run again sooner than they are found


@dataclass(frozen=True, slots=True)
class _Kept:
    """Ids of one run's question, and what they became in every layer, virtual tokens first."""

    run: int
    ids: list[int]
    past: Past

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return sum(part.numel() * part.element_size() for pair in self.past for part in pair)


class Beginnings:
    """What was asked last, as much of it as fits into so many bytes; what is used again stays."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self.bytes = most_bytes, 0
        self._kept: list[_Kept] = []  # what was used last stands last

    def find(self, run: int, ids: Sequence[int], *, virtual: int = 0) -> tuple[int, Past]:
        """How many of the ids are known, never all, and keys and values of the virtual tokens and of these."""
        best, size = None, WORTH - 1
        for kept in self._kept:
            if kept.run == run and (same := alike(kept.ids, ids)) > size:
                best, size = kept, same
        if best is None:
            return 0, ()
        self._kept.remove(best)
        self._kept.append(best)
        return size, [(k[:, :, : virtual + size], v[:, :, : virtual + size]) for k, v in best.past]

    def keep(self, run: int, ids: Sequence[int], past: Past) -> None:
        """Remember a question, once, with what it begins with; the oldest ones go where there is no room."""
        made = _Kept(run, list(ids), past)
        known = next((kept for kept in self._kept if kept.run == run and kept.ids[: len(ids)] == made.ids), None)
        if known is not None:  # whole, or in a longer one
            self._kept.remove(known)
            self._kept.append(known)
            return
        if made.bytes > self.most_bytes:
            return
        self._kept = [kept for kept in self._kept if kept.run != run or kept.ids != made.ids[: len(kept.ids)]]
        self._kept.append(made)
        self.bytes = sum(kept.bytes for kept in self._kept)
        while self.bytes > self.most_bytes:
            self.bytes -= self._kept.pop(0).bytes

    def forget(self, known: Sequence[int]) -> None:
        """Keep only what belongs to these runs."""
        self._kept = [kept for kept in self._kept if kept.run in known]
        self.bytes = sum(kept.bytes for kept in self._kept)


def alike(first: Sequence[int], ids: Sequence[int]) -> int:
    """How many ids two questions begin alike with; one of the second is always left over."""
    limit = min(len(first), len(ids) - 1)
    return next((i for i in range(limit) if first[i] != ids[i]), max(limit, 0))
