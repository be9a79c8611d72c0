"""From a recipe to encoded rows and a loaded base model. Every invalid input is refused here, before training."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from tunesmith.config import (
    AnyObjective,
    Recipe,
    check_gates,
    check_pair,
    check_replay,
    check_technique,
    check_thinking_gates,
    sharding_refusal,
)
from tunesmith.data.cpu_count import cores
from tunesmith.data.examples.stored import StoredExamples
from tunesmith.data.examples.types import Example
from tunesmith.data.files import is_there, read_page, write_whole
from tunesmith.data.splits.load import DataFacts, DatasetSplits
from tunesmith.data.splits.split import Split
from tunesmith.data.stored import array_of, build_once, cached_folder, joined, take
from tunesmith.data.tokenization.chat_template import Encoded, Template
from tunesmith.data.tokenization.masking import Masking
from tunesmith.data.tokenization.token_store import EncodedStore, encoded_pieces
from tunesmith.data.tokenization.tokenizer import frame
from tunesmith.errors import RecipeError, Refused
from tunesmith.events import DataLoaded, EventHandler, MachineChosen, StageStarted
from tunesmith.inference.engine_program import check_rollouts
from tunesmith.inference.local_model import LocalModel
from tunesmith.inference.open_model import open_model
from tunesmith.models.families import positions_of
from tunesmith.models.loading.base_from_run import begins_from
from tunesmith.models.loading.device import DTYPES, ChosenMachine, choose_machine, configure_device
from tunesmith.models.loading.load import Base, load_base
from tunesmith.models.loading.locate import LoadOptions, local_family, locate
from tunesmith.models.loading.text_part import text_config
from tunesmith.models.loading.weight_files import glimpses_of_files, read_json, weight_files
from tunesmith.models.policy import Policy, runs_in_half
from tunesmith.models.recompute import recompute_layers
from tunesmith.models.sharded import Sharding
from tunesmith.models.world import current_world, keep_in_step
from tunesmith.objectives.base import SINGLE_TASK
from tunesmith.progress import track
from tunesmith.techniques import Full
from tunesmith.training.read import read_tasks
from tunesmith.training.rewards import check_reward
from tunesmith.training.trackers import check_trackers

# Smallest value of `data.max_tokens`, and tokens that a classification prompt must leave for the text.
MIN_MAX_TOKENS = 16
MIN_TEXT_TOKENS = 16

# Rows of a large file that are held in memory, to fit baselines and probes.
MOST_BASELINE_ROWS = 100_000
# Bytes per trained parameter: its value, its gradient and the two moments of AdamW in float32.
FULL_BYTES = 16
# Share of a GPU's memory for these; the rest is for activations.
ROOM = 0.8

# Counts of tasks that add up.
ADDED_FACTS = ("rows", "train", "validation", "test", "copies_removed", "learned_tokens")
NO_TEST_ROWS = "no test rows: scored on the validation rows, by which checkpoint and settings were chosen too"


@dataclass(slots=True)
class TrainingContext:
    """A recipe with everything it names read, bound to the data and encoded: the input of `train`."""

    recipe: Recipe
    loaded: DatasetSplits
    base: Base
    machine: ChosenMachine
    template: Template
    train: Sequence[Encoded]
    validation: Sequence[Encoded]
    facts: DataFacts
    head: dict[str, Tensor] | None = None  # initial weights of a head that the base does not have
    # General rows of each epoch, for replay; those of the first epoch are the last rows of `train`.
    general: tuple[tuple[Encoded, ...], ...] = ()
    teacher: Policy | None = None  # whose distribution over each token is learned
    answered: Sequence[Example] = ()  # rows with answers of a teacher: encoded in `train`, not in `loaded`
    subtasks: dict[str, TrainingContext] = field(default_factory=dict)  # multitask: each task as a separate context

    @property
    def tasks(self) -> Mapping[str, TrainingContext]:
        """Return the context of every task by name; a single task has the name `SINGLE_TASK`."""
        return self.subtasks or {SINGLE_TASK: self}

    def map_tasks(self, change: Callable[[str, TrainingContext], TrainingContext]) -> TrainingContext:
        """Return the context with `change(name, task)` in place of every task.

        The rows of several tasks are joined again, because their number decides the number of steps.
        """
        changed = {name: change(name, task) for name, task in self.tasks.items()}
        if SINGLE_TASK in changed:
            return changed[SINGLE_TASK]
        known = {name: task.facts.notes for name, task in self.tasks.items()}
        added = [f"{name}: {n}" for name, task in changed.items() for n in task.facts.notes if n not in known[name]]
        facts = replace(
            self.facts,
            learned_tokens=sum(task.facts.learned_tokens for task in changed.values()),
            notes=(*self.facts.notes, *added),
        )
        return replace(
            self,
            train=joined(*(task.train for task in changed.values())),
            validation=joined(*(task.validation for task in changed.values())),
            facts=facts,
            subtasks=changed,
        )

    @property
    def scoring_dtype(self) -> torch.dtype | None:
        """Return the dtype of matrix products in which both models are scored, if it is not that of the weights."""
        dtype = DTYPES[self.machine.dtype]
        return None if dtype == self.base.network.dtype else dtype

    @property
    def test(self) -> Sequence[Example]:
        """Return the test rows, or the validation rows if there are none."""
        return self.loaded.split.test or self.loaded.split.validation

    @property
    def baseline_rows(self) -> Sequence[Example]:
        """Return the training rows for baselines and probes: of rows in files at most MOST_BASELINE_ROWS at random."""
        rows = self.loaded.split.train
        if not isinstance(rows, StoredExamples) or len(rows) <= MOST_BASELINE_ROWS:
            return rows
        sample = random.Random(self.recipe.seed).sample(range(len(rows)), MOST_BASELINE_ROWS)
        return rows.take(np.array(sorted(sample)))

    def noted(self, *notes: str) -> TrainingContext:
        """Return the context with further notes for the report."""
        return replace(self, facts=replace(self.facts, notes=(*self.facts.notes, *notes)))


def prepare(recipe: Recipe, *, on_event: EventHandler, offline: bool = False, pinned: bool = False) -> TrainingContext:
    """Read the rows, choose the machine, load the base model and encode the rows of a recipe.

    Args:
        recipe: the recipe of a single task or of several.
        on_event: receives the stages, the machine and the counts of the rows.
        offline: do not access the network.
        pinned: the machine settings of the recipe are those of an earlier start of the run.

    Raises:
        TunesmithError: the recipe, the rows, the model or a reward cannot be used; the message names the fix.
    """
    check_trackers(recipe.track)  # opened only when training starts
    check_reward(recipe)
    check_rollouts(recipe, offline=offline)
    loaded = read_tasks(recipe, on_event=on_event, offline=offline)
    machine = shared_machine(recipe, pinned=pinned)
    on_event(MachineChosen(machine.why))
    on_event(StageStarted(f"loading {recipe.model}"))
    if current_world().size > 1 and not is_there(recipe.model):
        with current_world().first(of_machine=True):
            locate(recipe.model, offline=offline)  # downloaded once per machine
    locate_encoders(recipe.objective, offline=offline)
    options = training_options(recipe, machine)
    base = load_base(recipe.model, options=options, offline=offline)
    if options.sharding is not None:
        keep_in_step()
    if machine.dtype != "float32" and not runs_in_half(base.network, DTYPES[machine.dtype]):
        machine = replace(machine, dtype="float32", why=f"a {base.network.config.model_type} runs only in float32")
        on_event(MachineChosen(machine.why))
    check_pair(recipe, base.family)
    check_gates(recipe, base.family)
    check_replay(recipe, base.family)
    check_technique(recipe, base.network, base.family)
    if recipe.schedule.recompute is True and not recompute_layers(base.network, on=False):
        kind = base.network.config.model_type
        raise RecipeError(f"schedule.recompute: transformers cannot run the layers of a {kind} again; leave it out")
    if recipe.objective.samples_completions:  # the completion budget, which limits the rows, depends on the rows
        bound = recipe.objective.bind(loaded[SINGLE_TASK].split.examples(), base.family)
        recipe = recipe.model_copy(update={"objective": bound})
    recipe = fit_max_length(recipe, base, on_event)
    tasks = {name: _encode_task(task, loaded[name], base, machine) for name, task in recipe.tasks.items()}
    prepared = tasks[SINGLE_TASK] if SINGLE_TASK in tasks else _join_tasks(recipe, tasks)
    if recipe.teacher.loss != "answers":
        prepared.teacher = _distribution_of(open_teacher(recipe, machine, offline=offline), recipe, base)
    if rows := recipe.teacher.rows:
        unasked = f"{Path(rows).name}: answered once `tune` starts; plans, learning curves and compare leave it out"
        prepared = prepared.noted(unasked)
    check_thinking_gates(recipe, thinks=prepared.template.thinks)
    on_event(DataLoaded(prepared.facts))
    return prepared


def locate_encoders(objective: AnyObjective, *, offline: bool) -> None:
    """Download the models that find candidates by vectors, once per machine. Raises ModelError for a missing one."""
    for part in objective.task_objectives.values():
        found = part.retriever
        if found is None or found.search == "words" or found.encoder.lower().endswith(".gguf"):
            continue
        with current_world().first(of_machine=True):
            folder = locate(found.encoder, offline=offline)
            if base := begins_from(folder, where=found.encoder)[0]:
                locate(base, offline=offline)


def open_teacher(recipe: Recipe, machine: ChosenMachine, *, offline: bool) -> LocalModel:
    """Open the teacher of a `recipe` as `offline` says, with the threads of a `machine`: by itself it uses all."""
    model = open_model(recipe.teacher.model, objective=recipe.objective, offline=offline, limit=recipe.data.max_tokens)
    settings: dict[str, Any] = {"threads": machine.threads, "exact": recipe.machine.exact, "products": machine.products}
    configure_device(machine.device, **settings)
    return model


def _distribution_of(teacher: LocalModel, recipe: Recipe, base: Base) -> Policy:
    """Return the network of a teacher; raise RecipeError if its tokens are not those of the student."""
    theirs = teacher.template.tokenizer
    if theirs.get_vocab() != base.tokenizer.get_vocab() or frame(theirs) != frame(base.tokenizer):
        raise RecipeError(
            f"teacher.loss: {recipe.teacher.model} has other tokens than {recipe.model}, so distributions over them do "
            "not compare; use answers, with teacher.rows"
        )
    teacher.policy.train(False)
    return teacher.policy


def training_options(recipe: Recipe, machine: ChosenMachine) -> LoadOptions:
    """Return how the base of a run is loaded: in float32 where its weights are trained or the recipe sets float32."""
    whole = isinstance(recipe.technique, Full) or machine.dtype == "float32"
    quantize = recipe.technique.load_options().quantize
    return LoadOptions("float32" if whole else "auto", machine.device, quantize, _sharding(recipe, machine))


def _sharding(recipe: Recipe, machine: ChosenMachine) -> Sharding | None:
    """Return how the weights of the base are divided among the processes; None if each process has them all.

    Over several machines they are divided within each, so that only gradients pass between them, if they fit there.

    Raises:
        RecipeError: the recipe asks for it, and it is not supported.
    """
    world, wish = current_world(), recipe.machine.shard
    if world.size == 1 or wish == "none":
        return None
    folder = Path(recipe.model)
    if not recipe.model.lower().endswith(".gguf"):
        folder = locate(recipe.model, offline=True)
        folder = locate(begins_from(folder, where=recipe.model)[0] or recipe.model, offline=True)
    config = folder / "config.json"
    multimodal = config.exists() and text_config(read_json(config, where=recipe.model)) is not None
    if refusal := sharding_refusal(recipe, local_family(str(folder)), multimodal=multimodal):
        if wish == "full":
            raise RecipeError(f"machine.shard: {refusal}")
        return None
    within = Sharding(world.local_size, world.size // world.local_size)
    if not machine.device.startswith("cuda"):
        return within if wish == "full" else None
    files = weight_files(locate(recipe.model, offline=True), where=recipe.model)
    parameters = sum(math.prod(shape) for _, shape, _ in glimpses_of_files(files))
    needed = parameters * (FULL_BYTES if isinstance(recipe.technique, Full) else DTYPES[machine.dtype].itemsize)
    room = ROOM * min(world.gather(torch.cuda.get_device_properties(machine.device).total_memory))  # all decide alike
    if wish == "auto" and needed <= room:
        return None
    fits = needed <= room * world.local_size and world.size % world.local_size == 0
    return within if fits else Sharding(world.size)


def shared_machine(recipe: Recipe, *, pinned: bool = False) -> ChosenMachine:
    """Choose device, dtype and threads by the recipe; of several processes, by the measurement of the first one.

    Each process gets one GPU, or its share of the cores.
    """
    settings, world = recipe.machine, current_world()
    threads = settings.threads or (cores() // world.local_size or 1 if world.size > 1 else 0)
    own: dict[str, Any] = {"threads": threads, "reason": "as at the start of this run" if pinned else "as set"}
    own |= settings.model_dump(include={"device", "dtype", "exact", "products"})
    machine = ChosenMachine(**world.lead(lambda: asdict(choose_machine(**own))))
    if world.size == 1:
        return machine
    device = f"cuda:{world.local_rank}" if machine.device.startswith("cuda") else machine.device
    options: dict[str, Any] = {"threads": threads, "exact": settings.exact, "products": machine.products}
    return replace(machine, device=configure_device(device, **options))


def fit_max_length(recipe: Recipe, base: Base, on_event: EventHandler) -> Recipe:
    """Lower `data.max_tokens` to what the model holds besides virtual tokens and sampled completions, and say so.

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
    """Encode examples, each as one row; a document as one row per window, a chat with thoughts as one per answer.

    `objective` encodes the `examples` with a `template` to at most `limit` tokens.
    """
    tracked = track(examples, "encoding", unit="rows", total=len(examples))
    return [row for example in tracked for row in objective.encode_all(example, template, limit=limit)]


def masking_of(objective: AnyObjective, template: Template, seed: int) -> Masking | None:
    """Return how words are masked for an encoder that learns from texts; None for everything else.

    Args:
        objective: what is learned.
        template: encodes texts.
        seed: chooses the masked words.
    """
    if not objective.masked_share or template.chats:
        return None
    return Masking.of(template, share=objective.masked_share, seed=seed)


def _encode_task(recipe: Recipe, loaded: DatasetSplits, base: Base, machine: ChosenMachine) -> TrainingContext:
    """Bind the objective of one task to its rows and encode them, or map what was encoded before."""
    template = Template(base.tokenizer, chat=base.family == "decoder")
    folder = _tokens_folder(recipe, loaded, template)
    empty = TrainingContext(recipe, loaded, base, machine, template, [], [], DataFacts())
    if folder is None:
        return _encode(empty)
    build_once(folder, lambda partial: _save(_encode(empty, folder=partial), partial))
    recipe = recipe.model_copy(update={"objective": read_page(folder / "objective.json", type(recipe.objective))})
    check_pair(recipe, base.family)
    train, validation = (EncodedStore(folder / name, folder / f"{name}.rows") for name in ("train", "validation"))
    facts = read_page(folder / "facts.json", DataFacts)
    return replace(empty, recipe=recipe, train=train, validation=validation, facts=facts)


def _save(encoded: TrainingContext, folder: Path) -> None:
    """Save what `_encode` has found, in the folder of the tokens."""
    for name, rows in (("train", encoded.train), ("validation", encoded.validation)):
        assert isinstance(rows, EncodedStore)
        rows.save(folder / f"{name}.rows")
    write_whole(folder / "objective.json", encoded.recipe.objective.model_dump_json())
    write_whole(folder / "facts.json", TypeAdapter(DataFacts).dump_json(encoded.facts).decode())


def _tokens_folder(recipe: Recipe, loaded: DatasetSplits, template: Template) -> Path | None:
    """Return the folder in the user's cache for the tokens of stored rows; None for rows in memory."""
    split = loaded.split
    parts = [part for part in (split.train, split.validation, split.test) if isinstance(part, StoredExamples)]
    if len(parts) < 3:
        return None
    chosen = [hashlib.sha256(np.ascontiguousarray(part.chosen).data).hexdigest() for part in parts]
    rows = list(zip((part.folder.parent.name for part in parts), chosen, strict=True))
    vocabulary = hashlib.sha256(template.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    tokenizer = (vocabulary, template.hash, template.chats, recipe.data.max_tokens)
    return cached_folder("tokens", rows, split.notes, tokenizer, recipe.objective.model_dump(mode="json"))


def _encode(task: TrainingContext, *, folder: Path | None = None) -> TrainingContext:
    """Bind the objective of a task to its rows and encode them, into a folder if one is given."""
    recipe, template, family = task.recipe, task.template, task.base.family
    split, limit = task.loaded.split, recipe.data.max_tokens
    objective = recipe.objective.for_base(task.base.folder, family).bind(split.examples(), family)
    recipe = recipe.model_copy(update={"objective": objective})
    check_pair(recipe, family)
    check_max_length(recipe, template)
    notes = objective.template_notes(split.train, template)
    if folder and objective.label_mode and len(split.train) > MOST_BASELINE_ROWS:
        notes.append(f"baselines and probes are fitted to {MOST_BASELINE_ROWS:,} of {len(split.train):,} training rows")

    def encoded(name: str, examples: Sequence[Example]) -> Sequence[Encoded]:
        if folder is None:
            return encode_all(objective, examples, template, limit=limit)
        tracked = track(examples, "encoding", unit="rows", total=len(examples))
        encode = partial(objective.encode_all, template=template, limit=limit)
        return EncodedStore.write(folder / name, encoded_pieces(encode, tracked))

    train = encoded("train", split.train)
    validation = encoded("validation", split.validation)
    notes += objective.encoded_notes(split.train, train, template, limit=limit)
    tokens, longest = 0, 0
    truncated, zero_label = list[str](), list[str]()

    def learned() -> Iterator[bool]:
        nonlocal tokens, longest
        for row in train:
            tokens += row.learned
            longest = max(longest, row.length)
            if row.shortened:
                truncated.append(row.where)
            if not (is_learned := _is_learned(row)):
                zero_label.append(row.where)
            yield is_learned

    learned_train = take(train, array_of(len(train), "?", learned()))
    if not split.test and not split.validation:
        raise Refused(f"{recipe.data.train}: no held-out rows to score; set data.test or data.validation")
    if not learned_train:
        raise Refused(
            f"{recipe.data.train}: none of {len(train)} rows contains training tokens within {limit} tokens; "
            "shorten the prompts, or raise data.max_tokens if the context of the model is longer"
        )
    facts = DataFacts(
        rows=task.loaded.rows,
        train=len(split.train),
        validation=len(split.validation),
        test=len(split.test),
        copies_removed=split.removed,
        learned_tokens=tokens,
        longest=longest,
        truncated=tuple(truncated),
        zero_label=tuple(zero_label),
        sha256=dict(task.loaded.sha256),
        notes=(*split.notes, *notes, *([] if split.test else [NO_TEST_ROWS])),
    )
    validation = take(validation, array_of(len(validation), "?", map(_is_learned, validation)))
    recipe = recipe.model_copy(update={"objective": objective.bind_encoded(train)})
    check_pair(recipe, family)
    return replace(task, recipe=recipe, train=learned_train, validation=validation, facts=facts)


def _is_learned(row: Encoded) -> bool:
    """Return whether a row has a learned token, a label for a head, or a prompt whose completions are rewarded."""
    # Two answers that were cut to the same tokens express no preference; two right passages wait for mined negatives.
    if len(row.sequences) == 2 and row.sequences[0].ids == row.sequences[1].ids and row.label != (1.0, 1.0):
        return False
    return bool(row.label) or row.asks or row.learned > 0


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
        train=joined(*(split.train for split in splits)),
        validation=joined(*(split.validation for split in splits)),
        test=joined(*(task.test for task in contexts)),
        removed=sum(split.removed for split in splits),
        notes=tuple(note for split in splits for note in split.notes),
    )
    return TrainingContext(
        recipe=recipe.model_copy(update={"objective": objective}),
        loaded=DatasetSplits(split, sum(task.loaded.rows for task in contexts), sha256),
        base=contexts[0].base,
        machine=contexts[0].machine,
        template=contexts[0].template,
        train=joined(*(task.train for task in contexts)),
        validation=joined(*(task.validation for task in contexts)),
        facts=DataFacts(
            **{name: sum(getattr(part, name) for part in facts) for name in ADDED_FACTS},
            longest=max(part.longest for part in facts),
            truncated=tuple(location for part in facts for location in part.truncated),
            zero_label=tuple(location for part in facts for location in part.zero_label),
            sha256=sha256,
            notes=tuple(f"{name}: {note}" for name, task in tasks.items() for note in task.facts.notes),
        ),
        subtasks=dict(tasks),
    )
