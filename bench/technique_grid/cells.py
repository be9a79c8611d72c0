"""The cells of the grid: which objective, technique and family meet, and by which recipe."""

from __future__ import annotations

import fnmatch
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import RecipeError
from tunesmith.recipe import Recipe, check_pair, load_recipe

MODELS = {"decoder": "smollm2-135m", "encoder": "minilm-l6"}


@dataclass(frozen=True, slots=True)
class GridTask:
    """The example that stands for an objective, what the grid changes in it, and how many of its rows it takes."""

    recipe: str
    changes: tuple[str, ...] = ()
    rows_each: int = 1  # a document, or a prompt that is answered many times, counts as so many rows
    tasks: tuple[str, ...] = ()  # of a recipe of several, which share the rows
    controls: bool = True

    def data(self, key: str, value: Any) -> list[str]:
        """The changes that set a key of `data` in each task."""
        places = [f"objective.tasks.{name}.data" for name in self.tasks] or ["data"]
        return [f"{place}.{key}={json.dumps(value)}" for place in places]


# Where answers are written, a twentieth of 2,600 rows tests: 130 answers take longer than the training.
WRITTEN = "data.test=0.05"
TASKS = {
    "classify": GridTask("reviews.yaml", ("data.test=0.1",)),
    # The base writes no rows for replay, which would take longer than the training; texts have no answers to deal out.
    "domain": GridTask("domain.yaml", ("replay.share=0", "schedule.batch_rows=4"), rows_each=4, controls=False),
    "instruct": GridTask("synopsis.yaml", (WRITTEN,)),
    "preference": GridTask("pairs.yaml"),
    "reward": GridTask("pairs.yaml", ("objective.kind=reward",)),
    "rl": GridTask("rl-synopsis.yaml", (WRITTEN, "schedule.learning_rate=auto"), rows_each=8, controls=False),
    "multitask": GridTask(
        "multitask.yaml",
        ("objective.tasks.sentiment.data.test=0.05", "objective.tasks.synopsis.data.test=0.05"),
        tasks=("sentiment", "synopsis", "french"),
        controls=False,
    ),
}
PLACES = tuple((objective, family) for objective in TASKS for family in MODELS)
# What a run by itself does more of, to be safe, and a cell beside its controls need not: a probe, and validations and
# checkpoints ten or six times.
VALIDATION, CHANGES = 0.05, ("schedule.probe=false",)
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
    """Where recipes and runs lie, how many training rows a cell sees, how often with other seeds, beside controls?"""

    examples: Path = Path("examples")
    out: Path = Path("runs/grid")
    rows: int = 600
    seeds: int = 1
    controls: bool = True

    @property
    def options(self) -> str:
        """What names it on the command line: --rows 160 --out bench/grid."""
        said = [f"--rows {self.rows}", f"--out {shlex.quote(str(self.out))}"]
        if self.seeds > 1:
            said.append(f"--seeds {self.seeds}")
        if not self.controls:
            said.append("--no-controls")
        if self.examples != Setting().examples:
            said.append(f"--examples {shlex.quote(str(self.examples))}")
        return " ".join(said)

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
    own = {
        "model": MODELS[cell.family],
        "technique": technique,
        "schedule.epochs": epochs,
        "controls": task.controls and setting.controls,
        "seed": seed,
    }
    tasks = max(1, len(task.tasks))
    rows = max(1, setting.rows // task.rows_each // tasks)
    data = [*task.data("validation", VALIDATION), *task.data("rows", rows)]
    wanted = [*CHANGES, *data, *task.changes, *(f"{key}={json.dumps(value)}" for key, value in own.items())]
    recipe, _ = load_recipe(setting.examples / task.recipe, changes=wanted)
    each = max(1, round(rows * tasks * epochs / recipe.schedule.batch_rows / VALIDATIONS))
    spread = recipe.schedule.model_copy(update={"eval_steps": each, "save_steps": each})
    return recipe.model_copy(update={"schedule": spread})


def refusal(cell: Cell, setting: Setting) -> str:
    """Why a cell cannot work, with the nearest that can; nothing where it can."""
    try:
        check_pair(recipe_of(cell, setting, 0), cell.family)
    except RecipeError as error:
        return str(error)
    return ""
