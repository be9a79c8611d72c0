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
from tunesmith.retrieval.chunks import cut
from tunesmith.retrieval.index import Index, open_index


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
    changed = context.folder / "changed"
    shutil.rmtree(changed, ignore_errors=True)
    shutil.copytree(context.folder / "index", changed)
    began = time.perf_counter()
    settings = context.recipe.documents
    index = open_index(changed, cut(pages, settings.size), settings=settings, on_event=ignore, offline=context.offline)
    index_seconds = time.perf_counter() - began
    updates = {arm.name: _update(context, arm, facts, index, index_seconds=index_seconds) for arm in arms}
    shutil.rmtree(changed, ignore_errors=True)
    write_whole(file, TypeAdapter(dict[str, Update]).dump_json(updates, indent=1).decode())
    return updates


def _update(
    context: ComparisonContext, arm: ArmAnswers, facts: Sequence[Fact], index: Index, *, index_seconds: float
) -> Update:
    """Answer the questions about changed facts by one arm."""
    seconds: float | None
    if arm.shown:
        rows = [context.test[fact.row] for fact in facts]
        began = time.perf_counter()
        hits = index.find([context.retrieval().query(row) for row in rows], shown=arm.shown)
        model = allow_long_prompts(context.tuned(arm.run)) if arm.run else context.base()
        batch = [prompt.messages for prompt in passage_prompts(context, model, rows, hits, form=arm.form)]
        given = ask_model(model, batch, context.objective).given
        seconds = index_seconds + (time.perf_counter() - began) / len(rows)
        how = "the index follows the documents"
    else:
        given = [arm.given[fact.row] for fact in facts]
        seconds = arm.build_seconds if arm.run else None
        how = "tune again" if arm.run else "change the prompt: the arm does not read the documents"
    new = contains([fact.new for fact in facts], given)
    old = contains([fact.old for fact in facts], given)
    return Update(facts=len(facts), new=float(new.mean()), old=float(old.mean()), seconds=seconds, how=how)
