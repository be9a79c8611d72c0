"""Progress of loops: how much is done, at what rate, and how long the rest takes.

    with reporting(print):
        for text in track(texts, "embedding", unit="texts"):
            ...

The receiver is a context variable and not a parameter: the loops that take long (generation, embedding, scoring of
options) are called through about forty signatures that have no other use for it. The variable changes no result.
A thread that did not enter `reporting` itself reports nothing, so a server stays quiet.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import ClassVar, TypeVar

T = TypeVar("T")

# Least seconds between two reports of a loop, and before its first: a loop that is faster reports nothing.
INTERVAL = 0.5


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a loop after `seconds`; `done` counts a part of the present item, too."""

    kind: ClassVar[str] = "progress"
    text: str  # what the loop does, such as `generating`
    done: float
    total: int
    unit: str  # plural, such as `rows`
    seconds: float

    @property
    def rate(self) -> float:
        """Return the units per second; 0 if none is done."""
        return self.done / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """Return the expected seconds of the rest; None until one item or a fiftieth of all is done.

        Before that, the part of an item that is done is too small: three prompts of 15 s were expected to take hours.
        """
        enough = self.done > 0 and self.done >= min(1, self.total / 50)
        return (self.total - self.done) / self.rate if enough else None


Receiver = Callable[[Progress], None]


class Meter:
    """Counts what a loop has done. Its methods may be called from several threads.

    A meter that is opened while an item of another is worked on reports through that one, as a part of the item:
    a caller sees one count.
    """

    def __init__(self, text: str, total: int, unit: str, *, parent: Meter | None, receiver: Receiver | None) -> None:
        self.text = text
        self.total = total
        self.unit = unit
        self.weight = float(total)  # units of the present item, whose parts inner meters count
        self._parent = parent
        self._receiver = receiver
        self._lock = threading.Lock()
        self._done = 0.0  # finished items
        self._reached = 0.0  # with the part of the present item
        self._reported = False
        self._started = self._last = time.monotonic()

    def add(self, units: float = 1.0) -> None:
        """Count finished units."""
        with self._lock:
            self._done += units
        self._report(self._done)

    def update(self, done: float) -> None:
        """Set the number of finished units."""
        self._done = done
        self._report(done)

    def part(self, share: float) -> None:
        """Set the finished share of the present item, 0 to 1."""
        self._report(self._done + self.weight * min(1.0, share))

    def _report(self, reached: float) -> None:
        if self._parent is None and self._receiver is None:
            return
        with self._lock:
            now = time.monotonic()
            self._reached = max(self._reached, min(reached, float(self.total)))
            ends = self._reported and self._reached >= self.total  # what was shown must not stay unfinished
            if now - self._last < INTERVAL and not ends:
                return
            self._last = now
            self._reported = not ends
        if self._parent is not None:
            self._parent.part(self._reached / max(1, self.total))
        elif self._receiver is not None:
            self._receiver(Progress(self.text, self._reached, self.total, self.unit, now - self._started))


@dataclass(frozen=True, slots=True)
class _Scope:
    """The receiver of the present context, and the meter whose item is worked on."""

    receiver: Receiver | None = None
    meter: Meter | None = None


_NO_SCOPE = _Scope()
_SCOPE: ContextVar[_Scope] = ContextVar("progress", default=_NO_SCOPE)


@contextmanager
def reporting(receiver: Receiver) -> Iterator[None]:
    """Send the progress of all loops in the block to a function."""
    before = _SCOPE.get()
    _SCOPE.set(_Scope(receiver))
    try:
        yield
    finally:
        _SCOPE.set(before)


@contextmanager
def measuring(text: str, total: int, *, unit: str) -> Iterator[Meter]:
    """Yield a meter for a loop that counts by itself; meters opened in the block count a part of its present item.

    Args:
        text: what is done, such as `reading`.
        total: number of items.
        unit: plural of an item.
    """
    before = _SCOPE.get()
    meter = Meter(text, total, unit, parent=before.meter, receiver=before.receiver)
    _SCOPE.set(_Scope(before.receiver, meter))
    try:
        yield meter
    finally:
        _SCOPE.set(before)


def track(
    items: Iterable[T],
    text: str,
    *,
    unit: str,
    total: int | None = None,
    size: Callable[[T], int] | None = None,
) -> Iterator[T]:
    """Yield items and report how many are done.

        for batch in track(batches, "scoring", unit="rows", total=len(rows), size=len):

    Args:
        items: the items.
        text: what the loop does.
        unit: what is counted, in the plural.
        total: number of units; by default that of the items.
        size: units of an item; by default 1.
    """
    if total is None:
        items = list(items)
        total = len(items) if size is None else sum(map(size, items))
    with measuring(text, total, unit=unit) as meter:
        for item in items:
            meter.weight = 1 if size is None else size(item)
            yield item
            meter.add(meter.weight)
