"""Phases of a run: which one it is in, and how long each takes.

    with timing(Phases()) as phases:
        with phase("base scoring"):
            ...
    phases.seconds["base scoring"]

The clock is a context variable and not a parameter, because phases begin at every depth of a run: a checkpoint is
written within training, a baseline is fitted within the scoring of the base model. It changes no result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(slots=True)
class Phases:
    """Measures the phases of one run. The time of a phase excludes that of phases within it."""

    clock: Callable[[], float] = time.perf_counter
    on_change: Callable[[str], None] = lambda name: None  # called with the phase that a block ends, after its end
    seconds: dict[str, float] = field(default_factory=dict)
    reused: dict[str, float] = field(default_factory=dict)  # seconds of kept results when they were computed, by phase
    _open: list[str] = field(default_factory=list)  # phases that the present one is within, and itself
    _whole: int = 0  # depth of a phase that phases within it count for; 0: none
    _last: float = 0.0

    @property
    def current(self) -> str:
        """Return the phase that the run is in; empty between two."""
        return self._open[-1] if self._open else ""

    def so_far(self) -> dict[str, float]:
        """Return the seconds of all phases, those of the present one until now."""
        self._count()
        return dict(self.seconds)

    @contextmanager
    def measure(self, name: str, *, whole: bool) -> Iterator[None]:
        """Count the time of the block for a phase; see `phase`."""
        self._count()
        self._open.append(name if not self._whole else self.current)
        outermost = whole and not self._whole
        if outermost:
            self._whole = len(self._open)
        try:
            yield
        finally:
            self._count()
            ended = self._open.pop()
            if outermost:
                self._whole = 0
            if ended not in self._open:
                self.on_change(ended)

    def _count(self) -> None:
        """Add the time since the last change to the present phase."""
        now = self.clock()
        if self._open:
            self.seconds[self.current] = self.seconds.get(self.current, 0.0) + now - self._last
        self._last = now


_PHASES: ContextVar[Phases | None] = ContextVar("phases", default=None)


@contextmanager
def timing(phases: Phases) -> Iterator[Phases]:
    """Measure all phases in the block."""
    token = _PHASES.set(phases)
    try:
        yield phases
    finally:
        _PHASES.reset(token)


@contextmanager
def phase(name: str, *, whole: bool = False) -> Iterator[None]:
    """Count the time of the block for a phase; without `timing` around it nothing is measured.

    Args:
        name: the phase.
        whole: count phases within the block for this one, such as the training of a control run.
    """
    phases = _PHASES.get()
    if phases is None:
        yield
        return
    with phases.measure(name, whole=whole):
        yield


def reused_in_phase(seconds: float) -> None:
    """Note that the present phase reuses results of an earlier run or phase, which took some seconds to compute."""
    if (phases := _PHASES.get()) is not None and phases.current:
        phases.reused[phases.current] = phases.reused.get(phases.current, 0.0) + seconds
