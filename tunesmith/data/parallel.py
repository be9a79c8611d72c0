"""Ordered parallel map over processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import chain, islice
from multiprocessing import get_context
from typing import Any, TypeVar

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")

# Fewer pieces are done before other processes would have started.
FEW = 10


def in_order(work: Callable[[S, T], R], shared: S, pieces: Iterable[T], *, workers: int) -> Iterator[R]:
    """Yield `work(shared, piece)` for each piece, in order; `shared` is sent to each process once."""
    rest = iter(pieces)
    first = list(islice(rest, FEW))
    if workers < 2 or len(first) < FEW:
        for piece in chain(first, rest):
            yield work(shared, piece)
        return
    # spawn: a fork would copy the locks of this process's threads in whatever state they are.
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_remember, initargs=(work, shared)) as pool:
        waiting: list[Future[R]] = []
        for piece in chain(first, rest):
            waiting.append(pool.submit(_work, piece))
            if len(waiting) > 2 * workers:
                yield waiting.pop(0).result()
        while waiting:
            yield waiting.pop(0).result()


# Arguments with which this worker process was started.
_tasks: list[tuple[Callable[[Any, Any], Any], Any]] = []


def _remember(work: Callable[[Any, Any], Any], shared: Any) -> None:
    _tasks.append((work, shared))


def _work(piece: Any) -> Any:
    work, shared = _tasks[-1]
    return work(shared, piece)
