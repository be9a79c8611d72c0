"""`tunesmith compare`: every arm answers the same held-out rows, and the verdict recommends one."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from tunesmith.config import AnyObjective, Recipe, load_recipe, save_recipe
from tunesmith.config.style_rules import read_style_rules
from tunesmith.data.cpu_count import cores
from tunesmith.data.documents.find_files import find
from tunesmith.data.files import begin_digests, holds_files, read_page, sha256_of_file, write_whole
from tunesmith.data.splits.split import Split
from tunesmith.errors import CheckpointError, RecipeError, StorageError, TunesmithError
from tunesmith.evaluation.predict import question, subsample
from tunesmith.events import Note, StageStarted
from tunesmith.inference.engine_program import check_engine
from tunesmith.inference.engine_server import EngineServer
from tunesmith.models.kept_answers import answer_clock
from tunesmith.models.loading.device import keep_freed_memory
from tunesmith.pipelines.compare.answers import ArmAnswers
from tunesmith.pipelines.compare.arm_kinds import kind_of, trains_on_rows
from tunesmith.pipelines.compare.arms import remote
from tunesmith.pipelines.compare.budget import sizes
from tunesmith.pipelines.compare.build_report import build_comparison
from tunesmith.pipelines.compare.context import CHOICES, ComparisonContext
from tunesmith.pipelines.compare.prompting import ask_model, plain_prompt
from tunesmith.pipelines.compare.report import Comparison
from tunesmith.pipelines.compare.run_arm import TUNED_ARMS, run_arm
from tunesmith.pipelines.compare.selection import (
    answers_prompts,
    check_rows,
    chosen_arms,
    comparable_objective,
    has_origins,
)
from tunesmith.pipelines.many_runs import LOCAL, each
from tunesmith.pipelines.requests import CompareOptions
from tunesmith.retrieval.chunks import ROWS
from tunesmith.training.callbacks import Callbacks, Interrupted
from tunesmith.training.read import audited, read_data
from tunesmith.training.run_folder import RunLockedError, exclusive_lock, identity_of, pin_machine

PAGE, HTML, RECIPE = "comparison.json", "report.html", "recipe.yaml"
MACHINE = "machine.json"  # settings of the machine that timed the first arms
# Keys of a recipe that no answer of an arm depends on.
KEYS_WITHOUT_EFFECT: Any = {"arms": True, "machine": True, "style": True, "compare": {"margin"}}
# Keys of the recipe that have an older name in identity.json, so that a comparison keeps its folder.
IDENTITY_KEYS = {"model": "asks", "changed_facts": "facts"}
PACE_ROWS = 8  # rows that are timed before a budget is divided


def compare(
    recipe: Recipe,
    options: CompareOptions,
    *,
    callbacks: Callbacks,
    out: Path | None = None,
    offline: bool = False,
) -> Comparison:
    """Run all arms of a recipe on its test rows, or resume, and write the result to the folder of the comparison.

    Args:
        recipe: the recipe; without `arms`, those that suit its rows and model.
        options: time budget, price and key of a server.
        callbacks: receive progress events, and stop between two arms.
        out: folder of the comparison; by default `comparisons/NAME`.
        offline: do not access the network.

    Raises:
        Interrupted: stopped after an arm whose answers were stored.
        TunesmithError: recipe, rows, documents or models cannot be used, or fewer than two arms are left.
    """
    if options.engine:
        check_engine(options.engine, recipe.compare.model or recipe.model, offline=offline)
    arms = chosen_arms(recipe, offline=offline)
    recipe = recipe.model_copy(update={"arms": arms})
    callbacks.on_event(StageStarted(f"reading {recipe.data.train}"))
    split = _read_split(recipe, offline=offline)
    check_rows(recipe, split, offline=offline)
    read_style_rules(recipe, offline=offline)
    objective = _bound_objective(recipe, split)
    folder = _open_folder(recipe, out, split, options)
    recipe = pin_machine(recipe, folder / MACHINE)  # times of two machines are not comparable
    context = ComparisonContext(
        recipe=recipe.model_copy(update={"objective": objective}),
        source=recipe,
        objective=objective,
        split=split,
        test=subsample(split.test, recipe.compare.rows, recipe.seed),
        folder=folder,
        callbacks=callbacks,
        offline=offline,
        notes=list(split.notes),
        key=options.key,
    )
    engine = EngineServer(options.engine, offline=offline) if options.engine else nullcontext()
    with exclusive_lock(folder), engine as context.engine:
        if options.minutes:
            _apply_budget(context, arms, options.minutes)
        # Missing servers and documents are reported now, not after the arms before them.
        for arm in arms:
            if kind_of(arm).remote and context.stored(arm) is None:
                remote(context, arm)
        if has_origins(recipe) or any(kind_of(arm).needs_documents for arm in arms):
            context.retrieval()
        if options.on != LOCAL:
            _tune_arms(context, arms, on=options.on)
        answers = _run_arms(context, arms)
        callbacks.on_event(StageStarted("testing the differences between the arms"))
        comparison = build_comparison(context, answers, price_per_hour=options.price_per_hour)
        write_whole(folder / PAGE, comparison.model_dump_json(indent=1))
    return comparison


def reopened(folder: Path, *, callbacks: Callbacks, key: str = "", offline: bool = False) -> ComparisonContext:
    """Open a finished comparison for further questions: with the documents as they are now, without test rows."""
    recipe = pin_machine(load_recipe(folder / RECIPE)[0], folder / MACHINE)
    split = _read_split(recipe, offline=offline)
    objective = _bound_objective(recipe, split)
    bound = recipe.model_copy(update={"objective": objective})
    context = ComparisonContext(bound, recipe, objective, split, [], folder, callbacks, offline, key=key)
    budget = context.choices().budget
    if budget is not None and budget.train < len(split.train):
        context.limit_training_rows(budget.train)
    return context


def _tune_arms(context: ComparisonContext, arms: Sequence[str], *, on: str) -> None:
    """Tune what the arms need as tasks of a Ray cluster; answers and their times are measured here, as always."""
    kinds = [kind_of(name) for name in arms if context.stored(name) is None]
    first = list(dict.fromkeys(run for kind in kinds for run in (kind.retriever, kind.run) if run))
    rerankers = list(dict.fromkeys(kind.reranker for kind in kinds if kind.reranker))
    context.on_event(StageStarted(f"{len(first) + len(rerankers)} runs on {on}"))
    work = partial(tune_arm, context.folder.absolute(), context.offline)
    threads, stop = context.recipe.machine.threads or cores(), context.callbacks.should_stop
    for names in filter(None, (first, rerankers)):  # a reranker uses the files of the retriever
        for name, problem in each(work, names, on=on, threads=threads, stop=stop):
            context.on_event(Note(f"{name}: {problem or 'tuned'}"))
    if stop():
        raise Interrupted("stopped; finished runs are kept")


def tune_arm(folder: Path, offline: bool, name: str) -> str:
    """Tune a run that arms need in a separate process, into the folder of the comparison.

    Returns the reason why the run failed, empty if it has finished; it is tried again with its arms.
    """
    context = reopened(folder, callbacks=Callbacks(lambda event: None), offline=offline)
    context.test = subsample(context.split.test, context.recipe.compare.rows, context.recipe.seed)
    if (budget := context.choices().budget) is not None:
        context.test = subsample(context.test, budget.test, context.recipe.seed)
    try:
        TUNED_ARMS[name](context)
    except TunesmithError as error:
        return str(error)
    return ""


@keep_freed_memory()
def _run_arms(context: ComparisonContext, arms: Sequence[str]) -> list[ArmAnswers]:
    """Run every arm. One that fails becomes a note and runs again the next time; raise if fewer than two are left."""
    answers: list[ArmAnswers] = []
    failed: list[TunesmithError] = []
    for number, name in enumerate(arms, 1):
        context.on_event(StageStarted(f"arm {number} of {len(arms)}: {name}"))
        try:
            answers.append(run_arm(context, name))
        except (RunLockedError, StorageError):  # of another process, or as wrong for the next arm: it has not failed
            raise
        except TunesmithError as error:
            failed.append(error)
            context.notes.append(f"{name} failed and is left out: {error}")
            context.on_event(Note(context.notes[-1]))
        if context.callbacks.should_stop():
            raise Interrupted(f"stopped after arm {name}, {number} of {len(arms)}")
    if failed and sum(not kind_of(arm.name).diagnostic for arm in answers) < 2:
        raise failed[0]
    return answers


def _read_split(recipe: Recipe, *, offline: bool) -> Split:
    """Read the rows; if an arm trains on them, with their audit."""
    data = read_data(recipe, offline=offline)
    return (audited(recipe, data) if trains_on_rows(recipe.arms) else data).split


def _bound_objective(recipe: Recipe, split: Split) -> AnyObjective:
    """Return the objective with what it takes from the rows. Raises RecipeError for rows with several labels."""
    objective = comparable_objective(recipe).bind([*split.train, *split.validation, *split.test], "decoder")
    if objective.label_mode == "multi":
        raise RecipeError("compare: rows with several labels have no single answer; give each row one label")
    return objective


def _open_folder(recipe: Recipe, out: Path | None, split: Split, options: CompareOptions) -> Path:
    """Create or reopen the folder of a comparison. Raises CheckpointError if it contains something else."""
    # Stored answers belong to rows by their position, so the rows must be equal in every character and in order.
    parts = []
    for name, rows in {"train": split.train, "validation": split.validation, "test": split.test}.items():
        digest = hashlib.sha256()
        for row in rows:
            digest.update(f"{row!r}\n".encode())
        parts.append((name, digest.hexdigest()))
    parts.append(("minutes", f"{options.minutes:g}"))
    if options.engine:
        parts.append(("engine", options.engine.split()[0]))
    settings = recipe.model_dump(mode="json", exclude=KEYS_WITHOUT_EFFECT)
    settings["compare"] = {IDENTITY_KEYS.get(key, key): value for key, value in settings["compare"].items()}
    identity = identity_of(settings, parts, _document_digests(recipe.documents.source))
    stem = re.sub(r"[^\w.]+", "-", Path(recipe.data.train).stem)
    folder = out or Path("comparisons") / f"{stem}-{identity[:6]}"
    page = folder / "identity.json"
    if page.exists():
        known = read_page(page, dict[str, Any])
        if known["identity"] != identity and (folder / "answers").exists():
            keys = differing_keys(known.get("settings", {}), settings)
            other = f"other settings ({', '.join(keys)})" if keys else "other rows or settings"
            fix = "give another --out or delete the folder"
            raise CheckpointError(f"{folder}: contains a comparison of {other}; {fix}")
        if known["identity"] != identity:  # no arm has answered, and these choices belong to another comparison
            for name in (MACHINE, CHOICES):
                (folder / name).unlink(missing_ok=True)
    elif holds_files(folder):
        raise CheckpointError(f"{folder}: exists and is not a comparison; give another --out")
    folder.mkdir(parents=True, exist_ok=True)
    begin_digests(folder)
    write_whole(page, json.dumps({"identity": identity, "settings": settings}))
    save_recipe(recipe, folder / RECIPE)
    return folder


def differing_keys(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted keys whose values differ, at most three."""
    keys: list[str] = []
    for key in one:
        left, right = one[key], other.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            keys += differing_keys(left, right, f"{prefix}{key}.")
        elif left != right:
            keys.append(f"{prefix}{key}")
    return keys[:3]


def _document_digests(source: str) -> list[str]:
    """Return name and digest of each document; none without a source, since an empty path is the working folder."""
    if not source:
        return []
    if Path(source).suffix.lower() in ROWS:
        return [sha256_of_file(Path(source))] if Path(source).is_file() else []
    return [f"{document.doc_id} {document.sha256}" for document in find([source]).sources]


def _apply_budget(context: ComparisonContext, arms: Sequence[str], minutes: float) -> None:
    """Use as many rows as fit into the budget; a resumed comparison uses the same ones."""
    split = context.split
    rows = context.choices().budget
    if rows is None:
        timed = context.test[:PACE_ROWS]
        if answers_prompts(context.recipe, offline=context.offline):
            seconds = ask_model(context.base(), plain_prompt(context, timed), context.objective).seconds
        else:  # no decoder is prompted: an encoder reads the rows
            model = context.base_model(context.recipe.model)
            began = answer_clock()
            model.embed([question(example) for example in timed])
            seconds = answer_clock() - began
        rows = sizes(
            60 * minutes,
            arms,
            row=seconds / len(timed),
            epochs=context.recipe.schedule.epochs,
            test_rows=len(context.test),
            train_rows=len(split.train),
        )
        if rows.seconds > 60 * minutes:
            least = f"{rows.test} test rows and {rows.train} training rows"
            raise RecipeError(
                f"--budget {minutes:g}: the minimum of {least} takes about {math.ceil(rows.seconds / 60)} minutes "
                f"with {len(arms)} arms; raise the budget or list fewer arms"
            )
        context.save_choices(budget=rows)
    context.test = subsample(context.test, rows.test, context.recipe.seed)
    context.notes.append(f"budget of {minutes:g} minutes: {rows.note}")
    context.on_event(StageStarted(rows.note))
    if rows.train < len(split.train):
        context.limit_training_rows(rows.train)
