"""Cells of the grid: which technique runs on which objective and model family, and with which recipe."""

from __future__ import annotations

import fnmatch
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.config import Recipe, check_pair, load_recipe
from tunesmith.errors import RecipeError

MODELS = {"decoder": "smollm2-135m", "encoder": "minilm-l6"}


@dataclass(frozen=True, slots=True)
class GridTask:
    """The example recipe of an objective and how the grid changes it."""

    recipe: str  # file in the examples folder
    changes: tuple[str, ...] = ()  # KEY=VALUE
    row_cost: int = 1  # a document, or a prompt with many sampled completions, counts as this number of rows
    tasks: tuple[str, ...] = ()  # names of the tasks of a multitask recipe, which share the rows
    controls: bool = True

    def data(self, key: str, value: Any) -> list[str]:
        """Return the changes that set a key of `data` in each task."""
        sections = [f"objective.tasks.{name}.data" for name in self.tasks] or ["data"]
        return [f"{section}.{key}={json.dumps(value)}" for section in sections]


# Generating 130 answers takes longer than the training, so only a twentieth of the 2,600 rows is test data.
SMALL_TEST = "data.test=0.05"
TASKS = {
    "classify": GridTask("reviews.yaml", ("data.test=0.1",)),
    # Generating replay rows with the base model would take longer than the training. Texts have no labels to shuffle.
    "domain": GridTask("domain.yaml", ("replay.share=0", "schedule.batch_rows=4"), row_cost=4, controls=False),
    "instruct": GridTask("synopsis.yaml", (SMALL_TEST,)),
    "preference": GridTask("pairs.yaml"),
    "reward": GridTask("pairs.yaml", ("objective.kind=reward",)),
    "rl": GridTask("rl-synopsis.yaml", (SMALL_TEST, "schedule.learning_rate=auto"), row_cost=8, controls=False),
    "multitask": GridTask(
        "multitask.yaml",
        ("objective.tasks.sentiment.data.test=0.05", "objective.tasks.synopsis.data.test=0.05"),
        tasks=("sentiment", "synopsis", "french"),
        controls=False,
    ),
}
# Objective and family of each table, in the order of the page.
TABLES = tuple((objective, family) for objective in TASKS for family in MODELS)
# A single run protects itself with an overfit check and six to ten validations and checkpoints. A cell has controls, so
# it skips the check and validates twice.
VALIDATION_SHARE = 0.05
CHANGES = ("schedule.probe=false",)
VALIDATIONS = 2
# Technique -> its section of the recipe, and epochs: techniques with few trainable parameters need more of them.
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
# Soft prompts initialized at random, on one objective only: they measure what the initialization contributes.
RANDOM: dict[str, tuple[dict[str, Any], float]] = {
    "prompt-random": ({"kind": "prompt", "init": "random"}, 3),
    "prefix-random": ({"kind": "prefix", "init": "random"}, 3),
}
# Technique -> the one that it is compared with row by row.
COMPARED_WITH = {
    **{name: "lora" for name in TECHNIQUES if name != "lora"},
    "prompt-random": "prompt",
    "prefix-random": "prefix",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """A technique on an objective and a model family."""

    objective: str
    technique: str
    family: str

    @property
    def name(self) -> str:
        """classify/lora/decoder."""
        return f"{self.objective}/{self.technique}/{self.family}"


@dataclass(frozen=True, slots=True)
class Setting:
    """Files of the grid, and the size of each cell: training rows, seeds, with or without controls."""

    examples: Path = Path("examples")
    out: Path = Path("runs/technique_grid")  # run folders, not under version control
    results: Path = Path("bench/technique_grid/results.jsonl")
    rows: int = 600
    seeds: int = 1
    controls: bool = True

    @property
    def options(self) -> str:
        """Return the options of the command line that reproduce it: --rows 160 --seeds 3."""
        default = Setting()
        words = [f"--rows {self.rows}"]
        if self.seeds > 1:
            words.append(f"--seeds {self.seeds}")
        if not self.controls:
            words.append("--no-controls")
        for name in ("examples", "out", "results"):
            path = getattr(self, name)
            if path != getattr(default, name):
                words.append(f"--{name} {shlex.quote(str(path))}")
        return " ".join(words)

    def folder(self, cell: Cell, seed: int) -> Path:
        """Return the run folder of a cell."""
        return self.out / f"{cell.name.replace('/', '-')}-{self.rows}-{seed}"


def cells(only: Sequence[str] = ()) -> list[Cell]:
    """Return the cells whose name matches one of the patterns, all without patterns, in the order of the tables.

    Raises:
        RecipeError: A pattern matches no cell.
    """
    every = [Cell(objective, name, family) for objective, family in TABLES for name in TECHNIQUES]
    every += [Cell("classify", name, "decoder") for name in RANDOM]
    names = [cell.name for cell in every]
    for pattern in only:
        if not fnmatch.filter(names, pattern):
            raise RecipeError(f"--only {pattern}: no such cell; write for example classify/lora/decoder or */lora/*")
    return [cell for cell in every if not only or any(fnmatch.fnmatch(cell.name, pattern) for pattern in only)]


def recipe_of(cell: Cell, setting: Setting, seed: int) -> Recipe:
    """Return the recipe of a cell. Raises RecipeError."""
    task = TASKS[cell.objective]
    technique, epochs = {**TECHNIQUES, **RANDOM}[cell.technique]
    values = {
        "model": MODELS[cell.family],
        "technique": technique,
        "schedule.epochs": epochs,
        "controls": task.controls and setting.controls,
        "seed": seed,
    }
    tasks = max(1, len(task.tasks))
    rows = max(1, setting.rows // task.row_cost // tasks)
    data = [*task.data("validation", VALIDATION_SHARE), *task.data("rows", rows)]
    changes = [*CHANGES, *data, *task.changes, *(f"{key}={json.dumps(value)}" for key, value in values.items())]
    recipe, _ = load_recipe(setting.examples / task.recipe, changes=changes)
    steps = max(1, round(rows * tasks * epochs / recipe.schedule.batch_rows / VALIDATIONS))
    schedule = recipe.schedule.model_copy(update={"eval_steps": steps, "save_steps": steps})
    return recipe.model_copy(update={"schedule": schedule})


def refusal(cell: Cell, setting: Setting) -> str:
    """Return why a cell cannot work, with the nearest one that can; an empty string if it can."""
    try:
        check_pair(recipe_of(cell, setting, 0), cell.family)
    except RecipeError as error:
        return str(error)
    return ""
