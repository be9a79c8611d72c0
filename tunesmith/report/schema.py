"""Schema of report.json."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationError

from tunesmith.data.files import read_page, write_whole
from tunesmith.display import Display, Displayed, model_label, under_home
from tunesmith.errors import CheckpointError, Refused
from tunesmith.evaluation.results import (
    Calibration,
    PreferenceDiagnostics,
    ReportPart,
    Retention,
    RewardDiagnostics,
    ScoredRows,
    SpanCounts,
    Style,
    ThinkingLedger,
    ToolCallCounts,
)
from tunesmith.metrics.significance import MarginTest
from tunesmith.metrics.task_scores import ArmScore, TaskScore
from tunesmith.models.certificate import Certificate
from tunesmith.report.formatting import bounds, count, figure, metric_name, p_value, signed, size


class Speed(ReportPart):
    """Speed of training and inference; the rates count every token of every row."""

    seconds: float  # training steps only
    tokens: int  # trained, repeats counted
    tokens_per_second: float
    rows_per_second: float
    mfu_of_measured_gemm: float  # achieved share of the matrix multiplication rate measured on this machine
    answers_per_second_base: float
    answers_per_second_tuned: float
    total_seconds: float  # whole run
    predicted_seconds: float | None = None  # estimate of `seconds` before training
    predicted_between: tuple[float, float] | None = None  # bounds of that estimate


class ForecastPhase(ReportPart):
    """One phase of a run; 0 seconds if it was not forecast, or not run by the process that finished the run."""

    name: str
    forecast_seconds: float
    actual_seconds: float


class Forecast(ReportPart):
    """The forecast of the whole run, made before its start, and the time it took."""

    seconds: float
    low: float  # `low` and `high` should hold in 9 of 10 runs
    high: float
    basis: str
    actual_seconds: float  # until this report was written
    within: bool | None  # the run took between `low` and `high`; None for a resumed run
    phases: list[ForecastPhase] = []


class Memory(ReportPart):
    """Memory use of the run, in bytes."""

    peak_bytes: int  # on a CPU the largest resident set size of the process, on a GPU the most that tensors took
    predicted_bytes: int | None = None  # estimate of `peak_bytes` before training
    model_bytes: int | None = None  # weights of the network in memory


class DataReport(ReportPart):
    """Rows and tokens after splitting and encoding."""

    rows: int
    train: int
    validation: int
    test: int
    copies_removed: int  # duplicate rows
    learned_tokens: int
    longest: int  # tokens of the longest row before truncation
    truncated_rows: int  # training rows longer than max_tokens
    zero_label_rows: int  # training rows without a learned token
    sha256: dict[str, str]  # split -> digest of its rows, independent of their order
    notes: tuple[str, ...] = ()


class Training(ReportPart):
    """Summary of the training loop."""

    steps: int
    planned_steps: int
    best_step: int  # of the saved checkpoint
    best_validation_loss: float | None
    stopped_early: bool
    learning_rate: float
    trainable: int  # trainable parameters
    parameters: int
    probe_first: float | None = None  # loss of the overfit check at its first step
    probe_last: float | None = None  # the same at its last step


class TaskReport(ReportPart):
    """One task of a multitask run, compared with the base model and with a single-task model."""

    name: str
    objective: str
    weight: float
    share: float  # share of the rows of a step
    rows: int  # rows seen in training, repeats counted
    task: TaskScore
    baselines: list[ArmScore] = []
    # Here `base` is a model tuned on this task only, with the same number of its rows.
    single_task: TaskScore | None = Field(None, alias="alone")
    validation: list[tuple[int, float]] = []  # (step, loss)
    verdict: str


class GradientConflict(ReportPart):
    """Cosine of two tasks' gradients on their shared parameters; below 0, an improvement of one harms the other."""

    tasks: tuple[str, str]
    mean: float
    lowest: float
    n: int  # validations at which it was measured


class MultitaskReport(ReportPart):
    """Results of one model for several tasks; the first task is the headline."""

    sampling: str
    tasks: list[TaskReport] = Field(alias="parts")
    conflicts: list[GradientConflict] = []


class DistilledModel(ReportPart):
    """A model of the comparison of a distillation; a server has no known size."""

    name: str
    score: float
    ci95: tuple[float, float] | None
    parameters: int | None
    bytes: int | None  # weights in memory
    rows_per_second: float


class Distillation(ReportPart):
    """Student, teacher, base and the student tuned without the teacher, on the same test rows."""

    teacher: str
    asked: int  # rows without answers
    kept: int  # of these, trained on with the teacher's answers
    threshold: float | None = None  # confidence from which its labels are kept
    accuracy: float | None = None  # share of its labels of validation rows that are right
    kept_accuracy: float | None = None  # the same from thresholds on that other validation rows set
    models: list[DistilledModel]
    gain: TaskScore  # `base` is the student tuned on gold rows alone
    against_teacher: TaskScore  # `base` is the teacher

    @property
    def sentence(self) -> str:
        """Answer whether the teacher is worth it, without a full stop."""
        gain, rival = self.gain, self.against_teacher
        speed = {model.name: model.rows_per_second for model in self.models}
        worth = {"better": "is worth it", "worse": "is harmful"}.get(gain.verdict, "is not shown to be worth it")
        change = f"{signed(gain.delta)} ({bounds(gain.ci95, sign=True)}), {p_value(gain.p_value)}"
        return (
            f"the teacher {worth}: {metric_name(gain.metric)} {figure(gain.base)} → {figure(gain.tuned)} over the same "
            f"student tuned on gold rows alone, {change}; teacher {figure(rival.base)}, student "
            f"{figure(speed['student'] / speed['teacher'])} times as fast"
        )

    def rows(self) -> list[tuple[str, ...]]:
        """Return a line of text for each model: name, score, interval, parameters, size and rows per second."""
        return [
            (
                f"{model.name}: {self.teacher}" if model.name == "teacher" else model.name,
                figure(model.score),
                bounds(model.ci95),
                "" if model.parameters is None else count(model.parameters),
                "" if model.bytes is None else size(model.bytes),
                figure(model.rows_per_second),
            )
            for model in self.models
        ]


class RoundedFile(ReportPart):
    """A GGUF file with types per tensor."""

    name: str  # of llama.cpp's mixture, or `mixed` and the mixture whose size limits a searched file
    bytes: int
    bits: float  # per weight
    validation_delta: float | None = None  # score minus that of the tuned model on validation rows, in torch
    tokens_per_second: float | None = None  # of one answer in llama.cpp
    score: float | None = None  # on test rows, in llama.cpp
    ci95: tuple[float, float] | None = None
    test: MarginTest | None = None  # of this score against that of the tuned model; None if it was not tested

    @property
    def not_worse(self) -> bool:
        """Return whether it is shown to be not worse than the tuned model by the margin."""
        return self.test is not None and self.test.not_worse


class RoundedLayer(ReportPart):
    """A layer of the chosen file."""

    layer: str  # number, or the name of a tensor outside the layers
    types: tuple[str, ...]
    bits: float  # per weight
    divergence: float  # KL of the answer tokens, in nats, when only this layer is rounded to 4 bits
    kept: float | None  # tuning / (tuning + rounding), mean squares in its outputs; None if it was not tuned


class Smallest(Displayed, ReportPart):
    """The smallest file that is shown to be not worse than the tuned model by a margin; f16 if none is."""

    metric: str
    unscored: str = ""  # the run's metric, where it has no value per row and `metric` takes its place
    margin: float  # in the unit of the metric
    original: float  # score of the tuned model on the test rows
    rows: int  # test rows, which chose nothing
    validation_rows: int  # which chose the types
    chosen: str
    reason: str = ""  # why no smaller one is chosen
    files: list[RoundedFile]
    layers: list[RoundedLayer]

    def display(self) -> Display:
        """Show the choice; the files in a table."""
        columns = ("file", "size>", "bits>", "tokens/s>", self.metric, "difference", "not worse")
        rows = []
        for file in self.files:
            score, delta, judged = "", "", "not tested"
            if file.validation_delta is not None:
                delta = f"{signed(file.validation_delta)} on validation rows"
            if (test := file.test) is not None:
                score, delta = (
                    f"{figure(file.score)} ({bounds(file.ci95)})",
                    f"{signed(test.delta)} ({bounds(test.ci95, sign=True)})",
                )
                judged = "yes" if test.not_worse else "not shown"
            speed = f"{file.tokens_per_second:.0f}" if file.tokens_per_second else ""
            rows.append((file.name, size(file.bytes), f"{file.bits:.2f}", speed, score, delta, judged))
        return Display(f"Smallest({self.chosen}): {self.sentence()}", (), columns, rows)

    def sentence(self) -> str:
        """Return the choice and its reason."""
        chosen = next(file for file in self.files if file.name == self.chosen)
        text = f"{self.chosen}: {self.metric} {figure(chosen.score)} on {self.rows} test rows that chose nothing"
        if chosen.test is not None and chosen.not_worse:
            lost = max(0.0, -chosen.test.at_least)
            text += f", tuned model {figure(self.original)}; it loses at most {figure(lost)} (95 % confidence)"
        text += f"; {self.unscored} was not tested, as it has no value per row" if self.unscored else ""
        needed = max((file.test.rows_needed or 0 for file in self.files if file.test), default=0)
        text += f"; {self.reason}" if self.reason else ""
        return f"{text}; to show it for a file that loses nothing, use about {needed:,} test rows" if needed else text


class Export(Displayed, ReportPart):
    """An export, checked in the program it is made for against the run itself on the run's test rows."""

    format: str
    folder: str
    checked: str  # program that ran the export
    metric: str
    rows: int
    same_prompts: float  # share of prompts with identical tokens
    same_answers: float  # share of equal outputs, see `compared`
    compared: str = "answers"  # answers, states, labels, values, words of a mask, or preferences
    # Of a probability, of a reward relative to the largest one, or of a number relative to the deviation of the rows.
    max_difference: float | None = None
    score_original: float | None = None
    score_export: float | None = None
    seconds: float
    faults: tuple[str, ...] = ()  # reasons not to use the export
    smallest: Smallest | None = None  # how the types of `--smallest` were chosen
    verdict: str | None = None  # of `verify` about the export: tuned, base, damaged, something else or undecided
    verified: str = ""  # the verdict with its evidence, or why there is none

    def display(self) -> Display:
        """Show the format, the folder and the agreement with the run."""
        table = Display("") if self.smallest is None else self.smallest.display()
        stated = [self.smallest.sentence() if self.smallest else "", self.verified]
        lines = (*self.faults, *filter(None, stated))
        return Display(f"Export({self.folder}): {self.format}, {self.agreement()}", lines, table.columns, table.rows)

    def agreement(self) -> str:
        """Return how well the export agrees with the run, as a phrase."""
        equal = round(self.same_answers * self.rows)
        text = f"checked in {self.checked}: {self.compared} equal on {equal} of {self.rows} rows"
        if self.max_difference is None:
            return text
        kind = {"preferences": "relative reward", "values": "relative"}.get(self.compared, "probability")
        return f"{text}, largest {kind} difference {self.max_difference:.1e}"


class Report(Displayed, ReportPart):
    """All results of one run. `verdict` is the sentence at its top."""

    name: str
    model: Annotated[str, AfterValidator(under_home)]
    family: str
    objective: str
    technique: str
    task: TaskScore
    tasks: list[TaskScore]
    baselines: list[ArmScore]
    controls: list[ArmScore] = []
    scored_rows: ScoredRows | None = None  # where these are not all test rows
    retention: Retention | None = None
    retention_reason: str = ""  # why general ability was not measured
    thinking: ThinkingLedger | None = None  # of a thinking model
    thinking_reason: str = ""  # why a thinking model has no ledger
    calibration: Calibration | None = None
    style: Style | None = None
    preference_diagnostics: PreferenceDiagnostics | None = Field(None, alias="judgement")
    reward_diagnostics: RewardDiagnostics | None = Field(None, alias="pursuit")
    tool_calls: ToolCallCounts | None = None
    span_counts: dict[str, SpanCounts] = {}  # by label; of all labels with an empty one
    canaries: dict[str, tuple[float, float]] = {}  # copies -> mean exposure of base and tuned model, bits
    warnings: tuple[str, ...] = Field((), alias="alarms")
    multitask: MultitaskReport | None = Field(None, alias="together")
    distillation: Distillation | None = None  # of a recipe with a teacher
    training: Training
    speed: Speed
    memory: Memory
    forecast: Forecast | None = None
    reused: dict[str, float] = {}  # phase -> seconds that its results took to compute, in an earlier run or phase
    data: DataReport
    certificate: Certificate | None = None  # what was measured on the base model; None in reports of earlier versions
    environment: dict[str, str]
    exports: list[Export] = []
    broken_gates: list[str] = []
    verdict: str

    def display(self) -> Display:
        """Show the headline and the verdict; every metric and baseline in a table."""
        task = self.task
        rows = [
            (metric_name(row.metric), figure(row.base), figure(row.tuned), signed(row.delta), p_value(row.p_value))
            for row in self.tasks
        ]
        rows += [
            (f"{arm.name}: {metric_name(arm.metric)}", "", figure(arm.score), "", "")
            for arm in [*self.baselines, *self.controls]
        ]
        scores = f"{metric_name(task.metric)} {figure(task.base)} → {figure(task.tuned)} ({signed(task.delta)})"
        return Display(
            f"Report({self.name}): {model_label(self.model)}, {self.objective}, {self.technique}: {scores}",
            (self.verdict, *(f"warning: {text}" for text in self.warnings)),
            ("metric", "base", "tuned", "difference", "p-value"),
            rows,
        )


def write_report(run: Path, report: Report) -> None:
    """Write the report of a run. Raises Refused, and writes nothing, if it could not be read again."""
    text = report.model_dump_json(indent=1)  # null for what is not finite
    try:
        Report.model_validate_json(text)
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        problem = f"{run / 'report.json'}: {place} is not a finite number"
        raise Refused(f"{problem}; tune with a lower schedule.learning_rate in another folder") from None
    write_whole(run / "report.json", text)


def read_report(run: Path) -> Report:
    """Read the report of a finished run. Raises CheckpointError if there is none, or it cannot be read."""
    try:
        return read_page(run / "report.json", Report)
    except OSError:
        if not run.exists():
            raise CheckpointError(f"{run}: no such folder; `tunesmith runs` lists what is here") from None
        raise CheckpointError(
            f"{run}: no report.json, so the run is not finished; finish it with `tunesmith tune`"
        ) from None
