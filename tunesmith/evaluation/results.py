"""Results of one run used by several modules: general ability, calibration, style, preferences, rewards.

A pair or triple is (base, tuned) or (base, tuned, reference).
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from tunesmith.metrics.paired_measures import PairedMeasure
from tunesmith.metrics.resampling import ALPHA, STAGES


class ReportPart(BaseModel):
    """A frozen part of a report."""

    # Fields with an alias keep the key that report.json has had from the beginning.
    model_config = ConfigDict(frozen=True, validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)


class Retention(ReportPart):
    """General ability before and after tuning."""

    general_nll_base: float | None = None  # nats per token of a general text
    general_nll_tuned: float | None = None
    probe_base: float | None = None  # share of probe items answered correctly
    probe_tuned: float | None = None
    probe_n: int = 0
    lost: int = 0  # items that only the base answers correctly
    won: int = 0  # items that only the tuned model answers correctly
    p_value: float | None = None  # exact McNemar test
    fields: dict[str, tuple[float, float]] = {}  # share of correct items by field

    @property
    def rise(self) -> float | None:
        """Return the rise of the loss on general text, in nats per token; None if it was not measured."""
        if self.general_nll_base is None or self.general_nll_tuned is None:
            return None
        return self.general_nll_tuned - self.general_nll_base


class ScoredRows(ReportPart):
    """The test rows that base and tuned model answered, where these are not all."""

    scored: int  # in whole groups, chosen at random before any was scored
    available: int
    detectable: float  # difference that they were expected to detect with 80 % power
    questions: int  # of general ability
    level: float = ALPHA  # of each test and interval; lower if rows are scored in stages, so that all stages keep ALPHA
    sentence: str  # without a full stop

    @property
    def stopped_early(self) -> bool:
        """Return whether a stage before the last one decided, on rows that favor this decision."""
        return self.level < STAGES[1.0]


class Calibration(ReportPart):
    """Calibration of the stated probabilities on the test rows."""

    temperature: float | None  # fitted on validation rows; None without them
    ece_before: float  # expected calibration error without temperature scaling
    ece: float
    brier: float
    coverage: list[tuple[float, float]] = []  # (coverage, accuracy) by threshold
    threshold: float | None = None  # lowest confidence that reaches the target accuracy on validation rows
    target_accuracy: float | None = None
    answered: float | None = None  # share of test rows above the threshold
    answered_right: float | None = None  # accuracy on these rows


class Style(ReportPart):
    """Style of the answers compared with the references."""

    auc_base: float | None  # AUC of a classifier that separates answers from references; 0.5 is indistinguishable
    auc_tuned: float | None
    rules: dict[str, tuple[float, float, float]] = {}  # share of answers that satisfy each style rule
    habits: dict[str, tuple[float, float, float]] = {}


# Names of the outcomes of `call_outcome` in reports.
CALL_ERRORS = {
    "unparsed": "not parsed",
    "missing": "no call",
    "not due": "call not due",
    "number": "wrong number of calls",
    "name": "wrong function",
    "arguments": "wrong arguments",
}


class ToolCallCounts(ReportPart):
    """The outcomes of the tool calls of the test rows."""

    due: int  # rows whose reference calls a tool
    exact: tuple[int, int]  # rows with a due call that were answered with exactly these calls
    outcomes: dict[str, tuple[int, int]]  # rows by `call_outcome`; they add up to all rows

    def sentence(self, rows: int) -> str:
        """Return the counts of both models in a number of test `rows` as text, without outcomes that neither had."""
        quiet = tuple(whole - due for whole, due in zip(self.outcomes["exact"], self.exact, strict=True))
        parts = [f"exact {self.exact[0]} → {self.exact[1]} of {self.due} rows with a due call"]
        if rows > self.due:
            parts.append(f"rightly none {quiet[0]} → {quiet[1]} of {rows - self.due}")
        wrong = [(name, pair) for name, pair in self.outcomes.items() if name != "exact" and any(pair)]
        return "; ".join(parts + [f"{CALL_ERRORS[name]} {pair[0]} → {pair[1]}" for name, pair in wrong])


class PreferenceDiagnostics(ReportPart):
    """Side effects of preference tuning; None where a value was not measured."""

    chosen_logprob: tuple[float, float] | None = None  # mean log-probability per token of the chosen answers
    margin: tuple[float, float] | None = None  # mean score margin of chosen over rejected answers
    length_bias: tuple[float, float] | None = None  # correlation of the margin with the difference in length
    words: tuple[float, float] | None = None  # mean words of generated answers
    repeated_share: tuple[float, float] | None = None  # share of generated answers with loops


class RewardDiagnostics(ReportPart):
    """Side effects of optimizing a reward, on greedy answers to the test prompts."""

    kl_per_token: float | None  # to the reference model in nats, on sampled answers; None without a reference model
    words: tuple[float, float]  # mean words of the answers
    repeated_share: tuple[float, float]  # share of answers with loops
    cut_off_share: tuple[float, float]  # share of answers cut off by the token limit


class SpanCounts(ReportPart):
    """The spans of the test rows by their outcome, (base, tuned)."""

    exact: tuple[int, int]
    other_bounds: tuple[int, int]  # the right label, at other characters that overlap
    other_label: tuple[int, int]
    missed: tuple[int, int]
    spurious: tuple[int, int]  # marked where no span is


class ThinkingLedger(ReportPart):
    """Base and tuned model on the same rows, with and without thoughts before the answer."""

    rows: int
    clusters: int  # groups of rows; as many as rows without groups
    source: str  # "held-out rows", or "general questions" for a run on documents
    metric: str  # of the scores; empty if the rows have no reference answers
    max_new_tokens: int  # limit of thoughts and answer together
    switch: str  # variable of the chat template; empty: the prompt closes the thoughts itself
    thinks_by_default: bool  # the mode of training, in which the headline is measured
    score_on: PairedMeasure | None = None  # with thinking
    score_off: PairedMeasure | None = None  # without
    gain: PairedMeasure | None = None  # score with thinking minus score without
    finished: PairedMeasure  # share of thoughts that end within the limit
    median_tokens: PairedMeasure  # length of the thoughts, those that were cut off included
    p95_tokens: PairedMeasure  # their 95th percentile
    obeyed_on: PairedMeasure  # share of rows with thoughts where the switch is on
    obeyed_off: PairedMeasure  # share of rows without thoughts where it is off


BASE = "base"  # the arm that the headline compares with
