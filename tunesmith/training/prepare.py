"""From a recipe to encoded rows and a base model: everything that can be refused is refused here."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from tunesmith.config import SELF, AnyObjective, Recipe, check_gates, check_pair, check_replay, check_technique
from tunesmith.config.style_rules import read_style_rules
from tunesmith.data.audit.gate import gate
from tunesmith.data.examples.types import Example
from tunesmith.data.readers.read import read_rows
from tunesmith.data.readers.row import Row
from tunesmith.data.splits.load import DataFacts, DatasetSplits, Sources, check_names, load
from tunesmith.data.splits.multitask import Asking, remove_cross_task_leaks
from tunesmith.data.splits.split import Split, unlearned_labels
from tunesmith.data.tokenization.chat_template import Encoded, Template
from tunesmith.data.tokenization.masking import Masking
from tunesmith.errors import DataError, RecipeError, Refused
from tunesmith.events import DataLoaded, EventHandler, MachineChosen, StageStarted
from tunesmith.models.families import positions_of
from tunesmith.models.loading.device import ChosenMachine, choose_machine
from tunesmith.models.loading.load import Base, LoadOptions, load_base
from tunesmith.objectives import Classify, Domain, Multitask
from tunesmith.training.rewards import check_reward
from tunesmith.training.trackers import check_trackers


class Reader:
    """Reads rows by the columns of the first file, which is the train file, where they have them.

    What a file has beside these (`input`, `system`) is read too, where its own columns say the same kind of rows.
    """

    def __init__(self, objective: AnyObjective, group: str) -> None:
        self._objective, self._group = objective, group
        self._columns: Mapping[str, str] = {}

    def __call__(self, rows: Sequence[Row]) -> list[Example]:
        """Their examples. Raises DataError."""
        columns = self._objective.columns(rows) if not self._columns else self._as_before(rows)
        self._columns = self._columns or columns
        return self._objective.examples(rows, group=self._group, columns=columns)

    def _as_before(self, rows: Sequence[Row]) -> Mapping[str, str]:
        first = self._columns
        there = {column for row in rows for column, value in row.fields.items() if value not in (None, "")}
        if not set(first.values()) <= there:
            return self._objective.columns(rows)
        try:
            own = self._objective.columns(rows)
        except DataError:  # clear by the first file alone
            return first
        more = {part: column for part, column in own.items() if column not in first.values()}
        return {**more, **first} if set(first) <= set(own) else first


# The least that `data.max_tokens` may be.
SHORTEST = 16


# Room for a text behind the question that all texts share.
FEWEST_TEXT_TOKENS = 16


def fit_max_length(recipe: Recipe, base: Base, on_event: EventHandler) -> Recipe:
    """The recipe with its longest row cut where it, with virtual tokens before it, would not fit into the model."""
    virtual, wanted = recipe.technique.virtual_tokens(), recipe.data.max_tokens
    positions = positions_of(base.network.config.to_dict())
    if virtual:
        positions = min(positions or base.tokenizer.model_max_length, base.tokenizer.model_max_length)
    drawn = recipe.objective.max_new_tokens if recipe.objective.samples_completions else 0  # behind the longest row
    longest = positions - virtual - drawn
    if longest >= wanted or not positions:
        return recipe
    if longest < SHORTEST:
        key, taken = ("technique.tokens", virtual) if virtual >= drawn else ("objective.max_new_tokens", drawn)
        most = taken - (SHORTEST - longest)
        cure = f"use at most {most}" if most > 0 else "use fewer, here and of the other"
        raise RecipeError(f"{key}: {taken} leave no room for rows in {positions} positions; {cure}")
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"max_tokens": longest})})
    on_event(StageStarted(max_length_note(recipe)))
    return recipe


def max_length_note(recipe: Recipe) -> str:
    """What is said of a recipe whose longest row the model set."""
    virtual = recipe.technique.virtual_tokens()
    beside = f"with {virtual} virtual ones " if virtual else ""
    return f"rows may have {recipe.data.max_tokens} tokens: {beside}{recipe.model} holds no more"


def check_max_length(recipe: Recipe, objective: Classify, template: Template) -> None:
    """Raise Refused where what is asked before each text leaves no room for the text: all rows would look alike."""
    asked, limit = objective.fixed_tokens(template), recipe.data.max_tokens
    if limit - asked < FEWEST_TEXT_TOKENS:
        raise Refused(
            f"{recipe.data.train}: what is asked of each text, its {len(objective.labels)} labels and the answer take "
            f"{asked} of data.max_tokens {limit}, and texts would be cut off; raise data.max_tokens, "
            "or write an objective.instruction without the labels"
        )


NO_TEST_ROWS = "no test rows: scored on the validation rows, by which checkpoint and settings were chosen too"


@dataclass(slots=True)
class TrainingContext:
    """A recipe with everything it names read, bound and encoded."""

    recipe: Recipe
    loaded: DatasetSplits
    base: Base
    machine: ChosenMachine
    template: Template
    train: list[Encoded]
    validation: list[Encoded]
    facts: DataFacts
    head: dict[str, Tensor] | None = None  # what a head that the base lacks begins with
    # The general rows of each pass, of which the first pass's stand at the end of `train`.
    general: tuple[tuple[Encoded, ...], ...] = ()
    parts: dict[str, TrainingContext] = field(
        default_factory=dict
    )  # the tasks of a run that learns several, each by itself

    @property
    def test(self) -> list[Example]:
        """The frozen test rows; without any, the validation rows."""
        return self.loaded.split.test or self.loaded.split.validation

    def noted(self, *notes: str) -> TrainingContext:
        """The same with notes that stand in the report."""
        return replace(self, facts=replace(self.facts, notes=(*self.facts.notes, *notes)))


def read_data(recipe: Recipe, *, offline: bool) -> DatasetSplits:
    """The examples of a recipe of one task, split; every fault of the files is found before a model is loaded."""
    if recipe.parts:
        raise RecipeError(
            f"objective multitask: this works on one task at a time, and it has {', '.join(recipe.parts)}"
        )
    data, objective = recipe.data, recipe.objective
    if objective.samples_completions:  # an answer that is drawn finds its row again by its place
        check_names((data.train, data.validation))
    sources = Sources(data.train, data.validation, data.test, data.group, data.where)
    loaded = load(sources, Reader(objective, data.group), seed=recipe.seed, offline=offline)
    if data.rows:
        random.Random(recipe.seed).shuffle(loaded.split.train)
        del loaded.split.train[data.rows :]
        parts = {"train": loaded.split.train, "validation": loaded.split.validation, "test": loaded.split.test}
        lost = [note for note in unlearned_labels(parts) if note not in loaded.split.notes]
        loaded = replace(loaded, split=replace(loaded.split, notes=(*loaded.split.notes, *lost)))
    objective.bind(_all(loaded), "decoder")  # one label only, unknown labels: said now
    return loaded


def prepare(recipe: Recipe, *, on_event: EventHandler, offline: bool = False) -> TrainingContext:
    """Rows, machine, model and encoded rows of a recipe. Raises the errors of all doors on the way."""
    read_style_rules(recipe, offline=offline)  # a rule that cannot be checked is refused now, not after the run
    check_reward(recipe)
    check_trackers(recipe.track)
    tasks = _parts(recipe)
    asking = {name: Asking(part.objective.instruction, part.data.group) for name, part in tasks.items()}
    loaded = remove_cross_task_leaks(
        {name: _read(part, on_event, offline=offline) for name, part in tasks.items()}, asking
    )
    wanted = recipe.machine
    machine = choose_machine(device=wanted.device, dtype=wanted.dtype, threads=wanted.threads)
    on_event(MachineChosen(machine.why))
    options = LoadOptions("float32", machine.device, recipe.technique.load_options().quantize)
    on_event(StageStarted(f"loading {recipe.model}"))
    base = load_base(recipe.model, options=options, offline=offline)
    check_pair(recipe, base.family)
    check_gates(recipe, base.family)
    check_replay(recipe, base.family)
    if recipe.replay.share and recipe.replay.source != SELF:
        general_texts(recipe, offline=offline)  # what is wrong with them is told before a run begins
    check_technique(recipe, base.network, base.family)
    if recipe.objective.samples_completions:  # its answers need room, and the rows say how long they are
        recipe = recipe.model_copy(update={"objective": recipe.objective.bind(_all(loaded[ONLY_TASK]), base.family)})
    recipe = fit_max_length(recipe, base, on_event)
    found = {name: _encoded(part, loaded[name], base, machine) for name, part in _parts(recipe).items()}
    prepared = found[ONLY_TASK] if ONLY_TASK in found else _joined(recipe, found)
    on_event(DataLoaded(prepared.facts))
    return prepared


# The name of the only task of a recipe that has no others.
ONLY_TASK = ""


def _parts(recipe: Recipe) -> dict[str, Recipe]:
    """The tasks of a recipe, each as a recipe of its own."""
    return recipe.parts or {ONLY_TASK: recipe}


def _read(recipe: Recipe, on_event: EventHandler, *, offline: bool) -> DatasetSplits:
    """The rows of one task."""
    on_event(StageStarted(f"reading {recipe.data.train}"))
    return audited(recipe, read_data(recipe, offline=offline))


def _encoded(recipe: Recipe, loaded: DatasetSplits, base: Base, machine: ChosenMachine) -> TrainingContext:
    """One task with its objective told what only the rows know, and its rows as ids."""
    objective = recipe.objective.bind(_all(loaded), base.family)
    recipe = recipe.model_copy(update={"objective": objective})
    check_pair(recipe, base.family)
    template = Template(base.tokenizer, chat=base.family == "decoder")
    if isinstance(objective, Classify):
        check_max_length(recipe, objective, template)
    train, validation = (
        encode_all(objective, part, template, limit=recipe.data.max_tokens)
        for part in (loaded.split.train, loaded.split.validation)
    )
    recipe = recipe.model_copy(update={"objective": objective.bind_encoded(train)})
    facts = _facts(loaded, train)
    if not loaded.split.test and not loaded.split.validation:
        raise Refused(f"{recipe.data.train}: no row is held out to be scored; set data.test or data.validation")
    keep = [row for row in train if _teaches(row)]
    if not keep:
        raise Refused(
            f"{recipe.data.train}: none of {len(train)} rows has anything to learn "
            f"within {recipe.data.max_tokens} tokens; shorten the prompts, or raise data.max_tokens "
            "where the model holds more"
        )
    return TrainingContext(recipe, loaded, base, machine, template, keep, [v for v in validation if _teaches(v)], facts)


def _joined(recipe: Recipe, parts: Mapping[str, TrainingContext]) -> TrainingContext:
    """The tasks of a recipe as one run: its objective with all that the rows told, its rows one after the other."""
    objective = recipe.objective
    assert isinstance(objective, Multitask)
    found = list(parts.values())
    tasks = {n: p.model_copy(update={"objective": parts[n].recipe.objective}) for n, p in objective.tasks.items()}
    recipe = recipe.model_copy(update={"objective": objective.model_copy(update={"tasks": tasks})})
    return TrainingContext(
        recipe=recipe,
        loaded=_loaded_of(parts),
        base=found[0].base,
        machine=found[0].machine,
        template=found[0].template,
        train=[row for part in found for row in part.train],
        validation=[row for part in found for row in part.validation],
        facts=_facts_of(parts),
        parts=dict(parts),
    )


def _loaded_of(parts: Mapping[str, TrainingContext]) -> DatasetSplits:
    splits = [part.loaded.split for part in parts.values()]
    whole = Split(
        train=[example for one in splits for example in one.train],
        validation=[example for one in splits for example in one.validation],
        test=[example for part in parts.values() for example in part.test],
        removed=sum(one.removed for one in splits),
        notes=tuple(note for one in splits for note in one.notes),
    )
    return DatasetSplits(whole, sum(part.loaded.rows for part in parts.values()), _digests(parts))


def _digests(parts: Mapping[str, TrainingContext]) -> dict[str, str]:
    """The digest of each part of each task's rows; those of the first task, the headline, under their plain names."""
    first = next(iter(parts))
    found = ((name, what, sha) for name, part in parts.items() for what, sha in part.loaded.sha256.items())
    return {what if name == first else f"{name} {what}": sha for name, what, sha in found}


def _facts_of(parts: Mapping[str, TrainingContext]) -> DataFacts:
    """Counts over all tasks."""
    facts = [part.facts for part in parts.values()]
    notes = tuple(f"{name}: {note}" for name, part in parts.items() for note in part.facts.notes)
    return DataFacts(
        rows=sum(one.rows for one in facts),
        train=sum(one.train for one in facts),
        validation=sum(one.validation for one in facts),
        test=sum(one.test for one in facts),
        copies_removed=sum(one.copies_removed for one in facts),
        learned_tokens=sum(one.learned_tokens for one in facts),
        longest=max(one.longest for one in facts),
        truncated=tuple(place for one in facts for place in one.truncated),
        zero_label=tuple(place for one in facts for place in one.zero_label),
        sha256=_digests(parts),
        notes=notes,
    )


def audited(recipe: Recipe, loaded: DatasetSplits) -> DatasetSplits:
    """The rows, with a note on each grave fault that the recipe goes on over; else Refused."""
    found = gate(loaded.split)
    if found.problems and recipe.data.audit == "stop":
        cure = "`tunesmith audit DATA --fix OUT` cures the rows, `--set data.audit=note` goes on"
        raise Refused("\n".join(f"{recipe.data.train}: {fault}; {cure}" for fault in found.problems))
    forced = (f"gone on over a fault of the rows: {fault}" for fault in found.problems)
    notes = (*loaded.split.notes, *found.notes, *forced)
    return replace(loaded, split=replace(loaded.split, notes=notes))


def encode_all(
    objective: AnyObjective, examples: Sequence[Example], template: Template, *, limit: int
) -> list[Encoded]:
    """A row for each example, or for each window of a document."""
    return [row for example in examples for row in objective.encode_all(example, template, limit=limit)]


def general_texts(recipe: Recipe, *, offline: bool) -> Sequence[Example]:
    """The texts of the file that `replay` mixes in. Raises DataError."""
    return Domain().examples(read_rows(recipe.replay.source, offline=offline), group="")


def masking_of(objective: AnyObjective, template: Template, seed: int) -> Masking | None:
    """How words are hidden from an encoder that learns the language of a field; None for all else."""
    if not isinstance(objective, Domain) or template.chats:
        return None
    return Masking.of(template, share=objective.hide, seed=seed)


def _facts(loaded: DatasetSplits, train: Sequence[Encoded]) -> DataFacts:
    """Counts over the encoded training rows."""
    split = loaded.split
    return DataFacts(
        rows=loaded.rows,
        train=len(split.train),
        validation=len(split.validation),
        test=len(split.test),
        copies_removed=split.removed,
        learned_tokens=sum(tokens.learned for row in train for tokens in row.sequences),
        longest=max(row.length for row in train),
        truncated=tuple(row.where for row in train if row.shortened),
        zero_label=tuple(row.where for row in train if not _teaches(row)),
        sha256=dict(loaded.sha256),
        notes=(*split.notes, *([] if split.test else [NO_TEST_ROWS])),
    )


def _teaches(row: Encoded) -> bool:
    """Whether the row has a learned token, a label for a head, or asks for answers that are scored.

    Two answers that were cut to the same ids prefer nothing.
    """
    if len(row.sequences) == 2 and row.sequences[0].ids == row.sequences[1].ids:
        return False
    return bool(row.label) or row.asks or any(tokens.learned for tokens in row.sequences)


def _all(loaded: DatasetSplits) -> list[Example]:
    split = loaded.split
    return [*split.train, *split.validation, *split.test]
