"""From documents to rows: find the files, convert what changed, shape rows, let a model write more of them."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tunesmith.data.documents.cache import CollectStore
from tunesmith.data.documents.find_files import FoundFiles, Source, find
from tunesmith.data.documents.passages import repeated, without
from tunesmith.data.documents.synthetic_prompts import WritingTemplate, template
from tunesmith.data.documents.synthetic_rows import (
    Answer,
    Ask,
    WriterQuestion,
    WritingOptions,
    answered,
    linked,
    named,
    requests,
    written_rows,
)
from tunesmith.data.documents.to_rows import SHAPES, SIZE, DocumentPart, Made, once
from tunesmith.data.documents.worker_pool import convert_all
from tunesmith.data.examples.parsers import chats, texts
from tunesmith.data.examples.types import Chat
from tunesmith.data.readers.read import read_rows
from tunesmith.data.readers.row import refuse
from tunesmith.data.schema.formats import detect
from tunesmith.data.text.words import folded
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import DataError, RecipeError
from tunesmith.events import EventHandler, StageStarted
from tunesmith.inference.openai_client import Endpoint, ask_endpoint, check

Listen = EventHandler


# Questions that a local model answers at a time, and the tokens of a passage with its instruction.
BATCH_SIZE, LOCAL_LIMIT = 8, 2048


PACE = 5.0


@dataclass(frozen=True, slots=True)
class Writer:
    """Who writes rows: a local model by name, or a server by address; and how it is asked."""

    name: str
    model: str = ""
    key: str = field(default="", repr=False)
    temperature: float = 0.7
    max_tokens: int = 512
    seed: int = 0

    @property
    def remote(self) -> bool:
        """Whether it is a server."""
        return self.name.startswith(("http://", "https://"))

    @property
    def identity(self) -> str:
        """What its answers depend on, as one text; the key is not part of it."""
        return json.dumps([self.name, self.model, self.temperature, self.max_tokens, self.seed])


def ask_writer(writer: Writer, *, offline: bool) -> Ask:
    """The way to the model."""
    if writer.remote:
        endpoint = endpoint_of(writer)
        return lambda questions: ask_endpoint(endpoint, questions, offline=offline)
    return lambda questions: _ask_local(writer, questions, offline=offline)


def endpoint_of(writer: Writer) -> Endpoint:
    """The server that writes."""
    return Endpoint(writer.name, writer.model, writer.key, writer.temperature, writer.max_tokens, writer.seed)


def _ask_local(
    writer: Writer, questions: Sequence[Sequence[Message]], *, offline: bool
) -> Iterator[tuple[int, Answer]]:
    from tunesmith.inference.open_model import open_model
    from tunesmith.models.generation.sampling import Sampling

    model = open_model(writer.name, offline=offline, limit=LOCAL_LIMIT)
    sampling = Sampling(max_new_tokens=writer.max_tokens, temperature=writer.temperature, top_p=0.95, seed=writer.seed)
    for start in range(0, len(questions), BATCH_SIZE):
        replies = model.replies(questions[start : start + BATCH_SIZE], sampling=sampling)
        yield from ((start + i, Answer(reply.text, reply.finished)) for i, reply in enumerate(replies))


def counted(request: Ask, on_event: EventHandler) -> Ask:
    """The same, saying now and then how far it is."""

    def counting(questions: Sequence[Sequence[Message]]) -> Iterator[tuple[int, Answer]]:
        last = time.monotonic()
        for count, (place, answer) in enumerate(request(questions), 1):
            yield place, answer
            if time.monotonic() - last >= PACE or count == len(questions):
                last = time.monotonic()
                on_event(StageStarted(f"{count} of {len(questions)} answers"))

    return counting


# Written rows are asked for from passages of this many characters: a small model loses the thread of longer ones.
PASSAGE = 1_200


@dataclass(frozen=True, slots=True)
class CollectRequest:
    """What to collect, from where, and into which file."""

    sources: tuple[str, ...]
    shape: str  # a key of SHAPES
    out: Path
    size: int = SIZE
    templates: tuple[str, ...] = ()
    writer: Writer | None = None
    seeds: str = ""
    per_passage: int = 3
    passages: int = 0


class Collected(BaseModel):
    """What `collect --json` prints: the rows by origin, and what became of each file."""

    model_config = ConfigDict(extra="forbid")

    path: str
    rows: int
    origins: dict[str, int]
    sources: int
    converted: int = 0
    unchanged: int = 0
    failed: dict[str, str] = {}
    skipped: dict[str, int]
    without_rows: list[str] = []
    copies_removed: int = 0
    repeated_removed: int = 0
    left_out: dict[str, int] = {}
    notes: list[str]


def schema() -> str:
    """The JSON schema of `Collected`."""
    return json.dumps(Collected.model_json_schema(), indent=1)


def collect(request: CollectRequest, *, on_event: EventHandler, offline: bool = False) -> Collected:
    """The rows of all sources, written to `request.out`, and an account of them.

    A file that cannot be read is named in `failed` and the others go on. Raises DataError where no file can be read
    or no row is made, and RecipeError for a template that does not fit the shape.
    """
    store = CollectStore(request.out)
    store.check()
    templates = _templates(request, offline=offline)
    seeds = _seeds(request.seeds)
    found = find(request.sources)
    parts, failed, converted = _documents(found, store, on_event)
    if not parts:
        refuse([f"{doc_id}: {why}" for doc_id, why in sorted(failed.items())])
    parts, chrome = _without_repeated(parts)
    made = {part.doc_id: list(SHAPES[request.shape].rows(part, request.size)) for part in parts}
    rows, copies = once([row for rows in made.values() for row in rows])
    left_out: Counter[str] = Counter()
    if request.writer is not None:
        size = min(request.size, PASSAGE)
        wanted = WritingOptions(templates, request.per_passage, seeds, size, request.passages, request.writer.seed)
        rows = named(rows)
        todo = linked(requests(parts, wanted), rows)
        new, left_out = _written(todo, request.writer, store, (on_event, offline))
        rows += _unasked(rows, new, left_out)
    page = _account(request.out, found, parts, rows).model_copy(
        update={
            "converted": converted,
            "unchanged": len(parts) - converted,
            "failed": dict(sorted(failed.items())),
            "without_rows": sorted(doc_id for doc_id, rows in made.items() if not rows),
            "copies_removed": copies,
            "repeated_removed": chrome,
            "left_out": dict(left_out),
        }
    )
    if not rows:
        raise DataError(_nothing(request, page))
    store.write(rows, {**page.model_dump(mode="json"), "documents": sorted({one.kept for one in found.sources})})
    return page


def _account(out: Path, found: FoundFiles, parts: Sequence[DocumentPart], rows: Sequence[Made]) -> Collected:
    """What can be read off the files and the rows; the rest is not counted yet."""
    return Collected(
        path=str(out),
        rows=len(rows),
        origins=dict(Counter(str(row["origin"]) for row in rows)),
        sources=len(found.sources) + len(found.unreadable),
        skipped=found.skipped,
        notes=[f"{part.doc_id}: {note}" for part in parts for note in part.document.notes],
    )


def _templates(request: CollectRequest, *, offline: bool) -> tuple[WritingTemplate, ...]:
    """The templates, if they make rows of the shape and somebody is there to answer. Raises TunesmithError."""
    found = tuple(template(name) for name in request.templates)
    if found and request.writer is None:
        raise RecipeError("--write: needs --writer, who is to write; add a local model or the address of a server")
    if request.writer is not None and not found:
        raise RecipeError("--writer: needs --write, what is to be written; add questions, paraphrases or calls")
    for each in found:
        fits = "domain" if each.form == "text" else "instruct"
        if fits != request.shape:
            raise RecipeError(f"template {each.name}: makes rows for {fits}, not for {request.shape}; give --as {fits}")
    if request.writer is not None and request.writer.remote:
        check(endpoint_of(request.writer), offline=offline)
    return found


def _seeds(file: str) -> tuple[tuple[str, str], ...]:
    """Rows that show a model what is wanted: a question and its answer, or nothing and a text."""
    if not file:
        return ()
    rows = read_rows(file, offline=True)
    shape = detect(rows)
    if shape.objective == "domain":
        return tuple(("", example.text) for example in texts(rows, text=shape.columns["text"]))
    if shape.objective != "instruct":
        raise DataError(f"{Path(file).name}: seed rows have a question and an answer, or a text; give such a file")
    return tuple(map(_last_exchange, chats(rows, columns=shape.columns)))


def _last_exchange(chat: Chat) -> tuple[str, str]:
    """What was asked last in a chat, and the answer."""
    *before, answer = chat.messages
    return next((turn.content for turn in reversed(before) if turn.role == "user"), ""), answer.said


def _documents(
    found: FoundFiles, store: CollectStore, on_event: EventHandler
) -> tuple[list[DocumentPart], dict[str, str], int]:
    """Every document in the order of names, why others failed, and how many were converted now."""
    failed = dict(found.unreadable)
    known = {source.kept: document for source in found.sources if (document := store.document(source.kept))}
    # Of files that hold the same, one.
    new: dict[str, Source] = {}
    for source in found.sources:
        if source.kept not in known:
            new.setdefault(source.kept, source)
    todo = {source.path: source for source in new.values()}
    if todo:
        on_event(StageStarted(f"converting {len(todo)} of {len(found.sources)} files"))
    converted = 0
    errors: dict[str, str] = {}
    for done in convert_all(list(todo), on_page=_paced(todo, on_event)) if todo else ():
        source = todo[done.path]
        if done.document is None:
            errors[source.kept] = done.error
            continue
        converted += 1
        known[source.kept] = done.document
        store.keep(source.kept, done.document)
    parts = []
    for source in found.sources:
        if source.kept in errors:
            failed[source.doc_id] = errors[source.kept]
        else:
            document = known[source.kept]
            parts.append(DocumentPart(source.doc_id, source.sha256, document, document.blocks))
    return parts, failed, converted


def _paced(todo: dict[Path, Source], on_event: EventHandler) -> Callable[[Path, int], None]:
    """A listener for pages that speaks now and then."""
    last = time.monotonic()

    def heard(path: Path, page: int) -> None:
        nonlocal last
        if time.monotonic() - last >= PACE:
            last = time.monotonic()
            on_event(StageStarted(f"{todo[path].doc_id}: page {page}"))

    return heard


def _without_repeated(parts: Sequence[DocumentPart]) -> tuple[list[DocumentPart], int]:
    """The documents without what most of them repeat, and how many blocks that were."""
    texts = repeated([part.blocks for part in parts])
    kept = [DocumentPart(part.doc_id, part.sha256, part.document, without(part.blocks, texts)) for part in parts]
    return kept, sum(len(a.blocks) - len(b.blocks) for a, b in zip(parts, kept, strict=True))


def _written(
    asked: Sequence[WriterQuestion], writer: Writer, store: CollectStore, how: tuple[EventHandler, bool]
) -> tuple[list[Made], Counter[str]]:
    """The rows that the model wrote and that passed the checks, and why others were left out."""
    on_event, offline = how
    if not asked:
        raise DataError("collect: nothing to ask a model about; `calls` needs an OpenAPI or JSON schema file")
    on_event(StageStarted(f"{len(asked)} requests to {writer.name}"))
    ask = counted(ask_writer(writer, offline=offline), on_event)
    answers = answered(asked, ask, store.replies, writer.identity)
    return written_rows(asked, answers)


def _unasked(rows: Sequence[Made], new: Sequence[Made], left_out: Counter[str]) -> list[Made]:
    """The written rows that no row of the documents already is."""
    kept, _ = once([*rows, *new])
    asked = {folded(str(row["question"])) for row in rows if "question" in row}
    written = [row for row in kept[len(rows) :] if folded(str(row.get("question", ""))) not in asked]
    if gone := len(new) - len(written):
        left_out["already in the documents"] += gone
    return written


def _nothing(request: CollectRequest, page: Collected) -> str:
    """Why there is no row, and what to do."""
    if page.left_out:
        reasons = ", ".join(f"{why} ({count})" for why, count in Counter(page.left_out).most_common(5))
        return f"{request.out}: nothing the model wrote passed the checks: {reasons}; take a stronger writer"
    cures = {
        "instruct": "no question with its answer in the documents; add --write questions --writer MODEL, or --as rag",
        "table": "no table in the documents; give --as domain",
    }
    return f"{request.out}: {cures.get(request.shape, 'no text in the documents; give others')}"
