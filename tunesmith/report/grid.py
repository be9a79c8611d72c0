"""The grid: what each technique brought to each objective, beside its controls."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from tunesmith.evaluation.significance import PairedComparison
from tunesmith.report.standing import HUNDREDS

# Two techniques count as equal where the whole interval of their difference is within this share of the scale.
EQUAL = 0.03
EQUIVALENT, NOT_TOLD = "equivalent within 3 points", "not told apart by so few rows"
ON_ONE = ("accuracy", "preference_accuracy", "macro_f1", "sample_f1", "exact_match", "token_f1", "rouge_l")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Control(_Part):
    """What must not win: its score, and the p-value of the gain over it, adjusted for all arms of the run."""

    score: float
    p_adjusted: float | None


class GridCell(_Part):
    """A finished run of the grid, or one task of it, in one line."""

    objective: str
    family: str
    part: str = ""
    technique: str
    seed: int
    folder: str
    model: str
    metric: str
    base: float
    tuned: float
    delta: float
    ci95: tuple[float, float]
    p_value: float
    train: int
    epochs: float
    steps: int  # of the optimizer
    test: int
    head_only: Control | None
    shuffled: Control | None
    cheap: tuple[str, float] | None  # the best way without a language model
    verdict: str
    learning_rate: float
    trainable: int
    parameters: int
    seconds: float
    peak_bytes: int
    model_bytes: int | None
    general: float | None
    probe: float | None

    @property
    def place(self) -> tuple[str, str, str]:
        """Objective, family and task: what one table is of."""
        return self.objective, self.family, self.part


class GridPair(_Part):
    """One technique against another, or its base, on the same test rows, those of all seeds together."""

    objective: str
    family: str
    technique: str
    against: str
    seeds: tuple[int, ...]
    metric: str
    delta: float
    ci95: tuple[float, float]
    p_value: float
    p_adjusted: float  # for all pairs of the table
    n: int

    @property
    def verdict(self) -> str:
        """Better, worse, equal within 3 points, or not to be told."""
        if within(self.metric, self.ci95):
            return EQUIVALENT
        if self.p_adjusted < 0.05:
            return "better" if self.delta > 0 else "worse"
        return NOT_TOLD


class Grid(_Part):
    """All that is known of the grid."""

    cells: tuple[GridCell, ...]
    pairs: tuple[GridPair, ...]
    refused: dict[str, str]  # objective/technique/family -> why, and the nearest pair that works
    missing: tuple[str, ...]  # objective/technique/family of what was not run yet
    partly: tuple[str, ...] = ()  # and of what was run, but not with all seeds
    failed: dict[str, str] = {}  # of these the ones that were begun and broke, and why
    options: str = ""  # of the command line that runs more of it
    stale: tuple[str, ...] = ()  # whose folders hold runs of another recipe or of other rows


def within(metric: str, ci95: tuple[float, float]) -> bool:
    """Whether the whole interval of a difference says that two techniques are equal."""
    points = EQUAL * (100 if metric in HUNDREDS else 1)
    return metric in (*ON_ONE, *HUNDREDS) and max(map(abs, ci95)) <= points


def pair_of(one: GridCell, against: str, found: PairedComparison, metric: str, seeds: Sequence[int]) -> GridPair:
    """A comparison under the names of both techniques, the only one of its table so far."""
    return GridPair(
        objective=one.objective,
        family=one.family,
        technique=one.technique,
        against=against,
        seeds=tuple(seeds),
        metric=metric,
        delta=found.delta,
        ci95=found.ci95,
        p_value=found.p_value,
        p_adjusted=found.p_value,
        n=found.n,
    )
