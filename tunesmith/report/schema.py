"""The shape of report.json."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tunesmith.data.files import read_page
from tunesmith.errors import CheckpointError
from tunesmith.evaluation.tasks import Arm, TaskScore


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Retention(_Part):
    """How much general ability is left: nats per token of general text, share of probe items right."""

    general_nll_base: float
    general_nll_tuned: float
    probe_base: float | None = None
    probe_tuned: float | None = None
    probe_n: int = 0
    lost: int = 0
    won: int = 0
    p_value: float | None = None
    fields: dict[str, tuple[float, float]] = {}


class Speed(_Part):
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


class Memory(_Part):
    """Largest resident size of the process."""

    peak_bytes: int
    predicted_bytes: int | None = None
    model_bytes: int | None = None  # weights of the network as they lie in memory


class DataPart(_Part):
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


class Training(_Part):
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


class Calibration(_Part):
    """How far a stated probability can be believed, after a temperature fitted on validation if there was one."""

    temperature: float | None
    ece_before: float
    ece: float
    brier: float
    coverage: list[tuple[float, float]] = []
    threshold: float | None = None  # the lowest confidence that keeps the target on the validation rows
    target_accuracy: float | None = None
    answered: float | None = None  # share of the test rows from the threshold on, and how many of them are right
    answered_right: float | None = None


class Style(_Part):
    """How near the answers are to the wanted voice."""

    auc_base: float | None
    auc_tuned: float | None
    rules: dict[str, tuple[float, float, float]] = {}  # rule -> base, tuned, human
    habits: dict[str, tuple[float, float, float]] = {}


class Judgement(_Part):
    """What learning from people's judgement did beside the headline, base and tuned; None where it is not measured."""

    chosen_logprob: tuple[float, float] | None = None  # mean log p for each id of the answers that people liked
    margin: tuple[float, float] | None = None  # mean lead of the preferred answers
    length_bias: tuple[float, float] | None = None  # correlation of the lead with the difference in length
    words: tuple[float, float] | None = None  # mean length of answers in own words
    repeated_share: tuple[float, float] | None = None  # of these, share that repeat themselves


class Pursuit(_Part):
    """What pursuing a reward did beside it: pairs are base and tuned, by greedy answers to the test prompts."""

    kl_per_token: float | None  # to the start, nats, on drawn answers; None where no start was kept
    words: tuple[float, float]  # mean length
    repeated_share: tuple[float, float]
    cut_off_share: tuple[float, float]


class PartOfMany(_Part):
    """One task of several: base against tuned by its headline, and beside its own model."""

    name: str
    objective: str
    weight: float
    share: float  # of the rows of a step
    rows: int  # seen in training, repeats counted
    task: TaskScore
    baselines: list[Arm] = []
    alone: TaskScore | None = None  # base: a model tuned on this task only, on as many of its rows
    validation: list[tuple[int, float]] = []  # step, loss
    verdict: str


class Conflict(_Part):
    """The cosine of two tasks' gradients on the numbers they share: below 0, what helps one harms the other."""

    tasks: tuple[str, str]
    mean: float
    lowest: float
    n: int  # validations at which it was taken


class Together(_Part):
    """Several tasks in one model; the first is the headline."""

    sampling: str
    parts: list[PartOfMany]
    conflicts: list[Conflict] = []


class Export(_Part):
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


class Report(_Part):
    """Everything measured about one run."""

    name: str
    model: str
    family: str
    objective: str
    technique: str
    task: TaskScore
    tasks: list[TaskScore]
    baselines: list[Arm]
    controls: list[Arm] = []
    retention: Retention | None = None
    calibration: Calibration | None = None
    style: Style | None = None
    judgement: Judgement | None = None
    pursuit: Pursuit | None = None
    alarms: tuple[str, ...] = ()
    together: Together | None = None
    training: Training
    speed: Speed
    memory: Memory
    data: DataPart
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
