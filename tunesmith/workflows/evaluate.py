"""Any model scored on any file: alone, or against its base or another model on the same rows."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from tunesmith.data.template import Template
from tunesmith.errors import RecipeError
from tunesmith.evaluation.tasks import BESIDE, Score, TaskScore, score
from tunesmith.inference.folder import read_about
from tunesmith.inference.local import LocalModel
from tunesmith.inference.open import Found, identify, open_model
from tunesmith.model.device import choose_machine
from tunesmith.model.load import LoadOptions, load_base
from tunesmith.model.policy import Policy
from tunesmith.objectives import Classify, Domain
from tunesmith.objectives.classify import WORDINGS
from tunesmith.objectives.instruct import PLAIN_WORDINGS
from tunesmith.recipe import load_recipe
from tunesmith.workflows import documents
from tunesmith.workflows.answers import Answers, Untuned, answer, gold, groups, question
from tunesmith.workflows.assemble import task_scores
from tunesmith.workflows.documents import Reader
from tunesmith.workflows.frozen_head import open_base
from tunesmith.workflows.prepare import Listener, read_data
from tunesmith.workflows.questions import Asked, Task, read_task, recipe_file, seen

OWN_BASE = "base"  # the word for `against` that means: what the model was tuned over


class Scored(Score):
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

    page: Scored | Compared
    answers: list[dict[str, Any]]


def evaluate(asked: Asked, *, listen: Listener, offline: bool = False) -> Evaluation:
    """The scores of a model on the rows of a file, with intervals; against another model, the paired comparison.

    Raises the errors of the doors: DataError, RecipeError, ModelError, CheckpointError, TemplateError.
    """
    found = identify(asked.model, offline=offline)
    task = read_task(asked, found, offline=offline)
    task.notes.extend(seen(found, task, offline=offline))
    other = _other(asked, found, offline=offline)
    if other is not None and asked.against != OWN_BASE:
        task.notes.extend(seen(other, task, offline=offline))
    if isinstance(task.objective, Domain):
        return _texts(asked, (found, other), task, task.objective, offline=offline)
    listen({"event": "stage", "text": f"asking {asked.model} {len(task.examples)} questions"})
    tuned = _ask(found, task, base=asked.base, offline=offline)
    name, metric = Path(asked.data).stem, task.objective.metric
    if other is None:
        wanted = (metric, *BESIDE.get(metric, ()))
        right, clusters = gold(task.examples), groups(task.examples)
        scores = [score(m, right, tuned.given, name=name, groups=clusters) for m in wanted]
        page: Scored | Compared = Scored(
            **scores[0].model_dump(), model=asked.model, data=asked.data, tasks=scores, notes=task.notes
        )
        return Evaluation(page, _lines(task, tuned))
    listen({"event": "stage", "text": f"asking {other.name} the same"})
    probing = asked.against == OWN_BASE and found.kind == "run" and task.own
    base = _base_of_run(found, task, offline=offline) if probing else _ask(other, task, offline=offline)
    tasks = task_scores(metric, task.examples, (base.given, tuned.given), name=name)
    sides = {"model": asked.model, "against": other.name, "data": asked.data}
    page = Compared(**tasks[0].model_dump(), **sides, tasks=tasks, notes=task.notes)
    return Evaluation(page, _lines(task, tuned, base))


def _texts(
    asked: Asked, sides: tuple[Found, Found | None], task: Task, objective: Domain, *, offline: bool
) -> Evaluation:
    """The same for texts, to which no model gives an answer: what each says to every document."""
    found, other = sides
    reader, examples, name = Reader(objective, task.limit), task.examples, Path(asked.data).stem
    model = open_model(found.name, objective=objective, base=asked.base, offline=offline, limit=task.limit)
    tuned = reader.read(model.policy, model.template, examples).told
    metric = objective.metric
    if other is None:
        alone = documents.scores(metric, tuned, examples, name=name)
        said = {"model": asked.model, "data": asked.data, "notes": task.notes}
        page: Scored | Compared = Scored(**alone[0].model_dump(), tasks=alone, **said)
        return Evaluation(page, documents.lines(metric, (tuned,), examples, names=("answer",)))
    against = (
        open_base(found, objective, offline=offline) if asked.against == OWN_BASE and found.kind == "run" else None
    )
    if against is None:
        against = open_model(other.name, objective=objective, offline=offline, limit=task.limit)
    if against.template.tokenizer.get_vocab() != model.template.tokenizer.get_vocab():
        raise RecipeError(
            f"{other.name}: cuts texts into other tokens than {asked.model}, so their losses do not compare; "
            "score each alone, and compare bits_per_byte"
        )
    base = reader.read(against.policy, against.template, examples).told
    tasks = documents.tasks(metric, (base, tuned), examples, name=name)
    said = {"model": asked.model, "against": other.name, "data": asked.data, "notes": task.notes}
    page = Compared(**tasks[0].model_dump(), tasks=tasks, **said)
    return Evaluation(page, documents.lines(metric, (tuned, base), examples, names=("answer", "against")))


def schema() -> str:
    """The JSON schema of what `evaluate --json` prints."""
    return json.dumps(TypeAdapter(Scored | Compared).json_schema(), indent=1)


def _other(asked: Asked, found: Found, *, offline: bool) -> Found | None:
    """What the model is compared with, None where nothing was named."""
    if asked.against != OWN_BASE:
        return identify(asked.against, offline=offline) if asked.against else None
    base = asked.base or found.base
    if not base:
        raise RecipeError(f"{asked.model}: it is a base itself; name another model after --against")
    return identify(base, offline=offline)


def _ask(found: Found, task: Task, *, base: str = "", offline: bool) -> Answers:
    """What a model answers to the rows; what happened on the way becomes notes."""
    model = open_model(found.name, objective=task.objective, base=base, offline=offline, limit=task.limit)
    task.notes.extend(f"{found.name}: {note}" for note in _reservations(model, task))
    answers = answer(model, task.examples)
    cut = answers.finished.count(False)
    if cut:
        longest = model.sampling.max_new_tokens
        task.notes.append(f"{found.name}: {cut} answers were cut at {longest} tokens, where it had not ended")
    return answers


def _reservations(model: LocalModel, task: Task) -> list[str]:
    """What the reader should know about how the questions were put."""
    encode, template = model.objective.encode, model.template
    short = sum(encode(example, template, limit=model.limit).shortened for example in task.examples)
    notes = [f"{short} questions were shortened to {model.limit} tokens"] if short else []
    if model.policy.family == "decoder" and not template.tokenizer.chat_template:
        notes.append("it brings no chat template, so it was asked in plain turns")
    return notes


def _base_of_run(found: Found, task: Task, *, offline: bool) -> Answers:
    """The untuned base of a run as the run itself scored it: by the chosen wording, or by a linear probe."""
    assert found.folder is not None
    about = read_about(found.folder)
    assert not isinstance(about.objective, Domain)
    options = LoadOptions(device=choose_machine(dtype="float32").device)
    base = load_base(about.base, options=options, offline=offline)
    policy = Policy.over(base.network, family=base.family, reference=nullcontext)
    template = Template(base.tokenizer, chat=base.family == "decoder")
    untuned = Untuned(base, policy, template, about.objective, about.limit)
    if base.family == "encoder" or (isinstance(about.objective, Classify) and about.objective.multi):
        page = recipe_file(found)
        if page is None:
            raise RecipeError(
                f"{found.name}: its base is a linear probe, and the recipe that names the training rows is gone"
            )
        train = read_data(load_recipe(page)[0], offline=offline).split.train
        answers = untuned.answer(train=train, validation=(), test=task.examples)
        task.notes.append(f"base: {answers.how}")
        return answers
    wording = _wording(found.folder.parent / "before.json")
    task.notes.append(f"base: plain prompt: {wording or 'the instruction as written'}")
    return answer(untuned.model(wording), task.examples)


def _wording(page: Path) -> str:
    """The wording that the run chose for its base on validation rows; empty: the instruction as written."""
    if not page.exists():
        return ""
    how = str(json.loads(page.read_text(encoding="utf-8"))["answers"]["how"])
    return next((wording for wording in (*WORDINGS, *PLAIN_WORDINGS) if wording and how.endswith(wording)), "")


def _lines(task: Task, tuned: Answers, base: Answers | None = None) -> list[dict[str, str]]:
    """One line per row for people who want to see where the score comes from."""
    lines = []
    for i, (example, right) in enumerate(zip(task.examples, gold(task.examples), strict=True)):
        line = {"where": example.where, "question": question(example), "gold": right, "answer": tuned.given[i]}
        lines.append(line if base is None else line | {"against": base.given[i]})
    return lines
