"""The functions that a caller passes to a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunesmith.events import EventHandler, ignore

if TYPE_CHECKING:  # the command line imports this module, and torch takes seconds
    from tunesmith.models.policy import Policy


class Interrupted(Exception):
    """A run stopped on request; its last finished step is saved."""


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
