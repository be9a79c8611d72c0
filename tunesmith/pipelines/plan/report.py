"""What runs would take: the shape of a plan, and its lines for people."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tunesmith.data.files import read_page
from tunesmith.report.formatting import count, duration, size

PREDICTION = "prediction.json"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Bounds(_Part):
    """A figure, and the two that outcomes are expected between."""

    low: float
    expected: float
    high: float


class CostPrediction(_Part):
    """What one run is expected to take: numbers that move, bytes at the peak, seconds of training steps."""

    technique: str
    trainable: int
    memory: Bounds
    seconds: Bounds
    how: str


class TechniqueEstimate(_Part):
    """One technique of a plan; `refused` says why the model cannot be tuned so, and then nothing else is known."""

    technique: str
    refused: str = ""
    prediction: CostPrediction | None = None
    whole_seconds: Bounds | None = None  # with validation and the scoring of base and tuned model
    fits: bool = False
    standing: str
    published: str
    ours: str


class Recommended(_Part):
    """The technique to take, and why."""

    technique: str
    reasons: list[str]


class PlanReport(_Part):
    """What each technique would take on these rows, this model and this machine, and which to take."""

    data: str
    model: str
    family: str
    objective: str
    train_rows: int
    steps: int
    tokens: int  # through the network in all steps, what rows share counted once
    machine: str
    room_bytes: int
    how: str
    options: list[TechniqueEstimate]
    recommendation: Recommended | None
    notes: list[str]


def schema() -> str:
    """The JSON schema of `plan --json`."""
    return json.dumps(PlanReport.model_json_schema(), indent=1)


def read_prediction(run: Path) -> CostPrediction | None:
    """What a run was expected to take; None for one that nobody planned."""
    kept = run / PREDICTION
    return read_page(kept, CostPrediction) if kept.exists() else None


def told(found: CostPrediction) -> str:
    """A prediction in one line."""
    return (
        f"plan: {found.technique} moves {count(found.trainable)} numbers; {memory(found.memory)} at the peak, "
        f"{time(found.seconds)} of training ({found.how})"
    )


def memory(found: Bounds) -> str:
    """Bytes with their bounds."""
    return f"{size(found.expected)} ({size(found.low)} to {size(found.high)})"


def time(found: Bounds) -> str:
    """Seconds with their bounds."""
    return f"{duration(found.expected)} ({duration(found.low)} to {duration(found.high)})"
