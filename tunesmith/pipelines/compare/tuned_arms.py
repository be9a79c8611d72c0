"""The runs of a comparison: the recipe's own, one with passages in its rows, and one on the documents themselves."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.config import Recipe
from tunesmith.data.documents.synthetic_prompts import PARAPHRASES
from tunesmith.data.documents.synthetic_rows import WritingOptions, answered, requests, written_rows
from tunesmith.data.documents.to_rows import DocumentPart
from tunesmith.data.examples.types import Chat, Example
from tunesmith.data.files import write_whole
from tunesmith.errors import RecipeError
from tunesmith.evaluation.predict import subsample
from tunesmith.events import StageStarted
from tunesmith.objectives import Domain, Instruct
from tunesmith.pipelines.collect import Writer, ask_writer, counted
from tunesmith.pipelines.compare.context import ArmAnswers, ComparisonContext
from tunesmith.pipelines.tune.tune import tune_recipe
from tunesmith.retrieval.chunks import Chunk
from tunesmith.retrieval.index import Hit
from tunesmith.retrieval.prompts import raft_example
from tunesmith.training.run_folder import open_run

# Passages in a row of `raft`; the share of rows that hold the right one (Zhang et al. 2024); tokens that they need.
PASSAGES, ORACLE, ROOM = 3, 0.8, 1024
# Chunks that `closed-book` learns from, those with answers first; paraphrases of each; passages to ask about.
MAX_CHUNKS, PARAPHRASES_PER_CHUNK, ASKED_ABOUT = 400, 2, 40
EPOCHS = 3
MIN_ROWS = 8  # rows of a run on a part of them
# Chunks that `closed-book` is validated on, and rows that `raft` is: with passages they are long.
KEPT, JUDGED = 20, 32


@dataclass(frozen=True, slots=True)
class TunedArm:
    """A finished run: where it lies, the seconds of its training, and the labelled rows that it used."""

    folder: Path
    seconds: float
    labelled_rows: int
    note: str = ""

    def built(self, found: ArmAnswers) -> ArmAnswers:
        """The answers of the run's model with what it took to make it."""
        return found.model_copy(
            update={
                "build_seconds": found.build_seconds + self.seconds,
                "labelled_rows": self.labelled_rows or found.labelled_rows,
                "run": str(self.folder),
                "detail": found.detail or self.note,
            }
        )


def run_tuned(context: ComparisonContext, percent: int = 100) -> TunedArm:
    """The run of the recipe itself, where it lies finished or in the comparison's folder; or of a part of its rows."""
    recipe = context.source
    if percent < 100:
        rows = max(MIN_ROWS, len(context.split.train) * percent // 100)
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"rows": rows}), "controls": False})
        return _made(context, recipe, context.folder / f"tuned-{percent}")
    own = open_run(recipe, None)
    if own.finished:
        return _made(context, recipe, own.path)
    if len(context.test) < len(context.split.test):  # it need not be scored on rows that no arm is asked
        recipe = _on_parts(context, recipe)
    return _made(context, recipe, context.folder / "tuned")


def _on_parts(context: ComparisonContext, recipe: Recipe) -> Recipe:
    """The recipe on the comparison's own rows, written out as they stand in their files."""
    rows, files = context.columns(), {}
    parts = {"train": context.split.train, "validation": context.split.validation, "test": context.test}
    for part, examples in parts.items():
        if examples:
            files[part] = str(context.folder / f"tuned.{part}.jsonl")
            _write(Path(files[part]), [rows[example.where] for example in examples])
    data = recipe.data.model_copy(update={"validation": 0.0, **files, "where": {}, "rows": 0})
    return recipe.model_copy(update={"data": data})


def run_raft(context: ComparisonContext) -> TunedArm:
    """The recipe on the same rows with passages above each question, the right one among them four times in five."""
    objective = context.objective
    assert isinstance(objective, Instruct)
    files = {}
    held = subsample(context.split.validation, JUDGED, context.recipe.seed)
    for part, rows in (("train", context.split.train), ("validation", held)):
        files[part] = context.folder / f"raft.{part}.jsonl"
        _write(files[part], _raft_rows(context, rows, part))
    asked = objective.model_copy(update={"prompt": "", "answer": "", "messages": "messages", "instruction": ""})
    data = {"train": str(files["train"]), "validation": str(files["validation"]), "test": 0.0, "group": "", "where": {}}
    room = {"max_tokens": max(context.recipe.data.max_tokens, ROOM), "audit": "note", "rows": 0}
    return _made(context, _changed(context.source, asked, {**data, **room}), context.folder / "raft")


def _raft_rows(context: ComparisonContext, rows: Sequence[Example], part: str) -> list[dict[str, Any]]:
    """The rows as chats; those that are only validated on look as they will at the test."""
    retrieval = context.retrieval()
    by_id = {chunk.id: chunk for chunk in retrieval.index.chunks}
    made = []
    for row, hits, right in zip(rows, retrieval.hits(rows), retrieval.right(rows), strict=True):
        shown = hits[:PASSAGES]
        if part == "train":
            chance = random.Random(f"{context.recipe.seed}/{row.where}")
            shown = passages_of(hits, [by_id[name] for name in sorted(right)], chance)
        chat = _fitted(context, row, shown)
        made.append(as_row(chat))
    return made


def as_row(chat: Chat) -> dict[str, Any]:
    """The chat as a row of messages, with the tools that it may call and what it calls."""
    turns = [
        {"role": turn.role, "content": turn.content, **({"tool_calls": calls} if calls else {})}
        for turn in chat.messages
        for calls in [[call.plain() for call in turn.calls]]
    ]
    tools = chat.messages[0].tools
    return {"messages": turns, **({"tools": tools} if tools else {})}


def _fitted(context: ComparisonContext, row: Example, shown: Sequence[Hit]) -> Chat:
    """The row below as many of its passages as it has room for, so that its question is never what is cut."""
    template, limit = context.base().template, max(context.recipe.data.max_tokens, ROOM)
    for count in range(len(shown), 0, -1):
        chat = raft_example(row, shown[:count], context.objective)
        if len(template.chat(chat.messages).ids) <= limit:
            return chat
    return raft_example(row, [], context.objective)


def passages_of(hits: Sequence[Hit], right: Sequence[Chunk], chance: random.Random) -> list[Hit]:
    """What stands above a training question: what was found, with a right chunk in it or, one time in five, none."""
    known = {chunk.id for chunk in right}
    wrong = [hit for hit in hits if hit.chunk.id not in known]
    if not right or chance.random() >= ORACLE:
        return wrong[:PASSAGES]
    found = list(hits[:PASSAGES])
    if not known & {hit.chunk.id for hit in found}:
        found = wrong[: PASSAGES - 1]
        found.insert(chance.randrange(len(found) + 1), Hit(chance.choice(list(right)), 0.0))
    return found


def run_closed_book(context: ComparisonContext) -> TunedArm:
    """The base tuned on chunks of the documents and on what a model says them again in; no question is seen."""
    chunks = context.retrieval().index.chunks
    answering = set().union(*context.retrieval().right(context.test))
    first = [chunk for chunk in chunks if chunk.id in answering]
    rest = [chunk for chunk in chunks if chunk.id not in answering]
    random.Random(f"{context.recipe.seed}/taught").shuffle(rest)
    if len(chunks) < 2:
        raise RecipeError("arms: closed-book learns from two chunks at least; give more documents, or leave it out")
    kept = min(KEPT, len(rest) // 5) or 1
    held, learn = [*first, *rest][-kept:], [*first, *rest][:-kept][:MAX_CHUNKS]
    began = time.perf_counter()
    again = _said_again(context, {chunk.doc_id for chunk in first})
    writing = float(context.choice("seconds to paraphrase", lambda: [str(time.perf_counter() - began)])[0])
    files = {"train": context.folder / "taught.train.jsonl", "validation": context.folder / "taught.validation.jsonl"}
    _write(files["train"], [{"text": text} for text in (*(chunk.text for chunk in learn), *again)])
    _write(files["validation"], [{"text": chunk.text} for chunk in held])
    data = {"train": str(files["train"]), "validation": str(files["validation"]), "test": 0.0, "group": "", "where": {}}
    recipe = _changed(context.source, Domain(text="text"), {**data, "audit": "note", "rows": 0})
    schedule = recipe.schedule.model_copy(update={"epochs": EPOCHS})
    made = _made(context, recipe.model_copy(update={"schedule": schedule}), context.folder / "taught")
    note = f"{len(learn)} of {len(chunks)} chunks, those with answers first, and {len(again)} paraphrases"
    return TunedArm(made.folder, writing + made.seconds, 0, note)


def _said_again(context: ComparisonContext, documents: set[str]) -> list[str]:
    """Paraphrases of the documents that hold answers, written by the untuned model and checked against them."""
    parts = [
        DocumentPart(page.doc_id, page.digest, page.document, page.document.blocks)
        for page in context.retrieval().pages
        if page.doc_id in documents
    ]
    size, seed = context.recipe.documents.size, context.recipe.seed
    wanted = WritingOptions((PARAPHRASES,), PARAPHRASES_PER_CHUNK, (), size, ASKED_ABOUT, seed)
    writer = Writer(context.recipe.compare.model or context.recipe.model, max_tokens=160, seed=seed)
    asked = requests(parts, wanted)
    if not asked:
        return []
    context.on_event(StageStarted(f"closed-book: {len(asked)} paraphrases"))
    ask = counted(ask_writer(writer, offline=context.offline), context.on_event)
    answers = answered(asked, ask, context.folder / "taught.replies.jsonl", writer.identity)
    rows, _ = written_rows(asked, answers)
    return [str(row["text"]) for row in rows]


def _changed(recipe: Recipe, objective: Instruct | Domain, data: Mapping[str, Any]) -> Recipe:
    """The recipe for other rows."""
    rows = recipe.data.model_copy(update=dict(data))
    return recipe.model_copy(update={"objective": objective, "data": rows, "controls": False, "style": {}})


def _made(context: ComparisonContext, recipe: Recipe, folder: Path) -> TunedArm:
    """The finished run of a recipe in a folder."""
    context.forget_base()
    run = tune_recipe(recipe, out=folder, callbacks=context.callbacks, offline=context.offline)
    data = run.report.data
    return TunedArm(run.folder, run.report.speed.seconds, data.train + data.validation, f"run {run.folder.name}")


def _write(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    write_whole(file, "".join(json.dumps(row, default=str) + "\n" for row in rows))
