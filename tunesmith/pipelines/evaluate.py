"""Any model scored on any file: alone, or against its base or another model on the same rows."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from tunesmith.config import AnyObjective, make_recipe
from tunesmith.config.resolve import COLUMN_KEYS
from tunesmith.data.examples.types import Example, LabelledText
from tunesmith.data.files import read_page
from tunesmith.data.readers.read import read_rows
from tunesmith.data.readers.row import Row, columns_of, keep
from tunesmith.data.schema.formats import detect
from tunesmith.data.splits.split import by_prompt
from tunesmith.data.tokenization.chat_template import Template
from tunesmith.data.tokenization.tokenizer import frame
from tunesmith.errors import DataError, RecipeError
from tunesmith.evaluation.contamination import find_seen_rows, recipe_file, recipe_of
from tunesmith.evaluation.evaluators import EvalSet, Evaluator, evaluator_for
from tunesmith.evaluation.evaluators.answers import AnswerPredictions
from tunesmith.evaluation.evaluators.preferences import PreferenceEvaluator
from tunesmith.evaluation.predict import BaseModelPrompter
from tunesmith.events import EventHandler, StageStarted
from tunesmith.inference.local_model import LocalModel
from tunesmith.inference.open_model import ModelSource, identify, open_model
from tunesmith.inference.saved_model import ModelManifest, read_base, read_manifest
from tunesmith.metrics.task_scores import Score, TaskScore
from tunesmith.models.policy import Policy
from tunesmith.objectives import Classify, Domain, Instruct, Multitask, Preference, Reward
from tunesmith.objectives.classify import WORDINGS
from tunesmith.objectives.instruct import PLAIN_WORDINGS
from tunesmith.training.mlm_head import open_base
from tunesmith.training.prepare import read_data
from tunesmith.training.run_folder import task_dir

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


class ScoredAlone(Score):
    """A model scored alone: its headline at the top, all metrics in `tasks`."""

    model: str
    data: str
    tasks: list[Score]
    notes: list[str]


class Compared(TaskScore):
    """A model (`tuned`) against another (`base`) on the same rows: the headline at the top, all in `tasks`."""

    model: str
    against: str
    data: str
    tasks: list[TaskScore]
    notes: list[str]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The page that `evaluate --json` prints, and for each row the question, the gold and the given answers."""

    page: ScoredAlone | Compared
    answers: list[dict[str, Any]]


def evaluate(request: EvaluateRequest, *, on_event: EventHandler, offline: bool = False) -> Evaluation:
    """The scores of a model on the rows of a file, with intervals; against another model, the paired comparison.

    Raises the errors of the doors: DataError, RecipeError, ModelError, CheckpointError, TemplateError.
    """
    found = identify(request.model, offline=offline)
    task = read_task(request, found, offline=offline)
    task.notes.extend(find_seen_rows(found, task.examples, part=task.part, offline=offline))
    other = _other(request, found, offline=offline)
    if other is not None and request.against != OWN_BASE:
        task.notes.extend(find_seen_rows(other, task.examples, part=task.part, offline=offline))
    yardstick = evaluator_for(EvalSet(task.objective, task.examples, task.limit))
    on_event(StageStarted(f"asking {request.model} {len(task.examples)} questions"))
    model = _open(found, task, base=request.base, offline=offline)
    tuned, name = _ask(yardstick, model, found.name, task), Path(request.data).stem
    if other is None:
        scores = yardstick.score(tuned, name=name)
        said = {"model": request.model, "data": request.data, "notes": task.notes}
        page: ScoredAlone | Compared = ScoredAlone(**scores[0].model_dump(), tasks=scores, **said)
        return Evaluation(page, yardstick.to_rows({"answer": tuned}))
    on_event(StageStarted(f"asking {other.name} the same"))
    probing = request.against == OWN_BASE and found.kind == "run" and task.own
    base = _base_of_run(yardstick, found, task, offline=offline) if probing else None
    if base is None:
        against = _open(other, task, offline=offline)
        _same_tokens(request, other, task, (model, against))
        base = _ask(yardstick, against, other.name, task)
    tasks = [_by_name(task, request.model, other.name) for task in yardstick.compare(base, tuned, name=name)]
    said = {"model": request.model, "against": other.name, "data": request.data, "notes": task.notes}
    page = Compared(**tasks[0].model_dump(), tasks=tasks, **said)
    return Evaluation(page, yardstick.to_rows({"answer": tuned, "against": base}))


def _by_name(task: TaskScore, model: str, other: str) -> TaskScore:
    """The comparison with both models' own names in its sentence: neither need be a base, nor tuned."""
    sentence = task.sentence.replace(": tuned ", f": {model} ", 1).replace(", base ", f", {other} ", 1)
    return task.model_copy(update={"sentence": sentence})


def schema() -> str:
    """The JSON schema of what `evaluate --json` prints."""
    return json.dumps(TypeAdapter(ScoredAlone | Compared).json_schema(), indent=1)


def _other(request: EvaluateRequest, found: ModelSource, *, offline: bool) -> ModelSource | None:
    """What the model is compared with, None where nothing was named."""
    if request.against != OWN_BASE:
        return identify(request.against, offline=offline) if request.against else None
    base = request.base or found.base
    if not base:
        raise RecipeError(f"{request.model}: it is a base itself; name another model after --against")
    other = identify(base, offline=offline)
    if other.kind != "model" or found.folder is None:
        return other
    run = found.kind == "run"
    return replace(
        other, quantize=read_manifest(found.folder).technique.load_options().quantize if run else found.quantize
    )


def _open(found: ModelSource, task: ScoringTask, *, base: str = "", offline: bool) -> LocalModel:
    """A model, asked as the task asks; what the reader should know of that becomes notes."""
    part = task.part if _several(found) else ""
    objective = None if part else task.objective
    model = open_model(found, objective=objective, base=base, offline=offline, limit=task.limit).at(part)
    if not isinstance(task.objective, Domain):
        task.notes.extend(f"{found.name}: {note}" for note in _reservations(model, task))
    return model


def _several(found: ModelSource) -> bool:
    """Whether it is a run of several tasks."""
    return (
        found.kind == "run" and found.folder is not None and read_manifest(found.folder).objective.kind == "multitask"
    )


def _ask(yardstick: Evaluator[Any], model: LocalModel, name: str, task: ScoringTask) -> Any:
    """What a model says to the rows; answers that had not ended become a note."""
    said = yardstick.predict(model)
    cut = said.answers.finished.count(False) if isinstance(said, AnswerPredictions) else 0
    if cut:
        longest = model.sampling.max_new_tokens
        task.notes.append(f"{name}: {cut} answers were cut at {longest} tokens, where it had not ended")
    return said


def _same_tokens(
    request: EvaluateRequest, other: ModelSource, task: ScoringTask, sides: tuple[LocalModel, LocalModel]
) -> None:
    """Nothing where losses per token compare. Raises RecipeError where the sides cut texts differently."""
    first, second = (side.template.tokenizer for side in sides)
    if isinstance(task.objective, Domain) and (
        first.get_vocab() != second.get_vocab() or frame(first) != frame(second)
    ):
        raise RecipeError(
            f"{other.name}: cuts texts into other tokens than {request.model}, so their losses do not compare; "
            "score each alone, and compare bits_per_byte"
        )


def _reservations(model: LocalModel, task: ScoringTask) -> list[str]:
    """What the reader should know about how the questions were put."""
    encode, template = model.objective.encode, model.template
    short = sum(encode(example, template, limit=model.limit).shortened for example in task.examples)
    notes = [f"{short} questions were shortened to {model.limit} tokens"] if short else []
    if model.policy.family == "decoder" and not template.tokenizer.chat_template:
        notes.append("it brings no chat template, so it was asked in plain turns")
    return notes


def _base_of_run(yardstick: Evaluator[Any], found: ModelSource, task: ScoringTask, *, offline: bool) -> Any:
    """What the untuned base of a run says, scored as the run itself scored it; None where it is asked like any model:
    an encoder of texts by the head it began with, others by the chosen wording or by a linear probe."""
    assert found.folder is not None
    about, objective = read_manifest(found.folder), task.objective
    if isinstance(objective, Domain):
        opened = open_base(found, objective, place=task_dir(found.folder.parent, task.part), offline=offline)
        return None if opened is None else yardstick.predict(opened)
    if isinstance(objective, Preference):
        return None
    base = read_base(about, offline=offline)
    policy = Policy.over(base.network, family=base.family)
    template = Template(base.tokenizer, chat=base.family == "decoder")
    if isinstance(objective, Reward):
        assert isinstance(yardstick, PreferenceEvaluator)
        policy.train(False)
        train = _learned_from(found, task, offline=offline)
        said = yardstick.probe(LocalModel(policy, template, objective, about.limit), train)
        task.notes.append(f"base: {said.how}")
        return said
    assert isinstance(objective, Classify | Instruct), "a run of rl is saved as the instruct model it is"
    untuned = BaseModelPrompter(base, policy, template, objective, about.limit)
    if base.family == "encoder" or (isinstance(objective, Classify) and objective.multi):
        answers = untuned.answer(train=_learned_from(found, task, offline=offline), validation=(), test=task.examples)
        task.notes.append(f"base: {answers.how}")
        return AnswerPredictions(answers)
    wording = chosen_wording(found, task.part)
    task.notes.append(f"base: plain prompt: {wording or 'the instruction as written'}")
    return yardstick.predict(untuned.model(wording))


def _learned_from(found: ModelSource, task: ScoringTask, *, offline: bool) -> list[Example]:
    """The training rows of a run, or of one of its tasks. Raises RecipeError where nobody knows them any more."""
    page = recipe_file(found)
    if page is None:
        raise RecipeError(
            f"{found.name}: its base is a linear probe, and the recipe that names the training rows is gone"
        )
    return read_data(recipe_of(page, task.part), offline=offline).split.train
