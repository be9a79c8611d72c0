"""`tunesmith learning-curve`: tune on growing parts of the rows, and extrapolate the score to more rows."""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.config import Recipe
from tunesmith.data.cpu_count import cores
from tunesmith.data.files import read_page, write_whole
from tunesmith.data.tokenization.chat_template import Encoded
from tunesmith.errors import RecipeError, Refused
from tunesmith.evaluation.evaluators import EvalSet, Evaluator, evaluator_for
from tunesmith.evaluation.hard_negatives import with_hard_negatives
from tunesmith.events import EventHandler, Note, StageStarted
from tunesmith.inference.local_model import LocalModel
from tunesmith.metrics.significance import lower_is_better
from tunesmith.metrics.task_scores import SCALES
from tunesmith.models.loading.load import load_base
from tunesmith.pipelines.learning_curve.fit_curve import (
    FARTHEST,
    FEWEST_ROWS,
    SEEDS,
    SIZES,
    CurveCell,
    read_curve,
    sizes_of,
)
from tunesmith.pipelines.learning_curve.report import LearningCurveReport, Size, Target, page, sentence
from tunesmith.pipelines.many_runs import LOCAL, each
from tunesmith.pipelines.requests import LearningCurveOptions
from tunesmith.training.callbacks import Callbacks, Interrupted
from tunesmith.training.own_thoughts import with_own_thoughts
from tunesmith.training.prepare import TrainingContext, prepare, training_options
from tunesmith.training.run_folder import exclusive_lock, open_run
from tunesmith.training.train import train

NEED = "need.run.json"
# Few rows get more passes, as `init` proposes, so that small sizes do not also have few steps.
MOST_EPOCHS = 5.0
# Highest possible scores where `SCALES` does not state them; losses with their sign inverted. A reward is unbounded.
BEST = {"perplexity": -1.0, "reward": math.inf}
POINTS = 40  # of the plotted curve


@dataclass(frozen=True, slots=True)
class Scale:
    """The direction of a metric and its bound."""

    sign: float  # 1 if higher is better, -1 if lower is better
    best: float  # highest possible value of sign * score

    @classmethod
    def of(cls, metric: str) -> Scale:
        """Return the scale of a metric."""
        sign = -1.0 if lower_is_better(metric) else 1.0
        return cls(sign, BEST.get(metric, SCALES.get(metric, 0.0 if sign < 0 else 1.0)))


@dataclass(frozen=True, slots=True)
class BudgetedSize:
    """The largest training size that fits into a time budget, as stored in the run folder."""

    largest: int  # training rows
    minutes: float


@dataclass(slots=True)
class LearningCurveRun:
    """The training runs of one learning curve, all evaluated on the same test rows."""

    context: TrainingContext
    evaluator: Evaluator[Any]
    folder: Path
    callbacks: Callbacks
    offline: bool
    thoughts: Sequence[Encoded]  # of the base model about rows of `context.train`, each trained along with its row

    @classmethod
    def of(cls, context: TrainingContext, folder: Path, callbacks: Callbacks, *, offline: bool) -> LearningCurveRun:
        """Return the runs of a prepared recipe; its base model thinks about the rows that are to keep its thoughts.

        Thoughts do not depend on other rows, so the same are used for every size.
        """
        evaluator = evaluator_for(EvalSet.of(context))
        whole = with_own_thoughts(context, folder, on_event=callbacks.on_event)
        thoughts = whole.train[len(context.train) :]
        return cls(replace(whole, train=context.train), evaluator, folder, callbacks, offline, thoughts)

    def cell(self, rows: int, seed: int, *, place: str = "") -> CurveCell:
        """Return the score of a model tuned on a subsample; each cell is trained once and stored.

        The seed selects the subsample and is added to that of the recipe; `place` counts the runs for the progress.
        """
        file = self.file(rows, seed)
        work = file.with_suffix("")
        if file.exists():
            shutil.rmtree(work, ignore_errors=True)  # of a process that was killed right after storing the cell
            return read_page(file, CurveCell)
        self.callbacks.on_event(StageStarted(f"{place}{rows} rows, seed {seed}"))
        began = time.perf_counter()
        work.mkdir(parents=True, exist_ok=True)
        recipe, everything = self.context.recipe, self.context.train
        chosen = random.Random(f"{recipe.seed}/{seed}/need").sample(range(len(everything)), rows)
        epochs = epochs_at(rows, len(everything), recipe.schedule.epochs)
        schedule = recipe.schedule.model_copy(update={"epochs": epochs, "probe": False})
        options = training_options(recipe, self.context.machine)
        sampled = [everything[i] for i in chosen]
        names = {row.where for row in sampled}
        context = replace(
            self.context,
            recipe=recipe.model_copy(update={"seed": recipe.seed + seed, "schedule": schedule, "track": []}),
            base=load_base(recipe.model, options=options, offline=self.offline),  # techniques modify their base
            train=[*sampled, *(row for row in self.thoughts if row.where in names)],
        )
        if recipe.objective.searching is not None:
            # Mined as `tune` does it with these rows alone: from their passages and the documents. Passages of all rows
            # would be harder negatives than those of fewer rows.
            split = self.context.loaded.split
            split = replace(split, train=[example for example in split.train if example.where in names])
            context = replace(context, loaded=replace(context.loaded, split=split))
            context = with_hard_negatives(context, work, on_event=self.callbacks.on_event)
        policy = train(context, work, callbacks=self.callbacks).policy
        model = LocalModel(policy, context.template, context.recipe.objective, context.recipe.data.max_tokens)
        score = self.evaluator.score(self.evaluator.predict(model), name="need")[0].score
        cell = CurveCell(rows, seed, score, time.perf_counter() - began)
        self.store(cell)
        shutil.rmtree(work)
        return cell

    def file(self, rows: int, seed: int) -> Path:
        """Return the file of a cell."""
        return self.folder / "cells" / f"{rows}-{seed}.json"

    def store(self, cell: CurveCell) -> None:
        """Write the result of a cell."""
        file = self.file(cell.rows, cell.seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(asdict(cell)))


def measure_learning_curve(
    recipe: Recipe,
    options: LearningCurveOptions,
    *,
    out: Path | None = None,
    callbacks: Callbacks,
    offline: bool = False,
) -> tuple[Path, LearningCurveReport]:
    """Measure the learning curve of a recipe and extrapolate it; stored cells are reused.

    Args:
        recipe: the recipe; its technique, schedule and test rows are used for every size.
        options: what to predict, and the time budget.
        out: folder of the curve; by default `runs/need-NAME`.
        callbacks: receive progress events, and stop within a run.
        offline: do not access the network.

    Returns:
        The folder and the report.

    Raises:
        RecipeError: the options or the recipe cannot work.
        Refused: too few rows or minutes.
        TunesmithError: rows or models cannot be read.
    """
    folder = open_run(recipe, out, prefix="need-", file=NEED)
    with exclusive_lock(folder.path):
        folder = open_run(recipe, folder.path, file=NEED)  # read again: another process may have written it meanwhile
        recipe = folder.pinned(recipe)  # all cells run on the machine of the first one
        context = prepare(recipe, on_event=callbacks.on_event, offline=offline)
        _check(options, context)
        folder.start(recipe, machine=context.machine, base=context.base.fingerprint)
        run = LearningCurveRun.of(context, folder.path, callbacks, offline=offline)
        sizes, notes = _sizes(run, options.minutes, on=options.on)
        wanted = [(rows, seed) for rows in sizes for seed in range(SEEDS)]
        cells = _measure_cells(run, wanted, on=options.on)
        if context.recipe.replay.share:
            notes.append("replay is left out of these runs: only the rows of the recipe's own file are counted")
        report = _build_report(context, options, cells, notes=notes)
        write_whole(folder.path / "need.json", report.model_dump_json(indent=1))
        write_whole(folder.path / "need.html", page(report))
    return folder.path, report


def _measure_cells(run: LearningCurveRun, wanted: Sequence[tuple[int, int]], *, on: str) -> list[CurveCell]:
    """Return the cells of these rows and seeds, trained here or as tasks of a Ray cluster."""
    if on == LOCAL:
        numbered = enumerate(wanted, 1)
        return [run.cell(*cell, place=f"run {number} of {len(wanted)}: ") for number, cell in numbered]
    missing = [cell for cell in wanted if not run.file(*cell).exists()]
    run.callbacks.on_event(StageStarted(f"{len(missing)} runs on {on}"))
    recipe, stop = run.context.recipe, run.callbacks.should_stop
    work = partial(measure_cell, recipe, run.folder.absolute(), run.offline)
    found = each(work, missing, on=on, threads=recipe.machine.threads or cores(), stop=stop)
    for number, (cell, result) in enumerate(found, 1):
        run.store(result)  # again, if the worker has other disks
        run.callbacks.on_event(Note(f"run {number} of {len(missing)} finished: {cell[0]} rows, seed {cell[1]}"))
    if stop():
        raise Interrupted("stopped; finished runs are kept")
    return [run.cell(*cell) for cell in wanted]


def measure_cell(
    recipe: Recipe,
    folder: Path,
    offline: bool,
    cell: tuple[int, int],
    *,
    on_event: EventHandler = lambda event: None,
) -> CurveCell:
    """Train one cell (rows, seed) in a separate process; one that was lost resumes from its checkpoint."""
    context = prepare(recipe, on_event=on_event, offline=offline)
    run = LearningCurveRun.of(context, folder, Callbacks(on_event), offline=offline)
    return run.cell(*cell)


def epochs_at(rows: int, all_rows: int, epochs: float) -> float:
    """Return the passes over a subsample: as many steps as all rows take, at most MOST_EPOCHS or the recipe's."""
    return max(epochs, min(MOST_EPOCHS, epochs * all_rows / rows))


def _check(options: LearningCurveOptions, context: TrainingContext) -> None:
    """Raise for recipes and options that a learning curve cannot answer."""
    available, metric = len(context.train), context.recipe.objective.metric
    if len(context.tasks) > 1:
        fix = f"nearest that works: a recipe of {min(context.tasks)}"
        raise RecipeError(f"learning-curve: {len(context.tasks)} tasks have no common curve; {fix}")
    if context.recipe.objective.produces == "likelihood" and context.base.family == "encoder":
        raise RecipeError("learning-curve: masked words of an encoder have no score; nearest that works: a decoder")
    if available < 4 * FEWEST_ROWS:
        expected = f"expected {4 * FEWEST_ROWS} or more training rows, got {available}"
        raise Refused(f"{context.recipe.data.train}: {expected}; collect more")
    scale, target = Scale.of(metric), options.target
    if target is not None and not math.isfinite(target):
        raise RecipeError(f"--target: expected a number, got {target}; give a score")
    if target is not None and scale.sign * target > scale.best:
        best = f"{scale.sign * scale.best:g}"
        raise RecipeError(f"--target: the best possible {metric} is {best}, got {target:g}; give {best} at the best")
    fewest, most = sizes_of(available)[0], FARTHEST * available
    for rows in options.rows:
        if rows < fewest:
            raise RecipeError(
                f"--rows: expected {fewest:,} or more, the smallest measured size, got {rows:,}; give more"
            )
        if rows > most:
            limit = f"{FARTHEST:g} times the {available:,} training rows, the limit of the extrapolation"
            raise RecipeError(f"--rows: expected at most {limit}, got {rows:,}; give fewer")


def _sizes(run: LearningCurveRun, minutes: float | None, *, on: str) -> tuple[list[int], list[str]]:
    """Return the training sizes, and notes; with a time budget they are chosen once, after timing the smallest cell."""
    available = len(run.context.train)
    sizes = sizes_of(available)
    if minutes is None:
        return sizes, []
    file = run.folder / "sizes.json"
    known = read_page(file, BudgetedSize) if file.exists() else None
    if known is not None and known.minutes == minutes:
        largest = known.largest
    else:
        seconds = _measure_cells(run, [(sizes[0], 0)], on=on)[0].seconds
        largest = _largest(sizes[0], available, seconds / (60 * minutes), run.context.recipe.schedule.epochs)
        write_whole(file, json.dumps(asdict(BudgetedSize(largest, minutes))))
    if largest >= available:
        return sizes, []
    wider = math.sqrt(available / largest)
    note = (
        f"limited to {minutes:g} minutes: the largest size is {largest:,} of {available:,} training rows, so "
        f"predictions end at {FARTHEST * largest:,.0f} rows, and intervals are about {wider:.1f} times as wide"
    )
    return sizes_of(largest, smallest=sizes[0]), [note]


def _largest(smallest: int, available: int, share: float, epochs: float) -> int:
    """Return the largest size whose curve fits into the budget; a cell of the smallest size takes `share` of it.

    The time of a cell is assumed to grow with rows times epochs. The time of its evaluation does not, so this is an
    upper bound. Raises Refused if no curve fits.
    """
    per_row = share / (smallest * epochs_at(smallest, available, epochs))
    for largest in sorted({round(available * 0.95**i) for i in range(120)}, reverse=True):
        sizes = sizes_of(largest, smallest=smallest)
        if len(sizes) < SIZES:
            break
        passed = SEEDS * sum(rows * epochs_at(rows, available, epochs) for rows in sizes)
        if passed * per_row <= 1:
            return largest
    factor = SEEDS * SIZES * share
    raise Refused(
        f"--minutes: {SIZES} sizes of {SEEDS} seeds take at least {factor:.1f} times as long; raise it "
        "(finished cells are kept)"
    )


def _build_report(
    context: TrainingContext, options: LearningCurveOptions, cells: Sequence[CurveCell], *, notes: list[str]
) -> LearningCurveReport:
    """Fit the curve and build the report; without predictions if the fit is bad."""
    recipe = context.recipe
    metric = recipe.objective.metric
    scale = Scale.of(metric)
    sign, best = scale.sign, scale.best
    reading = read_curve([replace(cell, score=sign * cell.score) for cell in cells], best=best)
    sizes = sorted({cell.rows for cell in cells})
    scores = {rows: [cell.score for cell in cells if cell.rows == rows] for rows in sizes}
    largest = sizes[-1]
    good = not reading.problems
    wanted = options.rows or (2 * largest, round(FARTHEST * largest))
    predicted = [rows for rows in wanted if rows <= FARTHEST * largest] if good else []
    plotted = np.geomspace(sizes[0], max([largest, *predicted]), POINTS)
    target = None
    if options.target is not None and good:
        target = Target(
            score=options.target,
            rows=reading.rows_for(sign * options.target, sizes[0], round(FARTHEST * largest)),
            out_of_reach=sign * options.target > reading.ceiling.high,
        )
    report = LearningCurveReport(
        data=Path(recipe.data.train).name,
        model=recipe.model,
        objective=recipe.objective.kind,
        technique=recipe.technique.kind,
        metric=metric,
        lower_is_better=sign < 0,
        share=best == 1.0,
        train_rows=len(context.train),
        test_rows=len(context.test),
        sizes=[Size(rows=rows, scores=scores[rows], mean=float(np.mean(scores[rows]))) for rows in sizes],
        power_law={**asdict(reading.curve), "ceiling": sign * reading.curve.ceiling},
        held_out=reading.held.with_sign(sign),
        expected=[reading.guess(rows).with_sign(sign) for rows in predicted],
        curve=[reading.guess(round(float(rows))).with_sign(sign) for rows in plotted],
        # A ceiling at the best possible score follows from that bound, not from the measured sizes.
        ceiling=reading.ceiling.with_sign(sign) if good and reading.curve.ceiling < best else None,
        target=target,
        faults=list(reading.problems),
        notes=notes,
        seconds=sum(cell.seconds for cell in cells),
    )
    return report.model_copy(update={"sentence": sentence(report)})
