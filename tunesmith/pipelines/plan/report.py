"""Predicted costs: their JSON schema and their text."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict

from tunesmith.config import ModelName
from tunesmith.data.files import read_page
from tunesmith.display import Display, Displayed
from tunesmith.report.formatting import count, duration, size

PREDICTION = "prediction.json"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Bounds(_Part):
    """An expected value and its bounds."""

    low: float
    expected: float
    high: float

    @classmethod
    def around(cls, expected: float, low: float, high: float) -> Self:
        """Return a value with bounds that are factors of it."""
        return cls(low=low * expected, expected=expected, high=high * expected)


class CostPrediction(_Part):
    """The predicted cost of one training."""

    technique: str
    trainable: int  # parameters
    memory: Bounds  # peak, in bytes
    seconds: Bounds  # of the training steps
    how: str


class TechniqueEstimate(_Part):
    """One technique of a plan; only its name and its expected score are known if the model does not support it."""

    technique: str
    refused: str = ""  # why the model cannot be tuned with it
    prediction: CostPrediction | None = None
    whole_seconds: Bounds | None = None  # with validation and evaluation of base and tuned model
    fits: bool = False
    standing: str
    published: str
    ours: str


class Recommended(_Part):
    """The recommended technique and the reasons."""

    technique: str
    reasons: list[str]


class ModelCandidate(_Part):
    """One way to predict labels, or one model that can learn the objective."""

    name: str  # tf-idf, probe, or the alias of a model
    about: str
    basis: Literal["measured", "expected", ""]  # empty: the score is unknown
    score: Bounds | None = None  # 95 % interval if measured, bounds of earlier runs and of the test rows if expected
    rows: int = 0  # rows of the measurement
    seconds: Bounds | None = None  # whole run, or the measurement
    memory: Bounds | None = None  # peak, in bytes
    holds: bool = False  # not expected to be worse than the best by more than the margin
    fragments: float | None = None  # share of tokens that are less than a part of a word
    note: str = ""


class ModelChoice(_Part):
    """The candidates, and the cheapest that is expected to score as high as the best."""

    metric: str = ""  # of the scores; empty if none is known
    margin: float = 0.0
    candidates: list[ModelCandidate]
    sufficient: str  # name of the cheapest candidate of all that holds
    model: str  # the recommended model: the cheapest network that holds
    reasons: list[str]


class PaperEstimate(_Part):
    """One technique on a number of GPUs that are not here."""

    gpus: int
    technique: str
    own: bool = False  # that of the recipe
    shards: int  # GPUs that the base model is divided among
    recompute: bool  # only the input of each layer is kept for the backward pass
    memory: Bounds  # peak of one GPU, in bytes
    fits: bool
    seconds: Bounds  # of the training steps
    tokens_per_second: float  # of one GPU, of the training rows
    change: str = ""  # what to change if it does not fit


class PlanReport(Displayed, _Part):
    """The cost of each technique for these rows, this model and this machine, and a recommendation."""

    data: str
    model: ModelName
    family: str
    objective: str
    train_rows: int
    steps: int
    tokens: int  # computed in all steps; shared prefixes counted once
    machine: str
    room_bytes: int  # memory that training may use
    how: str
    options: list[TechniqueEstimate]
    paper: list[PaperEstimate] = []  # in place of `options`, for GPUs that are not here
    recommendation: Recommended | None
    notes: list[str]
    metric: str = ""  # of the candidates' scores
    candidates: list[ModelCandidate] = []  # models, the cheapest first
    recommended_model: str = ""
    model_reasons: list[str] = []

    @property
    def fits_on(self) -> str:
        """Return on how many GPUs that are not here the technique of the recipe fits, or what to change."""
        own = [option for option in self.paper if option.own]
        where = ", ".join(count(option.gpus) for option in own if option.fits)
        return f"{own[0].technique}: " + (f"fits on {where} GPUs" if where else f"does not fit; use {own[-1].change}")

    def display(self) -> Display:
        """Show the recommendation; the cost of each technique in a table."""
        title = f"Plan({self.model}, {self.objective} on {count(self.train_rows)} rows)"
        if self.paper:
            cells = [
                (count(option.gpus), option.technique, memory(option.memory), time(option.seconds), option.change)
                for option in self.paper
            ]
            columns = ("GPUs", "technique", "peak memory", "training", "change")
            return Display(f"{title}: {self.fits_on}", (self.machine,), columns, cells)
        chosen = "no technique fits into memory" if self.recommendation is None else self.recommendation.technique
        rows = []
        for option in self.options:
            cost, whole = option.prediction, option.whole_seconds
            figures = ("", "", "") if cost is None else (count(cost.trainable), memory(cost.memory), time(cost.seconds))
            last = option.refused or ("" if whole is None else time(whole))
            rows.append((option.technique, *figures, last, "yes" if option.fits else "no"))
        return Display(
            f"{title}: {chosen}",
            self.recommendation.reasons if self.recommendation else (),
            ("technique", "trainable", "peak memory", "training", "whole run", "fits"),
            rows,
        )


def read_prediction(run: Path) -> CostPrediction | None:
    """Return the recorded prediction of a run, or None if it has none."""
    path = run / PREDICTION
    return read_page(path, CostPrediction) if path.exists() else None


def memory(bounds: Bounds) -> str:
    """Format bytes with their bounds."""
    return f"{size(bounds.expected)} ({size(bounds.low)} to {size(bounds.high)})"


def time(bounds: Bounds) -> str:
    """Format seconds with their bounds."""
    return f"{duration(bounds.expected)} ({duration(bounds.low)} to {duration(bounds.high)})"
