"""Results of the grid: their schema, one line per run in results.jsonl, and the page of Markdown."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from pydantic import BaseModel, ConfigDict

from tunesmith.evaluation.results import BASE
from tunesmith.metrics.significance import lower_is_better
from tunesmith.report.formatting import (
    bounds,
    count,
    duration,
    figure,
    metric_name,
    p_value,
    row_score_name,
    share,
    signed,
    size,
)
from tunesmith.report.verdicts import HUNDREDS

# Two techniques are equivalent if the whole interval of their difference is within this share of the scale.
MARGIN = 0.03
EQUIVALENT = "equivalent within 3 points"
NOT_SIGNIFICANT = "not significant"
UNIT_METRICS = ("accuracy", "preference_accuracy", "macro_f1", "sample_f1", "exact_match", "token_f1", "rouge_l")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Control(_Frozen):
    """Score of a control and the p-value of the gain over it, adjusted for all arms of the run."""

    score: float
    p_adjusted: float | None


class GridCell(_Frozen):
    """One line of the page: a finished run, or one task of a multitask run."""

    objective: str
    family: str
    task: str = ""  # only of a multitask run
    technique: str
    seed: int
    model: str
    metric: str
    base: float
    tuned: float
    delta: float
    ci95: tuple[float, float]
    p_value: float
    train_rows: int
    epochs: float
    steps: int  # of the optimizer
    test_rows: int
    head_only: Control | None
    shuffled: Control | None
    baseline: tuple[str, float] | None  # name and score of the best baseline without a language model
    verdict: str
    learning_rate: float
    trainable: int  # parameters
    parameters: int
    seconds: float  # of the training steps
    peak_bytes: int
    model_bytes: int | None
    general_nats: float | None  # change in loss on general text, nats per token
    probe: float | None  # change in the share of general questions answered correctly

    @property
    def table(self) -> tuple[str, str, str]:
        """Objective, family and task of its table."""
        return self.objective, self.family, self.task


class RowScores(_Frozen):
    """Score of each test row by the base and by the tuned model, higher is better. N rows."""

    metric: str
    digest: str  # of the N questions and reference answers: only runs with equal ones are compared
    groups: tuple[tuple[str, int], ...]  # (group, rows) of consecutive rows; they sum to N
    base: str | tuple[float, ...]  # [N]; a string of digits if all scores are 0 or 1
    tuned: str | tuple[float, ...]  # [N]


class RunResult(_Frozen):
    """A finished run, one line of results.jsonl."""

    rows: int  # --rows of the command line
    controls: bool
    identity: str  # digest of the recipe and of its data files
    base_fingerprint: str  # of the base model's weights
    machine: dict[str, str | int]
    cells: tuple[GridCell, ...]
    row_scores: RowScores | None  # None for several tasks, or a metric without row scores: not compared

    @property
    def key(self) -> tuple[str, int, int, bool]:
        """Cell name, rows, seed and controls: results.jsonl holds one run of each."""
        cell = self.cells[0]
        return f"{cell.objective}/{cell.technique}/{cell.family}", self.rows, cell.seed, self.controls


class GridPair(_Frozen):
    """One technique compared with another, or with its base model, on the same test rows of all seeds."""

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
        """Better, worse, EQUIVALENT or NOT_SIGNIFICANT."""
        if within(self.metric, self.ci95):
            return EQUIVALENT
        if self.p_adjusted < 0.05:
            return "better" if self.delta > 0 else "worse"
        return NOT_SIGNIFICANT


class Grid(_Frozen):
    """Everything on the page. Cells are named objective/technique/family."""

    cells: tuple[GridCell, ...]
    pairs: tuple[GridPair, ...]
    refused: dict[str, str]  # cell -> why it cannot work, and the nearest that can
    missing: tuple[str, ...]  # not run yet
    partial: tuple[str, ...] = ()  # run with some of the seeds
    failed: dict[str, str] = {}  # of the missing and partial cells: why the run failed
    options: str = ""  # of the command line that runs more cells
    stale: tuple[str, ...] = ()  # whose stored result is of another recipe or of other rows


def within(metric: str, ci95: tuple[float, float]) -> bool:
    """Return whether the whole interval of a difference is within the margin of equivalence."""
    points = MARGIN * (100 if metric in HUNDREDS else 1)
    return metric in (*UNIT_METRICS, *HUNDREDS) and max(map(abs, ci95)) <= points


COLUMNS = (
    "technique|seed|trainable|base|tuned|gain (95 %)|p|head only (p)|shuffled (p)|"
    "verdict|learning rate|training|peak memory|weights|general text|probe"
)
PAIR_COLUMNS = "technique|against|seeds|difference (95 %)|p|adjusted|rows|verdict"
ADJUSTED = (
    "Compared row by row. The verdict uses the p-value adjusted by Holm's method for all pairs of the table; each "
    "interval is for its pair alone."
)
INTRODUCTION = """# The grid

The score of each technique on each objective and each family of models: real rows, small models, and controls that
must not win. Each table states which controls were run. `python -m bench.technique_grid` writes this page from
finished runs; each line is one run.

- **gain** is tuned − base on the same held-out rows. Interval and p-value are defined in [metrics.md](metrics.md).
  The base of **qlora**, and the model under its head, are quantized to 4 bits as in its own run. Its gain is not a
  gain over the base of the other techniques.
- **head only** is a linear head on the frozen model, **shuffled** the same recipe with shuffled labels. Each has
  the p-value of the gain over it, adjusted by Holm's method for all arms of the run. A cell that does not
  significantly beat each control that was run (p < 0.05) reads **no effect**, whatever its gain over the base. If
  none was run, a gain reads **better, no control run**.
- **trainable** is the number of trainable parameters. **Training** is the time of the training steps alone, on a
  machine with other load. **Peak memory** is that of the whole process, including the control's own copy of the
  base. **Weights** is the size of the network's weights in memory.
- **general text** is the rise of the loss on general text, in nats per token. **probe** is the change in the share
  of 400 general questions answered correctly. Both measure forgetting.

Learning rates were chosen on validation rows, never on these test rows; see [the
defaults](../explanation/defaults.md)."""


def page(grid: Grid, *, linked: bool = True) -> str:
    """Return the grid as Markdown, `linked` to the other pages of docs/ if it is in that folder."""
    parts = [INTRODUCTION if linked else re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", INTRODUCTION)]
    for _, cells in groupby(grid.cells, key=lambda cell: cell.table):
        parts.append(_section(list(cells), grid.pairs))
    if grid.refused:
        parts.append("## Cells that cannot work\n\n" + "\n".join(_reasons(grid.refused)))
    if grid.stale:
        parts.append(
            "## Results of another recipe\n\nThe stored results of these cells are of another recipe or of other rows. "
            "They are not shown, and a new run replaces them.\n\n" + "\n".join(_by_table(grid.stale))
        )
    if grid.partial:
        parts.append(
            "## Fewer seeds than requested\n\nTheir tables have one line per finished seed.\n\n"
            + "\n".join(_by_table(grid.partial))
        )
    if grid.missing:
        parts.append("## Not run yet\n\n" + "\n".join(_by_table(grid.missing)))
    if grid.failed:
        parts.append("Started, and failed:\n\n" + "\n".join(_reasons(grid.failed)))
    if rest := (*grid.missing, *grid.partial):
        parts.append(f"`python -m bench.technique_grid --only {rest[0]} {grid.options}` runs one of them.")
    return "\n\n".join(parts) + "\n"


def _reasons(reasons: Mapping[str, str]) -> list[str]:
    """Return each reason once, with all cells that it applies to."""
    cells: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        cells.setdefault(reason, []).append(f"`{name}`")
    return [f"- {reason} ({', '.join(names)})" for reason, names in cells.items()]


def _by_table(names: Sequence[str]) -> list[str]:
    """Return one line per objective and family with its techniques."""
    techniques: dict[str, list[str]] = {}
    for objective, technique, family in (name.split("/") for name in names):
        techniques.setdefault(f"{objective}, {family}", []).append(technique)
    return [f"- {table}: {', '.join(names)}" for table, names in techniques.items()]


def _section(cells: Sequence[GridCell], pairs: Sequence[GridPair]) -> str:
    first = cells[0]
    metric = metric_name(first.metric) + (" (lower is better)" if lower_is_better(first.metric) else "")
    summary = f"`{first.model}`, measured by {metric}. {_sizes(cells)} {_controls(cells)}"
    if first.baseline is not None:
        summary += f" Best baseline without a language model: {first.baseline[0]}, {figure(first.baseline[1])}."
    verdicts: dict[str, Counter[str]] = {}
    for cell in cells:
        verdicts.setdefault(cell.verdict, Counter())[cell.technique] += 1
    counted = (
        f"{verdict}: {', '.join(name if seeds == 1 else f'{name} ({seeds} seeds)' for name, seeds in names.items())}"
        for verdict, names in verdicts.items()
    )
    parts = [
        f"## {', '.join(filter(None, (first.objective, first.task, first.family)))}",
        summary,
        _table(COLUMNS.split("|"), map(_line, cells)),
        f"Verdicts: {'; '.join(counted)}.",
    ]
    own = [pair for pair in pairs if (pair.objective, pair.family, "") == first.table]
    for title, compared in (
        ("Each technique against its base model, on the test rows of all seeds", [p for p in own if p.against == BASE]),
        ("One technique against another, on the same test rows", [p for p in own if p.against != BASE]),
    ):
        if compared:
            if compared[0].metric != first.metric:  # the metric of the table above has no score of a single row
                title = f"{title}, by {row_score_name(first.metric)} (higher is better)"
            parts += [f"{title}. {ADJUSTED}", _table(PAIR_COLUMNS.split("|"), map(_pair_line, compared))]
    return "\n\n".join(parts)


def _sizes(cells: Sequence[GridCell]) -> str:
    """Return the training rows, epochs, steps and test rows of each group of techniques."""
    groups: dict[str, list[GridCell]] = {}
    for cell in cells:
        epochs = f"{cell.epochs:g} epochs ({count(cell.steps)} steps)"
        groups.setdefault(f"{count(cell.train_rows)} training rows, {epochs}", []).append(cell)
    sizes = []
    for training, members in groups.items():
        names = dict.fromkeys(cell.technique for cell in members)
        tests = [cell.test_rows for cell in members]
        rows = " to ".join(map(count, dict.fromkeys((min(tests), max(tests)))))
        sizes.append(f"{', '.join(names)}: {training}, {rows} test rows")
    return f"{'; '.join(sizes)}."


def _controls(cells: Sequence[GridCell]) -> str:
    columns = {"head only": [cell.head_only for cell in cells], "shuffled": [cell.shuffled for cell in cells]}
    return f"Controls run: {', '.join(name for name, controls in columns.items() if any(controls)) or 'none'}."


def _line(cell: GridCell) -> list[str]:
    return [
        cell.technique,
        str(cell.seed),
        f"{count(cell.trainable)} ({100 * cell.trainable / cell.parameters:.3g} %)",
        figure(cell.base),
        figure(cell.tuned),
        f"{signed(cell.delta)} ({bounds(cell.ci95, sign=True)})",
        _p(cell.p_value),
        control(cell.head_only),
        control(cell.shuffled),
        f"**{cell.verdict}**",
        f"{cell.learning_rate:.2g}",
        duration(cell.seconds),
        size(cell.peak_bytes),
        figure(None) if cell.model_bytes is None else size(cell.model_bytes),
        signed(cell.general_nats),
        share(cell.probe),
    ]


def control(value: Control | None) -> str:
    """Return a control's score with the adjusted p-value of the gain over it."""
    return figure(None) if value is None else f"{figure(value.score)} ({_p(value.p_adjusted)})"


def _p(value: float | None) -> str:
    """Return a p-value without `p =`, which the heading of its column contains."""
    return p_value(value).removeprefix("p = ").removeprefix("p ")


def _pair_line(pair: GridPair) -> list[str]:
    return [
        pair.technique,
        pair.against,
        ", ".join(map(str, pair.seeds)),
        f"{signed(pair.delta)} ({bounds(pair.ci95, sign=True)})",
        _p(pair.p_value),
        _p(pair.p_adjusted),
        count(pair.n),
        pair.verdict,
    ]


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
