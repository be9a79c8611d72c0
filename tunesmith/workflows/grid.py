"""The grid: every technique on every objective and family, cell by cell, each a run of its own."""

from __future__ import annotations

import fnmatch
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.data.files import write_whole
from tunesmith.errors import RecipeError
from tunesmith.recipe import Recipe, Schedule, check_pair, load_recipe, save_recipe
from tunesmith.report.diff import compared, paired
from tunesmith.report.grid import Control, Grid, GridCell, GridPair, pair_of
from tunesmith.report.schema import Report, Retention, read_report
from tunesmith.report.standing import BASE, holds_up
from tunesmith.workflows.prepare import Listener
from tunesmith.workflows.run_folder import RunFolder, open_run
from tunesmith.workflows.worth import HEAD_ONLY, SHUFFLED

MODELS = {"decoder": "smollm2-135m", "encoder": "minilm-l6"}


@dataclass(frozen=True, slots=True)
class Task:
    """The example that stands for an objective, what the grid changes in it, and how many of its rows it takes."""

    recipe: str
    changes: tuple[str, ...] = ()
    rows_each: int = 1  # a document counts as so many rows


TASKS = {
    "classify": Task("reviews.yaml", ("data.test=0.1",)),
    # The base writes no rows for replay: that would take longer than the training.
    "domain": Task("domain.yaml", ("replay.share=0",), rows_each=20),
    "instruct": Task("synopsis.yaml"),
}
PLACES = tuple((objective, family) for objective in TASKS for family in MODELS)
# What a run by itself does more of, to be safe, and a cell beside its controls need not: a probe, and validations and
# checkpoints ten or six times.
CHANGES = ("data.validation=0.05", "schedule.probe=false")
VALIDATIONS = 2
# Technique -> its words in a recipe and how often it sees the rows: what moves few numbers needs more passes.
TECHNIQUES: dict[str, tuple[dict[str, Any], float]] = {
    "lora": ({"kind": "lora"}, 2),
    "full": ({"kind": "full"}, 2),
    "prefix": ({"kind": "prefix"}, 3),
    "prompt": ({"kind": "prompt"}, 3),
    "p-tuning": ({"kind": "p-tuning"}, 3),
    "ia3": ({"kind": "ia3"}, 3),
    "dora": ({"kind": "lora", "dora": True}, 2),
    "qlora": ({"kind": "lora", "quantize": "nf4"}, 2),
}
# What virtual tokens begin as: run on one place only, to see whether it matters.
RANDOM: dict[str, tuple[dict[str, Any], float]] = {
    "prompt-random": ({"kind": "prompt", "init": "random"}, 3),
    "prefix-random": ({"kind": "prefix", "init": "random"}, 3),
}
# Which pairs of techniques are compared row by row.
AGAINST = {
    **{name: "lora" for name in TECHNIQUES if name != "lora"},
    "prompt-random": "prompt",
    "prefix-random": "prefix",
}
# What a run keeps of its base, the same for all runs on the same rows.
OF_THE_BASE = ("before.json", "base_head.txt", "base_head")

# Tunes the recipe in a file into a folder; answers why it was refused, or nothing.
Tune = Callable[[Path, Path], str]


@dataclass(frozen=True, slots=True)
class Cell:
    """A technique on an objective and a family."""

    objective: str
    technique: str
    family: str

    @property
    def name(self) -> str:
        """classify/lora/decoder."""
        return f"{self.objective}/{self.technique}/{self.family}"


@dataclass(frozen=True, slots=True)
class Setting:
    """Where recipes and runs lie, how many training rows a cell sees, and how often with other seeds."""

    examples: Path = Path("examples")
    out: Path = Path("runs/grid")
    rows: int = 600
    seeds: int = 1

    def folder(self, cell: Cell, seed: int) -> Path:
        """Where the run of a cell lies."""
        return self.out / f"{cell.name.replace('/', '-')}-{self.rows}-{seed}"


def cells(only: Sequence[str] = ()) -> list[Cell]:
    """All cells in the order of the tables, or those whose name one of the patterns fits. Raises RecipeError."""
    every = [Cell(objective, name, family) for objective, family in PLACES for name in TECHNIQUES]
    every += [Cell("classify", name, "decoder") for name in RANDOM]
    names = [cell.name for cell in every]
    for pattern in only:
        if not fnmatch.filter(names, pattern):
            raise RecipeError(f"--only {pattern}: no such cell; write for example classify/lora/decoder or */lora/*")
    return [cell for cell in every if not only or any(fnmatch.fnmatch(cell.name, one) for one in only)]


def recipe_of(cell: Cell, setting: Setting, seed: int) -> Recipe:
    """What a cell runs. Raises RecipeError."""
    task = TASKS[cell.objective]
    technique, epochs = {**TECHNIQUES, **RANDOM}[cell.technique]
    each = max(1, round(setting.rows * epochs / Schedule().batch_rows / VALIDATIONS))
    own = {
        "model": MODELS[cell.family],
        "technique": technique,
        "schedule.epochs": epochs,
        "data.rows": max(1, setting.rows // task.rows_each),
        "schedule.eval_steps": each,
        "schedule.save_steps": each,
        "controls": cell.objective != "domain",  # texts have no answers to deal out
        "seed": seed,
    }
    wanted = [*CHANGES, *task.changes, *(f"{key}={json.dumps(value)}" for key, value in own.items())]
    return load_recipe(setting.examples / task.recipe, changes=wanted)[0]


def fill(wanted: Sequence[Cell], setting: Setting, *, tune: Tune, listen: Listener, stop: Callable[[], bool]) -> None:
    """Run the cells that are not finished, one after another, until `stop`."""
    setting.out.mkdir(parents=True, exist_ok=True)
    for seed in range(setting.seeds):
        for cell in wanted:
            if stop():
                return
            folder = open_run(recipe := recipe_of(cell, setting, seed), setting.folder(cell, seed))
            if folder.finished or refusal(cell, setting):
                continue
            listen({"event": "stage", "text": f"{cell.name}, seed {seed}"})
            if not folder.begun:
                _with_known_base(folder, recipe, _relatives(cell, setting, seed))
            place = folder.path.with_suffix(".yaml")
            save_recipe(recipe, place)
            if why := tune(place, folder.path):
                write_whole(folder.path.with_suffix(".refused"), why)


def refusal(cell: Cell, setting: Setting) -> str:
    """Why a cell cannot work, with the nearest that can; nothing where it can."""
    try:
        check_pair(recipe_of(cell, setting, 0), cell.family)
    except RecipeError as error:
        return str(error)
    return ""


def _relatives(cell: Cell, setting: Setting, seed: int) -> Iterator[tuple[Recipe, Path]]:
    """Runs of the other techniques on the same rows."""
    for other in cells():
        if (other.objective, other.family) == (cell.objective, cell.family) and other != cell:
            yield recipe_of(other, setting, seed), setting.folder(other, seed)


def _with_known_base(folder: RunFolder, recipe: Recipe, relatives: Iterator[tuple[Recipe, Path]]) -> None:
    """Begin a run with what a relative knows of the base that both have, its machine with it."""
    for other, place in relatives:
        if other.technique.load_options() != recipe.technique.load_options() or not (place / OF_THE_BASE[0]).exists():
            continue
        known = open_run(other, place)
        folder.begin({key: value for key, value in known.page().items() if key != "identity"})
        for name in OF_THE_BASE:
            if (place / name).is_dir():
                shutil.copytree(place / name, folder.path / name)
            elif (place / name).exists():
                shutil.copy2(place / name, folder.path / name)
        return


def read(setting: Setting) -> Grid:
    """All that is known: finished cells, pairs on the same rows, pairs that cannot work, and what is missing."""
    found: list[GridCell] = []
    refused: dict[str, str] = {}
    missing = []
    for cell in cells():
        done = [seed for seed in range(setting.seeds) if (setting.folder(cell, seed) / "report.json").exists()]
        found += [_told(cell, setting.folder(cell, seed), seed) for seed in done]
        said = setting.folder(cell, 0).with_suffix(".refused")
        why = refusal(cell, setting) or (said.read_text(encoding="utf-8") if said.exists() else "")
        if why and not done:
            refused[cell.name] = why
        elif not done:
            missing.append(cell.name)
    found.sort(key=lambda cell: PLACES.index(cell.place))  # the cells of one place together
    return Grid(cells=tuple(found), pairs=tuple(_pairs(found)), refused=refused, missing=tuple(missing))


def _told(cell: Cell, folder: Path, seed: int) -> GridCell:
    """A finished run in one line."""
    report = read_report(folder)
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
    """What the run is worth beside its base, or "no effect" where a control does as well."""
    task = report.task
    unbeaten = any(holds_up(arm, task) for arm in report.controls)
    return "no effect" if task.verdict == "better" and unbeaten else task.verdict


def _pairs(found: Sequence[GridCell]) -> Iterator[GridPair]:
    """Each technique against the one that it is measured by, over the seeds that both were run with."""
    by = {(cell.place, cell.technique, cell.seed): cell for cell in found}
    for place in PLACES:
        for name, other in AGAINST.items():
            seeds = [seed for p, t, seed in by if (p, t) == (place, name) and (place, other, seed) in by]
            if seeds:
                sides = [(by[place, other, seed], by[place, name, seed]) for seed in seeds]
                yield _pair(sides, seeds)


def _pair(sides: Sequence[tuple[GridCell, GridCell]], seeds: Sequence[int]) -> GridPair:
    """The rows of all seeds as one comparison; a group that several seeds test is one cluster."""
    told = [paired(Path(a.folder), Path(b.folder)) for a, b in sides]
    rows = [row for part, _, _ in told for row in part]
    scores = tuple([value for _, both, _ in told for value in both[side]] for side in (0, 1))
    metric = told[0][2]
    against, one = sides[0]
    return pair_of(one, against.technique, compared(rows, (scores[0], scores[1]), metric), metric, seeds)
