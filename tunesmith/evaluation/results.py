"""Results of one run that several modules share: general ability, calibration, style, preferences, rewards."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class ReportPart(BaseModel):
    """A frozen part of a report."""

    model_config = ConfigDict(frozen=True)


class Retention(ReportPart):
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


class Calibration(ReportPart):
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


class Style(ReportPart):
    """How near the answers are to the wanted voice."""

    auc_base: float | None
    auc_tuned: float | None
    rules: dict[str, tuple[float, float, float]] = {}  # rule -> base, tuned, human
    habits: dict[str, tuple[float, float, float]] = {}


class Judgement(ReportPart):
    """What learning from people's judgement did beside the headline, base and tuned; None where it is not measured."""

    chosen_logprob: tuple[float, float] | None = None  # mean log p for each id of the answers that people liked
    margin: tuple[float, float] | None = None  # mean lead of the preferred answers
    length_bias: tuple[float, float] | None = None  # correlation of the lead with the difference in length
    words: tuple[float, float] | None = None  # mean length of answers in own words
    repeated_share: tuple[float, float] | None = None  # of these, share that repeat themselves


class Pursuit(ReportPart):
    """What pursuing a reward did beside it: pairs are base and tuned, by greedy answers to the test prompts."""

    kl_per_token: float | None  # to the start, nats, on drawn answers; None where no start was kept
    words: tuple[float, float]  # mean length
    repeated_share: tuple[float, float]
    cut_off_share: tuple[float, float]


BASE = "base"  # the arm that the headline compares with
