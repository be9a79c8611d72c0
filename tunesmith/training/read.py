"""The checks of a recipe and its rows that need no network, before torch is imported, and the rows themselves."""

from __future__ import annotations

import json
import random
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.config import AnyObjective, Recipe
from tunesmith.config.checks import check_model
from tunesmith.config.commands import audit_fix, columns_set, with_audit_fix
from tunesmith.config.recipe import SELF
from tunesmith.data.examples.types import Example
from tunesmith.data.examples.usable import Skipper
from tunesmith.data.files import read_page, sha256_of_file, write_whole
from tunesmith.data.readers.read import large_file, read_rows
from tunesmith.data.readers.row import Row
from tunesmith.data.readers.text_file import locate
from tunesmith.data.schema.cells import cell
from tunesmith.data.splits.load import DatasetSplits, Sources, check_names, load
from tunesmith.data.splits.multitask import Asking, remove_cross_task_leaks
from tunesmith.data.splits.split import PARTS, label_notes
from tunesmith.data.stored import build_once, cached_folder, take
from tunesmith.errors import DataError, RecipeError, Refused, RowError
from tunesmith.events import EventHandler, StageStarted
from tunesmith.inference.identify import identify
from tunesmith.objectives import Domain
from tunesmith.training.rewards import check_reward
from tunesmith.training.run_folder import open_run
from tunesmith.training.trackers import check_trackers

# What `check_rows` has read, for the one `read_tasks` of the same rows that follows it.
_checked: dict[str, Mapping[str, DatasetSplits]] = {}


def check_settings(recipe: Recipe, *, out: Path | None = None, folder: bool = False) -> None:
    """Check everything in a recipe that neither rows nor weights are needed for.

    Args:
        recipe: the recipe.
        out: the run folder; None for the default one.
        folder: also check that the run folder does not hold something else.

    Raises:
        TunesmithError: the message names the fix.
    """
    check_model(recipe)
    check_trackers(recipe.track)
    if folder:
        open_run(recipe, out)
    # Last, because a reward is a module of the user, which may take long to import.
    check_reward(recipe)


def check_rows(
    recipe: Recipe, *, on_event: EventHandler, out: Path | None = None, folder: bool = False, offline: bool = False
) -> Mapping[str, DatasetSplits]:
    """Read and check the rows of a recipe, and keep them for the next `read_tasks`; return them by task.

    Args:
        recipe: the recipe.
        on_event: receives the stages.
        out: the run folder; None for the default one.
        folder: read nothing if the run in this folder has finished, and use the settings that it was started with.
        offline: do not access the network.

    Raises:
        DataError: rows cannot be read or parsed, or do not suit the objective.
        Refused: there are severe problems and `data.audit` is `stop`.
    """
    if folder:
        run = open_run(recipe, out)
        if run.finished:
            return {}
        recipe = run.pinned(recipe)
    loaded = read_tasks(recipe, on_event=on_event, offline=offline)
    _checked[_digest(recipe)] = loaded
    return loaded


def read_tasks(recipe: Recipe, *, on_event: EventHandler, offline: bool) -> Mapping[str, DatasetSplits]:
    """Read, audit and split the rows of every task, or return what `check_rows` has just read.

    Args:
        recipe: the recipe of a single task or of several.
        on_event: receives the stages.
        offline: do not access the network.

    Returns:
        The rows by task; no prompt of one task's held-out rows is a training row of another.

    Raises:
        DataError: rows cannot be read or parsed, or do not suit the objective.
        RecipeError: a style rule cannot be checked on these rows.
        Refused: there are severe problems and `data.audit` is `stop`.
    """
    kept = _checked.pop(_digest(recipe), None)
    _checked.clear()
    if kept is not None:
        return kept
    if recipe.style:
        from tunesmith.config.style_rules import read_style_rules  # imports numpy

        read_style_rules(recipe, offline=offline)
    loaded = {}
    for name, task in recipe.tasks.items():
        on_event(StageStarted(f"reading {task.data.train}"))
        loaded[name] = audited(task, read_data(task, offline=offline))
    if recipe.replay.share and recipe.replay.source != SELF:
        general_texts(recipe, offline=offline)  # only to report unreadable rows
    if recipe.teacher.rows:  # only to report unreadable rows, and a missing teacher
        read_rows(recipe.teacher.rows, offline=offline)
    if recipe.teacher.model and "://" not in recipe.teacher.model:
        identify(recipe.teacher.model, offline=offline)
    asking = {name: Asking(task.objective.instruction, task.data.group) for name, task in recipe.tasks.items()}
    return remove_cross_task_leaks(loaded, asking)


def _digest(recipe: Recipe) -> str:
    """Return a text that is equal for recipes with the same rows, while their files do not change."""
    sources = {
        source
        for task in recipe.tasks.values()
        for source in (task.data.train, task.data.validation, task.data.test)
        if isinstance(source, str)
    }
    paths = [path for path in map(Path, sorted(sources)) if path.is_file()]
    states = [(str(path.absolute()), (state := path.stat()).st_mtime_ns, state.st_size) for path in paths]
    keys = recipe.model_dump(mode="json", include={"data", "objective", "replay", "style", "seed"})
    return json.dumps([keys, states])


def general_texts(recipe: Recipe, *, offline: bool) -> Sequence[Example]:
    """Read the texts of `replay.source`. Raises DataError."""
    return Domain().examples(read_rows(recipe.replay.source, offline=offline), group="")


class Reader:
    """Parses the rows of several files by the columns and labels of the first, which is the training file.

    Further columns of a later file, such as `input` or `system`, are read if that file has the same format.
    """

    def __init__(self, objective: AnyObjective, group: str) -> None:
        self._objective = objective
        self._group = group
        self.columns: Mapping[str, str] = {}  # role -> column of the first file
        self._skippers: list[Skipper] = []

    @property
    def notes(self) -> list[str]:
        """Return notes on skipped rows."""
        return [note for skipper in self._skippers for note in skipper.notes]

    def __call__(self, rows: Sequence[Row]) -> list[Example]:
        """Parse the rows of one file. Raises DataError."""
        return self.start(rows)(rows)

    def start(self, rows: Sequence[Row], *, whole: bool = True) -> Callable[[Sequence[Row]], list[Example]]:
        """Return the parser of a file, which takes its rows in parts.

        Args:
            rows: its first rows, by which the columns are detected.
            whole: they are all of its rows. Otherwise rows with the same context are a group, however many there are.

        Raises:
            DataError: the columns are missing or ambiguous.
        """
        columns = self._columns_of_later_file(rows) if self.columns else self._objective.columns(rows)
        self.columns = self.columns or columns
        skipper = Skipper(rows, columns)
        self._skippers.append(skipper)
        group = self._group or ("" if whole else columns.get("context", ""))
        return lambda part: self._parse(skipper.usable(part), columns, group)

    def _parse(self, rows: Sequence[Row], columns: Mapping[str, str], group: str) -> list[Example]:
        examples = self._objective.examples(rows, group=group, columns=columns)
        self._objective = self._objective.for_later_rows(examples)
        return examples

    def _columns_of_later_file(self, rows: Sequence[Row]) -> Mapping[str, str]:
        first = self.columns
        if not all(any(cell(row, column) not in (None, "") for row in rows) for column in first.values()):
            return self._objective.columns(rows)
        try:
            own = self._objective.columns(rows)
        except DataError:  # ambiguous by itself; the training file has resolved it
            return first
        further = {role: column for role, column in own.items() if column not in first.values()}
        return {**further, **first} if set(first) <= set(own) else first


def read_data(recipe: Recipe, *, offline: bool) -> DatasetSplits:
    """Read and split the rows of a recipe with a single task, before any model is loaded.

    Args:
        recipe: the recipe.
        offline: do not access the network.

    Returns:
        Training, validation and test examples, with digests of the files.

    Raises:
        DataError: rows cannot be read or parsed, or do not suit the objective.
        RecipeError: the recipe has several tasks.
    """
    if recipe.parts:
        raise RecipeError(f"objective multitask: expected a single task, got {', '.join(recipe.parts)}; name one")
    if (folder := rows_folder(recipe)) is None:
        return _read(recipe, offline=offline, folder=None)
    build_once(folder, lambda partial: _read(recipe, offline=offline, folder=partial).save(partial))
    return DatasetSplits.open(folder)


def rows_folder(recipe: Recipe) -> Path | None:
    """Return the folder in the user's cache for the rows of a recipe with a large file; None if they fit into memory.

    Its name is a digest of everything that the rows depend on.
    """
    data = recipe.data
    sources = [source for source in (data.train, data.validation, data.test) if isinstance(source, str)]
    files = [locate(source) for source in sources]
    if not recipe.objective.reads_large_files or not large_file(data.train) or None in files:
        return None
    digests = [sha256_of_file(file.path) for file in files if file]
    keys = recipe.model_dump(mode="json", include={"objective", "seed"})
    return cached_folder("rows", keys, data.model_dump(mode="json", exclude={"audit", "max_tokens"}), digests)


def _read(recipe: Recipe, *, offline: bool, folder: Path | None) -> DatasetSplits:
    """Read and split the rows of a recipe, into a folder if one is given."""
    data = recipe.data
    if recipe.objective.samples_completions:  # a completion finds its row again by the row's location
        check_names((data.train, data.validation))
    sources = Sources(data.train, data.validation, data.test, data.group, data.where, data.split)
    reader = Reader(recipe.objective, data.group)
    try:
        loaded = load(
            sources,
            reader,
            seed=recipe.seed,
            offline=offline,
            folder=folder,
            parser_of=partial(reader.start, whole=False),
        )
    except RowError as error:
        raise with_audit_fix(error, _source_of(recipe, str(error)), columns_set(recipe.objective)) from error
    loaded = replace(loaded, split=replace(loaded.split, notes=(*reader.notes, *loaded.split.notes)))
    if data.rows:
        whole = len(loaded.split.train)
        order = array("i", range(whole))
        random.Random(recipe.seed).shuffle(order)
        split = replace(loaded.split, train=take(loaded.split.train, np.array(order[: data.rows])))
        notes = label_notes({"train": split.train, "validation": split.validation, "test": split.test})
        notes = [note for note in notes if note not in split.notes]
        if len(split.train) < whole:
            notes.append(f"data.rows: {data.rows} of {whole} training rows are used, the others are dropped")
        loaded = replace(loaded, split=replace(split, notes=(*split.notes, *notes)))
    parts: dict[str, Any] = {name: recipe.objective.within(getattr(loaded.split, name)) for name in PARTS}
    notes = [
        f"{name}: {left} of {len(part) + left} rows left out, because no other row of the part answers them"
        for name, part in parts.items()
        if (left := len(getattr(loaded.split, name)) - len(part))
    ]
    loaded = replace(loaded, split=replace(loaded.split, **parts, notes=(*loaded.split.notes, *notes)))
    recipe.objective.bind(loaded.split.examples(), "decoder")  # reports a single or unknown label now
    return loaded


def _source_of(recipe: Recipe, error: str) -> str:
    """Return the file whose rows an error lists: it begins with the name of the file."""
    data = recipe.data
    files = [source for source in (data.train, data.validation, data.test) if isinstance(source, str)]
    name = error.partition(":")[0]
    return next((file for file in files if Path(file).name.partition("#")[0] == name), data.train)


def audited(recipe: Recipe, loaded: DatasetSplits) -> DatasetSplits:
    """Check the rows for severe problems.

    Args:
        recipe: `data.audit` says whether a problem stops the run or becomes a note.
        loaded: the rows of the recipe.

    Returns:
        The rows with a note on every problem.

    Raises:
        Refused: there are severe problems and `data.audit` is `stop`.
    """
    from tunesmith.data.audit.gate import Gate, gate  # imports scipy, which most errors need not wait for

    folder = rows_folder(recipe)
    if folder is None:
        result = gate(loaded.split)
    else:
        if not (file := folder / "audit.json").exists():
            write_whole(file, json.dumps(asdict(gate(loaded.split))))
        result = read_page(file, Gate)
    if result.problems and recipe.data.audit == "stop":
        held_out = recipe.data.test or recipe.data.validation  # the part that training rows are compared with
        against = held_out if isinstance(held_out, str) else ""
        command = audit_fix(recipe.data.train, columns_set(recipe.objective), against=against)
        fix = f"run `{command}`, or continue with `--set data.audit=note`"
        raise Refused("\n".join(f"{recipe.data.train}: {problem}; {fix}" for problem in result.problems))
    ignored = (f"continued despite a severe problem of the rows: {problem}" for problem in result.problems)
    notes = (*loaded.split.notes, *result.notes, *ignored)
    return replace(loaded, split=replace(loaded.split, notes=notes))
