"""The shape of report.json."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import Field

from tunesmith.data.files import read_page
from tunesmith.errors import CheckpointError
from tunesmith.evaluation.results import (
    Calibration,
    PreferenceDiagnostics,
    ReportPart,
    Retention,
    RewardDiagnostics,
    Style,
)
from tunesmith.metrics.task_scores import ArmScore, TaskScore


class Speed(ReportPart):
    """Training steps only; every token of every row counted."""

    seconds: float
    tokens: int
    tokens_per_second: float
    rows_per_second: float
    mfu_of_measured_gemm: float
    answers_per_second_base: float
    answers_per_second_tuned: float
    total_seconds: float
    predicted_seconds: float | None = None  # of training, before it began
    predicted_between: tuple[float, float] | None = None  # the two that it was expected between


class Memory(ReportPart):
    """Largest resident size of the process."""

    peak_bytes: int
    predicted_bytes: int | None = None
    model_bytes: int | None = None  # weights of the network as they lie in memory


class DataReport(ReportPart):
    """What the rows came to."""

    rows: int
    train: int
    validation: int
    test: int
    copies_removed: int
    learned_tokens: int
    longest: int
    truncated_rows: int
    zero_label_rows: int
    sha256: dict[str, str]
    notes: tuple[str, ...] = ()


class Training(ReportPart):
    """What the loop did."""

    steps: int
    planned_steps: int
    best_step: int
    best_validation_loss: float | None
    stopped_early: bool
    learning_rate: float
    trainable: int
    parameters: int
    probe_first: float | None = None
    probe_last: float | None = None


class TaskReport(ReportPart):
    """One task of several: base against tuned by its headline, and beside its own model."""

    name: str
    objective: str
    weight: float
    share: float  # of the rows of a step
    rows: int  # seen in training, repeats counted
    task: TaskScore
    baselines: list[ArmScore] = []
    single_task: TaskScore | None = Field(
        None, alias="alone"
    )  # base: a model tuned on this task only, on as many of its rows
    validation: list[tuple[int, float]] = []  # step, loss
    verdict: str


class GradientConflict(ReportPart):
    """The cosine of two tasks' gradients on the numbers they share: below 0, what helps one harms the other."""

    tasks: tuple[str, str]
    mean: float
    lowest: float
    n: int  # validations at which it was taken


class MultitaskReport(ReportPart):
    """Several tasks in one model; the first is the headline."""

    sampling: str
    tasks: list[TaskReport] = Field(alias="parts")
    conflicts: list[GradientConflict] = []


class Export(ReportPart):
    """A run in another program's format, and what that program answered to the run's own test rows beside the run.

    Shares of prompts that became the same tokens there and of greedy answers that are the same; a model that answers
    through a head is compared by its states instead.
    """

    format: str
    folder: str
    checked: str  # the program
    metric: str
    rows: int
    same_prompts: float
    same_answers: float
    score_original: float | None = None
    score_export: float | None = None
    seconds: float
    faults: tuple[str, ...] = ()


class Report(ReportPart):
    """Everything measured about one run."""

    name: str
    model: str
    family: str
    objective: str
    technique: str
    task: TaskScore
    tasks: list[TaskScore]
    baselines: list[ArmScore]
    controls: list[ArmScore] = []
    retention: Retention | None = None
    calibration: Calibration | None = None
    style: Style | None = None
    preference_diagnostics: PreferenceDiagnostics | None = Field(None, alias="judgement")
    reward_diagnostics: RewardDiagnostics | None = Field(None, alias="pursuit")
    warnings: tuple[str, ...] = Field((), alias="alarms")
    multitask: MultitaskReport | None = Field(None, alias="together")
    training: Training
    speed: Speed
    memory: Memory
    data: DataReport
    environment: dict[str, str]
    exports: list[Export] = []
    broken_gates: list[str] = []
    verdict: str


def read_report(run: Path) -> Report:
    """The report of a finished run. Raises CheckpointError."""
    try:
        return read_page(run / "report.json", Report)
    except OSError:
        raise CheckpointError(
            f"{run}: no report.json in it, so not a finished run; finish it with `tunesmith tune`"
        ) from None


def schema() -> str:
    """The JSON schema of report.json."""
    return json.dumps(Report.model_json_schema(), indent=1)
