"""Agreement of two answers, and the work of a shadow after its replies."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any

from tunesmith.errors import TunesmithError
from tunesmith.inference.serving.protocol import Model
from tunesmith.inference.serving.shadow.decision import Row
from tunesmith.inference.serving.shadow.ledger import Ledger
from tunesmith.metrics.task_scores import LABEL_BREAK, PER_ROW, SCALES

MOST_WAITING = 256  # comparisons; further ones are left out
AT_ONCE = 4  # comparisons


class Background:
    """Writes figures and compares answers after the replies, which it neither delays nor fails.

    Args:
        ledger: the folder of the shadow.
        failed: receives one line about a failure.
    """

    def __init__(self, ledger: Ledger, failed: Callable[[str], None]) -> None:
        self.waiting = self.left_out = self.failures = 0
        self._ledger, self._failed = ledger, failed
        self._free = asyncio.Semaphore(AT_ONCE)
        self._tasks = set[asyncio.Task[None]]()

    def add(self, row: Row, compare: Callable[[], Awaitable[None]] | None = None) -> None:
        """Write the figures of a reply at once, and then compare; with MOST_WAITING comparisons that is left out."""
        task = asyncio.create_task(self._work(row, compare))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def write(self, method: Callable[..., None], *values: Any) -> bool:
        """Call a method of the ledger in a thread; return whether it succeeded. A failure is reported."""
        try:
            await asyncio.to_thread(method, *values)
        except TunesmithError as error:  # a full disk: nothing is decided from what is not stored
            self.fail(str(error))
            return False
        return True

    def fail(self, line: str) -> None:
        """Report a failure."""
        self.failures += 1
        if self.failures & (self.failures - 1) == 0:  # the first, second, fourth, ...: a full disk fails every row
            self._failed(f"shadow: {line} ({self.failures} failures so far; no reply is affected)")

    async def close(self, seconds: float = 5.0) -> None:
        """Finish what waits, for some seconds, and leave out the rest."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _work(self, row: Row, compare: Callable[[], Awaitable[None]] | None) -> None:
        if not await self.write(self._ledger.record, row) or compare is None:
            return
        if self.waiting >= MOST_WAITING:
            self.left_out += 1
            return
        self.waiting += 1
        try:
            async with self._free:
                await compare()
        except Exception as error:  # a bug; the next comparison may succeed
            self.fail(f"{type(error).__name__}: {error}")
        finally:
            self.waiting -= 1


def metric_of(run: Model) -> str:
    """Return the metric of agreement: that of the run if it has a value per row, else that of its kind of answer."""
    if run.objective.label_mode is not None:
        return "sample_f1" if run.objective.label_mode == "multi" else "accuracy"
    metric = str(getattr(run.objective, "metric", ""))
    return metric if metric in PER_ROW else "rouge_l"


def agreement_of(run: Model, reference: str, tuned: str) -> float:
    """Return the agreement of the answers `reference` and `tuned` by the metric of `run`, 0 to 1.

    Case, quotation marks and full stops of labels do not count.
    """
    metric = metric_of(run)
    if run.objective.label_mode is not None:
        spelt = {label.casefold(): label for label in run.objective.known_labels}
        parts = reference.replace(",", "\n").replace(";", "\n").split("\n") if metric == "sample_f1" else [reference]
        words = [part.strip(" \t\r\n\"'`*.") for part in parts]
        reference = LABEL_BREAK.join(spelt.get(word.casefold(), word) for word in words if word)
    value = float(PER_ROW[metric]([reference], [tuned])[0]) / SCALES.get(metric, 1.0)
    return min(1.0, max(0.0, value)) if math.isfinite(value) else 0.0
