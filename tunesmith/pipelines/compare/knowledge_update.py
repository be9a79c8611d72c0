"""Knowledge update: facts are changed in the documents, and every arm answers the same questions again."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence

from pydantic import TypeAdapter

from tunesmith.data.files import read_page, write_whole
from tunesmith.evaluation.predict import reference_answers
from tunesmith.events import StageStarted, ignore
from tunesmith.metrics.scores import contains
from tunesmith.pipelines.compare.answers import ArmAnswers
from tunesmith.pipelines.compare.changed_facts import Fact, change
from tunesmith.pipelines.compare.context import ComparisonContext, allow_long_prompts
from tunesmith.pipelines.compare.prompting import ask_model, passage_prompts
from tunesmith.pipelines.compare.report import Update
from tunesmith.retrieval.chunks import Chunk, cut
from tunesmith.retrieval.index import Index, open_index
from tunesmith.retrieval.recall import Origin, ids_of, right_chunks

FIRST = 5  # ranks in which a changed chunk counts as found


def measure_knowledge_update(context: ComparisonContext, arms: Sequence[ArmAnswers]) -> dict[str, Update]:
    """Measure for each arm the shares of changed facts that it answers with the new and with the old value.

    An arm without passages keeps its answers: it changes only when it is tuned again. The result is empty if no fact
    can be changed.
    """
    file = context.folder / "knowledge.json"
    if file.exists():
        known = read_page(file, dict[str, Update])
        if set(known) >= {arm.name for arm in arms}:
            return known
    retrieval, test = context.retrieval(), context.test
    queries = [retrieval.query(row) for row in test]
    answers = reference_answers(test)
    most = context.recipe.compare.changed_facts
    pages, facts = change(retrieval.pages, queries, answers, retrieval.origins(test), most=most)
    if not facts:
        return {}
    context.on_event(StageStarted(f"{len(facts)} facts changed in the documents"))
    chunks = cut(pages, context.recipe.documents.size)
    origins = retrieval.origins(test)
    right = right_chunks(chunks, [Origin(fact.new, origins[fact.row].doc_id) for fact in facts])
    indexes = {name: _changed_index(context, *name, chunks=chunks) for name in dict.fromkeys(map(_search, arms))}
    updates = {arm.name: _update(context, arm, facts, right, changed=indexes[_search(arm)]) for arm in arms}
    write_whole(file, TypeAdapter(dict[str, Update]).dump_json(updates, indent=1).decode())
    return updates


def _search(arm: ArmAnswers) -> tuple[str, str]:
    """Return the runs that find the chunks of an arm."""
    return arm.retriever, arm.reranker


def _changed_index(
    context: ComparisonContext, run: str, reranker: str, *, chunks: Sequence[Chunk]
) -> tuple[Index, float]:
    """Return the index of a search, updated to the changed chunks, and the seconds of the update."""
    own = context.search_of(run, reranker).index  # embeds the chunks where their vectors were deleted
    changed = context.folder / "changed"
    shutil.rmtree(changed, ignore_errors=True)
    shutil.copytree(context.index_folder(run), changed)
    began = time.perf_counter()
    settings = context.documents_of(run)
    index = open_index(changed, chunks, settings=settings, on_event=ignore, offline=context.offline)
    seconds = time.perf_counter() - began
    shutil.rmtree(changed, ignore_errors=True)
    index.search, index.ranker = own.search, own.ranker
    return index, seconds


def _update(
    context: ComparisonContext,
    arm: ArmAnswers,
    facts: Sequence[Fact],
    right: Sequence[set[str]],
    *,
    changed: tuple[Index, float],
) -> Update:
    """Answer the questions about changed facts by one arm; `right` has the ids of the chunks with each new fact."""
    index, index_seconds = changed
    seconds: float | None
    found: float | None = None
    if arm.shown:
        rows = [context.test[fact.row] for fact in facts]
        began = time.perf_counter()
        queries = [context.retrieval().query(row) for row in rows]
        hits = index.find(queries, shown=arm.shown)
        model = allow_long_prompts(context.tuned(arm.run)) if arm.run else context.base()
        batch = [prompt.messages for prompt in passage_prompts(context, model, rows, hits, form=arm.form)]
        given = ask_model(model, batch, context.objective).given
        seconds = index_seconds + (time.perf_counter() - began) / len(rows)
        how = "the index follows the documents"
        ranked = ids_of(index.find(queries, shown=FIRST))
        found = sum(bool(ids & {*names}) for ids, names in zip(right, ranked, strict=True)) / len(rows)
    else:
        given = [arm.given[fact.row] for fact in facts]
        seconds = arm.build_seconds if arm.run else None
        how = "tune again" if arm.run else "change the prompt: the arm does not read the documents"
    new = contains([fact.new for fact in facts], given)
    old = contains([fact.old for fact in facts], given)
    return Update(facts=len(facts), new=float(new.mean()), old=float(old.mean()), seconds=seconds, how=how, found=found)
