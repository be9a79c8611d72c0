"""The shape of what `compare --json` prints."""

from __future__ import annotations

import json

from pydantic import BaseModel, ConfigDict

from tunesmith.decision.recall import Recall
from tunesmith.decision.verdict import Verdict

NOT_MEASURED = "not measured"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Task(_Part):
    """The score on the rows that all arms answer."""

    metric: str
    score: float
    ci95: tuple[float, float] | None
    n: int


class Update(_Part):
    """Share of changed facts that an arm gives as they are now and as they were, and what it takes until it can.

    `seconds` is None for an arm that no document reaches; `price` without a price of the machine.
    """

    facts: int
    new: float
    old: float
    seconds: float | None
    how: str
    price: float | None = None


class Latency(_Part):
    """One row alone: median and 95th percentile in seconds, tokens of its prompt. In a batch: answers per second."""

    p50: float | None
    p95: float | None
    prompt_tokens: float | None
    answers_per_second: float


class Cost(_Part):
    """Seconds to build an arm and for 1,000 answers in a batch, and their price where the machine has one."""

    build_seconds: float
    seconds_per_1000: float
    price_to_build: float | None = None
    price_per_1000: float | None = None


class Against(_Part):
    """The arm beside the next best one: gain, interval, and the p-value adjusted for all pairs (Holm)."""

    arm: str
    delta: float
    ci95: tuple[float, float]
    p_adjusted: float


class Gain(Against):
    """What an arm gains over another one that scores no higher."""

    over: str


class General(_Part):
    """What is left of general knowledge: nats per token of general text beside the base's, share of probe items."""

    nats_rise: float
    probe: float | None
    probe_base: float | None


class Tone(_Part):
    """How well answers can be told from people's (0.5: not at all), and the share that keeps each rule."""

    auc: float | None
    rules: dict[str, float]


class ArmPage(_Part):
    """One arm, measured on the same frozen rows as all others; `candidate`: whether the verdict may choose it."""

    name: str
    detail: str
    candidate: bool
    task: Task
    others: dict[str, float]
    against: Against | None
    domain: float | None
    domain_n: int
    general: General | None
    style: Tone | None
    latency: Latency
    update: Update | None
    labels: int
    cost: Cost
    run: str = ""


class TableRow(_Part):
    """One line of the table: what is usually believed of prompting, retrieval and tuning, and what was found here."""

    row: str
    belief: tuple[str, str, str]
    measured: str
    here: dict[str, str]

    @property
    def known(self) -> bool:
        """Whether any arm was measured by it."""
        return any(cell != NOT_MEASURED for cell in self.here.values())


class Comparison(_Part):
    """All that was measured, and what follows."""

    folder: str
    model: str
    objective: str
    metric: str
    rows: int
    arms: list[ArmPage]
    gains: list[Gain] = []
    retrieval: list[Recall]
    chunks: int
    table: list[TableRow]
    verdict: Verdict
    notes: list[str]
    environment: dict[str, str]


def schema() -> str:
    """The JSON schema of a comparison."""
    return json.dumps(Comparison.model_json_schema(), indent=1)
