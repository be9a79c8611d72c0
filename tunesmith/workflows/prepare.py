"""From a recipe to encoded rows and a base model: everything that can be refused is refused here."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tunesmith.data.examples import Example
from tunesmith.data.sources import Loaded, Sources, load
from tunesmith.data.template import Encoded, Template
from tunesmith.errors import Refused
from tunesmith.evaluation.style import rules_of
from tunesmith.model.device import Machine, choose_machine
from tunesmith.model.load import Base, LoadOptions, load_base
from tunesmith.recipe import Recipe, check_pair

Listener = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What the rows came to: counts, and the places of rows that were cut or teach nothing."""

    rows: int
    train: int
    validation: int
    test: int
    copies_removed: int
    learned_tokens: int
    longest: int
    truncated: tuple[str, ...]
    zero_label: tuple[str, ...]
    sha256: dict[str, str]
    notes: tuple[str, ...]


@dataclass(slots=True)
class Prepared:
    """A recipe with everything it names read, bound and encoded."""

    recipe: Recipe
    loaded: Loaded
    base: Base
    machine: Machine
    template: Template
    train: list[Encoded]
    validation: list[Encoded]
    facts: DataFacts

    @property
    def test(self) -> list[Example]:
        """The frozen test rows; without any, the validation rows."""
        return self.loaded.split.test or self.loaded.split.validation


def read_data(recipe: Recipe, *, offline: bool) -> Loaded:
    """The examples of a recipe, split; every fault of the files is found before a model is loaded."""
    data, objective = recipe.data, recipe.objective
    sources = Sources(data.train, data.validation, data.test, data.group, data.where)
    loaded = load(sources, lambda rows: objective.examples(rows, group=data.group), seed=recipe.seed, offline=offline)
    if data.rows:
        random.Random(recipe.seed).shuffle(loaded.split.train)
        del loaded.split.train[data.rows :]
    objective.bind(_all(loaded), "decoder")  # one label only, unknown labels: said now
    return loaded


def prepare(recipe: Recipe, *, listen: Listener, offline: bool = False) -> Prepared:
    """Rows, machine, model and encoded rows of a recipe. Raises the errors of all doors on the way."""
    rules_of(recipe.style)  # a rule that cannot be checked is refused now, not after the run
    listen({"event": "stage", "text": f"reading {recipe.data.train}"})
    loaded = read_data(recipe, offline=offline)
    wanted = recipe.machine
    machine = choose_machine(device=wanted.device, dtype=wanted.dtype, threads=wanted.threads)
    listen({"event": "machine", "text": machine.why})
    options = LoadOptions("float32", machine.device, recipe.technique.load_options().quantize)
    listen({"event": "stage", "text": f"loading {recipe.model}"})
    base = load_base(recipe.model, options=options, offline=offline)
    check_pair(recipe, base.family)
    objective = recipe.objective.bind(_all(loaded), base.family)
    recipe = recipe.model_copy(update={"objective": objective})
    check_pair(recipe, base.family)
    template = Template(base.tokenizer, chat=base.family == "decoder")
    train, validation = (
        [objective.encode(example, template, limit=recipe.data.max_tokens) for example in part]
        for part in (loaded.split.train, loaded.split.validation)
    )
    facts = _facts(recipe, loaded, train)
    listen({"event": "data", **asdict(facts)})
    keep = [row for row in train if _teaches(row)]
    if not keep:
        raise Refused(
            f"{recipe.data.train}: none of {len(train)} rows has anything to learn "
            f"within {recipe.data.max_tokens} tokens; raise data.max_tokens or shorten the prompts"
        )
    return Prepared(recipe, loaded, base, machine, template, keep, [v for v in validation if _teaches(v)], facts)


def _facts(recipe: Recipe, loaded: Loaded, train: Sequence[Encoded]) -> DataFacts:
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
        notes=tuple(split.notes),
    )


def _teaches(row: Encoded) -> bool:
    """Whether the row has a learned token or a label for a head."""
    return bool(row.label) or any(tokens.learned for tokens in row.sequences)


def _all(loaded: Loaded) -> list[Example]:
    split = loaded.split
    return [*split.train, *split.validation, *split.test]
