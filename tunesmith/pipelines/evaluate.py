"""`tunesmith evaluate`: score a model on a file, alone or compared with its base or another model."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from tunesmith.config import AnyObjective, make_recipe
from tunesmith.config.commands import columns_set, with_audit_fix
from tunesmith.config.resolve import COLUMN_KEYS
from tunesmith.data.examples.types import Example, LabelledText
from tunesmith.data.examples.usable import answer_notes, usable
from tunesmith.data.files import read_page
from tunesmith.data.readers.read import read_file
from tunesmith.data.readers.row import columns_of, keep
from tunesmith.data.schema.cells import has_column, same_flags
from tunesmith.data.schema.formats import detect
from tunesmith.data.splits.split import by_prompt
from tunesmith.data.tokenization.chat_template import Template
from tunesmith.data.tokenization.tokenizer import frame
from tunesmith.display import Display, model_label, model_labels
from tunesmith.errors import DataError, RecipeError, RowError
from tunesmith.evaluation.candidates import check_encoders
from tunesmith.evaluation.contamination import find_seen_rows, recipe_file, recipe_of
from tunesmith.evaluation.evaluators import EvalSet, Evaluator, evaluator_for
from tunesmith.evaluation.evaluators.answers import AnswerPredictions
from tunesmith.evaluation.evaluators.preferences import PreferenceEvaluator
from tunesmith.evaluation.predict import BaseModelPrompter
from tunesmith.events import EventHandler, StageStarted
from tunesmith.inference.engine_program import check_engine
from tunesmith.inference.engine_server import EngineServer
from tunesmith.inference.identify import ModelManifest, ModelSource, identify, read_manifest
from tunesmith.inference.local_model import LocalModel
from tunesmith.inference.open_model import open_model
from tunesmith.inference.saved_model import read_base
from tunesmith.metrics.task_scores import Score, TaskScore
from tunesmith.models.kept_answers import kept_answers
from tunesmith.models.loading.device import keep_freed_memory
from tunesmith.models.policy import Policy
from tunesmith.objectives.base import SINGLE_TASK
from tunesmith.objectives.classify import WORDINGS
from tunesmith.objectives.instruct import PLAIN_WORDINGS
from tunesmith.pipelines.requests import EvaluateRequest
from tunesmith.report.formatting import bounds, figure, p_value, signed
from tunesmith.training.mlm_head import open_base
from tunesmith.training.prepare import locate_encoders
from tunesmith.training.read import read_data
from tunesmith.training.run_folder import task_dir

# The value of `against` that names the base model of the run.
OWN_BASE = "base"
SHOWN_LABELS = 10  # unknown labels in an error message


@dataclass(frozen=True, slots=True)
class ScoringTask:
    """The rows, the objective that encodes and scores them, and notes for the report."""

    objective: AnyObjective
    examples: list[Example]
    limit: int  # tokens of a prompt
    own: bool  # the objective is the one of the run
    notes: list[str] = field(default_factory=list)
    part: str = ""  # task of a multitask run


class ScoredAlone(Score):
    """The scores of one model: the headline at the top level, all metrics in `tasks`."""

    model: str
    data: str
    tasks: list[Score]
    notes: list[str]

    def display(self) -> Display:
        """Show the headline; all metrics in a table."""
        rows = [(task.metric, figure(task.score), bounds(task.ci95), str(task.n)) for task in self.tasks]
        headline = f"{self.metric} {figure(self.score)} ({bounds(self.ci95)}), {self.n} rows"
        return Display(
            f"{self.model} on {self.data}: {headline}", (), ("metric", "score", "95 % interval", "rows"), rows
        )


class Compared(TaskScore):
    """A model (`tuned`) compared with another (`base`) on the same rows: headline at the top level, all in `tasks`."""

    model: str
    against: str
    data: str
    tasks: list[TaskScore]
    notes: list[str]

    def display(self) -> Display:
        """Show the headline; all metrics in a table."""
        rows = [
            (
                task.metric,
                *(figure(task.base), figure(task.tuned), signed(task.delta)),
                *(bounds(task.ci95, sign=True), p_value(task.p_value), str(task.n)),
            )
            for task in self.tasks
        ]
        labels = model_labels((self.against, self.model))
        columns = ("metric", *labels.values(), "delta", "95 % interval", "p-value", "rows")
        return Display(f"{self.model} against {self.against} on {self.data}", (self.sentence,), columns, rows)


Page = ScoredAlone | Compared


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The output of `evaluate --json`, and for each row the prompt, the reference answer and the completions."""

    page: Page
    answers: list[dict[str, Any]]


def evaluate(request: EvaluateRequest, *, on_event: EventHandler, offline: bool = False) -> Evaluation:
    """Score a model on the rows of a file, with confidence intervals, and compare it with another model if requested.

    Args:
        request: the options.
        on_event: receives progress.
        offline: do not access the network.

    Raises:
        DataError: the rows cannot be read, or have none of the model's labels.
        RecipeError: the options do not fit the model.
        ModelError: a model cannot be loaded.
        CheckpointError: a run is broken.
        TemplateError: the chat template of a run has changed.
    """
    check_engine(request.engine, request.model, offline=offline)
    with EngineServer(request.engine, offline=offline) if request.engine else nullcontext() as engine:
        return _evaluate(request, engine, on_event=on_event, offline=offline)


@keep_freed_memory()
def _evaluate(
    request: EvaluateRequest, engine: EngineServer | None, *, on_event: EventHandler, offline: bool
) -> Evaluation:
    source = identify(request.model, offline=offline)
    task = read_task(request, source, offline=offline)
    task.notes.extend(find_seen_rows(source, task.examples, part=task.part, offline=offline))
    other = _other(request, source, offline=offline)
    if other is not None and request.against != OWN_BASE:
        task.notes.extend(find_seen_rows(other, task.examples, part=task.part, offline=offline))
    evaluator = evaluator_for(EvalSet(task.objective, task.examples, task.limit))
    if engine is not None and (
        task.objective.produces not in ("labels", "text") or isinstance(evaluator, PreferenceEvaluator)
    ):
        raise RecipeError(
            f"--engine: an engine generates and chooses answers, not {evaluator.shape.__name__}; leave it out"
        )
    on_event(StageStarted(f"evaluating {model_label(request.model)} on {len(task.examples)} rows"))
    model = _open(source, task, base=request.base, offline=offline, engine=engine)
    tuned = _predict(evaluator, model, source.name, task)
    name = Path(request.data).stem
    if other is None:
        scores = evaluator.score(tuned, name=name)
        alone = ScoredAlone(
            **scores[0].model_dump(), tasks=scores, model=request.model, data=request.data, notes=task.notes
        )
        return Evaluation(alone, evaluator.to_rows({"answer": tuned}))
    on_event(StageStarted(f"evaluating {model_label(other.name)} on the same rows"))
    as_in_run = request.against == OWN_BASE and source.kind == "run" and task.own
    base = _base_of_run(evaluator, source, task, offline=offline) if as_in_run and engine is None else None
    if base is None:
        against = _open(other, task, offline=offline, engine=engine)
        if as_in_run and engine is not None:
            against.wording = _noted_wording(source, task)
        if task.objective.produces == "likelihood":
            first, second = model.template.tokenizer, against.template.tokenizer
            if first.get_vocab() != second.get_vocab() or frame(first) != frame(second):
                raise RecipeError(
                    f"{other.name}: uses another tokenizer than {request.model}, so losses per token do not compare; "
                    "score each alone, and compare bits_per_byte"
                )
        base = _predict(evaluator, against, other.name, task)
    tasks = []
    for score in evaluator.compare(base, tuned, name=name):  # name both models, as neither need be a base or tuned
        sentence = score.sentence.replace(": tuned ", f": {request.model} ", 1)
        sentence = sentence.replace(", base ", f", {model_label(other.name)} ", 1)
        tasks.append(score.model_copy(update={"sentence": sentence}))
    compared = Compared(
        **tasks[0].model_dump(),
        tasks=tasks,
        model=request.model,
        against=other.name,
        data=request.data,
        notes=task.notes,
    )
    return Evaluation(compared, evaluator.to_rows({"answer": tuned, "against": base}))


def read_task(request: EvaluateRequest, source: ModelSource, *, offline: bool) -> ScoringTask:
    """Read the rows with the objective of the run, or with one that fits them.

    Raises:
        DataError: the rows cannot be read, or have none of the model's labels.
        RecipeError: the task or a setting is invalid.
    """
    manifest = read_manifest(source.folder) if source.kind == "run" and source.folder else None
    if manifest is not None:
        check_encoders(manifest, where=request.model, offline=offline)
    file = read_file(request.data, offline=offline)
    rows = file.rows
    columns = set(columns_of(rows))
    objective = _objective_of(manifest, request)
    own = objective is not None and request.objective in ("", objective.kind)
    raw: dict[str, Any] = {"model": request.model, "data": {"train": request.data}}
    if objective is not None and own:
        settings: dict[str, Any] = objective.model_dump(mode="json")
        if any(settings.get(key) and not has_column(rows, settings[key]) for key in COLUMN_KEYS):
            settings |= dict.fromkeys(COLUMN_KEYS & set(settings), "")  # detect the columns of this file
        raw["objective"] = settings
    else:
        raw["objective"] = {"kind": request.objective or detect(rows).objective}
    if manifest is not None:
        recipe_path = recipe_file(source)
        group = recipe_of(recipe_path, request.task).data.group if recipe_path else ""
        raw["data"] |= {"max_tokens": manifest.limit, "group": group if group in columns else ""}
    recipe, notes = make_recipe(raw, place=f"evaluate {request.data}", changes=request.changes)
    objective = recipe.objective
    locate_encoders(objective, offline=offline)
    rows = keep(rows, recipe.data.where)
    rows, skipped = usable(rows, roles := objective.columns(rows))
    notes = [*file.notes, *notes, *skipped]
    try:
        examples = parsed = [*by_prompt(objective.examples(rows, group=recipe.data.group, columns=roles))]
    except RowError as error:
        raise with_audit_fix(error, request.data, columns_set(objective)) from error
    notes += answer_notes(examples)
    notes += same_flags(
        {label for example in examples if isinstance(example, LabelledText) for label in example.labels}
    )
    if request.rows and request.rows < len(examples):
        indices = sorted(random.Random(recipe.seed).sample(range(len(examples)), request.rows))
        notes.append(f"{request.rows} of {len(examples)} rows, sampled with seed {recipe.seed}")
        examples = [examples[i] for i in indices]
    if own:
        objective = objective.for_rows(parsed, run=source.folder.parent if source.folder else None)
        if objective.passages:
            notes.append(
                f"{len(objective.passages)} passages are searched: those of these rows, the run and its documents"
            )
        notes += _unknown_labels(objective, examples, request)
    else:
        objective = objective.bind(parsed, "decoder")  # with the labels of all rows, not only of those that are scored
    return ScoringTask(objective, examples, recipe.data.max_tokens, own, notes, request.task)


def _objective_of(manifest: ModelManifest | None, request: EvaluateRequest) -> AnyObjective | None:
    """Return the objective of a run or of its selected task; raise RecipeError if there is no such task."""
    tasks = {SINGLE_TASK: None} if manifest is None else manifest.objective.task_objectives
    if request.task not in tasks:
        if SINGLE_TASK in tasks:
            raise RecipeError(f"{request.model}: has a single task; omit --task")
        raise RecipeError(f"{request.model}: several tasks in one model; name one with --task: {', '.join(tasks)}")
    return cast("AnyObjective | None", tasks[request.task])


def _unknown_labels(objective: AnyObjective, examples: Sequence[Example], request: EvaluateRequest) -> list[str]:
    """Return a note on labels that the model cannot predict; raise DataError if it can predict none of them."""
    known = set(objective.known_labels)
    if not known:
        return []
    labels = [set(example.labels) for example in examples if isinstance(example, LabelledText)]
    present = set().union(*labels)
    unknown = sorted(present - known)
    if unknown and not present & known:
        raise DataError(
            f"{request.data}: {request.model} predicts {', '.join(sorted(known))}, but the labels of the rows are "
            f"{', '.join(unknown[:SHOWN_LABELS])}; name the column with --set objective.label=COLUMN"
        )
    rows = sum(bool(row_labels - known) for row_labels in labels)
    return [f"{rows} rows have labels that the model was not trained on ({', '.join(unknown)})"] if rows else []


def _other(request: EvaluateRequest, source: ModelSource, *, offline: bool) -> ModelSource | None:
    """Return the model to compare with, or None."""
    if request.against != OWN_BASE:
        return identify(request.against, offline=offline) if request.against else None
    base = request.base or source.base
    if not base:
        raise RecipeError(f"{request.model}: is a base model itself; name another model with --against")
    other = identify(base, offline=offline)
    if other.kind != "model" or source.folder is None:
        return other
    quantize = source.quantize
    if source.kind == "run":
        quantize = read_manifest(source.folder).technique.load_options().quantize
    return replace(other, quantize=quantize)


def _open(
    source: ModelSource, task: ScoringTask, *, base: str = "", offline: bool, engine: EngineServer | None = None
) -> LocalModel:
    """Load a model that encodes prompts as the task requires, and note how prompts were changed."""
    manifest = read_manifest(source.folder) if source.kind == "run" and source.folder else None
    multitask = manifest is not None and SINGLE_TASK not in manifest.objective.task_objectives
    part = task.part if multitask else ""
    objective = None if part else task.objective
    model = open_model(source, objective=objective, base=base, offline=offline, limit=task.limit, engine=engine).at(
        part
    )
    if task.objective.produces != "likelihood":
        encode = model.objective.encode
        shortened = sum(encode(e, model.template, limit=model.limit).shortened for e in task.examples)
        if shortened:
            task.notes.append(f"{source.name}: {shortened} prompts were shortened to {model.limit} tokens")
        if model.policy.family == "decoder" and not model.template.tokenizer.chat_template:
            task.notes.append(f"{source.name}: has no chat template; prompts use the default template")
    return model


def _predict(evaluator: Evaluator[Any], model: LocalModel, name: str, task: ScoringTask) -> Any:
    """Return the predictions of a model, and note completions that were cut at the token limit."""
    predictions = evaluator.predict(model)
    cut = predictions.answers.finished.count(False) if isinstance(predictions, AnswerPredictions) else 0
    if cut:
        task.notes.append(f"{name}: {cut} completions were cut at {model.sampling.max_new_tokens} tokens")
    return predictions


def _base_of_run(evaluator: Evaluator[Any], source: ModelSource, task: ScoringTask, *, offline: bool) -> Any:
    """Return the predictions of the base as the run itself evaluated it, or None to evaluate it like any model.

    An encoder of the domain objective uses its initial masked-LM head, a decoder the prompt template chosen on
    validation rows, and everything else with a head a linear probe.
    """
    assert source.folder is not None
    manifest = read_manifest(source.folder)
    objective = task.objective
    if objective.produces == "likelihood":
        opened = open_base(source, objective, place=task_dir(source.folder.parent, task.part), offline=offline)
        return None if opened is None else evaluator.predict(opened)
    if objective.produces not in ("labels", "text") and not objective.probes_base:
        return None
    if isinstance(evaluator, PreferenceEvaluator) and objective.produces == "text":
        return None
    base = read_base(manifest, offline=offline)
    policy = Policy.over(base.network, family=base.family)
    policy.kept = kept_answers(base.network)
    template = Template(base.tokenizer, chat=base.family == "decoder")
    if evaluator.probed:
        policy.train(False)
        train = _training_rows(source, task, offline=offline)
        task.notes.append(f"base: {evaluator.probed}")
        return evaluator.probe(LocalModel(policy, template, objective, manifest.limit), train)
    prompter = BaseModelPrompter(base, policy, template, objective, manifest.limit)
    if base.family == "encoder" or objective.label_mode == "multi":
        answers = prompter.answer(
            train=_training_rows(source, task, offline=offline), validation=(), test=task.examples
        )
        task.notes.append(f"base: {answers.how}")
        return AnswerPredictions(answers)
    return evaluator.predict(prompter.model(_noted_wording(source, task)))


def _noted_wording(source: ModelSource, task: ScoringTask) -> str:
    """Return the prompt template that a run chose for its base, and add it to the notes."""
    wording = chosen_wording(source, task.part)
    task.notes.append(f"base: plain prompt: {wording or 'the instruction of the recipe'}")
    return wording


def chosen_wording(source: ModelSource, part: str = "") -> str:
    """Return the prompt template that a run chose for its base on validation rows; empty for the instruction."""
    path = source.folder.parent / "before.json" if source.folder else None
    if path is None or not path.exists():
        return ""
    predictions = read_page(path, dict[str, Any])["said"]
    # Only objectives whose base generates answers choose among prompt templates.
    answers = (predictions["parts"][part] if part else predictions).get("answers", {})
    if "wording" in answers:
        return answers["wording"] or ""
    # Older runs contain the template only at the end of a sentence.
    how = str(answers.get("how", ""))
    return next((wording for wording in (*WORDINGS, *PLAIN_WORDINGS) if wording and how.endswith(wording)), "")


def _training_rows(source: ModelSource, task: ScoringTask, *, offline: bool) -> Sequence[Example]:
    """Return the training rows of a run or of one of its tasks; raise RecipeError if its recipe is missing."""
    path = recipe_file(source)
    if path is None:
        problem = "recipe.yaml is missing, which names the training rows of the linear probe"
        raise RecipeError(f"{source.name}: {problem}; restore it")
    return read_data(recipe_of(path, task.part), offline=offline).split.train
