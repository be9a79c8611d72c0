"""Ctrl-C and SIGTERM: the first asks a training loop to stop after its step, the second stops at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ASKED = b"\nstopping after this step and saving; once more stops at once\n"


class Interruption(KeyboardInterrupt):
    """A signal that ends the command; `exit_code` is 128 and the signal's number."""

    def __init__(self, number: int, text: str = "stopped") -> None:
        super().__init__(text)
        self.text = text
        self.exit_code = 128 + number


class Signals:
    """What has come in; `patient` while something runs that looks at `stop` by itself."""

    def __init__(self) -> None:
        self.received = 0
        self.patient = False

    def stop(self) -> bool:
        """Whether to end after the running step."""
        return bool(self.received)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal in a patient time; end the command otherwise."""
        first, self.received = not self.received, number
        if not (self.patient and first):
            raise Interruption(number)
        os.write(2, ASKED)  # print may stand in the middle of a write of its own


@contextmanager
def caught() -> Iterator[Signals]:
    """The signals that come in meanwhile; outside the main thread Python lets nobody catch any."""
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    before = {number: signal.signal(number, signals.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
