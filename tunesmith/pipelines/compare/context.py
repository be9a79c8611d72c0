"""State shared by the arms of a comparison: its rows, documents, base model, and the answers on disk."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from tunesmith.config import AnyObjective, Documents, Recipe
from tunesmith.data.documents.cache import CollectStore
from tunesmith.data.examples.types import Example
from tunesmith.data.files import is_there, read_page, write_whole
from tunesmith.data.readers.read import read_rows
from tunesmith.data.splits.split import Split
from tunesmith.data.tokenization.chat_template import Template
from tunesmith.errors import CheckpointError, DataError, RecipeError
from tunesmith.evaluation.candidates import check_encoders
from tunesmith.evaluation.predict import accepted_answers, question, reference_answers
from tunesmith.events import EventHandler, StageStarted
from tunesmith.inference.engine_program import engine_refusal
from tunesmith.inference.engine_server import EngineServer
from tunesmith.inference.identify import find_model, identify, read_manifest
from tunesmith.inference.local_model import LocalModel
from tunesmith.inference.open_model import open_model
from tunesmith.inference.saved_model import load
from tunesmith.metrics.ranking import ndcg
from tunesmith.metrics.resampling import groups_of
from tunesmith.metrics.task_scores import score
from tunesmith.models.families import positions_of
from tunesmith.models.kept_answers import kept_answers
from tunesmith.models.loading.device import ChosenMachine, choose_machine
from tunesmith.models.loading.load import fingerprint_of, load_base
from tunesmith.models.loading.locate import LoadOptions, local_family, locate
from tunesmith.models.policy import Policy
from tunesmith.pipelines.compare.answers import ArmAnswers, ArmSetting, Choices
from tunesmith.pipelines.compare.report import Task
from tunesmith.retrieval.chunks import SourceDocument, cut, read_pages
from tunesmith.retrieval.index import CHUNKS, Hit, Index, open_index
from tunesmith.retrieval.recall import Origin, cell, ids_of, origins_of, right_chunks
from tunesmith.training.callbacks import Callbacks
from tunesmith.training.read import read_data

T = TypeVar("T")
DEEP = 10  # chunks kept of each search: enough for recall@10 and for distractors
# Without its document and stated evidence, an answer in more chunks than this names none of them.
MOST_CHUNKS = 5
LIMIT = 1536  # greatest prompt of the base model, in tokens; examples and passages make it longer than training rows
CHOICES = "choices.json"


@dataclass(slots=True)
class Retrieval:
    """The index of the documents, with cached results for each row."""

    pages: list[SourceDocument]
    index: Index
    seconds: float  # to read, split and index the documents, the first time
    evidence_column: str
    document_column: str
    rows: dict[str, dict[str, object]]  # fields of each row, by its location
    instruction: str
    labels: bool = False  # the answers are labels, whose words are found in any chunk
    _hits: dict[str, list[Hit]] = field(default_factory=dict)
    _correct: dict[str, set[str]] = field(default_factory=dict)

    def hits(self, examples: Sequence[Example]) -> list[list[Hit]]:
        """Return the best chunks for each row."""
        new = [example for example in examples if example.where not in self._hits]
        if new:
            hits = self.index.find([self.query(example) for example in new], shown=DEEP)
            self._hits |= {example.where: row_hits for example, row_hits in zip(new, hits, strict=True)}
        return [self._hits[example.where] for example in examples]

    def query(self, example: Example) -> str:
        """Return the question to search with, without the instruction that all rows share."""
        return question(example).removeprefix(self.instruction).strip()

    def origins(self, examples: Sequence[Example]) -> list[Origin]:
        """Return document and evidence of each row."""
        fields = [self.rows.get(example.where, {}) for example in examples]
        answers = reference_answers(examples)
        if self.labels and self.evidence_column:
            answers = [""] * len(answers)
        return origins_of(fields, answers, evidence=self.evidence_column, document=self.document_column)

    def correct(self, examples: Sequence[Example]) -> list[set[str]]:
        """Return the ids of the chunks that contain the answer of each row; none if too many do to name one."""
        new = [example for example in examples if example.where not in self._correct]
        if new:
            origins = self.origins(new)
            for row, origin, ids in zip(new, origins, right_chunks(self.index.chunks, origins), strict=True):
                ambiguous = not origin.doc_id and not origin.stated and len(ids) > MOST_CHUNKS
                self._correct[row.where] = set() if ambiguous else ids
        return [self._correct[example.where] for example in examples]


@dataclass(slots=True)
class ComparisonContext:
    """Rows, documents and models of one comparison, and its folder."""

    recipe: Recipe  # with what the objective takes from the rows, such as labels and answer length
    source: Recipe  # as written; tuned arms are made from it
    objective: AnyObjective
    split: Split
    test: list[Example]  # rows that every arm answers
    folder: Path
    callbacks: Callbacks
    offline: bool
    notes: list[str] = field(default_factory=list)
    key: str = ""  # of a server
    engine: EngineServer | None = None  # computes the answers instead of torch, where it can
    learned: str = ""  # the part of the training rows that is used, if a budget excludes some
    _machine: ChosenMachine | None = None
    _base: LocalModel | None = None
    _retrieval: Retrieval | None = None
    _tuned_retrieval: dict[str, Retrieval] = field(default_factory=dict)
    _made: dict[str, Any] = field(default_factory=dict)

    @property
    def on_event(self) -> EventHandler:
        """The handler of progress events."""
        return self.callbacks.on_event

    def machine(self) -> ChosenMachine:
        """Return the machine of the recipe; answers are computed in the dtype of every evaluation."""
        if self._machine is None:
            machine = self.recipe.machine
            options = machine.model_dump(include={"device", "threads", "products"})
            self._machine = choose_machine(dtype="float32", **options)
        return self._machine

    def base(self) -> LocalModel:
        """Return the decoder that arms without tuning prompt, loaded once. Raises RecipeError for an encoder."""
        if self._base is None:
            name = self.recipe.compare.model or self.recipe.model
            model = self.base_model(name)
            if model.policy.family != "decoder":
                fix = "add compare: {model: smollm2-135m}, or remove the arms that prompt"
                raise RecipeError(f"arms: {name} is an encoder, which answers no prompt; {fix}")
            model.objective = self.objective.in_words()
            self._base = model
        return self._base

    def base_model(self, name: str) -> LocalModel:
        """Load a base model by name."""
        if self.engine is not None and local_family(name) == "decoder":
            self.check_unchanged(name, fingerprint_of(locate(name, offline=self.offline), where=name))
            model = open_model(name, engine=self.engine, objective=self.objective, offline=self.offline)
            model.limit = max_prompt_tokens(model.policy)
            return model
        base = load_base(name, options=LoadOptions("auto", self.machine().device), offline=self.offline)
        self.check_unchanged(name, base.fingerprint)
        policy = Policy.over(base.network, family=base.family)
        policy.kept = kept_answers(base.network)
        template = Template(base.tokenizer, chat=base.family == "decoder")
        return LocalModel(policy, template, self.objective, max_prompt_tokens(policy))

    def check_unchanged(self, name: str, fingerprint: str) -> None:
        """Raise CheckpointError if a model changed since its first answers were stored.

        The fingerprint is the digest of its weights, or the name of the model that a server offers.
        """
        file = self.folder / "models.json"
        known = read_page(file, dict[str, str]) if file.exists() else {}
        if known.get(name, fingerprint) != fingerprint:
            fix = "give another --out or delete the folder"
            raise CheckpointError(f"{self.folder}: the model {name} has changed since this comparison started; {fix}")
        if name not in known:
            write_whole(file, json.dumps(known | {name: fingerprint}))

    def tuned(self, run: str | Path) -> LocalModel:
        """Load the model of a run on the machine that all arms are timed on."""
        source = identify(run, offline=self.offline)
        if self.engine is not None and not engine_refusal(source, self.engine.title):
            return open_model(source, engine=self.engine, offline=self.offline)
        machine = self.machine()
        return load(run, device=machine.device, threads=machine.threads, offline=self.offline)

    def once(self, name: str, make: Callable[[], T]) -> T:
        """Return what `make` has returned under this name, which it is called for once."""
        if name not in self._made:
            self._made[name] = make()
        made: T = self._made[name]
        return made

    def limit_training_rows(self, rows: int) -> None:
        """Use a number of training rows, the same ones as a run with `data.rows` does."""
        self.learned = f"{rows:,} of {len(self.split.train):,} training rows"
        data = self.source.data.model_copy(update={"rows": rows})
        self.source = self.source.model_copy(update={"data": data})
        self.split = read_data(self.source, offline=self.offline).split
        self._made.clear()
        self.notes += [note for note in self.split.notes if note not in self.notes]  # such as labels that disappeared

    def release_base(self) -> None:
        """Release the base model from memory before a run loads its own."""
        self._base = None
        if self.engine is not None:
            self.engine.close()

    def retrieval(self) -> Retrieval:
        """Return the documents, indexed in the folder of the comparison.

        Raises DataError if they cannot be read, or no test row names one of them.
        """
        if self._retrieval is not None:
            return self._retrieval
        settings, began = self.recipe.documents, time.perf_counter()
        folder = self.folder / "index"
        self.on_event(StageStarted(f"indexing {settings.source}"))
        source = read_pages(settings.source, store=CollectStore(folder / CHUNKS), offline=self.offline)
        pages, chunks = source.pages, cut(source.pages, settings.size)
        self.notes += source.notes
        with_text = {chunk.doc_id for chunk in chunks}
        if empty := [page.doc_id for page in pages if page.doc_id not in with_text]:
            self.notes.append(f"{len(empty)} of {len(pages)} documents contain no text, such as {empty[0]}")
        index = open_index(folder, chunks, settings=settings, on_event=self.on_event, offline=self.offline)
        seconds = self.choices().index_seconds
        if seconds is None:
            seconds = time.perf_counter() - began
            self.save_choices(index_seconds=seconds)
        rows = self.columns()
        columns = (settings.evidence, settings.origin)
        labels = self.objective.produces == "labels"
        self._retrieval = Retrieval(pages, index, seconds, *columns, rows, self.objective.instruction, labels)
        # No chunk can be correct for a row that names an unknown document.
        known = {page.doc_id for page in pages}
        named = [name for row in self.test if (name := cell(rows.get(row.where, {}), settings.origin))]
        unknown = [name for name in named if name not in known]
        if unknown and len(unknown) == len(named):
            fix = f"use the names of the documents: {', '.join(map(repr, sorted(known)[:3]))}, ..."
            raise DataError(f"documents.origin: no row names a document of the source, such as {unknown[0]!r}; {fix}")
        if unknown:
            self.notes.append(f"{len(unknown)} test rows name an unknown document, such as {unknown[0]!r}")
        return self._retrieval

    def search_of(self, retriever: str, reranker: str = "") -> Retrieval:
        """Return the retrieval of an arm: untouched, by a tuned retriever, and ranked again by a run of `rerank`."""
        found = self.tuned_retrieval(retriever)
        if not reranker:
            return found
        if (known := self._tuned_retrieval.get(reranker)) is None:
            manifest = read_manifest(find_model(reranker, offline=self.offline))
            check_encoders(manifest, where=reranker, offline=self.offline)
            index = replace(found.index, ranker=self.tuned(reranker).relevance)
            known = self._tuned_retrieval[reranker] = replace(found, index=index, _hits={})
        return known

    def tuned_retrieval(self, run: str | Path) -> Retrieval:
        """Return the same chunks, searched by the vectors of a run of `embed`; without a run, `retrieval`.

        The search, by vectors alone or fused with BM25, is the one with the higher nDCG@10 on validation rows whose
        chunk is known; without such rows, that of `documents_of`. The vectors are stored in a folder of their own, so
        that only new chunks are embedded.
        """
        if not run:
            return self.retrieval()
        if (known := self._tuned_retrieval.get(str(run))) is not None:
            return known
        base, settings, folder = self.retrieval(), self.documents_of(run), self.index_folder(run)
        index = open_index(folder, base.index.chunks, settings=settings, on_event=self.on_event, offline=self.offline)

        def choose() -> ArmSetting:
            held_out = self.split.validation
            rows = [row for row, ids in zip(held_out, base.correct(held_out), strict=True) if ids]
            if not rows:
                return ArmSetting(search=index.search)
            queries, correct = [base.query(row) for row in rows], base.correct(rows)
            scores = {
                search: float(ndcg(correct, ids_of(index.find(queries, shown=DEEP, search=search))).sum())
                for search in dict.fromkeys(("vectors", index.search))
            }
            return ArmSetting(search=max(scores, key=lambda search: scores[search]))

        index.search = self.setting("search of the tuned retriever", choose).search
        # Reading and splitting, and embedding by a network of the same shape, take the time of the untouched encoder.
        self._tuned_retrieval[str(run)] = replace(base, index=index, _hits={})
        return self._tuned_retrieval[str(run)]

    def index_folder(self, run: str | Path) -> Path:
        """Return the folder of the index of a tuned retriever; without a run, of the untouched one."""
        return self.folder / ("index-tuned" if run else "index")

    def documents_of(self, run: str | Path) -> Documents:
        """Return the documents as a tuned retriever searches them; without a run, as the recipe does."""
        settings = self.recipe.documents
        if not run:
            return settings
        search = "vectors" if settings.search == "vectors" else "fused"
        return settings.model_copy(update={"encoder": str(run), "search": search})

    def columns(self) -> dict[str, dict[str, object]]:
        """Read the fields of every row again, by its location: examples do not keep them."""
        data = self.recipe.data
        files = {file for file in (data.train, data.validation, data.test) if isinstance(file, str)}
        return {row.where: dict(row.fields) for file in files for row in read_rows(file, offline=self.offline)}

    def stored(self, arm: str) -> ArmAnswers | None:
        """Return the stored answers of an arm, or None if it has not answered all rows."""
        file = self._answers_file(arm)
        if not file.exists():
            return None
        shutil.rmtree(self.portions(arm), ignore_errors=True)  # which a read-only disk kept when they were stored
        answers = read_page(file, ArmAnswers)
        runs = {key: self._here(getattr(answers, key)) for key in ("run", "retriever", "reranker")}
        return answers.model_copy(update=runs)

    def _here(self, run: str) -> str:
        """Return the folder of a run of this comparison, also after the comparison was moved."""
        inside = self.folder / Path(run).name
        return str(inside) if run and not is_there(run) and inside.is_dir() else run

    def store(self, answers: ArmAnswers) -> ArmAnswers:
        """Write the answers of an arm, delete its portions, and return the answers."""
        file = self._answers_file(answers.name)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, answers.model_dump_json())
        shutil.rmtree(self.portions(answers.name), ignore_errors=True)
        return answers

    def score(self, answers: ArmAnswers) -> Task:
        """Return the score of an arm on the test rows."""
        metric, reference, groups = self.objective.metric, accepted_answers(self.test), groups_of(self.test)
        task = score(metric, reference, answers.given, name=answers.name, groups=groups)
        return Task(metric=metric, score=task.score, ci95=task.ci95, n=task.n)

    def portions(self, arm: str) -> Path:
        """Return the folder for the answers of an arm that has not answered all rows."""
        return self.folder / "answers" / f"{file_name(arm)}.portions"

    def _answers_file(self, arm: str) -> Path:
        return self.folder / "answers" / f"{file_name(arm)}.json"

    def setting(self, arm: str, choose: Callable[[], ArmSetting]) -> ArmSetting:
        """Return the setting of an arm; it is chosen once per comparison, on validation rows."""
        if (known := self.choices().settings.get(arm)) is not None:
            return known
        setting = choose()
        self.save_choices(settings={**self.choices().settings, arm: setting})
        return setting

    def choices(self) -> Choices:
        """Read the choices of this comparison."""
        file = self.folder / CHOICES
        return read_page(file, Choices) if file.exists() else Choices()

    def save_choices(self, **changes: object) -> None:
        """Write the choices of this comparison with changed fields."""
        choices = self.choices().model_copy(update=changes)
        write_whole(self.folder / CHOICES, choices.model_dump_json(indent=1))


def file_name(arm: str) -> str:
    """Return the file name of an arm; an address gets a digest, because two may differ in punctuation alone."""
    plain = "".join(c if c.isalnum() or c in "+-." else "_" for c in arm)
    return plain if plain == arm else f"{plain}-{hashlib.sha256(arm.encode()).hexdigest()[:8]}"


def max_prompt_tokens(policy: Policy) -> int:
    """Return the greatest prompt in tokens: three quarters of the context length, the rest is for the answer."""
    return min(LIMIT, (positions_of(policy.network.config.to_dict()) or LIMIT) * 3 // 4)


def allow_long_prompts(model: LocalModel) -> LocalModel:
    """Raise the prompt limit of a tuned model above that of its training rows, which had no passages."""
    model.limit = max(model.limit, max_prompt_tokens(model.policy))
    return model
