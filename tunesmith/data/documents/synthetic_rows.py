"""Synthetic rows: the requests to a model, the checks of its replies, and the rows built from them.

A synthetic row shares its `source_id` with the document row that contains its passage.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rapidfuzz import fuzz, process

from tunesmith.data.documents.document import Tool, markdown, plain, tidy
from tunesmith.data.documents.formats.openapi import describe
from tunesmith.data.documents.grounding import checked_call, pair_problem, text_problem
from tunesmith.data.documents.passages import passages
from tunesmith.data.documents.synthetic_prompts import STYLES, WritingTemplate, messages, pairs_of, shown, spoken
from tunesmith.data.documents.to_rows import DocumentPart, Made
from tunesmith.data.files import writing
from tunesmith.data.text.words import words_of
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import DataError

# Consecutive words. A run of five is seldom in two passages of one document.
RUN = 5


def named(rows: Sequence[Made]) -> list[Made]:
    """Add a `source_id` to each document row, a digest of its text."""
    return [row | {"source_id": source_id(_text(row))} for row in rows]


def linked(asked: Sequence[WriterQuestion], rows: Sequence[Made]) -> list[WriterQuestion]:
    """Set the source of each request to the row that contains most of its passage.

    A split by `source_id` then keeps a passage and the rows generated from it in one split. The source is a digest of
    the passage if no row shares a run of words with it. The rows have been `named`.
    """
    source_of: dict[tuple[str, str], str] = {}
    for row in rows:
        for run in _runs(_text(row)):
            source_of.setdefault((str(row["doc_id"]), run), str(row["source_id"]))
    requests = []
    for request in asked:
        keys = ((request.part.doc_id, run) for run in _runs(request.passage))
        best = Counter(source_of[key] for key in keys if key in source_of).most_common(1)
        requests.append(replace(request, source=best[0][0] if best else source_id(request.passage)))
    return requests


def source_id(text: str) -> str:
    """Return a digest of a text: 12 hex digits."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:12]


def _text(row: Made) -> str:
    return "\n".join(str(row[name]) for name in ("question", "answer", "text") if name in row)


def _runs(text: str) -> Iterator[str]:
    """Return every run of `RUN` consecutive words, separated by spaces."""
    words = words_of(text)
    return (" ".join(words[start : start + RUN]) for start in range(len(words) - RUN + 1))


ORIGIN = "synthetic"
SHOWN_SEEDS = 3  # example rows per prompt
# rapidfuzz ratio (0 to 100) from which two questions about one document are near-duplicates.
ALIKE = 92.0


@dataclass(frozen=True, slots=True)
class Answer:
    """The reply of a model."""

    text: str
    finished: bool = True  # False: cut at the token limit
    thoughts: str = ""  # that the server separates from the text


# Sends prompts and yields the index of a prompt and its answer, in the order of completion.
Ask = Callable[[Sequence[Sequence[Message]]], Iterator[tuple[int, Answer]]]


@dataclass(frozen=True, slots=True)
class WriterQuestion:
    """One request to the model, with everything needed to check the reply and to build rows from it."""

    template: WritingTemplate
    messages: tuple[Message, ...]
    part: DocumentPart
    passage: str
    page: int | None
    tool: Tool | None = None  # for templates of the form `calls`
    source: str = ""  # rows with equal source stay in one split, see `linked`


@dataclass(frozen=True, slots=True)
class WritingOptions:
    """Options for synthetic rows."""

    templates: tuple[WritingTemplate, ...]
    count: int  # pairs or paraphrases per passage
    seeds: tuple[tuple[str, str], ...]  # example rows (question, answer) for the prompts
    size: int  # characters of a passage
    limit: int  # passages sampled per template, 0 for all
    seed: int


def requests(parts: Sequence[DocumentPart], options: WritingOptions) -> list[WriterQuestion]:
    """Build all requests to the model, in a fixed order."""
    rng = random.Random(f"collect/{options.seed}")
    questions: list[WriterQuestion] = []
    for template in options.templates:
        candidates = list(_tools(parts) if template.form == "calls" else _passages(parts, options.size))
        if options.limit and len(candidates) > options.limit:
            indices = sorted(rng.sample(range(len(candidates)), options.limit))
            candidates = [candidates[i] for i in indices]
        for part, passage, page, tool in candidates:
            examples = shown(rng.sample(options.seeds, min(SHOWN_SEEDS, len(options.seeds))))
            title = part.document.title or part.doc_id
            for style in STYLES[: options.count] if template.form == "text" else STYLES[:1]:
                turns = messages(
                    template, passage=passage, title=title, count=options.count, style=style, examples=examples
                )
                questions.append(WriterQuestion(template, tuple(turns), part, passage, page, tool))
    return questions


def _passages(parts: Sequence[DocumentPart], size: int) -> Iterator[tuple[DocumentPart, str, int | None, Tool | None]]:
    for part in parts:
        for passage in passages(part.blocks, size=size, joined=False, title=part.document.title):
            yield part, passage.text, passage.page, None


def _tools(parts: Sequence[DocumentPart]) -> Iterator[tuple[DocumentPart, str, int | None, Tool | None]]:
    for part in parts:
        for tool in part.document.tools:
            yield part, markdown(describe(tool)), None, tool


def answered(asked: Sequence[WriterQuestion], request: Ask, cache: Path, writer: str) -> list[Answer]:
    """Return the answer to each request; earlier answers are read from a file, and new ones appended to it.

    Args:
        asked: the requests.
        request: sends prompts to the model.
        cache: file of answers, as JSON lines.
        writer: identity of the model and its options, part of the cache key.

    Raises:
        DataError: the file cannot be read or written; checked before the first request.
    """
    answers = _read(cache)
    keys = [_key(request, writer) for request in asked]
    missing = [i for i, key in enumerate(keys) if key not in answers]
    if missing:
        _append(cache, "\n" if answers else "")  # terminates a last line that was cut off
        for index, answer in request([asked[i].messages for i in missing]):
            key = keys[missing[index]]
            answers[key] = answer
            _append(cache, json.dumps({"key": key, "text": answer.text, "finished": answer.finished}) + "\n")
    return [answers[key] for key in keys]


def _append(path: Path, text: str) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(text)


def _key(request: WriterQuestion, writer: str) -> str:
    turns = [[message.role, message.content] for message in request.messages]
    return hashlib.sha256(json.dumps([writer, turns]).encode()).hexdigest()


def _read(path: Path) -> dict[str, Answer]:
    """Read cached answers by key; a last line that was cut off is ignored."""
    answers: dict[str, Answer] = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); move it to generate all answers again") from error
    for line in lines:
        try:
            value = json.loads(line)
            answers[value["key"]] = Answer(str(value["text"]), bool(value["finished"]))
        except (ValueError, KeyError, TypeError):
            continue
    return answers


def written_rows(asked: Sequence[WriterQuestion], answers: Sequence[Answer]) -> tuple[list[Made], Counter[str]]:
    """Return the rows of the answers that pass every check, and the number of rejected rows by reason."""
    rejected: Counter[str] = Counter()
    rows: list[Made] = []
    for request, answer in zip(asked, answers, strict=True):
        for row, reason in _rows(request, answer):
            if reason:
                rejected[reason] += 1
            else:
                rows.append(row)
    return _distinct(rows, rejected), rejected


def _rows(request: WriterQuestion, answer: Answer) -> Iterator[tuple[Made, str]]:
    """Yield the rows of an answer, each with the reason to reject it or an empty string."""
    origin = request.part.origin(ORIGIN, request.page) | {"template": request.template.name}
    origin |= {"source_id": request.source} if request.source else {}
    if request.template.form == "text":
        text = tidy(spoken(answer.text))
        # The first line of a passage contains only the headings above it.
        head, _, body = request.passage.partition("\n\n")
        passage = body if body and "\n" not in head else request.passage
        yield {"text": text, **origin}, text_problem(text, passage) if answer.finished else "cut at the longest answer"
        return
    pairs = pairs_of(answer.text)
    if not answer.finished:
        pairs = pairs[:-1]
    if not pairs:
        yield {}, "no question and answer in the reply"
    for question, reply in pairs:
        if request.tool is None:
            source = f"{request.part.document.title}\n{request.passage}"  # the prompt contains the title too
            yield {"question": question, "answer": reply, **origin}, pair_problem(question, reply, source)
        else:
            call, reason = checked_call(question, reply, request.tool)
            yield {"question": question, "answer": call, **origin}, reason


def _distinct(rows: Sequence[Made], rejected: Counter[str]) -> list[Made]:
    """Remove near-duplicates, and questions with contradicting answers; the reasons are counted in `rejected`."""
    answers: dict[str, set[str]] = {}
    for row in rows:
        if "question" in row:
            answers.setdefault(plain(str(row["question"])), set()).add(plain(str(row["answer"])))
    distinct: list[Made] = []
    texts_of: dict[str, list[str]] = {}
    for row in rows:
        text = plain(str(row.get("question") or row["text"]))
        if len(answers.get(text, ())) > 1:
            rejected["asked twice with other answers"] += 1
            continue
        earlier = texts_of.setdefault(str(row["doc_id"]), [])
        if process.extractOne(text, earlier, scorer=fuzz.ratio, score_cutoff=ALIKE):
            rejected["copy of another row"] += 1
            continue
        earlier.append(text)
        distinct.append(row)
    return distinct
