"""The report of a loop: its schema, its verdict and its page."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from tunesmith.annotation.summary import Summary
from tunesmith.config import ModelName
from tunesmith.display import Display, Displayed
from tunesmith.metrics.resampling import ALPHA, MIN_GROUPS
from tunesmith.metrics.task_scores import TaskScore
from tunesmith.metrics.win_rate import WinRate
from tunesmith.report.formatting import count, p_value, share
from tunesmith.report.html import environment
from tunesmith.report.schema import Report


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class RoundRun(_Part):
    """One run of a round."""

    objective: str
    folder: str
    task: TaskScore  # headline on held-out rows
    general_nats: float | None  # rise of the loss on general text, in nats per token
    alarms: tuple[str, ...] = ()
    broken_gates: tuple[str, ...] = ()

    @classmethod
    def of(cls, folder: Path, report: Report) -> RoundRun:
        """Summarise the report of a run."""
        general = report.retention
        return cls(
            objective=report.objective,
            folder=str(folder),
            task=report.task,
            general_nats=general.rise if general else None,
            alarms=report.warnings,
            broken_gates=tuple(report.broken_gates),
        )


class Round(_Part):
    """One round: votes, what was trained on all votes so far, and the win rate over the base model."""

    number: int
    answered_by: str  # model whose completions were judged
    votes: Summary
    rows: int  # decided votes, of this round and those before
    learned: list[RoundRun]
    over_start: WinRate


class LoopReport(Displayed, _Part):
    """The report of one loop, `rlhf.json`."""

    name: str
    folder: str
    model: ModelName
    objective: str
    technique: str
    judge: str
    simulated: bool  # a rule voted, not people
    final_judge: str
    rounds: list[Round]
    verdict: str
    environment: dict[str, str]

    @property
    def broken_gates(self) -> list[str]:
        """Return the gates of the recipe that any run violated, in words."""
        return [
            f"round {each.number}, {run.objective}: {gate}"
            for each in self.rounds
            for run in each.learned
            for gate in run.broken_gates
        ]

    def display(self) -> Display:
        """Show the verdict; the win rate of each round in a table."""
        rows = [
            (str(item.number), share(item.over_start.rate), p_value(item.over_start.p_value), count(item.rows))
            for item in self.rounds
        ]
        columns = ("round", "win rate over the base", "p-value", "training votes")
        return Display(f"Loop({self.folder}): {self.verdict}", (), columns, rows)


class RoundAhead(_Part):
    """The state of a round in a dry run."""

    number: int
    state: Literal["ahead", "begun", "done"]


class LoopPlan(Displayed, _Part):
    """The state of a loop in a dry run."""

    train: int  # prompts
    held_out: int  # prompts
    rounds: list[RoundAhead]
    done: bool
    folder: str

    def display(self) -> Display:
        """Show the state of each round."""
        states = ", ".join(f"round {item.number} {item.state}" for item in self.rounds)
        return Display(f"Loop({self.folder}): {self.train} prompts, {self.held_out} held out; {states}")


def verdict_of(rounds: list[Round]) -> str:
    """Compare the last policy with the base model in one sentence: at the given lengths and at equal length."""

    def side(interval: tuple[float, float]) -> int:
        """Return 1 for an interval above one half, -1 for one below, 0 for one that contains it."""
        low, high = interval
        return int(low > 0.5) - int(high < 0.5)

    last = rounds[-1].over_start
    low, high = last.controlled_ci95
    plain = side(last.ci95) if last.p_value < ALPHA else 0
    # An interval from a handful of decided pairs is narrow whatever they are.
    controlled = side(last.controlled_ci95) if last.n - last.ties >= MIN_GROUPS else 0
    if controlled:
        word = "better" if controlled > 0 else "worse"
        word = word if plain == controlled else f"{word} at equal length only"
    else:
        word = "no effect at equal length" if plain else "no effect"
    raw = f"{share(last.rate)} of {last.n} held-out prompts, {last.ties} ties, {p_value(last.p_value)}"
    return (
        f"{word}: preferred over the base model in {share(last.controlled)} "
        f"at equal length (95\N{NO-BREAK SPACE}% {share(low)} to {share(high)}; without length control {raw})"
    )


def page(report: LoopReport) -> str:
    """Render the HTML page of a loop. All text from people, rows and models is escaped."""
    return environment().get_template("rlhf.html.jinja").render(r=report)
