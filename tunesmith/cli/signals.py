"""Ctrl-C and SIGTERM: the first signal stops training after the current step, the second stops at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Windows has no SIGTERM that arrives; Ctrl-Break is what one process sends another.
NUMBERS = (signal.SIGINT, signal.SIGTERM, *filter(None, [getattr(signal, "SIGBREAK", None)]))
ASKED = b"\nstopping after this step and saving; press Ctrl-C again to stop at once\n"


class Interruption(KeyboardInterrupt):
    """A signal ended the command; `exit_code` is 128 plus the signal number."""

    def __init__(self, number: int, text: str = "stopped") -> None:
        super().__init__(text)
        self.text = text
        self.exit_code = 128 + number


class Signals:
    """The last signal received. Set `patient` while the running code checks `stop` by itself, `over` at its end."""

    def __init__(self) -> None:
        self.received = 0
        self.patient = False
        self.over = False

    def stop(self) -> bool:
        """Return whether to stop after the current step."""
        return bool(self.received)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Record the first signal if `patient`; raise Interruption otherwise, unless the command is `over`."""
        number = signal.SIGTERM if number == signal.SIGTERM else signal.SIGINT  # Ctrl-Break is as Ctrl-C
        first, self.received = not self.received, number
        if self.over:
            return
        if not (self.patient and first):
            raise Interruption(number)
        os.write(2, ASKED)  # the signal may arrive inside a print, which is not reentrant


@contextmanager
def caught(*, last: bool = False) -> Iterator[Signals]:
    """Handle SIGINT and SIGTERM in the block; outside the main thread, where Python forbids handlers, do nothing.

    Args:
        last: the process ends after the block. If a signal ended the command, further ones are ignored from then on:
            they would interrupt the libraries' own ends.
    """
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    before = {number: signal.signal(number, signals.handle) for number in NUMBERS}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if last and signals.over and signals.received else handler)
