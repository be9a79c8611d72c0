"""Schema of `compare --json`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from tunesmith.config import ModelName
from tunesmith.display import Display, Displayed
from tunesmith.pipelines.compare.verdict import DECIDED, Verdict
from tunesmith.report.formatting import bounds, duration, figure, metric_name, price
from tunesmith.report.html import environment
from tunesmith.report.plots import arms_plot, cost_plot
from tunesmith.retrieval.recall import Recall

NOT_MEASURED = "not measured"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Task(_Part):
    """The score of an arm on the test rows, which are the same for all arms."""

    metric: str
    score: float
    ci95: tuple[float, float] | None
    n: int  # rows

    def __str__(self) -> str:
        return f"{self.score:.3f}" + (f" ({self.ci95[0]:.3f} to {self.ci95[1]:.3f})" if self.ci95 else "")


class Update(_Part):
    """Answers to questions about facts that were changed in the documents, and the cost of the update."""

    facts: int  # changed facts
    new: float  # share of answers with the new fact
    old: float  # share of answers with the old fact
    seconds: float | None  # until the arm gives the new fact; None if it does not use the documents
    how: str  # how the arm is updated
    found: float | None = None  # share of changed chunks among the first 5 that were found; None without retrieval
    price: float | None = None  # None without a price of the machine

    def __str__(self) -> str:
        cost = "" if self.price is None else f", price {price(self.price)}"
        seconds = "" if self.seconds is None else f"{self.seconds:.1f} s{cost}: "
        found = "" if self.found is None else f"; {100 * self.found:.0f} % of changed chunks among the first 5"
        return f"new {100 * self.new:.0f} %, old {100 * self.old:.0f} %; {seconds}{self.how}{found}"


class Latency(_Part):
    """Speed of an arm: p50 and p95 of single rows, and throughput in a batch."""

    p50: float | None  # seconds
    p95: float | None  # seconds
    prompt_tokens: float | None  # median
    answers_per_second: float  # in a batch

    def __str__(self) -> str:
        seconds = [] if self.p50 is None or self.p95 is None else [f"{self.p50:.2f} s, {self.p95:.2f} s"]
        tokens = [] if self.prompt_tokens is None else [f"{self.prompt_tokens:.0f} tokens"]
        return "; ".join([*seconds, *tokens, f"{self.answers_per_second:.1f}/s"])


class Cost(_Part):
    """Cost of building an arm and of 1,000 answers in a batch; prices are None without a price of the machine."""

    build_seconds: float
    seconds_per_1000: float
    price_to_build: float | None = None
    price_per_1000: float | None = None


class Against(_Part):
    """Comparison with the next best arm: delta, its 95 % interval, and the p-value adjusted for all pairs (Holm)."""

    arm: str
    delta: float
    ci95: tuple[float, float]
    p_adjusted: float


class Gain(Against):
    """Gain of an arm over an arm with an equal or lower score."""

    over: str


class SearchGain(_Part):
    """Gain of a tuned search over another one, on the test rows whose chunk is known."""

    search: str = "tuned-retriever"  # the arm whose search it is
    metric: str  # recall_5 or ndcg
    over: str  # words, vectors, fused or tuned-retriever
    delta: float
    ci95: tuple[float, float]
    p_adjusted: float  # for all searches and both metrics (Holm)


class GeneralAbilityChange(_Part):
    """General ability after tuning: increase of the loss on general text, and accuracy on probe items."""

    nats_rise: float | None  # nats per token, tuned minus base; None: no text was scored
    probe: float | None  # share of correct answers
    probe_base: float | None  # the same for the base model

    def __str__(self) -> str:
        parts = []
        if self.nats_rise is not None:
            rise = round(self.nats_rise, 3)
            parts.append(f"{rise:+.3f} nats" if rise else "0.000 nats")  # zero is printed without a sign
        if self.probe is not None:
            parts.append(f"{100 * self.probe:.1f} % right")
        return ", ".join(parts)


class StyleScore(_Part):
    """Style of the answers compared with the reference answers."""

    auc: float | None  # of a classifier of generated against reference answers; 0.5: indistinguishable
    rules: dict[str, float]  # style rule -> share of answers that satisfy it

    def __str__(self) -> str:
        parts = [] if self.auc is None else [f"AUC {self.auc:.2f}"]
        parts += [f"{name} {100 * share:.0f} %" for name, share in self.rules.items()]
        return "; ".join(parts) or NOT_MEASURED


class ArmPage(_Part):
    """Results of one arm on the test rows."""

    name: str
    detail: str  # settings chosen on validation rows
    candidate: bool  # False: a diagnostic arm, never recommended
    task: Task
    others: dict[str, float]  # further metrics
    against: Against | None
    domain: float | None  # score on the rows whose answer is in the documents
    domain_n: int  # number of these rows
    general: GeneralAbilityChange | None
    style: StyleScore | None
    latency: Latency
    update: Update | None
    labels: int  # labelled rows used
    cost: Cost
    run: str = ""  # run folder of a tuned arm
    retriever: str = ""  # run folder of the tuned retriever
    reranker: str = ""  # run folder of the model that ranks what it finds again
    written: int = 0  # questions that a model wrote from the documents, among those that tuned the retriever


class TableRow(_Part):
    """One row of the table: a common belief about prompting, retrieval and tuning, and the measurements."""

    row: str
    belief: tuple[str, str, str]  # about prompting, retrieval and tuning
    measured: str  # the metrics
    here: dict[str, str]  # arm -> measurement

    @property
    def known(self) -> bool:
        """True if any arm was measured."""
        return bool(self.measurements)

    @property
    def measurements(self) -> dict[str, str]:
        """The measurement of each arm that was measured."""
        return {arm: cell for arm, cell in self.here.items() if cell != NOT_MEASURED}


class Comparison(Displayed, _Part):
    """The result of `tunesmith compare`: measurements and verdict."""

    folder: str
    model: ModelName
    objective: str
    metric: str
    rows: int  # test rows
    arms: list[ArmPage]
    gains: list[Gain] = []
    retrieval: list[Recall]
    search_gains: list[SearchGain] = []  # of the tuned retriever, and of ranking again over it
    chunks: int  # in the index
    table: list[TableRow]
    verdict: Verdict
    notes: list[str]
    environment: dict[str, str]

    @property
    def decided(self) -> bool:
        """True if the verdict is supported by enough test rows and at least one arm scores above 0."""
        confidence = self.verdict.confidence
        scored = any(arm.task.score for arm in self.arms if arm.candidate)
        return scored and confidence is not None and confidence >= DECIDED

    def display(self) -> Display:
        """Show the verdict and its reasons; the score of each arm in a table."""
        ranked = sorted(self.arms, key=lambda arm: -arm.task.score)
        rows = [
            (arm.name, figure(arm.task.score), bounds(arm.task.ci95), duration(arm.cost.seconds_per_1000))
            for arm in ranked
        ]
        return Display(
            f"Comparison({self.folder}): {self.verdict.text} ({self.verdict.arm})",
            self.verdict.reasons,
            ("arm", metric_name(self.metric), "95 % interval", "per 1,000 answers"),
            rows,
        )


def page(comparison: Comparison) -> str:
    """Return the HTML page of a comparison; text from rows, documents and models is escaped."""
    ranked = sorted(comparison.arms, key=lambda arm: -arm.task.score)
    scores = [(arm.name, arm.task.score, arm.task.ci95 or (arm.task.score, arm.task.score)) for arm in ranked]
    costs = [
        (arm.name, arm.cost.build_seconds + arm.cost.seconds_per_1000, arm.task.score)
        for arm in ranked
        if arm.candidate
    ]
    return (
        environment()
        .get_template("compare.html.jinja")
        .render(
            c=comparison,
            arms=ranked,
            scores=arms_plot(scores, metric=comparison.metric, chosen=comparison.verdict.arm),
            worth=cost_plot(costs, metric=comparison.metric, chosen=comparison.verdict.arm),
        )
    )
