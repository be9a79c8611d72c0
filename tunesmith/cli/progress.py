"""What a run says while it works: a bar on a terminal, a line now and then everywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tunesmith.cli.signals import Interruption, Signals, caught
from tunesmith.cli.terminal import console, log
from tunesmith.report.figures import clean, figure

if TYPE_CHECKING:
    from rich.progress import Progress

Event = Mapping[str, Any]
# On a log, a line after this many steps, but none sooner than a second and none later than five.
STEPS_A_LINE, SOONEST, LATEST = 10, 1.0, 5.0
# Places of rows that a line names before it only counts.
NAMED = 5


class TimeLeft:
    """Seconds a training loop still needs, from the steps seen so far."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._first: tuple[int, float] | None = None

    def left(self, step: int, steps: int) -> float | None:
        """None after the first step, whose start was not seen."""
        now = self.clock()
        if self._first is None or step <= self._first[0]:
            self._first = (step, now)
            return None
        first, began = self._first
        return (now - began) / (step - first) * (steps - step)


class Lines:
    """A listener that writes lines."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.pace = TimeLeft(clock)
        self._last = (-STEPS_A_LINE, 0.0)

    def __call__(self, event: dict[str, Any]) -> None:
        """Write what the event says, if it is time for a line."""
        if event["event"] != "step" or "loss" not in event:
            for line in said(event):
                log(line)
            return
        step, steps, now = event["step"], event["steps"], self.clock()
        left = self.pace.left(step, steps)
        passed, waited = step - self._last[0], now - self._last[1]
        if step == steps or waited >= LATEST or (passed >= STEPS_A_LINE and waited >= SOONEST):
            self._last = (step, now)
            log(f"step {step}/{steps}  {measures(event)}  {duration(left)}".rstrip())


class Bar:
    """A listener that moves a bar and writes everything else above it."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.pace = TimeLeft()
        self._task: Any = None

    def __call__(self, event: dict[str, Any]) -> None:
        """Move the bar, or write what the event says."""
        if event["event"] != "step" or "loss" not in event:
            self._leave(event)
            for line in said(event):
                self.progress.console.print(clean(line))
            return
        left = duration(self.pace.left(event["step"], event["steps"]))
        words = f"{measures(event)}  {left}"
        if self._task is None:
            self._task = self.progress.add_task("training", total=event["steps"], measures=words)
        self.progress.update(self._task, completed=event["step"], measures=words)

    def _leave(self, event: Event) -> None:
        """A bar that is over stays in the scrollback once, and the next run begins its own."""
        if event["event"] == "stage" and self._task is not None:
            self.progress.stop_task(self._task)
            self._task, self.pace = None, TimeLeft()


@contextmanager
def listening(signals: Signals) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A listener that fits stderr; while it hears training steps, signals wait for the step to end."""
    screen = console(sys.stderr)
    if not screen.is_terminal or screen.is_dumb_terminal:
        yield _watched(Lines(), signals)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    words = TextColumn("{task.fields[measures]}", markup=False)
    with Progress(BarColumn(12), MofNCompleteColumn(), words, console=screen) as progress:
        yield _watched(Bar(progress), signals)


@contextmanager
def work(*, kept: str) -> Iterator[tuple[Callable[[dict[str, Any]], None], Callable[[], bool]]]:
    """Who listens to a piece of work, and whether it is to stop. One that was stopped ends the command, and what it did
    is `kept`, in a word."""
    from tunesmith.training.fit import Interrupted

    with caught() as signals, listening(signals) as listen:
        try:
            yield listen, signals.stop
        except Interrupted as stopped:
            raise Interruption(signals.received, f"{stopped} and {kept}") from None


def _watched(listener: Callable[[dict[str, Any]], None], signals: Signals) -> Callable[[dict[str, Any]], None]:
    def listen(event: dict[str, Any]) -> None:
        if event["event"] == "stage":
            signals.patient = event["text"] == "training"  # only the training loop looks at `stop`
        listener(event)

    return listen


def said(event: Event) -> list[str]:
    """The event in words, a line each."""
    return SAYINGS[event["event"]](event)


def measures(event: Event) -> str:
    """Loss, learning rate and speed of a step; where a reward is pursued, that and the KL to the start."""
    speed = f"{event['tokens_per_second']:.0f} tok/s"
    if "reward" in event:
        speed = f"reward {event['reward']:.3f}  KL {event.get('kl', 0.0):.3f}  {speed}"
    return f"loss {event['loss']:.4f}  lr {event['learning_rate']:.1e}  {speed}"


def duration(seconds: float | None) -> str:
    """Time that is left, in words; nothing where it is not known yet."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s left" if minutes else f"{rest} s left"


def _stage(event: Event) -> list[str]:
    return [event["text"]]


def _probe(event: Event) -> list[str]:
    first, last = figure(event["first"]), figure(event["last"])
    return [f"yes: {event['steps']} steps on the same rows took the loss from {first} to {last}"]


def _validation(event: Event) -> list[str]:
    if "validation_reward" in event:
        return [f"step {event['step']}  validation reward {event['validation_reward']:.4f}"]
    return [f"step {event['step']}  validation loss {event['validation_loss']:.4f}"]


def _data(event: Event) -> list[str]:
    """What the rows came to; rows that were cut or teach nothing are named."""
    sizes = f"train {event['train']}, validation {event['validation']}, test {event['test']}"
    learned = f"{event['learned_tokens']} learned tokens, " if event["learned_tokens"] else ""
    tokens = f"{learned}longest row {event['longest']} tokens"
    left = event["rows"] - event["train"] - event["validation"] - event["test"] - event["copies_removed"]
    sizes += f", {left} left out" if left > 0 else ""
    lines = [f"{event['rows']} rows: {sizes}; {event['copies_removed']} copies removed; {tokens}"]
    lines += [f"note: {note}" for note in event["notes"]]
    for key, finding in (
        ("truncated", "shortened to fit data.max_tokens"),
        ("zero_label", "with nothing to learn"),
    ):
        if places := event[key]:
            more = f" and {len(places) - NAMED} more" if len(places) > NAMED else ""
            lines.append(f"warning: {len(places)} rows {finding}: {', '.join(places[:NAMED])}{more}")
    return lines


SAYINGS: dict[str, Callable[[Event], list[str]]] = {
    "stage": _stage,
    "note": _stage,  # said in the middle of a stage
    "machine": _stage,
    "data": _data,
    "probe": _probe,
    "step": _validation,
}
