"""The same recipe on more and more of its rows: a learning curve, and what it says of rows that are not there yet."""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.config import Recipe
from tunesmith.data.files import read_page, write_whole
from tunesmith.errors import RecipeError, Refused
from tunesmith.evaluation.evaluators import EvalSet, Evaluator, evaluator_for
from tunesmith.events import StageStarted
from tunesmith.inference.local_model import LocalModel
from tunesmith.metrics.significance import lower_is_better
from tunesmith.models.loading.load import LoadOptions, load_base
from tunesmith.pipelines.learning_curve.fit_curve import (
    FARTHEST,
    FEWEST_ROWS,
    SEEDS,
    SIZES,
    CurveCell,
    CurveReading,
    ScoreEstimate,
    read_curve,
    sizes_of,
)
from tunesmith.pipelines.learning_curve.report import (
    Expected,
    FitCheck,
    LearningCurveReport,
    Size,
    Target,
    page,
    sentence,
)
from tunesmith.training.callbacks import Callbacks
from tunesmith.training.prepare import TrainingContext, prepare
from tunesmith.training.run_folder import RunFolder, exclusive_lock, open_run
from tunesmith.training.train import train

NEED = "need.run.json"
# Few rows may be passed over more often, as `init` would have it, so that small sizes are not small in steps too.
MOST_EPOCHS = 5.0
# The highest score there can be, losses with their sign turned; shares end at 1, and a reward ends nowhere.
BEST = {"chrf": 100.0, "perplexity": -1.0, "reward": math.inf}
POINTS = 40


@dataclass(frozen=True, slots=True)
class LearningCurveOptions:
    """What is asked of the curve; without `rows`: twice and four times as many as there are."""

    rows: tuple[int, ...] = ()
    target: float | None = None
    minutes: float | None = None


@dataclass(slots=True)
class LearningCurveRun:
    """The cells of one learning curve: sizes and seeds over the same frozen test rows."""

    prepared: TrainingContext
    yardstick: Evaluator[Any]
    folder: Path
    callbacks: Callbacks
    offline: bool

    def cell(self, rows: int, seed: int) -> tuple[CurveCell, float]:
        """What a model scores that was tuned on so many rows, and the seconds that took; kept once it is known."""
        kept = self.folder / "cells" / f"{rows}-{seed}.json"
        if kept.exists():
            page = read_page(kept, dict[str, float])
            return CurveCell(rows, seed, page["score"]), page["seconds"]
        self.callbacks.on_event(StageStarted(f"{rows} rows, seed {seed}"))
        began = time.perf_counter()
        work = kept.with_suffix("")
        work.mkdir(parents=True, exist_ok=True)
        dealt = self._dealt(rows, seed)
        policy = train(dealt, work, callbacks=self.callbacks).policy
        model = LocalModel(policy, dealt.template, dealt.recipe.objective, dealt.recipe.data.max_tokens)
        score = self.yardstick.score(self.yardstick.predict(model), name="need")[0].score
        seconds = time.perf_counter() - began
        write_whole(kept, json.dumps({"rows": rows, "seed": seed, "score": score, "seconds": seconds}))
        shutil.rmtree(work)
        return CurveCell(rows, seed, score), seconds

    def _dealt(self, rows: int, seed: int) -> TrainingContext:
        """The recipe over so many of its training rows, on a base of its own: techniques change what they are given."""
        recipe, everything = self.prepared.recipe, self.prepared.train
        chosen = random.Random(f"{recipe.seed}/{seed}/need").sample(range(len(everything)), rows)
        epochs = epochs_at(rows, len(everything), recipe.schedule.epochs)
        schedule = recipe.schedule.model_copy(update={"epochs": epochs, "probe": False})
        options = LoadOptions("float32", self.prepared.machine.device, recipe.technique.load_options().quantize)
        return replace(
            self.prepared,
            recipe=recipe.model_copy(update={"seed": recipe.seed + seed, "schedule": schedule, "track": []}),
            base=load_base(recipe.model, options=options, offline=self.offline),
            train=[everything[i] for i in chosen],
        )


def need(
    recipe: Recipe,
    question: LearningCurveOptions,
    *,
    out: Path | None = None,
    callbacks: Callbacks,
    offline: bool = False,
) -> tuple[Path, LearningCurveReport]:
    """What more rows would buy, and the folder where it is written; what is there of an earlier call is not run again.

    Raises the errors of `prepare`, RecipeError for what may not be asked, Refused where rows or minutes are too few.
    """
    folder = open_run(recipe, out, prefix="need-", file=NEED)
    with exclusive_lock(folder.path):
        folder = open_run(recipe, folder.path, file=NEED)  # as a process left it that was at work until now
        return folder.path, _needed(recipe, question, folder, callbacks, offline=offline)


def _needed(
    recipe: Recipe, question: LearningCurveOptions, folder: RunFolder, callbacks: Callbacks, *, offline: bool
) -> LearningCurveReport:
    """The answer, and its files in the folder."""
    prepared = prepare(_pinned(recipe, folder), on_event=callbacks.on_event, offline=offline)
    _check(question, prepared, len(prepared.train))
    on, base = prepared.machine, prepared.base.fingerprint
    folder.check_base(recipe.model, base)
    folder.begin({"machine": {"device": on.device, "dtype": on.dtype, "threads": on.threads}, "base": base})
    ladder = LearningCurveRun(prepared, evaluator_for(EvalSet.of(prepared)), folder.path, callbacks, offline)
    sizes, notes = _sizes(ladder, question.minutes)
    cells, seconds = _run(ladder, sizes)
    if prepared.recipe.replay.share:
        notes.append("replay is left out of these runs: only the rows of the recipe's own file are counted")
    found = _answer(ladder, question, cells, notes=notes, seconds=seconds)
    write_whole(folder.path / "need.json", found.model_dump_json(indent=1))
    write_whole(folder.path / "need.html", page(found))
    return found


def epochs_at(rows: int, all_rows: int, epochs: float) -> float:
    """Passes over so many rows: as many steps as all rows take, but no more than MOST_EPOCHS or the recipe's own."""
    return max(epochs, min(MOST_EPOCHS, epochs * all_rows / rows))


def _pinned(recipe: Recipe, folder: RunFolder) -> Recipe:
    """The recipe on the machine that the first cells ran on."""
    if not folder.begun:
        return recipe
    return recipe.model_copy(update={"machine": type(recipe.machine)(**folder.page()["machine"])})


def _check(question: LearningCurveOptions, prepared: TrainingContext, available: int) -> None:
    """Raise for what no curve can tell."""
    if len(prepared.tasks) > 1:
        cure = f"nearest that works: a recipe of {min(prepared.tasks)}"
        raise RecipeError(f"need: {len(prepared.tasks)} tasks have no one curve; {cure}")
    if prepared.recipe.objective.kind == "domain" and prepared.base.family == "encoder":
        raise RecipeError("need: an encoder's hidden words are not scored here; nearest that works: a decoder")
    if available < 4 * FEWEST_ROWS:
        raise Refused(
            f"{prepared.recipe.data.train}: {available} training rows show no curve; collect {4 * FEWEST_ROWS} first"
        )
    metric, target = prepared.recipe.objective.metric, question.target
    sign, best = _best(metric)
    if target is not None and not math.isfinite(target):
        raise RecipeError(f"--target: {target} is no score; give a number")
    if target is not None and sign * target > best:
        raise RecipeError(f"--target: the best {metric} there is is {sign * best:g}, not {target:g}; ask for that")
    fewest, most = sizes_of(available)[0], FARTHEST * available
    for rows in question.rows:
        if rows < fewest:
            raise RecipeError(f"--rows: {rows:,} is fewer than the {fewest:,} that are measured first; ask for more")
        if rows > most:
            there = f"{FARTHEST:g} times the {available:,} training rows there are, where any curve is right"
            raise RecipeError(f"--rows: {rows:,} is more than {there}; ask for fewer")


def _sizes(ladder: LearningCurveRun, minutes: float | None) -> tuple[list[int], list[str]]:
    """The sizes to measure, and what the bound on minutes cost; chosen once, after the smallest cell was timed."""
    available = len(ladder.prepared.train)
    sizes = sizes_of(available)
    if minutes is None:
        return sizes, []
    kept = ladder.folder / "sizes.json"
    known = read_page(kept, dict[str, Any]) if kept.exists() else {}
    if known.get("minutes") == minutes:
        largest = known["largest"]
    else:
        _, seconds = ladder.cell(sizes[0], 0)
        largest = _largest(sizes[0], available, seconds / (60 * minutes), ladder.prepared.recipe.schedule.epochs)
        write_whole(kept, json.dumps({"largest": largest, "minutes": minutes}))
    if largest < available:
        wider = math.sqrt(available / largest)
        note = (
            f"held to {minutes:g} minutes: the largest size is {largest:,} of {available:,} training rows, so nothing "
            f"is said beyond {FARTHEST * largest:,.0f} rows, and intervals are about {wider:.1f} times as wide"
        )
        return sizes_of(largest, smallest=sizes[0]), [note]
    return sizes, []


def _largest(smallest: int, available: int, share: float, epochs: float) -> int:
    """The largest size whose ladder fits, a cell of the smallest taking this share of the time there is.

    A cell's time is taken to grow with the rows it passes over; what scoring takes does not grow, so this is safe.
    """
    per_row = share / (smallest * epochs_at(smallest, available, epochs))
    for largest in sorted({round(available * 0.95**i) for i in range(120)}, reverse=True):
        sizes = sizes_of(largest, smallest=smallest)
        if len(sizes) < SIZES:
            break
        passed = SEEDS * sum(rows * epochs_at(rows, available, epochs) for rows in sizes)
        if passed * per_row <= 1:
            return largest
    takes = SEEDS * SIZES * share
    raise Refused(
        f"--minutes: five sizes of three seeds take {takes:.1f} times as long at the least; give so much more "
        "(what was measured is kept)"
    )


def _run(ladder: LearningCurveRun, sizes: Sequence[int]) -> tuple[list[CurveCell], float]:
    """Every cell, the small ones first, and the seconds they took together."""
    cells, seconds = [], 0.0
    for rows in sizes:
        for seed in range(SEEDS):
            cell, took = ladder.cell(rows, seed)
            cells.append(cell)
            seconds += took
    return cells, seconds


def _answer(
    ladder: LearningCurveRun,
    question: LearningCurveOptions,
    cells: Sequence[CurveCell],
    *,
    notes: list[str],
    seconds: float,
) -> LearningCurveReport:
    """The page of a measured ladder."""
    recipe = ladder.prepared.recipe
    metric = recipe.objective.metric
    sign, best = _best(metric)
    reading = read_curve([replace(cell, score=sign * cell.score) for cell in cells], best=best)
    largest = max(cell.rows for cell in cells)
    asked = [rows for rows in question.rows or (2 * largest, round(FARTHEST * largest)) if rows <= FARTHEST * largest]
    held = _expected(reading.held.guess, sign)
    measured = sign * reading.held.measured
    may = not reading.problems
    found = LearningCurveReport(
        data=Path(recipe.data.train).name,
        model=recipe.model,
        objective=recipe.objective.kind,
        technique=recipe.technique.kind,
        metric=metric,
        lower_is_better=sign < 0,
        share=best == 1.0,
        train_rows=len(ladder.prepared.train),
        test_rows=len(ladder.prepared.test),
        sizes=_measured(cells),
        power_law={**asdict(reading.curve), "ceiling": sign * reading.curve.ceiling},
        held_out=FitCheck(
            **held.model_dump(), measured=measured, inside=reading.held.inside, width=held.high - held.low
        ),
        expected=[_expected(reading.guess(rows), sign) for rows in asked] if may else [],
        curve=_drawn(reading, cells, sign, asked if may else ()),
        # A ceiling that is the best score there is was set by that score, not by these sizes.
        ceiling=_expected(reading.ceiling, sign) if may and reading.curve.ceiling < best else None,
        target=_target(reading, question.target, cells, sign) if may else None,
        faults=list(reading.problems),
        notes=notes,
        seconds=seconds,
    )
    return found.model_copy(update={"sentence": sentence(found)})


def _best(metric: str) -> tuple[float, float]:
    """1 where more is better, -1 where less is; and the best score there is, times that."""
    sign = -1.0 if lower_is_better(metric) else 1.0
    return sign, BEST.get(metric, 0.0 if sign < 0 else 1.0)


def _measured(cells: Sequence[CurveCell]) -> list[Size]:
    sizes = sorted({cell.rows for cell in cells})
    scores = {rows: [cell.score for cell in cells if cell.rows == rows] for rows in sizes}
    return [Size(rows=rows, scores=scores[rows], mean=float(np.mean(scores[rows]))) for rows in sizes]


def _expected(guess: ScoreEstimate, sign: float) -> Expected:
    """A guess with its sign turned back, the smaller bound first."""
    low, high = sorted((sign * guess.low, sign * guess.high))
    return Expected(rows=guess.rows, score=sign * guess.score, low=low, high=high)


def _drawn(reading: CurveReading, cells: Sequence[CurveCell], sign: float, asked: Sequence[int]) -> list[Expected]:
    """The line of the plot, from the smallest size to the farthest that is foretold."""
    rows = [*(cell.rows for cell in cells), *asked]
    return [_expected(reading.guess(round(float(n))), sign) for n in np.geomspace(min(rows), max(rows), POINTS)]


def _target(reading: CurveReading, target: float | None, cells: Sequence[CurveCell], sign: float) -> Target | None:
    """How many rows a score takes."""
    if target is None:
        return None
    rows = [cell.rows for cell in cells]
    return Target(
        score=target,
        rows=reading.rows_for(sign * target, min(rows), round(FARTHEST * max(rows))),
        out_of_reach=sign * target > reading.ceiling.high,
    )
