"""From a recipe to encoded rows and a loaded base model. Every invalid input is refused here, before training."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from tunesmith.config import SELF, AnyObjective, Recipe, check_gates, check_pair, check_replay, check_technique
from tunesmith.config.commands import audit_fix, columns_set
from tunesmith.config.style_rules import read_style_rules
from tunesmith.data.audit.gate import gate
from tunesmith.data.examples.types import Example
from tunesmith.data.examples.usable import usable
from tunesmith.data.readers.read import read_rows
from tunesmith.data.readers.row import Row
from tunesmith.data.schema.cells import cell
from tunesmith.data.splits.load import DataFacts, DatasetSplits, Sources, check_names, load
from tunesmith.data.splits.multitask import Asking, remove_cross_task_leaks
from tunesmith.data.splits.split import Split, unlearned_labels
from tunesmith.data.tokenization.chat_template import Encoded, Template
from tunesmith.data.tokenization.masking import Masking
from tunesmith.errors import DataError, RecipeError, Refused, RowError
from tunesmith.events import DataLoaded, EventHandler, MachineChosen, StageStarted
from tunesmith.models.families import positions_of
from tunesmith.models.loading.device import ChosenMachine, choose_machine
from tunesmith.models.loading.load import Base, load_base
from tunesmith.models.loading.locate import LoadOptions
from tunesmith.objectives import Domain
from tunesmith.objectives.base import SINGLE_TASK
from tunesmith.progress import track
from tunesmith.training.rewards import check_reward
from tunesmith.training.trackers import check_trackers

# Smallest value of `data.max_tokens`, and tokens that a classification prompt must leave for the text.
MIN_MAX_TOKENS = 16
MIN_TEXT_TOKENS = 16

NO_TEST_ROWS = "no test rows: scored on the validation rows, by which checkpoint and settings were chosen too"


@dataclass(slots=True)
class TrainingContext:
    """A recipe with everything it names read, bound to the data and encoded: the input of `train`."""

    recipe: Recipe
    loaded: DatasetSplits
    base: Base
    machine: ChosenMachine
    template: Template
    train: list[Encoded]
    validation: list[Encoded]
    facts: DataFacts
    head: dict[str, Tensor] | None = None  # initial weights of a head that the base does not have
    # General rows of each epoch, for replay; those of the first epoch are the last rows of `train`.
    general: tuple[tuple[Encoded, ...], ...] = ()
    subtasks: dict[str, TrainingContext] = field(default_factory=dict)  # multitask: each task as a context of its own

    @property
    def tasks(self) -> Mapping[str, TrainingContext]:
        """Return the context of every task by name; a single task has the name `SINGLE_TASK`."""
        return self.subtasks or {SINGLE_TASK: self}

    def map_tasks(self, change: Callable[[str, TrainingContext], TrainingContext]) -> TrainingContext:
        """Return the context with `change(name, task)` in place of every task."""
        changed = {name: change(name, task) for name, task in self.tasks.items()}
        return changed[SINGLE_TASK] if SINGLE_TASK in changed else replace(self, subtasks=changed)

    @property
    def test(self) -> list[Example]:
        """Return the test rows, or the validation rows if there are none."""
        return self.loaded.split.test or self.loaded.split.validation

    def noted(self, *notes: str) -> TrainingContext:
        """Return the context with further notes for the report."""
        return replace(self, facts=replace(self.facts, notes=(*self.facts.notes, *notes)))


def prepare(recipe: Recipe, *, on_event: EventHandler, offline: bool = False) -> TrainingContext:
    """Read the rows, choose the machine, load the base model and encode the rows of a recipe.

    Args:
        recipe: the recipe of a single task or of several.
        on_event: receives the stages, the machine and the counts of the rows.
        offline: do not access the network.

    Returns:
        Everything that training and evaluation need.

    Raises:
        TunesmithError: the recipe, the rows, the model or a reward cannot be used; the message names the fix.
    """
    # What fails late is checked first: style rules are applied only after training, trackers opened at its start.
    read_style_rules(recipe, offline=offline)
    check_reward(recipe)
    check_trackers(recipe.track)
    loaded = {}
    for name, task in recipe.tasks.items():
        on_event(StageStarted(f"reading {task.data.train}"))
        loaded[name] = audited(task, read_data(task, offline=offline))
    asking = {name: Asking(task.objective.instruction, task.data.group) for name, task in recipe.tasks.items()}
    loaded = remove_cross_task_leaks(loaded, asking)
    settings = recipe.machine
    machine = choose_machine(device=settings.device, dtype=settings.dtype, threads=settings.threads)
    on_event(MachineChosen(machine.why))
    options = LoadOptions("float32", machine.device, recipe.technique.load_options().quantize)
    on_event(StageStarted(f"loading {recipe.model}"))
    base = load_base(recipe.model, options=options, offline=offline)
    check_pair(recipe, base.family)
    check_gates(recipe, base.family)
    check_replay(recipe, base.family)
    if recipe.replay.share and recipe.replay.source != SELF:
        general_texts(recipe, offline=offline)  # only to report unreadable rows before training
    check_technique(recipe, base.network, base.family)
    if recipe.objective.samples_completions:  # the completion budget, which limits the rows, depends on the rows
        bound = recipe.objective.bind(loaded[SINGLE_TASK].split.examples(), base.family)
        recipe = recipe.model_copy(update={"objective": bound})
    recipe = fit_max_length(recipe, base, on_event)
    tasks = {name: _encode_task(task, loaded[name], base, machine) for name, task in recipe.tasks.items()}
    prepared = tasks[SINGLE_TASK] if SINGLE_TASK in tasks else _join_tasks(recipe, tasks)
    on_event(DataLoaded(prepared.facts))
    return prepared


class Reader:
    """Parses the rows of several files by the columns of the first, which is the training file.

    Further columns of a later file, such as `input` or `system`, are read if that file has the same format.
    """

    def __init__(self, objective: AnyObjective, group: str) -> None:
        self._objective = objective
        self._group = group
        self._columns: Mapping[str, str] = {}
        self.notes: list[str] = []  # on skipped rows

    def __call__(self, rows: Sequence[Row]) -> list[Example]:
        """Parse the rows of one file. Raises DataError."""
        columns = self._columns_of_later_file(rows) if self._columns else self._objective.columns(rows)
        self._columns = self._columns or columns
        rows, notes = usable(rows, columns)
        self.notes += notes
        return self._objective.examples(rows, group=self._group, columns=columns)

    def _columns_of_later_file(self, rows: Sequence[Row]) -> Mapping[str, str]:
        first = self._columns
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
    data = recipe.data
    if recipe.objective.samples_completions:  # a completion finds its row again by the row's location
        check_names((data.train, data.validation))
    sources = Sources(data.train, data.validation, data.test, data.group, data.where, data.split)
    reader = Reader(recipe.objective, data.group)
    try:
        loaded = load(sources, reader, seed=recipe.seed, offline=offline)
    except RowError as error:
        raise RowError(f"{error}; to drop these rows: `{_audit_of(recipe, str(error))}`") from error
    loaded = replace(loaded, split=replace(loaded.split, notes=(*reader.notes, *loaded.split.notes)))
    if data.rows:
        split = loaded.split
        random.Random(recipe.seed).shuffle(split.train)
        del split.train[data.rows :]
        notes = unlearned_labels({"train": split.train, "validation": split.validation, "test": split.test})
        notes = [note for note in notes if note not in split.notes]
        loaded = replace(loaded, split=replace(split, notes=(*split.notes, *notes)))
    recipe.objective.bind(loaded.split.examples(), "decoder")  # reports a single or unknown label now
    return loaded


def _audit_of(recipe: Recipe, error: str) -> str:
    """Return the command that drops the rows which an error lists: it begins with the name of their file."""
    data = recipe.data
    files = [source for source in (data.train, data.validation, data.test) if isinstance(source, str)]
    name = error.partition(":")[0]
    source = next((file for file in files if Path(file).name.partition("#")[0] == name), data.train)
    return audit_fix(source, columns_set(recipe.objective.model_dump()))


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
    result = gate(loaded.split)
    if result.problems and recipe.data.audit == "stop":
        fix = f"run `{_audit_of(recipe, '')}`, or continue with `--set data.audit=note`"
        raise Refused("\n".join(f"{recipe.data.train}: {problem}; {fix}" for problem in result.problems))
    ignored = (f"continued despite a severe problem of the rows: {problem}" for problem in result.problems)
    notes = (*loaded.split.notes, *result.notes, *ignored)
    return replace(loaded, split=replace(loaded.split, notes=notes))


def fit_max_length(recipe: Recipe, base: Base, on_event: EventHandler) -> Recipe:
    """Lower `data.max_tokens` to what the model holds besides virtual tokens and sampled completions.

    Args:
        recipe: the recipe, its objective bound to the rows if it samples completions.
        base: the base model; 0 positions mean no limit.
        on_event: receives a message if the limit was lowered.

    Returns:
        The recipe, with a lower limit if necessary.

    Raises:
        RecipeError: virtual tokens or completions leave fewer than 16 tokens for a row.
    """
    virtual = recipe.technique.virtual_tokens()
    positions = positions_of(base.network.config.to_dict())
    if virtual:
        positions = min(positions or base.tokenizer.model_max_length, base.tokenizer.model_max_length)
    sampled = recipe.objective.max_new_tokens if recipe.objective.samples_completions else 0
    longest = positions - virtual - sampled
    if longest >= recipe.data.max_tokens or not positions:
        return recipe
    if longest < MIN_MAX_TOKENS:
        key, tokens = ("technique.tokens", virtual) if virtual >= sampled else ("objective.max_new_tokens", sampled)
        most = tokens - (MIN_MAX_TOKENS - longest)
        fix = f"use at most {most}" if most > 0 else "lower technique.tokens and objective.max_new_tokens"
        raise RecipeError(f"{key}: {tokens} leave fewer than {MIN_MAX_TOKENS} of {positions} positions for rows; {fix}")
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"max_tokens": longest})})
    on_event(StageStarted(max_length_note(recipe)))
    return recipe


def max_length_note(recipe: Recipe) -> str:
    """Return the message for a recipe whose `data.max_tokens` was lowered to the context of its model."""
    virtual = recipe.technique.virtual_tokens()
    limit = f"the context of {recipe.model}" + (f" also holds {virtual} virtual tokens" if virtual else " is shorter")
    return f"max_tokens lowered to {recipe.data.max_tokens}: {limit}"


def check_max_length(recipe: Recipe, template: Template) -> None:
    """Raise Refused if instruction and labels leave too few tokens for a text: every row would be cut to the same."""
    fixed = recipe.objective.fixed_tokens(template)
    limit = recipe.data.max_tokens
    if limit - fixed < MIN_TEXT_TOKENS:
        raise Refused(
            f"{recipe.data.train}: the instruction, its {len(recipe.objective.known_labels)} labels and the answer "
            f"take {fixed} of data.max_tokens {limit}, and texts would be cut off; raise data.max_tokens, "
            "or write an objective.instruction without the labels"
        )


def encode_all(
    objective: AnyObjective, examples: Sequence[Example], template: Template, *, limit: int
) -> list[Encoded]:
    """Encode examples, each as one row or, for a document, one row per window.

    Args:
        objective: the objective that encodes them.
        examples: typed rows.
        template: tokenizer and chat format.
        limit: tokens of the longest row.
    """
    tracked = track(examples, "encoding", unit="rows", total=len(examples))
    return [row for example in tracked for row in objective.encode_all(example, template, limit=limit)]


def general_texts(recipe: Recipe, *, offline: bool) -> Sequence[Example]:
    """Read the texts of `replay.source`. Raises DataError."""
    return Domain().examples(read_rows(recipe.replay.source, offline=offline), group="")


def masking_of(objective: AnyObjective, template: Template, seed: int) -> Masking | None:
    """Return how words are masked for an encoder that learns from texts; None for everything else."""
    if not objective.masked_share or template.chats:
        return None
    return Masking.of(template, share=objective.masked_share, seed=seed)


def _encode_task(recipe: Recipe, loaded: DatasetSplits, base: Base, machine: ChosenMachine) -> TrainingContext:
    """Bind the objective of one task to its rows and encode them."""
    split = loaded.split
    recipe = recipe.model_copy(update={"objective": recipe.objective.bind(split.examples(), base.family)})
    check_pair(recipe, base.family)
    template = Template(base.tokenizer, chat=base.family == "decoder")
    check_max_length(recipe, template)
    limit = recipe.data.max_tokens
    train = encode_all(recipe.objective, split.train, template, limit=limit)
    validation = encode_all(recipe.objective, split.validation, template, limit=limit)
    recipe = recipe.model_copy(update={"objective": recipe.objective.bind_encoded(train)})
    facts = DataFacts(
        rows=loaded.rows,
        train=len(split.train),
        validation=len(split.validation),
        test=len(split.test),
        copies_removed=split.removed,
        learned_tokens=sum(tokens.learned for row in train for tokens in row.sequences),
        longest=max(row.length for row in train),
        truncated=tuple(row.where for row in train if row.shortened),
        zero_label=tuple(row.where for row in train if not _is_learned(row)),
        sha256=dict(loaded.sha256),
        notes=(*split.notes, *([] if split.test else [NO_TEST_ROWS])),
    )
    if not split.test and not split.validation:
        raise Refused(f"{recipe.data.train}: no held-out rows to score; set data.test or data.validation")
    learned = [row for row in train if _is_learned(row)]
    if not learned:
        raise Refused(
            f"{recipe.data.train}: none of {len(train)} rows contains training tokens within {limit} tokens; "
            "shorten the prompts, or raise data.max_tokens if the context of the model is longer"
        )
    validation = [row for row in validation if _is_learned(row)]
    return TrainingContext(recipe, loaded, base, machine, template, learned, validation, facts)


def _is_learned(row: Encoded) -> bool:
    """Return whether a row has a learned token, a label for a head, or a prompt whose completions are rewarded."""
    # Two answers that were cut to the same tokens express no preference.
    if len(row.sequences) == 2 and row.sequences[0].ids == row.sequences[1].ids:
        return False
    return bool(row.label) or row.asks or any(tokens.learned for tokens in row.sequences)


def _join_tasks(recipe: Recipe, tasks: Mapping[str, TrainingContext]) -> TrainingContext:
    """Return the context of a multitask run: the bound objectives of all tasks, and their rows one after another."""
    objective = recipe.objective.with_task_objectives({name: task.recipe.objective for name, task in tasks.items()})
    contexts = list(tasks.values())
    splits = [task.loaded.split for task in contexts]
    facts = [task.facts for task in contexts]
    # The files of the first task, which is the headline, keep their plain names.
    first = next(iter(tasks))
    sha256 = {
        file if name == first else f"{name} {file}": digest
        for name, task in tasks.items()
        for file, digest in task.loaded.sha256.items()
    }
    split = Split(
        train=[example for split in splits for example in split.train],
        validation=[example for split in splits for example in split.validation],
        test=[example for task in contexts for example in task.test],
        removed=sum(split.removed for split in splits),
        notes=tuple(note for split in splits for note in split.notes),
    )
    return TrainingContext(
        recipe=recipe.model_copy(update={"objective": objective}),
        loaded=DatasetSplits(split, sum(task.loaded.rows for task in contexts), sha256),
        base=contexts[0].base,
        machine=contexts[0].machine,
        template=contexts[0].template,
        train=[row for task in contexts for row in task.train],
        validation=[row for task in contexts for row in task.validation],
        facts=DataFacts(
            rows=sum(part.rows for part in facts),
            train=sum(part.train for part in facts),
            validation=sum(part.validation for part in facts),
            test=sum(part.test for part in facts),
            copies_removed=sum(part.copies_removed for part in facts),
            learned_tokens=sum(part.learned_tokens for part in facts),
            longest=max(part.longest for part in facts),
            truncated=tuple(location for part in facts for location in part.truncated),
            zero_label=tuple(location for part in facts for location in part.zero_label),
            sha256=sha256,
            notes=tuple(f"{name}: {note}" for name, task in tasks.items() for note in task.facts.notes),
        ),
        subtasks=dict(tasks),
    )
