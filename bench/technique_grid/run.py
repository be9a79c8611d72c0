"""Runs of the grid: each cell is one run, its result one line of results.jsonl."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path

from pydantic import ValidationError

from bench.technique_grid.cells import COMPARED_WITH, TABLES, TASKS, Cell, Setting, cells, recipe_of, refusal
from bench.technique_grid.report import Control, Grid, GridCell, GridPair, RowScores, RunResult
from tunesmith.config import Recipe, save_recipe
from tunesmith.data.files import write_whole, writing
from tunesmith.errors import CheckpointError
from tunesmith.evaluation.diagnostics import HEAD_ONLY, SHUFFLED
from tunesmith.evaluation.results import BASE, Retention
from tunesmith.events import Note, StageStarted
from tunesmith.metrics.significance import compare_paired, holm
from tunesmith.pipelines.many_runs import LOCAL, each
from tunesmith.report.run_diff import pair_with_base
from tunesmith.report.schema import Report, read_report
from tunesmith.report.verdicts import is_not_beaten
from tunesmith.training.run_folder import RunFolder, identities, open_run

# Files of a run folder about its base model, equal for all runs on the same rows.
BASE_FILES = ("before.json", "base_head.txt", "base_head")
# Suffixes of the file next to a run folder that holds the reason why the run did not finish.
REFUSED = ".refused"  # the recipe cannot work
FAILED = ".failed"
# Not a mean over rows, so runs are not compared by them.
SET_METRICS = ("macro_f1", "thumbs_auc")
# Tunes the recipe in a file into a folder. Returns REFUSED or FAILED and the reason, or two empty strings.
Tune = Callable[[Path, Path], tuple[str, str]]
Results = Mapping[tuple[str, int, int, bool], RunResult]


def fill(
    chosen: Sequence[Cell],
    setting: Setting,
    *,
    tune: Tune,
    on_event: Callable[[StageStarted | Note], None],
    stop: Callable[[], bool],
    on: str = LOCAL,
) -> None:
    """Run the cells that have no result, one after another or as tasks of a Ray cluster, until `stop`."""
    with writing(setting.out):
        setting.out.mkdir(parents=True, exist_ok=True)
    results = load_results(setting.results)
    jobs = [
        (cell, seed)
        for seed in range(setting.seeds)
        for cell in chosen
        if not (_stored(results, cell, setting, seed)[1] or refusal(cell, setting))
    ]

    def here(job: tuple[Cell, int]) -> tuple[RunResult | None, str]:
        return run_job(setting, tune, job, on_event)

    work = here if on == LOCAL else partial(run_job, setting, tune)
    for _, (result, problem) in each(work, jobs, on=on, stop=stop):
        if problem:
            on_event(Note(problem))
        if result is not None:
            save_result(setting.results, result)


def run_job(
    setting: Setting,
    tune: Tune,
    job: tuple[Cell, int],
    on_event: Callable[[StageStarted], None] = lambda event: None,
) -> tuple[RunResult | None, str]:
    """Run a cell with a seed, and return its result if it has finished, and why it was skipped."""
    cell, seed = job
    recipe = recipe_of(cell, setting, seed)
    try:
        folder = open_run(recipe, setting.folder(cell, seed))
    except CheckpointError as error:
        return None, f"{error}; skipped"
    if not folder.finished:
        on_event(StageStarted(f"{cell.name}, seed {seed}"))
        _run(cell, setting, folder, recipe=recipe, tune=tune)
    return (result_of(cell, setting, folder, recipe) if folder.finished else None), ""


def _run(cell: Cell, setting: Setting, folder: RunFolder, *, recipe: Recipe, tune: Tune) -> None:
    if not folder.started:
        others = (
            other
            for other in cells()
            if (other.objective, other.family) == (cell.objective, cell.family) and other != cell
        )
        relatives = ((recipe_of(other, setting, recipe.seed), setting.folder(other, recipe.seed)) for other in others)
        begin_with_known_base(folder, recipe, relatives)
    path = folder.path.with_suffix(".yaml")
    save_recipe(recipe, path)
    suffix, reason = tune(path, folder.path)
    for old in (REFUSED, FAILED):
        folder.path.with_suffix(old).unlink(missing_ok=True)
    if suffix:
        write_whole(folder.path.with_suffix(suffix), reason)


def begin_with_known_base(folder: RunFolder, recipe: Recipe, relatives: Iterator[tuple[Recipe, Path]]) -> None:
    """Start a run with the base model's results, and the machine, of a run over the same base model and rows.

    Args:
        folder: The run folder, which does not exist yet.
        recipe: Its recipe.
        relatives: Recipes and folders of other runs on the same rows. The first that fits is copied from.
    """
    for other, path in relatives:
        # Virtual tokens shorten the rows that fit the context, and the base was then asked other texts.
        options = [(one.technique.load_options(), one.technique.virtual_tokens()) for one in (other, recipe)]
        if options[0] != options[1] or not (path / BASE_FILES[0]).exists():
            continue
        try:
            source = open_run(other, path)
        except CheckpointError:  # of another recipe, which may have had other rows
            continue
        # Copied under another name, then renamed: a run would continue with half of its files.
        half = replace(folder, path=folder.path.with_name(f".{folder.path.name}.half"))
        shutil.rmtree(half.path, ignore_errors=True)
        half.begin({key: value for key, value in source.page().items() if key != "identity"})
        for name in BASE_FILES:
            if (path / name).is_dir():
                shutil.copytree(path / name, half.path / name)
            elif (path / name).exists():
                shutil.copy2(path / name, half.path / name)
        half.path.replace(folder.path)
        return


def load_results(path: Path) -> dict[tuple[str, int, int, bool], RunResult]:
    """Load the finished runs by `RunResult.key`; an empty dictionary if there is no file.

    Raises:
        CheckpointError: A line is not a result.
    """
    if not path.exists():
        return {}
    results = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line:
            continue
        try:
            result = RunResult.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            problem = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise CheckpointError(f"{path}:{number}: {problem}; delete the line and run the cell again") from None
        results[result.key] = result
    return results


def save_result(path: Path, result: RunResult) -> None:
    """Add a finished run to the file, in the place of an earlier run of the same key."""
    results = {**load_results(path), result.key: result}  # read again: other processes may have added theirs
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "".join(f"{each.model_dump_json()}\n" for each in results.values()))


def _stored(results: Results, cell: Cell, setting: Setting, seed: int) -> tuple[RunResult | None, bool]:
    """Return the stored result of a cell, and whether it is of today's recipe and rows."""
    controls = setting.controls and TASKS[cell.objective].controls
    result = results.get((cell.name, setting.rows, seed, controls))
    if result is None:
        return None, False
    today, earlier = identities(recipe_of(cell, setting, seed), setting.examples)
    return result, result.identity in [*today, *earlier]


def result_of(cell: Cell, setting: Setting, folder: RunFolder, recipe: Recipe) -> RunResult:
    """Return the result of a finished run. Raises CheckpointError."""
    report = read_report(folder.path)
    lines = [_line(cell, recipe, report)]
    if report.multitask is not None:
        lines = [
            _line(
                cell,
                recipe,
                report.model_copy(update={"task": part.task, "verdict": part.verdict, "baselines": part.baselines}),
                task=part.name,
            )
            for part in report.multitask.tasks
        ]
    page = folder.page()
    return RunResult(
        rows=setting.rows,
        controls=recipe.controls,
        identity=identities(recipe, setting.examples)[0][0],
        base_fingerprint=page["base"],
        machine=page["machine"],
        cells=tuple(lines),
        row_scores=_row_scores(folder.path) if report.multitask is None else None,
    )


def _row_scores(folder: Path) -> RowScores | None:
    pairs = pair_with_base(folder)
    if pairs.metric in SET_METRICS:
        return None
    # A row without a group is a group of its own; no group is called like a location.
    groups = [row.group or f"\n{row.where}" for row in pairs.rows]
    texts = json.dumps([(row.question, row.gold) for row in pairs.rows])
    base, tuned = (
        "".join("01"[int(score)] for score in side) if set(side) <= {0.0, 1.0} else tuple(map(float, side))
        for side in (pairs.base, pairs.tuned)
    )
    return RowScores(
        metric=pairs.metric,
        digest=hashlib.sha256(texts.encode()).hexdigest()[:16],
        groups=tuple((group, len(list(members))) for group, members in groupby(groups)),
        base=base,
        tuned=tuned,
    )


def _line(cell: Cell, recipe: Recipe, report: Report, *, task: str = "") -> GridCell:
    controls = {arm.name: Control(score=arm.score, p_adjusted=arm.p_adjusted) for arm in report.controls}
    baselines = [arm for arm in report.baselines if arm.name != BASE]
    best = max(baselines, key=lambda arm: arm.score, default=None)
    general = report.retention
    return GridCell(
        objective=cell.objective,
        family=cell.family,
        task=task,
        technique=cell.technique,
        seed=recipe.seed,
        model=report.model,
        metric=report.task.metric,
        base=report.task.base,
        tuned=report.task.tuned,
        delta=report.task.delta,
        ci95=report.task.ci95,
        p_value=report.task.p_value,
        train_rows=report.data.train,
        epochs=recipe.schedule.epochs,
        steps=report.training.planned_steps,
        test_rows=report.task.n,
        head_only=controls.get(HEAD_ONLY),
        shuffled=controls.get(SHUFFLED),
        baseline=(best.name, best.score) if best else None,
        verdict=_verdict(report),
        learning_rate=report.training.learning_rate,
        trainable=report.training.trainable,
        parameters=report.training.parameters,
        seconds=report.speed.seconds,
        peak_bytes=report.memory.peak_bytes,
        model_bytes=report.memory.model_bytes,
        general_nats=general.rise if general else None,
        probe=_probe_change(general),
    )


def _probe_change(general: Retention | None) -> float | None:
    if general is None or general.probe_tuned is None or general.probe_base is None:
        return None
    return general.probe_tuned - general.probe_base


def _verdict(report: Report) -> str:
    """Return the verdict against the base, "no effect" if a control scores as high, and whether there was a control."""
    task = report.task
    if task.verdict != "worse" and any(is_not_beaten(arm, task) for arm in report.controls):
        return "no effect"
    return "better, no control run" if task.verdict == "better" and not report.controls else task.verdict


def read(setting: Setting) -> Grid:
    """Return the finished cells, their comparisons, and the cells that cannot work, are missing or are stale."""
    results = load_results(setting.results)
    finished: list[RunResult] = []
    refused: dict[str, str] = {}
    failed: dict[str, str] = {}
    missing: list[str] = []
    partial: list[str] = []
    stale: list[str] = []
    for cell in cells():
        stored = [_stored(results, cell, setting, seed) for seed in range(setting.seeds)]
        done = [result for result, current in stored if result is not None and current]
        others = sum(result is not None and not current for result, current in stored)
        if others:
            stale.append(cell.name)
        finished += done
        if len(done) + others == setting.seeds:
            continue
        if not done and (reason := refusal(cell, setting) or _reason(cell, setting, REFUSED)):
            refused[cell.name] = reason
            continue
        (partial if done else missing).append(cell.name)
        if reason := _reason(cell, setting, FAILED):
            failed[cell.name] = reason
    return Grid(
        cells=tuple(sorted((cell for result in finished for cell in result.cells), key=_order)),
        pairs=tuple(_pairs(finished)),
        refused=refused,
        missing=tuple(missing),
        partial=tuple(partial),
        failed=failed,
        options=setting.options,
        stale=tuple(stale),
    )


def _reason(cell: Cell, setting: Setting, suffix: str) -> str:
    """Return why a run of the cell was refused or failed; an empty string if none was."""
    paths = [setting.folder(cell, seed).with_suffix(suffix) for seed in range(setting.seeds)]
    return next((path.read_text(encoding="utf-8") for path in paths if path.exists()), "")


def _order(cell: GridCell) -> tuple[int, int]:
    """Return the position of a cell's table and task on the page."""
    names = TASKS[cell.objective].tasks
    return TABLES.index((cell.objective, cell.family)), names.index(cell.task) if cell.task else 0


def _pairs(results: Sequence[RunResult]) -> Iterator[GridPair]:
    """Compare each technique with its base model, if it has several seeds, and with COMPARED_WITH on shared seeds.

    The p-values of one table are adjusted for each other.
    """
    for table in TABLES:
        runs: dict[str, dict[int, RunResult]] = {}  # technique -> seed -> run
        for result in results:
            cell = result.cells[0]
            if (cell.objective, cell.family) == table and result.row_scores is not None:
                runs.setdefault(cell.technique, {})[cell.seed] = result
        over_bases = [_pair(list(seeds.values())) for seeds in runs.values() if len(seeds) > 1]
        between = []
        for name, seeds in runs.items():
            others = runs.get(COMPARED_WITH.get(name, ""), {})
            if shared := [seed for seed in seeds if seed in others]:
                between.append(_pair([seeds[seed] for seed in shared], [others[seed] for seed in shared]))
        for pairs in (over_bases, between):
            adjusted = holm({pair.technique: pair.p_value for pair in pairs})
            yield from (pair.model_copy(update={"p_adjusted": adjusted[pair.technique]}) for pair in pairs)


def _pair(runs: Sequence[RunResult], others: Sequence[RunResult] = ()) -> GridPair:
    """Compare the runs of one technique, one per seed, with their base or with `others` on the rows of all seeds.

    A group that is in the test rows of several seeds is one cluster. Raises CheckpointError.
    """
    groups: list[str] = []
    before: list[float] = []
    after: list[float] = []
    metric = ""
    for run, other in zip(runs, others or runs, strict=True):
        tuned, reference = run.row_scores, other.row_scores
        assert tuned is not None
        assert reference is not None
        if (tuned.digest, tuned.metric) != (reference.digest, reference.metric):
            raise CheckpointError(f"{run.key}: tested on other rows than {other.key}; run both cells again")
        metric = tuned.metric
        groups += [group for group, rows in tuned.groups for _ in range(rows)]
        before += map(float, reference.tuned if others else reference.base)
        after += map(float, tuned.tuned)
    cell = runs[0].cells[0]
    comparison = compare_paired(before, after, groups=groups)
    return GridPair(
        objective=cell.objective,
        family=cell.family,
        technique=cell.technique,
        against=others[0].cells[0].technique if others else BASE,
        seeds=tuple(run.cells[0].seed for run in runs),
        metric=metric,
        delta=comparison.delta,
        ci95=comparison.ci95,
        p_value=comparison.p_value,
        p_adjusted=comparison.p_value,
        n=comparison.n,
    )
