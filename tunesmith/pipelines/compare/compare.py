"""Prompting, retrieval or tuning: every arm answers the same frozen rows, and the figures say which to take."""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.config import AnyObjective, Recipe, load_recipe, save_recipe
from tunesmith.config.style_rules import read_style_rules
from tunesmith.data.documents.find_files import find
from tunesmith.data.files import read_page, sha256_of_file, write_whole
from tunesmith.data.splits.load import DatasetSplits
from tunesmith.data.splits.split import Split
from tunesmith.errors import CheckpointError, RecipeError, TunesmithError
from tunesmith.evaluation.predict import question, subsample
from tunesmith.events import Note, StageStarted
from tunesmith.models.loading.device import choose_machine
from tunesmith.objectives import Classify
from tunesmith.pipelines.compare.arms import remote
from tunesmith.pipelines.compare.budget import sizes
from tunesmith.pipelines.compare.build_report import build_comparison
from tunesmith.pipelines.compare.context import CHOICES, ArmAnswers, ComparisonContext, Setting
from tunesmith.pipelines.compare.prompting import ask_model, plain_prompt
from tunesmith.pipelines.compare.report import Comparison
from tunesmith.pipelines.compare.run_arm import run_arm
from tunesmith.pipelines.compare.selection import (
    NEED_DOCUMENTS,
    answers_prompts,
    check_rows,
    chosen_arms,
    told_where,
    tunes,
)
from tunesmith.pipelines.compare.verdict import DIAGNOSIS
from tunesmith.retrieval.chunks import ROWS
from tunesmith.training.callbacks import Callbacks, Interrupted
from tunesmith.training.prepare import audited, read_data
from tunesmith.training.run_folder import RunLockedError, exclusive_lock

PAGE, HTML, RECIPE = "comparison.json", "report.html", "recipe.yaml"
# What a recipe may say that no answer of an arm depends on.
BESIDE_THE_ANSWERS: Any = {"arms": True, "machine": True, "style": True, "compare": {"margin"}}
# Keys of the recipe that have an older name in identity.json.
IDENTITY_KEYS = {"model": "asks", "changed_facts": "facts"}
# How the settings of a comparison call its minutes.
BUDGET = "budget "
# Rows by which the pace of this machine is taken before a budget is dealt out.
PACE_ROWS = 8


@dataclass(frozen=True, slots=True)
class CompareOptions:
    """What the person asks for beside the recipe: minutes (0: no limit), a price per hour, the key of a server."""

    minutes: float = 0.0
    price_per_hour: float = 0.0
    key: str = ""


def compare(
    recipe: Recipe,
    options: CompareOptions,
    *,
    callbacks: Callbacks,
    out: Path | None = None,
    offline: bool = False,
) -> Comparison:
    """All arms of a recipe on its test rows, with the table and the verdict; written to the comparison's folder.

    Goes on with what lies there. Raises the errors of all doors, and Interrupted after an arm that was kept.
    """
    arms = chosen_arms(recipe, offline=offline)
    recipe = recipe.model_copy(update={"arms": arms})
    contest = _contest(recipe, options, callbacks, out=out, offline=offline)
    with exclusive_lock(contest.folder):
        _within(contest, arms, options)
        _reachable(contest, arms)
        found = _asked(contest, arms)
        page = build_comparison(contest, found, price_per_hour=options.price_per_hour)
        write_whole(contest.folder / PAGE, page.model_dump_json(indent=1))
    return page


def _asked(context: ComparisonContext, arms: Sequence[str]) -> list[ArmAnswers]:
    """The answers of every arm. One that fails is a note, is tried again the next time; raises where few are left."""
    found: list[ArmAnswers] = []
    failed: list[TunesmithError] = []
    for number, name in enumerate(arms, 1):
        context.on_event(StageStarted(f"arm {number} of {len(arms)}: {name}"))
        try:
            found.append(run_arm(context, name))
        except RunLockedError:  # an arm that another process is making has not failed
            raise
        except TunesmithError as error:
            failed.append(error)
            context.notes.append(f"{name} failed and is left out: {error}")
            context.on_event(Note(context.notes[-1]))
        if context.callbacks.should_stop():
            raise Interrupted(f"stopped after arm {name}, {number} of {len(arms)}")
    if failed and sum(one.name not in DIAGNOSIS for one in found) < 2:  # nothing to compare with
        raise failed[0]
    return found


def _reachable(context: ComparisonContext, arms: Sequence[str]) -> None:
    """Raise now for documents and servers that are not there, not after the arms before them."""
    for arm in arms:
        if arm.startswith("http") and context.kept(arm) is None:
            remote(context, arm)
    if told_where(context.recipe) or any(arm in NEED_DOCUMENTS for arm in arms):
        context.retrieval()


def _contest(
    recipe: Recipe, options: CompareOptions, callbacks: Callbacks, *, out: Path | None, offline: bool
) -> ComparisonContext:
    """The frozen rows in a folder that belongs to them."""
    callbacks.on_event(StageStarted(f"reading {recipe.data.train}"))
    loaded = _loaded(recipe, offline=offline)
    split = loaded.split
    check_rows(recipe, split, offline=offline)
    read_style_rules(recipe, offline=offline)
    bound = _bound(recipe, split)
    folder = _folder(recipe, out, [*_exactly(split), ("minutes", f"{options.minutes:g}")])
    recipe = _pinned(recipe, folder)
    return ComparisonContext(
        recipe=recipe.model_copy(update={"objective": bound}),
        source=recipe,
        split=split,
        test=subsample(split.test, recipe.compare.rows, recipe.seed),
        folder=folder,
        callbacks=callbacks,
        offline=offline,
        notes=list(split.notes),
        key=options.key,
    )


def _exactly(split: Split) -> list[tuple[str, str]]:
    """Digests of the parts to the letter and in their order: answers are kept by the place of their row."""
    found = []
    for name, rows in {"train": split.train, "validation": split.validation, "test": split.test}.items():
        digest = hashlib.sha256()
        for row in rows:
            digest.update(f"{row!r}\n".encode())
        found.append((name, digest.hexdigest()))
    return found


def _loaded(recipe: Recipe, *, offline: bool) -> DatasetSplits:
    """The rows; where an arm learns from them, with what an audit notes or refuses."""
    found = read_data(recipe, offline=offline)
    return audited(recipe, found) if tunes(recipe.arms) else found


def _bound(recipe: Recipe, split: Split) -> AnyObjective:
    """The objective with what it takes from the rows. Raises RecipeError for one that has no single answers."""
    bound = recipe.objective.bind([*split.train, *split.validation, *split.test], "decoder")
    if isinstance(bound, Classify) and bound.multi:
        raise RecipeError("compare: rows with several labels have no single answer to ask for; give one label a row")
    return bound


def reopened(folder: Path, *, callbacks: Callbacks, key: str = "", offline: bool = False) -> ComparisonContext:
    """A comparison that came to its end, to ask its arms more; its documents as they are now, and no test rows."""
    recipe = _pinned(load_recipe(folder / RECIPE)[0], folder)
    split = _loaded(recipe, offline=offline).split
    bound = recipe.model_copy(update={"objective": _bound(recipe, split)})
    contest = ComparisonContext(bound, recipe, split, [], folder, callbacks, offline, key=key)
    for name, setting in contest.choices().items():
        if name.startswith(BUDGET) and (train := int(str(setting[1]))) < len(split.train):
            contest.learn_only(train)  # the arms knew no more
    return contest


def _pinned(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe on the machine that the first arms were timed on: seconds of two compare with nothing."""
    file, wanted = folder / "machine.json", recipe.machine
    if not file.exists():
        found = choose_machine(device=wanted.device, dtype=wanted.dtype, threads=wanted.threads)
        on = {"device": found.device, "dtype": found.dtype, "threads": found.threads}
        write_whole(file, wanted.model_copy(update=on).model_dump_json())
    return recipe.model_copy(update={"machine": read_page(file, type(recipe.machine))})


def _folder(recipe: Recipe, out: Path | None, parts: Sequence[tuple[str, str]]) -> Path:
    """The folder of the comparison of these rows. Raises CheckpointError where something else lies there."""
    told = recipe.model_dump(mode="json", exclude=BESIDE_THE_ANSWERS)
    # A comparison keeps its folder: its identity is made with the keys that it has had from the beginning.
    told["compare"] = {IDENTITY_KEYS.get(key, key): value for key, value in told["compare"].items()}
    identity = hashlib.sha256(json.dumps([told, parts, _digests(recipe.documents.source)]).encode()).hexdigest()[:16]
    stem = re.sub(r"[^\w.]+", "-", Path(recipe.data.train).stem)
    folder = out or Path("comparisons") / f"{stem}-{identity[:6]}"
    page = folder / "identity.json"
    if page.exists():
        known = read_page(page, dict[str, Any])
        if known["identity"] != identity and (folder / "answers").exists():
            others = differing(known.get("settings", {}), told)
            what = f"other settings ({', '.join(others)})" if others else "other rows or settings"
            raise CheckpointError(f"{folder}: holds a comparison of {what}; give another --out, or delete it")
        if known["identity"] != identity:  # nothing was asked yet, and what was chosen was chosen for others
            for name in ("machine.json", CHOICES):
                (folder / name).unlink(missing_ok=True)
    elif folder.is_file() or (folder.exists() and any(folder.iterdir())):
        raise CheckpointError(f"{folder}: exists and is not a comparison; give another --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(page, json.dumps({"identity": identity, "settings": told}))
    save_recipe(recipe, folder / RECIPE)
    return folder


def differing(one: Mapping[str, Any], other: Mapping[str, Any], place: str = "") -> list[str]:
    """The dotted keys whose values differ, at most three."""
    found: list[str] = []
    for key in one:
        left, right = one[key], other.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found += differing(left, right, f"{place}{key}.")
        elif left != right:
            found.append(f"{place}{key}")
    return found[:3]


def _digests(documents: str) -> list[str]:
    """The name and digest of each of the documents; none where none are named: an empty path would be the whole folder
    that the command runs in."""
    if not documents:
        return []
    if Path(documents).suffix.lower() in ROWS:
        return [sha256_of_file(Path(documents))] if Path(documents).is_file() else []
    return [f"{one.doc_id} {one.sha256}" for one in find([documents]).sources]


def _within(context: ComparisonContext, arms: Sequence[str], options: CompareOptions) -> None:
    """Fewer rows where the minutes ask for that; the same ones when the comparison is gone on with."""
    if not options.minutes:
        return
    recipe, split = context.recipe, context.split

    def choose() -> Setting:
        there, epochs = (len(context.test), len(split.train)), recipe.schedule.epochs
        found = sizes(60 * options.minutes, arms, row=_pace(context), epochs=epochs, there=there)
        if found.seconds > 60 * options.minutes:
            least = f"{found.test} test rows and {found.train} training rows"
            raise RecipeError(
                f"--budget {options.minutes:g}: {least}, the fewest that say anything, take about "
                f"{math.ceil(found.seconds / 60)} minutes with {len(arms)} arms; give so many, or name fewer arms"
            )
        return [found.test, found.train, found.note]

    test, train, note = context.choice(f"{BUDGET}{options.minutes:g}", choose)
    context.test = subsample(context.test, int(str(test)), recipe.seed)
    context.notes.append(f"budget of {options.minutes:g} minutes: {note}")
    context.on_event(StageStarted(str(note)))
    if int(str(train)) < len(split.train):
        context.learn_only(int(str(train)))


def _pace(context: ComparisonContext) -> float:
    """Seconds of a row asked plainly; of one read by an encoder where there is no model to ask."""
    ask = context.test[:PACE_ROWS]
    if answers_prompts(context.recipe, offline=context.offline):
        return ask_model(context.base(), plain_prompt(context, ask), context.objective).seconds / len(ask)
    model = context.untuned(context.recipe.model)
    began = time.perf_counter()
    model.embed([question(example) for example in ask])
    return (time.perf_counter() - began) / len(ask)
