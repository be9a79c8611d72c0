"""The grid: every technique on every objective and family, cell by cell, each a run of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.technique_grid.cells import AGAINST, PLACES, TASKS, Cell, Setting, cells, recipe_of, refusal
from bench.technique_grid.report import Control, Grid, GridCell, GridPair, pair_of
from tunesmith.data.files import write_whole, writing
from tunesmith.errors import CheckpointError
from tunesmith.evaluation.results import BASE, Retention
from tunesmith.evaluation.significance import holm
from tunesmith.events import EventHandler, Note, StageStarted
from tunesmith.recipe import Recipe, load_recipe, save_recipe
from tunesmith.report.diff import compared, over_base, paired
from tunesmith.report.predictions import Prediction
from tunesmith.report.schema import Report, read_report
from tunesmith.report.standing import is_not_beaten
from tunesmith.workflows.run_folder import RunFolder, open_run
from tunesmith.workflows.worth import HEAD_ONLY, SHUFFLED

# What a run keeps of its base, the same for all runs on the same rows.
OF_THE_BASE = ("before.json", "base_head.txt", "base_head")

# What becomes of a run that is not finished, as the end of a file's name: it cannot work, or it broke.
REFUSED, FAILED = ".refused", ".failed"
# Tunes the recipe in a file into a folder; answers one of the two and why, or nothing twice.
Tune = Callable[[Path, Path], tuple[str, str]]


def fill(
    wanted: Sequence[Cell], setting: Setting, *, tune: Tune, on_event: EventHandler, stop: Callable[[], bool]
) -> None:
    """Run the cells that are not finished, one after another, until `stop`."""
    with writing(setting.out):
        setting.out.mkdir(parents=True, exist_ok=True)
    for seed in range(setting.seeds):
        for cell in wanted:
            if stop():
                return
            recipe = recipe_of(cell, setting, seed)
            try:
                folder = open_run(recipe, setting.folder(cell, seed))
            except CheckpointError as error:
                on_event(Note(f"{error}; left out"))
                continue
            if folder.finished or refusal(cell, setting):
                continue
            on_event(StageStarted(f"{cell.name}, seed {seed}"))
            if not folder.begun:
                begin_with_known_base(folder, recipe, _relatives(cell, setting, seed))
            place = folder.path.with_suffix(".yaml")
            save_recipe(recipe, place)
            ended, why = tune(place, folder.path)
            for end in (REFUSED, FAILED):
                folder.path.with_suffix(end).unlink(missing_ok=True)
            if ended:
                write_whole(folder.path.with_suffix(ended), why)


def _relatives(cell: Cell, setting: Setting, seed: int) -> Iterator[tuple[Recipe, Path]]:
    """Runs of the other techniques on the same rows."""
    for other in cells():
        if (other.objective, other.family) == (cell.objective, cell.family) and other != cell:
            yield recipe_of(other, setting, seed), setting.folder(other, seed)


def begin_with_known_base(folder: RunFolder, recipe: Recipe, relatives: Iterator[tuple[Recipe, Path]]) -> None:
    """Begin a run with what a relative knows of the base that both have, its machine with it."""
    for other, place in relatives:
        # Virtual tokens may leave rows less room, and then the base was asked other texts.
        alike = [(one.technique.load_options(), one.technique.virtual_tokens()) for one in (other, recipe)]
        if alike[0] != alike[1] or not (place / OF_THE_BASE[0]).exists():
            continue
        try:
            known = open_run(other, place)
        except CheckpointError:  # of another recipe, which may have had other rows
            continue
        # Beside its place, then renamed: a run that knows half of its base would go on with that.
        half = replace(folder, path=folder.path.with_name(f".{folder.path.name}.half"))
        shutil.rmtree(half.path, ignore_errors=True)
        half.begin({key: value for key, value in known.page().items() if key != "identity"})
        for name in OF_THE_BASE:
            if (place / name).is_dir():
                shutil.copytree(place / name, half.path / name)
            elif (place / name).exists():
                shutil.copy2(place / name, half.path / name)
        half.path.replace(folder.path)
        return


def read(setting: Setting) -> Grid:
    """All that is known: finished cells, pairs on the same rows, pairs that cannot work, what is missing or stale."""
    found: list[GridCell] = []
    refused: dict[str, str] = {}
    failed: dict[str, str] = {}
    missing: list[str] = []
    partly: list[str] = []
    stale: list[str] = []
    for cell in cells():
        done, others = _finished(cell, setting)
        if others:
            stale.append(cell.name)
        found += [line for seed in done for line in _told(cell, setting.folder(cell, seed), seed)]
        if len(done) + others == setting.seeds:
            continue
        if not done and (why := refusal(cell, setting) or _said(cell, setting, REFUSED)):
            refused[cell.name] = why
            continue
        (partly if done else missing).append(cell.name)
        if why := _said(cell, setting, FAILED):
            failed[cell.name] = why
    found.sort(key=_place)
    pairs = tuple(_pairs(found))
    return Grid(
        cells=tuple(found),
        pairs=pairs,
        refused=refused,
        missing=tuple(missing),
        partly=tuple(partly),
        failed=failed,
        options=setting.options,
        stale=tuple(stale),
    )


def _finished(cell: Cell, setting: Setting) -> tuple[list[int], int]:
    """The seeds of which a cell's run is finished, and of how many the folder holds a run of another recipe."""
    done, others = [], 0
    for seed in range(setting.seeds):
        place = setting.folder(cell, seed)
        if not place.exists():
            continue
        try:
            run = open_run(recipe_of(cell, setting, seed), place)
        except CheckpointError:
            others += 1
            continue
        if run.finished:
            done.append(seed)
    return done, others


def _said(cell: Cell, setting: Setting, end: str) -> str:
    """Why a run of the cell was refused or failed, the first that was; nothing where none was."""
    said = [setting.folder(cell, seed).with_suffix(end) for seed in range(setting.seeds)]
    return next((one.read_text(encoding="utf-8") for one in said if one.exists()), "")


def _place(cell: GridCell) -> tuple[int, int]:
    """Where a line stands: the lines of one table together."""
    names = TASKS[cell.objective].tasks
    return PLACES.index((cell.objective, cell.family)), names.index(cell.part) if cell.part else 0


def _told(cell: Cell, folder: Path, seed: int) -> list[GridCell]:
    """A finished run in one line, or in one for each of its tasks."""
    report = read_report(folder)
    if report.multitask is None:
        return [_line(cell, folder, seed, report)]
    parts = report.multitask.tasks
    told = [
        report.model_copy(update={"task": part.task, "verdict": part.verdict, "baselines": part.baselines})
        for part in parts
    ]
    return [
        _line(cell, folder, seed, one).model_copy(update={"part": part.name})
        for part, one in zip(parts, told, strict=True)
    ]


def _line(cell: Cell, folder: Path, seed: int, report: Report) -> GridCell:
    kept, task = report.retention, report.task
    controls = {arm.name: Control(score=arm.score, p_adjusted=arm.p_adjusted) for arm in report.controls}
    cheap = [arm for arm in report.baselines if arm.name != BASE]
    best = max(cheap, key=lambda arm: arm.score, default=None)
    return GridCell(
        objective=cell.objective,
        family=cell.family,
        technique=cell.technique,
        seed=seed,
        folder=str(folder),
        model=report.model,
        metric=task.metric,
        base=task.base,
        tuned=task.tuned,
        delta=task.delta,
        ci95=task.ci95,
        p_value=task.p_value,
        train=report.data.train,
        epochs=load_recipe(folder / "recipe.yaml")[0].schedule.epochs,
        steps=report.training.planned_steps,
        test=task.n,
        head_only=controls.get(HEAD_ONLY),
        shuffled=controls.get(SHUFFLED),
        cheap=(best.name, best.score) if best else None,
        verdict=_verdict(report),
        learning_rate=report.training.learning_rate,
        trainable=report.training.trainable,
        parameters=report.training.parameters,
        seconds=report.speed.seconds,
        peak_bytes=report.memory.peak_bytes,
        model_bytes=report.memory.model_bytes,
        general=kept.general_nll_tuned - kept.general_nll_base if kept else None,
        probe=_gain(kept),
    )


def _gain(kept: Retention | None) -> float | None:
    """What the tuned model gets right of the probe beyond its base; a share of 0 is one too."""
    if kept is None or kept.probe_tuned is None or kept.probe_base is None:
        return None
    return kept.probe_tuned - kept.probe_base


def _verdict(report: Report) -> str:
    """What the run is worth beside its base, with "no effect" where a control does as well, and what no control saw."""
    task = report.task
    if task.verdict != "worse" and any(is_not_beaten(arm, task) for arm in report.controls):
        return "no effect"
    return "better, no control run" if task.verdict == "better" and not report.controls else task.verdict


def _pairs(found: Sequence[GridCell]) -> Iterator[GridPair]:
    """Each technique against the one that it is measured by, over the seeds that both were run with; and where those
    are several, each over its base.

    The p-values of one table are adjusted for each other.
    """
    by = {((cell.objective, cell.family), cell.technique, cell.seed): cell for cell in found if not cell.part}
    for place in PLACES:
        above, beside = [], []
        here = [cell for (at, _, _), cell in by.items() if at == place]
        for name in dict.fromkeys(cell.technique for cell in here):
            own = [cell for cell in here if cell.technique == name]
            if len(own) > 1:
                above.append(_pair([over_base(Path(cell.folder)) for cell in own], own, BASE))
            other = AGAINST.get(name, "")
            both = [cell for cell in own if (place, other, cell.seed) in by]
            if both:
                against = [Path(by[place, other, cell.seed].folder) for cell in both]
                told = [paired(a, Path(cell.folder)) for a, cell in zip(against, both, strict=True)]
                beside.append(_pair(told, both, other))
        for pairs in (above, beside):
            adjusted = holm({pair.technique: pair.p_value for pair in pairs})
            yield from (pair.model_copy(update={"p_adjusted": adjusted[pair.technique]}) for pair in pairs)


def _pair(told: Sequence[tuple[list[Prediction], Any, str]], cells: Sequence[GridCell], against: str) -> GridPair:
    """The rows of all seeds as one comparison; what several seeds test, a group or a row, counts once."""
    # Where no row has a group, each would count anew under every seed.
    rows = [row.model_copy(update={"group": row.group or f"\n{row.where}"}) for part, _, _ in told for row in part]
    scores = tuple([value for _, both, _ in told for value in both[side]] for side in (0, 1))
    metric = told[0][2]
    seeds = [cell.seed for cell in cells]
    return pair_of(cells[0], against, compared(rows, (scores[0], scores[1]), metric), metric, seeds)
