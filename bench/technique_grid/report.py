"""Results of the technique grid: their schema, and the page of Markdown."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from pydantic import BaseModel, ConfigDict

from tunesmith.evaluation.results import BASE
from tunesmith.evaluation.significance import PairedComparison, lower_is_better
from tunesmith.report.figures import (
    bounds,
    count,
    duration,
    figure,
    metric_name,
    p_value,
    share,
    signed,
    size,
    worth_name,
)
from tunesmith.report.standing import HUNDREDS

# Two techniques count as equal where the whole interval of their difference is within this share of the scale.
EQUAL = 0.03
EQUIVALENT, NOT_TOLD = "equivalent within 3 points", "not significant"
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


HEADINGS = (
    "technique|seed|trainable|base|tuned|gain (95 %)|p|head only (p)|shuffled (p)|"
    "verdict|learning rate|training|peak memory|weights|general text|probe"
)
PAIR_HEADINGS = "technique|against|seeds|difference (95 %)|p|adjusted|rows|verdict"
ADJUSTED = (
    "Row by row; the verdict goes by the p-value adjusted by Holm's method for all pairs of the table, each interval "
    "is of its pair alone:"
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
    """The grid as Markdown, `linked` to the pages of docs/ where it lies beside them."""
    parts = [INTRODUCTION if linked else re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", INTRODUCTION)]
    for _, cells in groupby(grid.cells, key=lambda cell: cell.place):
        parts.append(_section(list(cells), grid.pairs))
    if grid.refused:
        parts.append("## Pairs that cannot work\n\n" + "\n".join(_reasons(grid.refused)))
    if grid.stale:
        parts.append(
            "## Made by another recipe\n\nTheir folders contain runs of another recipe or of other rows. They are in "
            "no table. Delete a folder to run its cell again.\n\n" + "\n".join(_left(grid.stale))
        )
    if grid.partly:
        told = "Their tables have a line for each seed that was run."
        parts.append(f"## With fewer seeds\n\n{told}\n\n" + "\n".join(_left(grid.partly)))
    if grid.missing:
        parts.append("## Not run yet\n\n" + "\n".join(_left(grid.missing)))
    if grid.failed:
        parts.append("Started and not finished:\n\n" + "\n".join(_reasons(grid.failed)))
    if left := (*grid.missing, *grid.partly):
        parts.append(f"`python -m bench.technique_grid --only {left[0]} {grid.options}` runs one of them.")
    return "\n\n".join(parts) + "\n"


def _reasons(refused: Mapping[str, str]) -> list[str]:
    """Each reason once, with all the cells that it holds for."""
    by: dict[str, list[str]] = {}
    for at, why in refused.items():
        by.setdefault(why, []).append(f"`{at}`")
    return [f"- {why} ({', '.join(names)})" for why, names in by.items()]


def _left(missing: Sequence[str]) -> list[str]:
    """What is missing or stale, a line for each objective and family."""
    by: dict[str, list[str]] = {}
    for objective, technique, family in (name.split("/") for name in missing):
        by.setdefault(f"{objective}, {family}", []).append(technique)
    return [f"- {place}: {', '.join(names)}" for place, names in by.items()]


def _section(cells: Sequence[GridCell], pairs: Sequence[GridPair]) -> str:
    """One objective on one family."""
    first = cells[0]
    name = metric_name(first.metric) + (" (lower is better)" if lower_is_better(first.metric) else "")
    parts = [
        f"## {', '.join(filter(None, (first.objective, first.part, first.family)))}",
        f"`{first.model}`, measured by {name}. {_settings(cells)} {_controls(cells)}",
    ]
    if first.cheap is not None:
        parts[-1] += f" Without a language model: {first.cheap[0]}, {figure(first.cheap[1])}."
    parts.append(_table(HEADINGS.split("|"), (_line(cell) for cell in cells)))
    parts.append(_standing(cells))
    own = [pair for pair in pairs if (pair.objective, pair.family, "") == first.place]
    for what, beside in (
        ("Each technique over its base, on the test rows of all seeds.", [p for p in own if p.against == BASE]),
        ("One technique against another, on the same test rows.", [p for p in own if p.against != BASE]),
    ):
        if beside:
            if beside[0].metric != first.metric:  # the table above is by a figure that no single row has
                what = f"{what[:-1]}, by {worth_name(first.metric)}: higher is better."
            parts += [f"{what} {ADJUSTED}", _table(PAIR_HEADINGS.split("|"), (_pair_line(pair) for pair in beside))]
    return "\n\n".join(parts)


def _standing(cells: Sequence[GridCell]) -> str:
    """Which techniques come under which verdict, in a sentence."""
    by: dict[str, list[str]] = {}
    for cell in cells:
        by.setdefault(cell.verdict, []).append(cell.technique)
    counted = ((verdict, Counter(names)) for verdict, names in by.items())
    told = (
        f"{verdict}: {', '.join(name if times == 1 else f'{name} ({times} seeds)' for name, times in names.items())}"
        for verdict, names in counted
    )
    return f"In words: {'; '.join(told)}."


def _settings(cells: Sequence[GridCell]) -> str:
    """With how many rows and epochs the cells were made."""
    by: dict[str, list[GridCell]] = {}
    for cell in cells:
        passes = f"{cell.epochs:g} times ({count(cell.steps)} steps)"
        by.setdefault(f"{count(cell.train)} training rows {passes}", []).append(cell)
    told = []
    for made, some in by.items():
        names, tests = dict.fromkeys(cell.technique for cell in some), [cell.test for cell in some]
        rows = " to ".join(map(count, dict.fromkeys((min(tests), max(tests)))))
        told.append(f"{', '.join(names)}: {made}, {rows} test rows")
    return f"{'; '.join(told)}."


def _controls(cells: Sequence[GridCell]) -> str:
    """Which controls stand in the table."""
    sides = {"head only": [cell.head_only for cell in cells], "shuffled": [cell.shuffled for cell in cells]}
    return f"Controls run: {', '.join(name for name, found in sides.items() if any(found)) or 'none'}."


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
        signed(cell.general),
        share(cell.probe),
    ]


def control(one: Control | None) -> str:
    """A control's score, and how surely it is beaten."""
    return figure(None) if one is None else f"{figure(one.score)} ({_p(one.p_adjusted)})"


def _p(value: float | None) -> str:
    """A p-value under a heading that says what it is."""
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


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
