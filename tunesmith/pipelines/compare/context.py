"""What all arms of a comparison share: the frozen rows, the documents, the untuned model, and what was kept on disk."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tunesmith.config import Recipe
from tunesmith.data.documents.cache import CollectStore
from tunesmith.data.examples.types import Example
from tunesmith.data.files import read_page, write_whole
from tunesmith.data.readers.read import read_rows
from tunesmith.data.splits.split import Split
from tunesmith.data.tokenization.chat_template import Template
from tunesmith.errors import CheckpointError, DataError, RecipeError
from tunesmith.evaluation.predict import question, reference_answers
from tunesmith.events import EventHandler, StageStarted
from tunesmith.inference.local_model import LocalModel
from tunesmith.inference.saved_model import load
from tunesmith.models.families import positions_of
from tunesmith.models.loading.device import ChosenMachine, choose_machine
from tunesmith.models.loading.load import LoadOptions, load_base
from tunesmith.models.policy import Policy
from tunesmith.objectives import Classify, Instruct
from tunesmith.retrieval.chunks import Chunk, SourceDocument, cut, read_pages
from tunesmith.retrieval.index import CHUNKS, Hit, Index, open_index
from tunesmith.retrieval.recall import cell, origins_of, right_chunks
from tunesmith.training.callbacks import Callbacks
from tunesmith.training.prepare import read_data

# Chunks that are kept of each search: enough for recall@10 and for distractors.
DEEP = 10
# The longest prompt of an untuned model; examples and passages need room that training rows do not.
LIMIT = 1536
# Settings that were chosen, in the folder of the comparison.
CHOICES = "choices.json"

# What was chosen for an arm, as JSON has it.
Setting = list[int | str]


class ArmAnswers(BaseModel):
    """What an arm said to every test row, and what that took. `latencies` are of rows asked one at a time."""

    model_config = ConfigDict(frozen=True)

    name: str
    detail: str
    given: list[str]
    finished: list[bool] = []
    cites: list[str] = []
    seconds: float
    latencies: list[float] = []
    prompt_tokens: list[int] = []
    build_seconds: float = 0.0
    labelled_rows: int = 0
    run: str = ""  # folder of the run that answered
    shown: int = 0  # passages above each question
    form: str = ""


@dataclass(slots=True)
class Retrieval:
    """The index with what it found for each row."""

    pages: list[SourceDocument]
    index: Index
    seconds: float  # to read, cut and index the documents, the first time
    columns: tuple[str, str]
    rows: dict[str, dict[str, object]]  # by the place of the row
    instruction: str
    _hits: dict[str, list[Hit]] = field(default_factory=dict)
    _right: dict[str, set[str]] = field(default_factory=dict)

    def hits(self, examples: Sequence[Example]) -> list[list[Hit]]:
        """The best chunks for each row."""
        new = [example for example in examples if example.where not in self._hits]
        if new:
            found = self.index.find([self.asked(example) for example in new], shown=DEEP)
            self._hits |= {example.where: hits for example, hits in zip(new, found, strict=True)}
        return [self._hits[example.where] for example in examples]

    def asked(self, example: Example) -> str:
        """The question that is searched with: without the instruction that all rows share."""
        return question(example).removeprefix(self.instruction).strip()

    def right(self, examples: Sequence[Example]) -> list[set[str]]:
        """The ids of the chunks that hold each row's answer."""
        new = [example for example in examples if example.where not in self._right]
        if new:
            fields = [self.rows.get(example.where, {}) for example in new]
            found = right_chunks(self.index.chunks, origins_of(fields, reference_answers(new), self.columns))
            self._right |= {example.where: ids for example, ids in zip(new, found, strict=True)}
        return [self._right[example.where] for example in examples]


@dataclass(slots=True)
class ComparisonContext:
    """The rows, documents and models of one comparison; answers are kept in the folder as they come.

    `source` is the recipe as it was written, which runs are made from; `recipe` knows labels and lengths too.
    """

    recipe: Recipe
    source: Recipe
    split: Split
    test: list[Example]
    folder: Path
    callbacks: Callbacks
    offline: bool
    notes: list[str] = field(default_factory=list)
    key: str = ""
    learned: str = ""  # which part of the training rows is learned, where a budget leaves some out
    _machine: ChosenMachine | None = None
    _base: LocalModel | None = None
    _retrieval: Retrieval | None = None

    @property
    def on_event(self) -> EventHandler:
        """Hears what is being done."""
        return self.callbacks.on_event

    @property
    def objective(self) -> Classify | Instruct:
        """What the rows ask for."""
        assert isinstance(self.recipe.objective, Classify | Instruct)
        return self.recipe.objective

    def machine(self) -> ChosenMachine:
        """What the recipe runs on; answers are given in full precision, as everywhere."""
        if self._machine is None:
            wanted = self.recipe.machine
            self._machine = choose_machine(device=wanted.device, dtype="float32", threads=wanted.threads)
        return self._machine

    def base(self) -> LocalModel:
        """The untuned decoder that arms without tuning ask."""
        if self._base is None:
            name = self.recipe.compare.model or self.recipe.model
            found = self.untuned(name)
            if found.policy.family != "decoder":
                cure = "add compare: {model: smollm2-135m}, or leave out the arms that prompt"
                raise RecipeError(f"arms: {name} is an encoder, which answers no prompt; {cure}")
            if isinstance(self.objective, Classify):
                found.objective = self.objective.model_copy(update={"output": "words"})
            self._base = found
        return self._base

    def untuned(self, name: str) -> LocalModel:
        """A model as it comes, for what the rows ask."""
        found = load_base(name, options=LoadOptions("float32", self.machine().device), offline=self.offline)
        self.check_same(name, found.fingerprint)
        policy = Policy.over(found.network, family=found.family)
        template = Template(found.tokenizer, chat=found.family == "decoder")
        return LocalModel(policy, template, self.objective, max_prompt_tokens(policy))

    def check_same(self, name: str, fingerprint: str) -> None:
        """Nothing for a model as it was when it was asked first; raises CheckpointError for one that was changed."""
        file = self.folder / "models.json"
        known = read_page(file, dict[str, str]) if file.exists() else {}
        if known.get(name, fingerprint) != fingerprint:
            cure = "give another --out, or delete it"
            raise CheckpointError(f"{self.folder}: asked {name} before that was changed; {cure}")
        if name not in known:
            write_whole(file, json.dumps(known | {name: fingerprint}))

    def tuned(self, run: str | Path) -> LocalModel:
        """A run's model on the machine that every arm is timed on."""
        on = self.machine()
        return load(run, device=on.device, threads=on.threads, offline=self.offline)

    def learn_only(self, rows: int) -> None:
        """Use at most so many training rows, the same ones as a run does."""
        self.learned = f"{rows:,} of {len(self.split.train):,} training rows"
        data = self.source.data.model_copy(update={"rows": rows})
        self.source = self.source.model_copy(update={"data": data})
        self.split = read_data(self.source, offline=self.offline).split
        self.notes += [note for note in self.split.notes if note not in self.notes]  # such as labels that went with it

    def forget_base(self) -> None:
        """Let go of the untuned model: a tuned one brings its own."""
        self._base = None

    def retrieval(self) -> Retrieval:
        """The documents, indexed in the comparison's folder."""
        if self._retrieval is None:
            wanted, began = self.recipe.documents, time.perf_counter()
            folder = self.folder / "index"
            self.on_event(StageStarted(f"indexing {wanted.source}"))
            read = read_pages(wanted.source, store=CollectStore(folder / CHUNKS), offline=self.offline)
            pages, chunks = read.pages, cut(read.pages, wanted.size)
            self.notes += [*read.notes, *_without_text(pages, chunks)]
            index = open_index(folder, chunks, settings=wanted, on_event=self.on_event, offline=self.offline)
            self._retrieval = Retrieval(
                pages,
                index,
                float(self.choice("seconds to index", lambda: [str(time.perf_counter() - began)])[0]),
                (wanted.evidence, wanted.origin),
                self.columns(),
                self.objective.instruction,
            )
            self._note_strangers(self._retrieval)
        return self._retrieval

    def _note_strangers(self, found: Retrieval) -> None:
        """Say how many test rows name a document that is not there: no chunk can be right for them."""
        known = {page.doc_id for page in found.pages}
        named = [cell(found.rows.get(row.where, {}), found.columns[1]) for row in self.test]
        strange = [name for name in named if name and name not in known]
        if strange and len(strange) == len([name for name in named if name]):
            cure = f"documents are called {', '.join(map(repr, sorted(known)[:3]))}, ...: name them so"
            raise DataError(f"documents.origin: no row names a document that is there, such as {strange[0]!r}; {cure}")
        if strange:
            self.notes.append(f"{len(strange)} test rows name a document that is not there, such as {strange[0]!r}")

    def columns(self) -> dict[str, dict[str, object]]:
        """The columns of every row by its place, read again: examples do not keep them."""
        data = self.recipe.data
        files = {place for place in (data.train, data.validation, data.test) if isinstance(place, str)}
        return {row.where: dict(row.fields) for file in files for row in read_rows(file, offline=self.offline)}

    def kept(self, name: str) -> ArmAnswers | None:
        """What this arm answered before, None where it has not yet."""
        file = self._file(name)
        return read_page(file, ArmAnswers) if file.exists() else None

    def keep(self, found: ArmAnswers) -> ArmAnswers:
        """The same, written down."""
        self._file(found.name).parent.mkdir(parents=True, exist_ok=True)
        write_whole(self._file(found.name), found.model_dump_json())
        shutil.rmtree(self.portions(found.name), ignore_errors=True)
        return found

    def portions(self, name: str) -> Path:
        """Where the answers of an arm lie that has not answered all rows yet."""
        return self.folder / "answers" / f"{file_name(name)}.portions"

    def _file(self, name: str) -> Path:
        return self.folder / "answers" / f"{file_name(name)}.json"

    def choice(self, name: str, make: Callable[[], Setting]) -> Setting:
        """A setting that was chosen on validation rows, from the disk where it was chosen before."""
        known = self.choices()
        if name not in known:
            known[name] = make()
            write_whole(self.folder / CHOICES, json.dumps(known, indent=1))
        return list(known[name])

    def choices(self) -> dict[str, Setting]:
        """All settings that were chosen, by the name of their arm."""
        file = self.folder / CHOICES
        return read_page(file, dict[str, Setting]) if file.exists() else {}


def _without_text(pages: Sequence[SourceDocument], chunks: Sequence[Chunk]) -> list[str]:
    """A note on the documents that nothing can be found in, if there are any."""
    found = {chunk.doc_id for chunk in chunks}
    empty = [page.doc_id for page in pages if page.doc_id not in found]
    return [f"{len(empty)} of {len(pages)} documents have no text to find, such as {empty[0]}"] if empty else []


def file_name(arm: str) -> str:
    """What an arm's file is called: its name, or that of an address with a digest, since two may differ by a colon."""
    plain = "".join(c if c.isalnum() or c in "+-." else "_" for c in arm)
    return plain if plain == arm else f"{plain}-{hashlib.sha256(arm.encode()).hexdigest()[:8]}"


def max_prompt_tokens(policy: Policy) -> int:
    """The longest prompt in tokens: three quarters of what a model can hold, the rest is for the answer."""
    return min(LIMIT, (positions_of(policy.network.config.to_dict()) or LIMIT) * 3 // 4)
