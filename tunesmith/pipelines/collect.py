"""`tunesmith collect`: find documents, convert those that changed, build rows, and let a model generate more."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tunesmith.data.documents.cache import CollectStore
from tunesmith.data.documents.find_files import FoundFiles, Source, find
from tunesmith.data.documents.passages import repeated, without
from tunesmith.data.documents.synthetic_prompts import WritingTemplate, template
from tunesmith.data.documents.synthetic_rows import (
    Answer,
    Ask,
    WritingOptions,
    answered,
    linked,
    named,
    requests,
    written_rows,
)
from tunesmith.data.documents.to_rows import SHAPES, DocumentPart, Made, once
from tunesmith.data.documents.worker_pool import convert_all
from tunesmith.data.examples.parsers import chats, texts
from tunesmith.data.readers.read import read_rows
from tunesmith.data.readers.row import refuse
from tunesmith.data.schema.formats import detect
from tunesmith.data.text.words import folded
from tunesmith.data.tokenization.messages import Message
from tunesmith.display import Display, Displayed
from tunesmith.errors import DataError, RecipeError
from tunesmith.events import EventHandler, StageStarted
from tunesmith.inference.openai_client import ask_endpoint, check
from tunesmith.pipelines.requests import CollectRequest, Writer
from tunesmith.progress import track

BATCH_SIZE = 8  # prompts that a local model answers at once
MAX_PROMPT_TOKENS = 2048  # of a local model
PACE = 5.0  # seconds between two progress events
# A small model loses track of longer passages.
MAX_PASSAGE_CHARS = 1_200


class Collected(Displayed, BaseModel):
    """The output of `collect --json`: the rows by origin, and the state of each file."""

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

    def display(self) -> Display:
        """Show the rows by origin and the files that could not be converted."""
        origins = ", ".join(f"{count} {origin}" for origin, count in self.origins.items())
        failed = [f"skipped {name}: {reason}" for name, reason in self.failed.items()]
        return Display(f"Collected({self.path}): {self.rows} rows ({origins}) from {self.sources} files", failed)


def collect(request: CollectRequest, *, on_event: EventHandler, offline: bool = False) -> Collected:
    """Build rows from documents and write them to `request.out`.

    A file that cannot be read is listed in `failed`; the others are used.

    Args:
        request: the options.
        on_event: receives progress.
        offline: do not access the network.

    Returns:
        Counts of rows and files.

    Raises:
        DataError: no file can be read, or no row can be built.
        RecipeError: a template does not fit the requested rows.
    """
    store = CollectStore(request.out)
    store.check()
    templates = _templates(request, offline=offline)
    seeds = _seeds(request.seeds)
    found = find(request.sources)
    parts, failed, converted = _documents(found, store, on_event)
    if not parts:
        refuse([f"{doc_id}: {reason}" for doc_id, reason in sorted(failed.items())])
    # Navigation and footers, which most documents repeat, are removed.
    boilerplate = repeated([part.blocks for part in parts])
    blocks = sum(len(part.blocks) for part in parts)
    parts = [DocumentPart(p.doc_id, p.sha256, p.document, without(p.blocks, boilerplate)) for p in parts]
    made = {part.doc_id: list(SHAPES[request.shape].rows(part, request.size)) for part in parts}
    rows, duplicates = once([row for part_rows in made.values() for row in part_rows])
    left_out: Counter[str] = Counter()
    if request.writer is not None:
        rows = named(rows)
        size = min(request.size, MAX_PASSAGE_CHARS)
        seed = request.writer.seed
        options = WritingOptions(templates, request.per_passage, seeds, size, request.passages, seed)
        questions = linked(requests(parts, options), rows)
        if not questions:
            raise DataError("collect: no prompts for the model; `calls` needs an OpenAPI or JSON schema file")
        on_event(StageStarted(f"sending {len(questions)} requests to {request.writer.name}"))
        ask = counted(ask_writer(request.writer, offline=offline), on_event)
        answers = answered(questions, ask, store.replies, request.writer.identity)
        generated, left_out = written_rows(questions, answers)
        rows += _without_known(rows, generated, left_out)
    result = Collected(
        path=str(request.out),
        rows=len(rows),
        origins=dict(Counter(str(row["origin"]) for row in rows)),
        sources=len(found.sources) + len(found.unreadable),
        converted=converted,
        unchanged=len(parts) - converted,
        failed=dict(sorted(failed.items())),
        skipped=found.skipped,
        without_rows=sorted(doc_id for doc_id, part_rows in made.items() if not part_rows),
        copies_removed=duplicates,
        repeated_removed=blocks - sum(len(part.blocks) for part in parts),
        left_out=dict(left_out),
        notes=[f"{part.doc_id}: {note}" for part in parts for note in part.document.notes],
    )
    if not rows:
        raise DataError(f"{request.out}: {_why_empty(request.shape, left_out)}")
    used = sorted({source.kept for source in found.sources})
    store.write(rows, {**result.model_dump(mode="json"), "documents": used})
    return result


def _templates(request: CollectRequest, *, offline: bool) -> tuple[WritingTemplate, ...]:
    """Return the templates; raise RecipeError if they do not fit the rows, or if templates or model are missing."""
    templates = tuple(template(name) for name in request.templates)
    if templates and request.writer is None:
        raise RecipeError("--write: needs --writer; add a local model or the address of a server")
    if request.writer is not None and not templates:
        raise RecipeError("--writer: needs --write; add questions, paraphrases or calls")
    for each in templates:
        fitting = "domain" if each.form == "text" else "instruct"
        if fitting != request.shape:
            raise RecipeError(
                f"template {each.name}: makes rows for {fitting}, not for {request.shape}; add --as {fitting}"
            )
    if request.writer is not None and request.writer.remote:
        check(request.writer.endpoint, offline=offline)
    return templates


def _seeds(file: str) -> tuple[tuple[str, str], ...]:
    """Return example rows for the prompts: a question and its answer, or an empty string and a text."""
    if not file:
        return ()
    rows = read_rows(file, offline=True)
    format = detect(rows)
    if format.objective == "domain":
        return tuple(("", example.text) for example in texts(rows, text=format.columns["text"]))
    if format.objective != "instruct":
        raise DataError(f"{Path(file).name}: expected example rows with a question and an answer, or a text; edit it")
    seeds = []
    for chat in chats(rows, columns=format.columns):
        *before, answer = chat.messages
        question = next((turn.content for turn in reversed(before) if turn.role == "user"), "")
        seeds.append((question, answer.said))
    return tuple(seeds)


def _documents(
    found: FoundFiles, store: CollectStore, on_event: EventHandler
) -> tuple[list[DocumentPart], dict[str, str], int]:
    """Return the documents in the order of names, the errors by file, and the number of converted files."""
    documents = {source.kept: document for source in found.sources if (document := store.document(source.kept))}
    new: dict[str, Source] = {}  # by content, so that equal files are converted once
    for source in found.sources:
        if source.kept not in documents:
            new.setdefault(source.kept, source)
    by_path = {source.path: source for source in new.values()}
    last = time.monotonic()

    def on_page(path: Path, page: int) -> None:
        nonlocal last
        if time.monotonic() - last >= PACE:
            last = time.monotonic()
            on_event(StageStarted(f"{by_path[path].doc_id}: page {page}"))

    converted = 0
    errors: dict[str, str] = {}
    if by_path:
        on_event(StageStarted(f"converting {len(by_path)} of {len(found.sources)} files"))
        results = convert_all(list(by_path), on_page=on_page)
        for result in track(results, "converting", unit="files", total=len(by_path)):
            key = by_path[result.path].kept
            if result.document is None:
                errors[key] = result.error
                continue
            converted += 1
            documents[key] = result.document
            store.keep(key, result.document)
    failed = dict(found.unreadable)
    parts = []
    for source in found.sources:
        if source.kept in errors:
            failed[source.doc_id] = errors[source.kept]
        else:
            document = documents[source.kept]
            parts.append(DocumentPart(source.doc_id, source.sha256, document, document.blocks))
    return parts, failed, converted


def _without_known(rows: Sequence[Made], generated: Sequence[Made], left_out: Counter[str]) -> list[Made]:
    """Return the generated rows that no document row contains already, and count the others."""
    unique, _ = once([*rows, *generated])
    questions = {folded(str(row["question"])) for row in rows if "question" in row}
    new = [row for row in unique[len(rows) :] if folded(str(row.get("question", ""))) not in questions]
    if dropped := len(generated) - len(new):
        left_out["already in the documents"] += dropped
    return new


def _why_empty(shape: str, left_out: Counter[str]) -> str:
    """Return the reason why there are no rows, and a fix."""
    if left_out:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in left_out.most_common(5))
        return f"no generated row passed the checks: {reasons}; use a stronger model"
    fixes = {
        "instruct": "no question with its answer in the documents; add --write questions --writer MODEL, or --as rag",
        "table": "no table in the documents; add --as domain",
    }
    return fixes.get(shape, "no text in the documents; name others")


def ask_writer(writer: Writer, *, offline: bool) -> Ask:
    """Return a function that sends prompts to a model."""

    def ask_local(questions: Sequence[Sequence[Message]]) -> Iterator[tuple[int, Answer]]:
        from tunesmith.inference.open_model import open_model
        from tunesmith.models.generation.sampling import Sampling

        model = open_model(writer.name, offline=offline, limit=MAX_PROMPT_TOKENS)
        sampling = Sampling(
            max_new_tokens=writer.max_tokens, temperature=writer.temperature, top_p=0.95, seed=writer.seed
        )
        for start in range(0, len(questions), BATCH_SIZE):
            replies = model.replies(questions[start : start + BATCH_SIZE], sampling=sampling)
            yield from ((start + i, Answer(reply.text, reply.finished)) for i, reply in enumerate(replies))

    if writer.remote:
        return lambda questions: ask_endpoint(writer.endpoint, questions, offline=offline)
    return ask_local


def counted(request: Ask, on_event: EventHandler) -> Ask:
    """Return a function that sends prompts and reports the number of answers every few seconds."""

    def ask(questions: Sequence[Sequence[Message]]) -> Iterator[tuple[int, Answer]]:
        last = time.monotonic()
        for count, (index, answer) in enumerate(request(questions), 1):
            yield index, answer
            if time.monotonic() - last >= PACE or count == len(questions):
                last = time.monotonic()
                on_event(StageStarted(f"{count} of {len(questions)} answers"))

    return ask
