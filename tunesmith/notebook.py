"""Progress of a function in a notebook: one output cell that is updated in place."""

from __future__ import annotations

import html
import sys
import time
from collections import deque
from collections.abc import Callable

from tunesmith.cli.progress import describe, measures, progress_line
from tunesmith.events import Event, EventHandler, StageStarted, StepFinished
from tunesmith.progress import Progress

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
        if isinstance(event, StepFinished | Progress):
            self._bar = _bar(event)
            last = isinstance(event, StepFinished) and event.step == event.steps
            if not last and self._clock() - self._shown < SECONDS:
                return
        else:
            self._bar = "" if isinstance(event, StageStarted) else self._bar
            self._lines.extend(describe(event))
        self._shown = self._clock()
        lines = "".join(f"<div>{html.escape(line)}</div>" for line in self._lines)
        self._update(f'<div class="tunesmith-progress">{lines}{self._bar}</div>')


def _bar(event: StepFinished | Progress) -> str:
    if isinstance(event, Progress):
        done, total, words = event.done, event.total, progress_line(event)
    else:
        done, total, words = event.step, event.steps, f"step {event.step}/{event.steps}  {measures(event)}"
    return f'<div><progress value="{done:g}" max="{total}"></progress> {html.escape(words)}</div>'
