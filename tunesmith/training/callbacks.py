"""The functions that a caller passes to a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tunesmith.errors import OptionError
from tunesmith.events import Event, EventHandler, ignore

if TYPE_CHECKING:  # the command line imports this module, and torch takes seconds
    from tunesmith.models.policy import Policy


class Interrupted(Exception):
    """A run stopped on request; its last finished step is saved."""


class Callback:
    """A class to derive from for `tunesmith.tune(..., callbacks=[...])`; both methods are optional.

    class Deadline(tunesmith.Callback):
        def should_stop(self):
            return time.monotonic() > self.end
    """

    def on_event(self, event: Event) -> None:
        """Receive an event of `tunesmith.events`, such as `StepFinished` with step and loss."""

    def should_stop(self) -> bool:
        """Return whether to stop after this optimizer step; the run is saved and can be resumed."""
        return False


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Functions that observe, stop and constrain a run.

        Callbacks(print)  # print every event
        Callbacks(print, should_stop=lambda: deadline < time.monotonic())

    `should_stop` is called after every optimizer step.
    """

    on_event: EventHandler = ignore
    should_stop: Callable[[], bool] = lambda: False
    # The gate that a policy violates, as a message, or None; a violating policy is never kept as the best.
    gate_violation: Callable[[Policy], str | None] = lambda policy: None

    def with_also(self, others: Sequence[Callback]) -> Callbacks:
        """Return these functions together with those of callbacks. Raises OptionError for anything else."""
        if not isinstance(others, Sequence) or not all(isinstance(one, Callback) for one in others):
            fix = "give a list of objects derived from tunesmith.Callback; a function goes into callback="
            raise OptionError(f"callbacks: got {others!r:.80}; {fix}")

        def on_event(event: Event) -> None:
            for handle in (self.on_event, *(one.on_event for one in others)):
                handle(event)

        def should_stop() -> bool:
            return any([self.should_stop(), *(one.should_stop() for one in others)])

        return replace(self, on_event=on_event, should_stop=should_stop) if others else self
