"""Any model scored on any file: alone, or against its base or another model on the same rows."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from tunesmith.data.examples import Example
from tunesmith.data.template import Template
from tunesmith.data.tokenizer import frame
from tunesmith.errors import RecipeError
from tunesmith.evaluation.tasks import Score, TaskScore
from tunesmith.events import EventHandler, StageStarted
from tunesmith.inference.folder import read_base, read_manifest
from tunesmith.inference.local import LocalModel
from tunesmith.inference.open import ModelSource, identify, open_model
from tunesmith.model.policy import Policy
from tunesmith.objectives import Classify, Domain, Instruct, Preference, Reward
from tunesmith.workflows.answers import BaseModelPrompter
from tunesmith.workflows.frozen_head import open_base
from tunesmith.workflows.lineage import find_seen_rows, recipe_file, recipe_of
from tunesmith.workflows.prepare import read_data
from tunesmith.workflows.questions import (
    OWN_BASE,
    EvaluateRequest,
    ScoringTask,
    chosen_wording,
    read_task,
)
from tunesmith.workflows.run_folder import task_dir
from tunesmith.workflows.yardsticks import EvalSet, Evaluator, evaluator_for
from tunesmith.workflows.yardsticks.answering import AnswerPredictions
from tunesmith.workflows.yardsticks.judging import PreferenceEvaluator


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
