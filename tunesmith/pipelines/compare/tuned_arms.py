"""The runs of a comparison: of the recipe, on rows with passages (RAFT), and on the documents (closed-book QA)."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.config import AnyObjective, Recipe
from tunesmith.data.documents.synthetic_prompts import PARAPHRASES, WritingTemplate
from tunesmith.data.documents.synthetic_rows import Answer, WritingOptions, answered, requests, written_rows
from tunesmith.data.documents.to_rows import DocumentPart
from tunesmith.data.examples.types import Chat, Example
from tunesmith.data.files import write_whole
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import RecipeError
from tunesmith.evaluation.predict import subsample
from tunesmith.events import StageStarted
from tunesmith.objectives import Domain
from tunesmith.pipelines.collect import ask_writer, counted
from tunesmith.pipelines.compare.answers import ArmAnswers
from tunesmith.pipelines.compare.context import ComparisonContext
from tunesmith.pipelines.requests import Writer
from tunesmith.pipelines.tune.tune import tune_recipe
from tunesmith.retrieval.chunks import Chunk
from tunesmith.retrieval.index import Hit
from tunesmith.retrieval.prompts import raft_example
from tunesmith.training.run_folder import open_run

MIN_ROWS = 8  # of a run on a part of the rows
# RAFT: passages of a row, and the share of rows with a correct one (Zhang et al. 2024, arXiv 2403.10131).
PASSAGES = 3
ORACLE = 0.8
RAFT_TOKENS = 1024  # least max_tokens, so that passages fit
RAFT_VALIDATION_ROWS = 32  # few, because rows with passages are long
# Closed-book QA: chunks to train on, paraphrases of each chunk with answers, and chunks that are paraphrased.
MAX_CHUNKS = 400
PARAPHRASES_PER_CHUNK = 2
PARAPHRASED_CHUNKS = 40
WRITER_TOKENS = 160  # of a reply about one passage
VALIDATION_CHUNKS = 20
EPOCHS = 3


@dataclass(frozen=True, slots=True)
class TunedArm:
    """A finished run of an arm."""

    folder: Path
    seconds: float  # of training
    labelled_rows: int
    detail: str
    written: int = 0  # questions that a model wrote, among those that tuned a retriever

    def add_cost(self, answers: ArmAnswers) -> ArmAnswers:
        """Return the answers of its model with the cost of the run."""
        return answers.model_copy(
            update={
                "build_seconds": answers.build_seconds + self.seconds,
                "labelled_rows": self.labelled_rows or answers.labelled_rows,
                "run": str(self.folder),
                "detail": answers.detail or self.detail,
            }
        )

    def add_search(self, answers: ArmAnswers) -> ArmAnswers:
        """Return the answers to chunks that its vectors found, with the cost of the run."""
        return answers.model_copy(
            update={
                "build_seconds": answers.build_seconds + self.seconds,
                "labelled_rows": max(self.labelled_rows, answers.labelled_rows),
                "retriever": str(self.folder),
                "written": self.written,
                "detail": "; ".join(filter(None, (answers.detail, self.detail))),
            }
        )

    def add_ranking(self, answers: ArmAnswers) -> ArmAnswers:
        """Return the answers to chunks that its model ranked again, with the cost of the run."""
        return answers.model_copy(
            update={"build_seconds": answers.build_seconds + self.seconds, "reranker": str(self.folder)}
        )


@dataclass(frozen=True, slots=True)
class Written:
    """Rows that a model wrote about the documents."""

    rows: list[dict[str, Any]]
    seconds: float  # of writing, over all starts of the comparison
    writer: str  # name of the model


def run_tuned(context: ComparisonContext, percent: int = 100) -> TunedArm:
    """Run the recipe on a share of its rows in the folder of the comparison; a finished run elsewhere is reused."""
    recipe, split = context.source, context.split
    if percent < 100:
        rows = max(MIN_ROWS, len(split.train) * percent // 100)
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"rows": rows}), "controls": False})
        return run_recipe(context, recipe, context.folder / f"tuned-{percent}")
    own = open_run(recipe, None)
    if own.finished:
        return run_recipe(context, recipe, own.path)
    if len(context.test) < len(split.test):  # the run need not be evaluated on rows that no arm answers
        columns = context.columns()
        data: dict[str, Any] = {"validation": 0.0, "split": "", "where": {}, "rows": 0}
        for part, examples in {"train": split.train, "validation": split.validation, "test": context.test}.items():
            if examples:
                data[part] = write_rows(context, f"tuned.{part}", [columns[example.where] for example in examples])
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update=data)})
    return run_recipe(context, recipe, context.folder / "tuned")


def run_raft(context: ComparisonContext) -> TunedArm:
    """Run the recipe on rows with passages before the question; four in five rows contain the correct one."""
    retrieval = context.retrieval()
    chunks = {chunk.id: chunk for chunk in retrieval.index.chunks}
    template, limit = context.base().template, max(context.recipe.data.max_tokens, RAFT_TOKENS)

    def row_of(example: Example, hits: Sequence[Hit]) -> dict[str, Any]:
        """Return the row with as many passages as fit, so that the question is never cut."""
        for count in range(len(hits), 0, -1):
            chat = raft_example(example, hits[:count], context.objective)
            if len(template.chat(chat.messages).ids) <= limit:
                return as_row(chat)
        return as_row(raft_example(example, [], context.objective))

    train = context.split.train
    rows = []
    for example, hits, ids in zip(train, retrieval.hits(train), retrieval.correct(train), strict=True):
        rng = random.Random(f"{context.recipe.seed}/{example.where}")
        rows.append(row_of(example, passages_of(hits, [chunks[name] for name in sorted(ids)], rng)))
    # Validation rows have the passages that the test rows will have: the best ones found.
    held_out = subsample(context.split.validation, RAFT_VALIDATION_ROWS, context.recipe.seed)
    validation = [
        row_of(example, hits[:PASSAGES]) for example, hits in zip(held_out, retrieval.hits(held_out), strict=True)
    ]
    columns = {"prompt": "", "answer": "", "messages": "messages", "instruction": "", "thoughts": ""}
    data = {
        "train": write_rows(context, "raft.train", rows),
        "validation": write_rows(context, "raft.validation", validation),
        "max_tokens": limit,
    }
    recipe = _with_rows(context.source, context.objective.model_copy(update=columns), data)
    return run_recipe(context, recipe, context.folder / "raft")


def as_row(chat: Chat) -> dict[str, Any]:
    """Return a chat as a row of messages, with its tools, calls, thoughts and weights."""
    turns = []
    for turn in chat.messages:
        fields: dict[str, Any] = {"role": turn.role, "content": turn.content}
        if turn.calls:
            fields["tool_calls"] = [call.plain() for call in turn.calls]
        if turn.thoughts:
            fields["reasoning_content"] = turn.thoughts
        if turn.weight != 1:
            fields["weight"] = turn.weight
        turns.append(fields)
    tools = chat.messages[0].tools
    mode = {"thinking": chat.thinking} if chat.thinking else {}
    return {"messages": turns, **({"tools": tools} if tools else {}), **mode}


def passages_of(hits: Sequence[Hit], correct: Sequence[Chunk], rng: random.Random) -> list[Hit]:
    """Choose the passages of a training row from the retrieved chunks, best first, and those with the answer.

    Returns the best hits with a correct chunk among them, or, in one of five rows, wrong chunks alone.
    """
    ids = {chunk.id for chunk in correct}
    wrong = [hit for hit in hits if hit.chunk.id not in ids]
    if not correct or rng.random() >= ORACLE:
        return wrong[:PASSAGES]
    shown = list(hits[:PASSAGES])
    if not ids & {hit.chunk.id for hit in shown}:
        shown = wrong[: PASSAGES - 1]
        shown.insert(rng.randrange(len(shown) + 1), Hit(rng.choice(list(correct)), 0.0))
    return shown


def run_closed_book(context: ComparisonContext) -> TunedArm:
    """Tune the base model on chunks of the documents and on paraphrases of them, without any question.

    Raises RecipeError for fewer than two chunks.
    """
    chunks = context.retrieval().index.chunks
    answering = set().union(*context.retrieval().correct(context.test))
    first = [chunk for chunk in chunks if chunk.id in answering]
    rest = [chunk for chunk in chunks if chunk.id not in answering]
    random.Random(f"{context.recipe.seed}/taught").shuffle(rest)
    if len(chunks) < 2:
        raise RecipeError("arms: closed-book needs two or more chunks; give more documents, or remove the arm")
    count = min(VALIDATION_CHUNKS, len(rest) // 5) or 1
    ordered = [*first, *rest]
    held_out = ordered[-count:]
    train = ordered[:-count][:MAX_CHUNKS]
    documents = {chunk.doc_id for chunk in first}
    written = written_about(
        context,
        PARAPHRASES,
        name="taught",
        label="closed-book: paraphrases of",
        count=PARAPHRASES_PER_CHUNK,
        passages=PARAPHRASED_CHUNKS,
        documents=documents,
    )
    paraphrases = [str(row["text"]) for row in written.rows]
    texts = [*(chunk.text for chunk in train), *paraphrases]
    data = {
        "train": write_rows(context, "taught.train", [{"text": text} for text in texts]),
        "validation": write_rows(context, "taught.validation", [{"text": chunk.text} for chunk in held_out]),
    }
    recipe = _with_rows(context.source, Domain(text="text"), data)
    recipe = recipe.model_copy(update={"schedule": recipe.schedule.model_copy(update={"epochs": EPOCHS})})
    run = run_recipe(context, recipe, context.folder / "taught")
    detail = f"{len(train)} of {len(chunks)} chunks, those with answers first, and {len(paraphrases)} paraphrases"
    return TunedArm(run.folder, written.seconds + run.seconds, 0, detail)


def written_about(
    context: ComparisonContext,
    kind: WritingTemplate,
    *,
    name: str,
    label: str,
    count: int,
    passages: int,
    documents: Collection[str] | None = None,
) -> Written:
    """Return rows that the base model writes about passages of the documents, checked against the text.

    Args:
        context: the comparison; replies are stored in its folder, so that a resumed one asks for none again.
        kind: of the rows: QUESTIONS or PARAPHRASES.
        name: start of the name of the file of replies.
        label: shown before the number of passages.
        count: rows per passage.
        passages: greatest number of passages.
        documents: ids of those to write about; None for all.
    """
    parts = [
        DocumentPart(page.doc_id, page.digest, page.document, page.document.blocks)
        for page in context.retrieval().pages
        if documents is None or page.doc_id in documents
    ]
    recipe = context.recipe
    options = WritingOptions((kind,), count, (), recipe.documents.size, passages, recipe.seed)
    writer = Writer(recipe.compare.model or recipe.model, max_tokens=WRITER_TOKENS, seed=recipe.seed)
    if not (prompts := requests(parts, options)):
        return Written([], 0.0, writer.name)
    context.on_event(StageStarted(f"{label} {len(prompts)} passages"))
    ask = counted(ask_writer(writer, offline=context.offline), context.on_event)

    def timed(batch: Sequence[Sequence[Message]]) -> Iterator[tuple[int, Answer]]:
        began = time.perf_counter()
        try:
            yield from ask(batch)
        finally:  # an interrupted writing counts, too
            spent = context.choices().writing_seconds
            total = spent.get(name, 0.0) + time.perf_counter() - began
            context.save_choices(writing_seconds={**spent, name: total})

    replies = answered(prompts, timed, context.folder / f"{name}.replies.jsonl", writer.identity)
    rows, _ = written_rows(prompts, replies)
    return Written(rows, context.choices().writing_seconds.get(name, 0.0), writer.name)


def _with_rows(recipe: Recipe, objective: AnyObjective, data: Mapping[str, Any]) -> Recipe:
    """Return the recipe for other rows, without a test set."""
    rows = recipe.data.model_copy(
        update={"test": 0.0, "split": "", "group": "", "where": {}, "audit": "note", "rows": 0, **data},
    )
    return recipe.model_copy(update={"objective": objective, "data": rows, "controls": False, "style": {}})


def run_recipe(context: ComparisonContext, recipe: Recipe, folder: Path) -> TunedArm:
    """Run a recipe in a folder, or reuse its finished run."""
    context.release_base()
    run = tune_recipe(recipe, out=folder, callbacks=context.callbacks, offline=context.offline)
    data = run.report.data
    return TunedArm(run.folder, run.report.speed.seconds, data.train + data.validation, f"run {run.folder.name}")


def write_rows(context: ComparisonContext, name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Write rows to a file in the folder of the comparison and return its path."""
    file = context.folder / f"{name}.jsonl"
    write_whole(file, "".join(json.dumps(row, default=str) + "\n" for row in rows))
    return str(file)
