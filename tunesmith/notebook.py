"""Progress of a function in a notebook: one output cell that is updated in place."""

from __future__ import annotations

import html
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from tunesmith.cli.progress import describe
from tunesmith.events import Event, EventHandler, StepFinished

LAST_LINES = 6  # of earlier events
SECONDS = 0.3  # between two updates of a bar


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook, which can update an output in place."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ in ("ZMQInteractiveShell", "Shell")  # Jupyter, and Google Colab


def notebook_progress() -> EventHandler:
    """Return a handler that shows events in an output of the current cell."""
    from IPython.display import HTML, display

    handle = display(HTML(""), display_id=True)
    return NotebookProgress(lambda text: handle.update(HTML(text)))


class NotebookProgress:
    """Shows the last lines and the bar of the current training.

    Args:
        update: replaces the shown HTML.
        clock: returns seconds.
    """

    def __init__(self, update: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._update = update
        self._clock = clock
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        self._bar = ""
        self._shown = float("-inf")

    def __call__(self, event: Event) -> None:
        """Show the event; of steps at most one every `SECONDS`."""
        if isinstance(event, StepFinished):
            self._bar = _bar(event)
            if event.step < event.steps and self._clock() - self._shown < SECONDS:
                return
        else:
            self._lines.extend(describe(event))
        self._shown = self._clock()
        lines = "".join(f"<div>{html.escape(line)}</div>" for line in self._lines)
        self._update(f'<div class="tunesmith-progress">{lines}{self._bar}</div>')


def _bar(event: Any) -> str:
    words = f"step {event.step} of {event.steps}, loss {event.loss:.4f}"
    return f'<div><progress value="{event.step}" max="{event.steps}"></progress> {html.escape(words)}</div>'
