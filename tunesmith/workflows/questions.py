"""Rows of any file as questions to a model: by the run's own objective, or by one that fits the rows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.data.examples import Example, LabelledText
from tunesmith.data.files import read_page
from tunesmith.data.formats import detect
from tunesmith.data.rows import Row, columns_of, keep, read_rows
from tunesmith.data.split import by_prompt
from tunesmith.errors import DataError, RecipeError
from tunesmith.inference.folder import ModelManifest, read_manifest
from tunesmith.inference.open import ModelSource
from tunesmith.objectives import Classify, Multitask, Preference
from tunesmith.objectives.classify import WORDINGS
from tunesmith.objectives.instruct import PLAIN_WORDINGS
from tunesmith.recipe import AnyObjective, make_recipe
from tunesmith.workflows.lineage import recipe_file, recipe_of
from tunesmith.workflows.request import COLUMN_KEYS

# The word for `against` that means: what the model was tuned over.
OWN_BASE = "base"


@dataclass(frozen=True, slots=True)
class EvaluateRequest:
    """Which model on which rows; `objective` is a kind, `base` what an adapter is put over, `rows` 0 for all, `task`
    which of several tasks of one model."""

    model: str
    data: str
    against: str = ""
    objective: str = ""
    base: str = ""
    rows: int = 0
    changes: tuple[str, ...] = ()
    task: str = ""


@dataclass(frozen=True, slots=True)
class ScoringTask:
    """Rows, how they are put to a model, and what there is to say about them."""

    objective: AnyObjective
    examples: list[Example]
    limit: int
    own: bool  # whether the objective is the one that the run was tuned by
    notes: list[str] = field(default_factory=list)
    part: str = ""  # which of several tasks of the model


def read_task(request: EvaluateRequest, found: ModelSource, *, offline: bool) -> ScoringTask:
    """The rows of the file, read by the run's objective or by one that fits the rows."""
    about = read_manifest(found.folder) if found.kind == "run" and found.folder else None
    rows = read_rows(request.data, offline=offline)
    objective = _objective_of(about, request)
    own = objective is not None and request.objective in ("", objective.kind)
    raw: dict[str, Any] = {"model": request.model, "data": {"train": request.data}}
    raw["objective"] = _raw_objective(request, objective if own else None, rows)
    if about is not None:
        raw["data"] |= {"max_tokens": about.limit, "group": _group(found, rows, request.task)}
    recipe, notes = make_recipe(raw, place=f"evaluate {request.data}", changes=request.changes)
    objective = recipe.objective
    examples = [*by_prompt(objective.examples(keep(rows, recipe.data.where), group=recipe.data.group))]
    if request.rows and request.rows < len(examples):
        some = sorted(random.Random(recipe.seed).sample(range(len(examples)), request.rows))
        notes.append(f"{request.rows} of {len(examples)} rows, drawn with seed {recipe.seed}")
        examples = [examples[i] for i in some]
    if own:
        if isinstance(objective, Preference):  # pairs and thumbs have each a metric of their own
            objective = objective.bind(examples, "decoder")
        notes += _known_labels(objective, examples, request)
    else:
        objective = objective.bind(examples, "decoder")
    return ScoringTask(objective, examples, recipe.data.max_tokens, own, notes, request.task)


def _objective_of(manifest: ModelManifest | None, request: EvaluateRequest) -> AnyObjective | None:
    """What a run was tuned by; of one of several tasks the one that is asked for. Raises RecipeError."""
    if manifest is None or not isinstance(manifest.objective, Multitask):
        if request.task:
            raise RecipeError(f"{request.model}: has no tasks to choose from; leave --task out")
        return None if manifest is None else manifest.objective
    tasks = manifest.objective.tasks
    if request.task not in tasks:
        raise RecipeError(f"{request.model}: several tasks in one model; name one with --task: {', '.join(tasks)}")
    return tasks[request.task].objective


def _raw_objective(request: EvaluateRequest, own: AnyObjective | None, rows: Sequence[Row]) -> dict[str, Any]:
    """The run's objective, its columns detected where the file has others; without a run, what fits the rows."""
    if own is None:
        return {"kind": request.objective or detect(rows).objective}
    values: dict[str, Any] = own.model_dump(mode="json")
    here = set(columns_of(rows))
    if any(values.get(key) and values[key] not in here for key in COLUMN_KEYS):
        values |= dict.fromkeys(COLUMN_KEYS & set(values), "")
    return values


def _group(found: ModelSource, rows: Sequence[Row], part: str) -> str:
    """The column by which the run kept rows together, if the file has it."""
    page = recipe_file(found)
    if page is None:
        return ""
    column = recipe_of(page, part).data.group
    return column if column in columns_of(rows) else ""


def chosen_wording(found: ModelSource, part: str = "") -> str:
    """The wording that a run chose for its base on validation rows; empty: the instruction as written."""
    page = found.folder.parent / "before.json" if found.folder else None
    if page is None or not page.exists():
        return ""
    said = read_page(page, dict[str, Any])["said"]
    # Only where answers were asked for did the base try several wordings.
    answers = (said["parts"][part] if part else said).get("answers", {})
    how = str(answers.get("how", ""))
    return next((wording for wording in (*WORDINGS, *PLAIN_WORDINGS) if wording and how.endswith(wording)), "")


def _known_labels(objective: AnyObjective, examples: Sequence[Example], request: EvaluateRequest) -> list[str]:
    """A note on labels that the model cannot answer with. Raises DataError when it knows none of them."""
    if not isinstance(objective, Classify):
        return []
    known = set(objective.labels)
    labels = [set(example.labels) for example in examples if isinstance(example, LabelledText)]
    strange = sorted(set().union(*labels) - known)
    if strange and not set().union(*labels) & known:
        raise DataError(
            f"{request.data}: {request.model} answers {', '.join(sorted(known))}, and no row has such a label "
            f"(there: {', '.join(strange[:10])}); name the column with --set objective.label=COLUMN"
        )
    rows = sum(bool(found - known) for found in labels)
    return [f"{rows} rows have labels that the model never learned ({', '.join(strange)})"] if rows else []
