"""Progress of a command on stderr: a bar on a terminal, occasional lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tunesmith.cli.signals import Interruption, Signals, caught
from tunesmith.cli.terminal import console, log
from tunesmith.events import (
    DataLoaded,
    Event,
    EventHandler,
    MachineChosen,
    Note,
    OverfitChecked,
    Resumed,
    StageStarted,
    StepFinished,
    TrainingStarted,
    Validated,
)
from tunesmith.report.formatting import clean, figure

if TYPE_CHECKING:
    from rich.progress import Progress

    from tunesmith.data.splits.load import DataFacts
    from tunesmith.training.callbacks import Callbacks

# A log has one line every STEPS_PER_LINE steps, at least MIN_SECONDS and at most MAX_SECONDS apart.
STEPS_PER_LINE = 10
MIN_SECONDS = 1.0
MAX_SECONDS = 5.0
MAX_NAMED_ROWS = 5


class TimeLeft:
    """Estimates the remaining seconds of training from the steps observed so far."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._first: tuple[int, float] | None = None

    def left(self, step: int, steps: int) -> float | None:
        """Return the remaining seconds; None after the first step, whose start was not observed."""
        now = self.clock()
        if self._first is None or step <= self._first[0]:
            self._first = (step, now)
            return None
        first, started = self._first
        return (now - started) / (step - first) * (steps - step)


class Lines:
    """Writes events as lines of a log."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.pace = TimeLeft(clock)
        self._last_step = -STEPS_PER_LINE
        self._last_time = 0.0

    def __call__(self, event: Event) -> None:
        """Write the event; of training steps only one line every few seconds."""
        if not isinstance(event, StepFinished):
            for line in describe(event):
                log(line)
            return
        now = self.clock()
        left = self.pace.left(event.step, event.steps)
        passed = event.step - self._last_step
        waited = now - self._last_time
        if event.step == event.steps or waited >= MAX_SECONDS or (passed >= STEPS_PER_LINE and waited >= MIN_SECONDS):
            self._last_step = event.step
            self._last_time = now
            log(f"step {event.step}/{event.steps}  {measures(event)}  {duration(left)}".rstrip())


class Bar:
    """Shows training steps as a progress bar, and writes all other events above it."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.pace = TimeLeft()
        self._task: Any = None

    def __call__(self, event: Event) -> None:
        """Advance the bar, or write the event."""
        if not isinstance(event, StepFinished):
            if isinstance(event, StageStarted) and self._task is not None:
                # A finished bar stays in the scrollback; the next training run gets its own.
                self.progress.stop_task(self._task)
                self._task = None
                self.pace = TimeLeft()
            for line in describe(event):
                self.progress.console.print(clean(line))
            return
        words = f"{measures(event)}  {duration(self.pace.left(event.step, event.steps))}"
        if self._task is None:
            self._task = self.progress.add_task("training", total=event.steps, measures=words)
        self.progress.update(self._task, completed=event.step, measures=words)


@contextmanager
def listening(signals: Signals) -> Iterator[EventHandler]:
    """Yield a handler that reports events on stderr; during training, signals take effect after the current step."""
    screen = console(sys.stderr)
    if not screen.is_terminal or screen.is_dumb_terminal:
        yield _deferring_signals(Lines(), signals)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    words = TextColumn("{task.fields[measures]}", markup=False)
    with Progress(BarColumn(12), MofNCompleteColumn(), words, console=screen) as progress:
        yield _deferring_signals(Bar(progress), signals)


@contextmanager
def work() -> Iterator[Callbacks]:
    """Yield the callbacks of a command: progress on stderr, and a stop on Ctrl-C.

    Raises:
        Interruption: the work was stopped by a signal.
    """
    from tunesmith.training.callbacks import Callbacks, Interrupted

    with caught() as signals, listening(signals) as on_event:
        try:
            yield Callbacks(on_event, signals.stop)
        except Interrupted as stopped:
            raise Interruption(signals.received, f"{stopped}, progress saved") from None


def _deferring_signals(handler: EventHandler, signals: Signals) -> EventHandler:
    def on_event(event: Event) -> None:
        if isinstance(event, StageStarted):
            signals.patient = isinstance(event, TrainingStarted)  # only the training loop checks `should_stop`
        handler(event)

    return on_event


def measures(event: StepFinished) -> str:
    """Format loss, learning rate and speed of a step; for online RL also reward and KL."""
    speed = f"{event.tokens_per_second:.0f} tok/s"
    if "reward" in event.metrics:
        speed = f"reward {event.metrics['reward']:.3f}  KL {event.metrics.get('kl', 0.0):.3f}  {speed}"
    return f"loss {event.loss:.4f}  lr {event.learning_rate:.1e}  {speed}"


def duration(seconds: float | None) -> str:
    """Format the remaining time; empty if unknown."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s left" if minutes else f"{rest} s left"


def describe(event: Event) -> list[str]:
    """Return an event as lines of text."""
    match event:
        case StageStarted(text, number, total) if number:
            return [f"[{number}/{total}] {text}"]
        case StageStarted() | Note() | MachineChosen():
            return [event.text]
        case DataLoaded(facts):
            return _data_lines(facts)
        case OverfitChecked():
            first, last = figure(event.first), figure(event.last)
            return [f"passed: {event.steps} steps on the same rows reduced the loss from {first} to {last}"]
        case Validated():
            if "validation_reward" in event.metrics:
                return [f"step {event.step}  validation reward {event.metrics['validation_reward']:.4f}"]
            return [f"step {event.step}  validation loss {event.validation_loss:.4f}"]
        case Resumed(step) if step:
            return [f"resuming from step {step}"]
    return []


def _data_lines(facts: DataFacts) -> list[str]:
    """Describe the rows of a run; rows that were shortened or contain no learned token are named."""
    sizes = f"train {facts.train}, validation {facts.validation}, test {facts.test}"
    learned = f"{facts.learned_tokens} learned tokens, " if facts.learned_tokens else ""
    dropped = facts.rows - facts.train - facts.validation - facts.test - facts.copies_removed
    sizes += f", {dropped} dropped" if dropped > 0 else ""
    tokens = f"{learned}longest row {facts.longest} tokens"
    lines = [f"{facts.rows} rows: {sizes}; {facts.copies_removed} duplicates removed; {tokens}"]
    lines += [f"note: {note}" for note in facts.notes]
    for rows, problem in (
        (facts.truncated, "shortened to fit data.max_tokens"),
        (facts.zero_label, "without learned tokens"),
    ):
        if rows:
            more = f" and {len(rows) - MAX_NAMED_ROWS} more" if len(rows) > MAX_NAMED_ROWS else ""
            lines.append(f"warning: {len(rows)} rows {problem}: {', '.join(rows[:MAX_NAMED_ROWS])}{more}")
    return lines
