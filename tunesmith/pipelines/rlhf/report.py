"""The report over all rounds of the loop with people: its shape, its file and its page."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import BaseModel, ConfigDict

from tunesmith.annotation.summary import Summary
from tunesmith.metrics.resampling import ALPHA, MIN_GROUPS
from tunesmith.metrics.task_scores import TaskScore
from tunesmith.metrics.win_rate import WinRate
from tunesmith.report.formatting import p_value, share
from tunesmith.report.html import environment


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class RoundRun(_Part):
    """One run of a round: what it learned, where it lies, and its headline on held-out rows."""

    objective: str
    folder: str
    task: TaskScore
    general_nats: float | None  # by how much general text costs more than before, a token
    alarms: tuple[str, ...] = ()
    broken_gates: tuple[str, ...] = ()


class Round(_Part):
    """Answers judged once, what was learned from all judgements so far, and how it stands beside the start."""

    number: int
    answered_by: str
    votes: Summary
    rows: int  # judgements that prefer something, of this round and those before
    learned: list[RoundRun]
    over_start: WinRate


class LoopReport(_Part):
    """Everything about one loop."""

    name: str
    folder: str
    model: str
    objective: str
    technique: str
    judge: str
    simulated: bool
    final_judge: str
    rounds: list[Round]
    verdict: str
    environment: dict[str, str]

    @property
    def broken_gates(self) -> list[str]:
        """The recipe's gates that a run of a round broke, in words."""
        found = ((one.number, run) for one in self.rounds for run in one.learned)
        return [f"round {number}, {run.objective}: {gate}" for number, run in found for gate in run.broken_gates]


class RoundAhead(_Part):
    """A round as a dry run sees it."""

    number: int
    state: Literal["ahead", "begun", "done"]


class LoopPlan(_Part):
    """What a loop would do and has done: prompts to train on and held out, its rounds, whether all of it is done."""

    train: int
    held_out: int
    rounds: list[RoundAhead]
    done: bool
    folder: str


def verdict_of(rounds: list[Round]) -> str:
    """One sentence on the last round's policy against the start: what holds as the answers are and at equal length."""
    last = rounds[-1].over_start
    low, high = last.controlled_ci95
    plain = _side(last.ci95) if last.p_value < ALPHA else 0
    # An interval drawn from hardly any pairs that were decided is sure of itself whatever they say.
    controlled = _side(last.controlled_ci95) if last.n - last.ties >= MIN_GROUPS else 0
    raw = f"{share(last.rate)} of {last.n} held-out prompts, {last.ties} ties, {p_value(last.p_value)}"
    return (
        f"{_word(plain, controlled)}: preferred over the start in {share(last.controlled)} "
        f"with lengths made equal (95\N{NO-BREAK SPACE}% {share(low)} to {share(high)}; as they are {raw})"
    )


def _word(plain: int, controlled: int) -> str:
    """Better or worse without more where both ways to count say so."""
    if not controlled:
        return "no effect at equal length" if plain else "no effect"
    word = "better" if controlled > 0 else "worse"
    return word if plain == controlled else f"{word} at equal length only"


def _side(interval: tuple[float, float]) -> int:
    """On which side of one half an interval lies; 0 where it holds one half."""
    low, high = interval
    return int(low > 0.5) - int(high < 0.5)


def page(found: LoopReport) -> str:
    """The loop's page; everything that came from people, rows and models is escaped."""
    return environment().get_template("rlhf.html.jinja").render(r=found)


def schema() -> str:
    """The JSON schema of rlhf.json."""
    return json.dumps(LoopReport.model_json_schema(), indent=1)
