"""Progress of a command on stderr: a bar on a terminal, occasional lines elsewhere."""

from __future__ import annotations

import math
import sys
import threading
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
    ForecastUpdated,
    MachineChosen,
    Note,
    OverfitChecked,
    Resumed,
    StageStarted,
    StepFinished,
    TrainingStarted,
    Validated,
)
from tunesmith.progress import Progress, reporting
from tunesmith.report.formatting import clean, figure

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

    from tunesmith.data.splits.load import DataFacts
    from tunesmith.training.callbacks import Callbacks

# A log has one line every STEPS_PER_LINE steps, at least MIN_SECONDS and at most MAX_SECONDS apart.
STEPS_PER_LINE = 10
MIN_SECONDS = 1.0
MAX_SECONDS = 5.0
# Most seconds without a line in a log, by the seconds since the stage began.
SILENCE = ((15.0, 5.0), (60.0, 10.0), (math.inf, 30.0))
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
    """Writes events as lines of a log, and a line for whatever takes long without one.

    Safe to call from several threads.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.pace = TimeLeft(clock)
        self._lock = threading.RLock()
        self._last_step = -STEPS_PER_LINE
        self._last_step_time = 0.0
        self._stage = ""
        self._progress: Progress | None = None  # the latest of this stage
        self._stage_start = self._last_line = clock()

    def __call__(self, event: Event) -> None:
        """Write the event; of steps and of progress only one line every few seconds."""
        with self._lock:
            if isinstance(event, Progress):
                self._progress = event
                self.beat()
                if event.done >= event.total:  # what follows is something else
                    self._progress = None
            elif isinstance(event, StepFinished):
                self._step(event)
            else:
                if isinstance(event, StageStarted):
                    self._stage, self._stage_start, self._progress = event.text, self.clock(), None
                for line in describe(event):
                    self._write(line)

    def beat(self) -> None:
        """Write how far the stage is, if no line was written for some time."""
        with self._lock:
            now = self.clock()
            passed = now - self._stage_start
            if now - self._last_line < silence(passed):
                return
            if self._progress is None:
                self._write(f"{self._stage or 'working'}: {elapsed(passed)} so far")
            else:
                self._write(progress_line(self._progress))

    def _step(self, event: StepFinished) -> None:
        self._progress = None
        now = self.clock()
        left = self.pace.left(event.step, event.steps)
        passed = event.step - self._last_step
        waited = now - self._last_step_time
        if event.step == event.steps or waited >= MAX_SECONDS or (passed >= STEPS_PER_LINE and waited >= MIN_SECONDS):
            self._last_step = event.step
            self._last_step_time = now
            self._write(f"step {event.step}/{event.steps}  {measures(event)}  {duration(left)}".rstrip())

    def _write(self, line: str) -> None:
        self._last_line = self.clock()
        log(line)


class Bar:
    """Shows what is done now as a progress bar, and writes all other events above it."""

    def __init__(self, progress: RichProgress) -> None:
        self.progress = progress
        self.pace = TimeLeft()
        self._lock = threading.RLock()
        self._stage = ""
        self._steps: Any = None  # the bar of training, which stays in the scrollback
        self._now: Any = None  # the bar of anything else

    def __call__(self, event: Event) -> None:
        """Advance the bar, or write the event."""
        with self._lock:
            if isinstance(event, Progress):
                if event.done < event.total:
                    self._show(total=event.total, completed=event.done, measures=progress_line(event))
                else:  # what follows is something else
                    self.hide()
                    self._show(total=None, completed=0, measures="")
            elif isinstance(event, StepFinished):
                self._step(event)
            else:
                if isinstance(event, StageStarted):
                    self._start(event)
                if isinstance(event, Validated):
                    self.hide()
                for line in describe(event):
                    self.progress.console.print(clean(line))

    def _start(self, event: StageStarted) -> None:
        self.hide()
        if self._steps is not None:
            # A finished bar stays in the scrollback; the next training run gets its own.
            self.progress.stop_task(self._steps)
            self._steps = None
            self.pace = TimeLeft()
        self._show(total=None, completed=0, measures="")

    def _step(self, event: StepFinished) -> None:
        self.hide()
        left = duration(self.pace.left(event.step, event.steps))
        words = f"step {event.step}/{event.steps}  {measures(event)}  {left}"
        if self._steps is None:
            self._steps = self.progress.add_task("training", total=event.steps, measures=words)
        self.progress.update(self._steps, completed=event.step, measures=words)

    def _show(self, **fields: Any) -> None:
        if self._now is None:
            self._now = self.progress.add_task("", **fields)
        else:
            self.progress.update(self._now, **fields)

    def hide(self) -> None:
        """Remove the bar of what is done now."""
        if self._now is not None:
            self.progress.remove_task(self._now)
            self._now = None


@contextmanager
def listening(signals: Signals, show: EventHandler | None = None) -> Iterator[EventHandler]:
    """Yield a handler of events, by default on stderr; in training, signals take effect after the current step."""
    if show is not None:
        with reporting(show):
            yield _deferring_signals(show, signals)
        return
    screen = console(sys.stderr)
    if not screen.is_terminal or screen.is_dumb_terminal:
        lines = Lines()
        with _beating(lines), reporting(lines):
            yield _deferring_signals(lines, signals)
        return
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    words = TextColumn("{task.fields[measures]}", markup=False)
    with RichProgress(BarColumn(12), words, TimeElapsedColumn(), console=screen) as progress:
        bar = Bar(progress)
        try:
            with reporting(bar):
                yield _deferring_signals(bar, signals)
        finally:
            bar.hide()


@contextmanager
def _beating(lines: Lines) -> Iterator[None]:
    """Call `lines.beat` every second from a thread, for stages that report nothing."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(1.0):
            lines.beat()

    thread = threading.Thread(target=beat, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def reported() -> Iterator[EventHandler]:
    """Yield a handler that reports events on stderr, for a command that a signal stops at once."""
    with listening(Signals()) as on_event:
        yield on_event


@contextmanager
def work(show: EventHandler | None = None) -> Iterator[Callbacks]:
    """Yield the callbacks of a command: progress, by default on stderr, and a stop on Ctrl-C.

    Raises Interruption if the work was stopped by a signal.
    """
    from tunesmith.training.callbacks import Callbacks, Interrupted

    with caught() as signals, listening(signals, show) as on_event:
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
    return "" if seconds is None else f"{elapsed(seconds)} left"


def elapsed(seconds: float) -> str:
    """Format seconds, with minutes if there are any."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def progress_line(event: Progress) -> str:
    """Format count, rate and remaining time of a loop."""
    rate = f"{event.rate:.0f}" if event.rate >= 10 else f"{event.rate:.2g}"
    count = f"{event.text}: {int(event.done)}/{event.total} {event.unit}"
    return count if event.seconds_left is None else f"{count}  {rate} {event.unit}/s  {duration(event.seconds_left)}"


def silence(passed: float) -> float:
    """Return the most seconds without a line, `passed` seconds after the start of a stage."""
    return next(seconds for until, seconds in SILENCE if passed < until)


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
            steps = "1 step" if event.steps == 1 else f"{event.steps} steps"
            return [f"passed: {steps} on the same rows reduced the loss from {first} to {last}"]
        case Validated():
            if "validation_reward" in event.metrics:
                return [f"step {event.step}  validation reward {event.metrics['validation_reward']:.4f}"]
            return [f"step {event.step}  validation loss {event.validation_loss:.4f}"]
        case ForecastUpdated(left, low, high):
            return [f"whole run: about {elapsed(left)} left, {elapsed(low)} to {elapsed(high)} in 9 of 10 runs"]
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
