"""Tuned searches: the encoder of the documents, tuned on questions and the chunks that answer them, to find or rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.config import make_recipe
from tunesmith.data.documents.synthetic_prompts import QUESTIONS
from tunesmith.data.examples.types import Example
from tunesmith.errors import RecipeError
from tunesmith.models.loading.locate import locate
from tunesmith.objectives import Embed
from tunesmith.pipelines.compare.context import DEEP, ComparisonContext
from tunesmith.pipelines.compare.selection import answers_prompts, is_decoder
from tunesmith.pipelines.compare.tuned_arms import TunedArm, run_recipe, write_rows, written_about
from tunesmith.retrieval.index import CANDIDATES, LIMIT
from tunesmith.retrieval.recall import Origin, right_chunks

FEWEST_PAIRS = 32  # of question and chunk to tune on; questions are written if the rows give fewer
FEWEST_VALIDATION = 4  # pairs of validation rows; below, a tenth of the training pairs is used
WRITTEN_PASSAGES = 160  # passages that questions are written about
QUESTIONS_PER_PASSAGE = 2
# Chosen on bench/embed.py, see bench/NOTES.md.
SCHEDULE = {"epochs": 2, "batch_rows": 32}
HARD_NEGATIVES = 1


@dataclass(frozen=True, slots=True)
class TrainingPairs:
    """Files with the pairs of question and chunk, and where they come from."""

    data: dict[str, Any]  # section of a recipe
    documents: str  # file of all chunks
    labelled: int  # pairs of training and validation rows
    written: int  # pairs whose question a model wrote
    seconds: float  # of writing
    detail: str


def run_retriever(context: ComparisonContext) -> TunedArm:
    """Tune the encoder of the documents with the objective `embed` on pairs of the training rows, once for all arms.

    Raises RecipeError for too few pairs.
    """
    return context.once("retriever", lambda: _run_retriever(context))


def _run_retriever(context: ComparisonContext) -> TunedArm:
    pairs = training_pairs(context)
    technique = "lora" if _is_plain_decoder(context.recipe.documents.encoder, offline=context.offline) else "full"
    objective = {"kind": "embed", "hard_negatives": HARD_NEGATIVES}
    run = _tune(context, pairs, objective, technique=technique, name="retriever")
    return TunedArm(run.folder, pairs.seconds + run.seconds, pairs.labelled, pairs.detail, written=pairs.written)


def _is_plain_decoder(encoder: str, *, offline: bool) -> bool:
    """Return whether an encoder is a decoder without prompts: an adapter does not store those of its base."""
    if not is_decoder(encoder, offline=offline):
        return False
    folder = None if encoder.lower().endswith(".gguf") else locate(encoder, offline=offline)
    return not Embed().for_base(folder, "decoder").prompts


def run_reranker(context: ComparisonContext) -> TunedArm:
    """Tune a cross-encoder with the objective `rerank` on the pairs and the candidates of the tuned retriever.

    Raises RecipeError for too few pairs.
    """
    retriever = run_retriever(context)
    search = context.tuned_retrieval(retriever.folder).index.search
    objective = {"kind": "rerank", "encoder": str(retriever.folder), "search": search, "candidates": CANDIDATES}
    return _tune(context, training_pairs(context), objective, technique="full", name="reranker")


def _tune(
    context: ComparisonContext, pairs: TrainingPairs, objective: dict[str, Any], *, technique: str, name: str
) -> TunedArm:
    """Tune the encoder of the documents on the pairs, in a folder of the comparison."""
    columns = {column: column for column in ("query", "passage", "evidence")}
    made, _ = make_recipe(
        {
            "model": context.recipe.documents.encoder,
            "data": {"test": 0.0, "max_tokens": LIMIT, "audit": "note", **pairs.data},
            "objective": {**columns, "documents": pairs.documents, **objective},
            "technique": {"kind": technique},
            "schedule": SCHEDULE | {"probe": context.source.schedule.probe},
            "retention": False,
            "seed": context.recipe.seed,
        },
        place=f"arms: {name}",
    )
    return run_recipe(context, made.model_copy(update={"machine": context.source.machine}), context.folder / name)


def training_pairs(context: ComparisonContext) -> TrainingPairs:
    """Write the pairs of question and chunk, and all chunks, to files in the folder of the comparison, once.

    If too few training rows have a chunk with their answer, the model writes questions about the documents, which are
    marked `written`. Test rows are not read; pairs of validation rows choose the best step.

    Raises RecipeError for too few pairs.
    """
    return context.once("pairs", lambda: _training_pairs(context))


def _training_pairs(context: ComparisonContext) -> TrainingPairs:
    train, validation = (pairs_of_rows(context, part) for part in (context.split.train, context.split.validation))
    rows, seconds = len(train), 0.0
    detail = f"{rows} pairs of question and chunk"
    if rows < FEWEST_PAIRS:
        written, seconds, writer = _written_pairs(context)
        train += written
        if written:
            detail += f" from rows, {len(written)} more written by {writer} from the documents"
        if len(train) < FEWEST_PAIRS:
            more = f", and {writer} wrote {len(written)} more" if writer else ""
            raise RecipeError(
                f"arms: tuned-retriever needs {FEWEST_PAIRS} questions with a chunk that contains the answer; the rows "
                f"give {rows}{more}; set documents.evidence or documents.origin, add rows, or remove the arm"
            )
    enough = len(validation) >= FEWEST_VALIDATION
    data = {
        "train": write_rows(context, "retriever.train", train),
        "validation": write_rows(context, "retriever.validation", validation) if enough else 0.1,
    }
    chunks = [{"text": chunk.text} for chunk in context.retrieval().index.chunks]
    documents = write_rows(context, "retriever.documents", chunks)
    return TrainingPairs(data, documents, rows + len(validation) * enough, len(train) - rows, seconds, detail)


def pairs_of_rows(context: ComparisonContext, rows: Sequence[Example]) -> list[dict[str, Any]]:
    """Return question, chunk and evidence of each row whose answer is in a chunk."""
    retrieval = context.retrieval()
    return _pairs(context, [retrieval.query(row) for row in rows], retrieval.origins(rows), retrieval.correct(rows))


def _pairs(
    context: ComparisonContext, queries: Sequence[str], origins: Sequence[Origin], correct: Sequence[set[str]]
) -> list[dict[str, Any]]:
    """Return the pairs; of several correct chunks, the one that the untouched search ranks first."""
    index = context.retrieval().index
    order = {chunk.id: DEEP + position for position, chunk in enumerate(index.chunks)}
    text = {chunk.id: chunk.text for chunk in index.chunks}
    pairs = []
    found = index.find(queries, shown=DEEP)
    for query, origin, ids, hits in zip(queries, origins, correct, found, strict=True):
        if ids and query:
            ranks = order | {hit.chunk.id: rank for rank, hit in enumerate(hits)}
            best = min(ids, key=lambda name: ranks[name])
            pairs.append({"query": query, "passage": text[best], "evidence": origin.evidence})
    return pairs


def _written_pairs(context: ComparisonContext) -> tuple[list[dict[str, Any]], float, str]:
    """Return pairs whose questions the base model wrote from the documents, the seconds, and the name of the model.

    The name is empty if the base model is an encoder, which writes nothing.
    """
    if not answers_prompts(context.recipe, offline=context.offline):
        return [], 0.0, ""
    written = written_about(
        context,
        QUESTIONS,
        name="retriever",
        label="tuned-retriever: questions about",
        count=QUESTIONS_PER_PASSAGE,
        passages=WRITTEN_PASSAGES,
    )
    origins = [Origin(str(row["answer"]), str(row["doc_id"])) for row in written.rows]
    correct = right_chunks(context.retrieval().index.chunks, origins)
    pairs = _pairs(context, [str(row["question"]) for row in written.rows], origins, correct)
    return [pair | {"written": True} for pair in pairs], written.seconds, written.writer
