"""Rows that a model writes from passages: asked by template, checked against the passage, told apart from the rest."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rapidfuzz import fuzz, process

from tunesmith.data.collect.checks import checked_call, fault_of_pair, fault_of_text
from tunesmith.data.collect.document import Tool, markdown, plain, tidy
from tunesmith.data.collect.passages import passages
from tunesmith.data.collect.rows import DocumentPart, Made
from tunesmith.data.collect.templates import STYLES, Filling, WritingTemplate, messages, pairs_of, shown, spoken
from tunesmith.data.collect.tools import describe
from tunesmith.data.examples import Message
from tunesmith.data.files import writing
from tunesmith.errors import DataError

ORIGIN = "synthetic"
SHOWN_SEEDS = 3
# Two questions about one document that are this alike, of 100, are one.
ALIKE = 92.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model replied, and whether it came to its end."""

    text: str
    finished: bool = True


# Answers with the place of their question, as they come.
Ask = Callable[[Sequence[Sequence[Message]]], Iterator[tuple[int, Answer]]]


@dataclass(frozen=True, slots=True)
class WriterQuestion:
    """One question to the model, and what is needed to check and place what comes back."""

    template: WritingTemplate
    messages: tuple[Message, ...]
    part: DocumentPart
    passage: str
    page: int | None
    tool: Tool | None = None
    source: str = ""  # rows of the same are kin: see `kin.linked`


@dataclass(frozen=True, slots=True)
class WritingOptions:
    """What to ask for: per passage `count` pairs or paraphrases, over at most `limit` passages, drawn by `seed`."""

    templates: tuple[WritingTemplate, ...]
    count: int
    seeds: tuple[tuple[str, str], ...]
    size: int
    limit: int
    seed: int


def requests(parts: Sequence[DocumentPart], wanted: WritingOptions) -> list[WriterQuestion]:
    """Every question to the model, in a fixed order."""
    chance = random.Random(f"collect/{wanted.seed}")
    found: list[WriterQuestion] = []
    for template in wanted.templates:
        places = list(_tools(parts) if template.form == "calls" else _passages(parts, wanted.size))
        if wanted.limit and len(places) > wanted.limit:
            chosen = sorted(chance.sample(range(len(places)), wanted.limit))
            places = [places[i] for i in chosen]
        for part, passage, page, tool in places:
            examples = shown(chance.sample(wanted.seeds, min(SHOWN_SEEDS, len(wanted.seeds))))
            title = part.document.title or part.doc_id
            for style in STYLES[: wanted.count] if template.form == "text" else STYLES[:1]:
                filling = Filling(passage, title, wanted.count, style, examples)
                found.append(WriterQuestion(template, tuple(messages(template, filling)), part, passage, page, tool))
    return found


def _passages(parts: Sequence[DocumentPart], size: int) -> Iterator[tuple[DocumentPart, str, int | None, Tool | None]]:
    for part in parts:
        for passage in passages(part.blocks, size=size, joined=False, title=part.document.title):
            yield part, passage.text, passage.page, None


def _tools(parts: Sequence[DocumentPart]) -> Iterator[tuple[DocumentPart, str, int | None, Tool | None]]:
    for part in parts:
        for tool in part.document.tools:
            yield part, markdown(describe(tool)), None, tool


def answered(wanted: Sequence[WriterQuestion], ask: Ask, kept: Path, writer: str) -> list[Answer]:
    """The answer to each request. Those in `kept` are not asked for again; each new one is added as it comes.

    Raises DataError where they cannot be kept, before anything is asked for.
    """
    known = _read(kept)
    keys = [_key(request, writer) for request in wanted]
    missing = [i for i, key in enumerate(keys) if key not in known]
    if missing:
        _add(kept, "\n" if known else "")  # ends a last line that was cut
        for place, answer in ask([wanted[i].messages for i in missing]):
            key = keys[missing[place]]
            known[key] = answer
            _add(kept, json.dumps({"key": key, "text": answer.text, "finished": answer.finished}) + "\n")
    return [known[key] for key in keys]


def _add(path: Path, text: str) -> None:
    """The text at the end of the file. Raises DataError."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(text)


def _key(request: WriterQuestion, writer: str) -> str:
    turns = [[message.role, message.content] for message in request.messages]
    return hashlib.sha256(json.dumps([writer, turns]).encode()).hexdigest()


def _read(path: Path) -> dict[str, Answer]:
    """The answers of earlier times; a last line that was cut is asked for again."""
    known: dict[str, Answer] = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); move it away, and all is asked for again") from error
    for line in lines:
        try:
            value = json.loads(line)
            known[value["key"]] = Answer(str(value["text"]), bool(value["finished"]))
        except (ValueError, KeyError, TypeError):
            continue
    return known


def written_rows(asked: Sequence[WriterQuestion], answers: Sequence[Answer]) -> tuple[list[Made], Counter[str]]:
    """The rows that pass every check, and for the others how many were left out for which reason."""
    left_out: Counter[str] = Counter()
    rows: list[Made] = []
    for request, answer in zip(asked, answers, strict=True):
        for row, fault in _rows(request, answer):
            if fault:
                left_out[fault] += 1
            else:
                rows.append(row)
    return _distinct(rows, left_out), left_out


def _rows(request: WriterQuestion, answer: Answer) -> Iterator[tuple[Made, str]]:
    """What an answer holds, each with the reason not to keep it."""
    origin = request.part.origin(ORIGIN, request.page) | {"template": request.template.name}
    origin |= {"source_id": request.source} if request.source else {}
    if request.template.form == "text":
        text = tidy(spoken(answer.text))
        fault = fault_of_text(text, _body(request.passage)) if answer.finished else "cut at the longest answer"
        yield {"text": text, **origin}, fault
        return
    pairs = pairs_of(answer.text)
    if not answer.finished:
        pairs = pairs[:-1]
    if not pairs:
        yield {}, "no question and answer in the reply"
    for question, said in pairs:
        if request.tool is None:
            source = f"{request.part.document.title}\n{request.passage}"  # the model was told the title too
            yield {"question": question, "answer": said, **origin}, fault_of_pair(question, said, source)
        else:
            call, fault = checked_call(question, said, request.tool)
            yield {"question": question, "answer": call, **origin}, fault


def _body(passage: str) -> str:
    """The passage without the headings that lead to it."""
    head, _, body = passage.partition("\n\n")
    return body if body and "\n" not in head else passage


def _distinct(rows: Sequence[Made], left_out: Counter[str]) -> list[Made]:
    """The rows without copies, near copies, and questions that two passages answer in different ways."""
    answers: dict[str, set[str]] = {}
    for row in rows:
        if "question" in row:
            answers.setdefault(plain(str(row["question"])), set()).add(plain(str(row["answer"])))
    kept: list[Made] = []
    seen: dict[str, list[str]] = {}
    for row in rows:
        text = plain(str(row.get("question") or row["text"]))
        if len(answers.get(text, ())) > 1:
            left_out["asked twice with other answers"] += 1
            continue
        near = seen.setdefault(str(row["doc_id"]), [])
        if process.extractOne(text, near, scorer=fuzz.ratio, score_cutoff=ALIKE):
            left_out["copy of another row"] += 1
            continue
        near.append(text)
        kept.append(row)
    return kept
