"""What it takes until an arm knows a changed fact: the documents are changed, and the same questions asked again."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence

from pydantic import TypeAdapter

from tunesmith.data.examples.types import Example
from tunesmith.data.files import read_page, write_whole
from tunesmith.evaluation.predict import reference_answers
from tunesmith.events import StageStarted
from tunesmith.inference.local_model import LocalModel
from tunesmith.metrics.scores import contains
from tunesmith.pipelines.compare.changed_facts import Fact, change
from tunesmith.pipelines.compare.context import ArmAnswers, ComparisonContext, max_prompt_tokens
from tunesmith.pipelines.compare.prompting import ask_model, plain_prompt, within
from tunesmith.pipelines.compare.report import Update
from tunesmith.retrieval.chunks import cut
from tunesmith.retrieval.index import Index, open_index
from tunesmith.retrieval.recall import origins_of

_Kept = TypeAdapter(dict[str, Update])


def measure_knowledge_update(context: ComparisonContext, arms: Sequence[ArmAnswers]) -> dict[str, Update]:
    """For each arm the share of changed facts that it gives as they are now and as they were; empty without any.

    An arm without passages says what it said before: nothing that it knows has changed until it is tuned again.
    """
    file = context.folder / "knowledge.json"
    if file.exists():
        known = read_page(file, dict[str, Update])
        if set(known) >= {arm.name for arm in arms}:
            return known
    retrieval, test = context.retrieval(), context.test
    fields = [retrieval.rows.get(row.where, {}) for row in test]
    origins = origins_of(fields, reference_answers(test), retrieval.columns)
    asked = [retrieval.asked(row) for row in test]
    pages, facts = change(
        retrieval.pages, asked, reference_answers(test), origins, most=context.recipe.compare.changed_facts
    )
    if not facts:
        return {}
    context.on_event(StageStarted(f"{len(facts)} facts changed in the documents"))
    changed = context.folder / "changed"
    shutil.rmtree(changed, ignore_errors=True)
    shutil.copytree(context.folder / "index", changed)
    began = time.perf_counter()
    settings = context.recipe.documents
    chunks = cut(pages, settings.size)
    index = open_index(changed, chunks, settings=settings, on_event=lambda event: None, offline=context.offline)
    indexed = time.perf_counter() - began
    rows = [test[fact.row] for fact in facts]
    found = {arm.name: _known(context, arm, index, (facts, rows), indexed) for arm in arms}
    shutil.rmtree(changed, ignore_errors=True)
    write_whole(file, _Kept.dump_json(found, indent=1).decode())
    return found


def _known(
    context: ComparisonContext,
    arm: ArmAnswers,
    index: Index,
    changed: tuple[Sequence[Fact], Sequence[Example]],
    indexed: float,
) -> Update:
    """What one arm says to the questions after the change."""
    facts, rows = changed
    seconds: float | None
    if arm.shown:
        began = time.perf_counter()
        given = _again(context, arm, index, rows)
        seconds, how = indexed + (time.perf_counter() - began) / len(rows), "the index follows the documents"
    else:
        given = [arm.given[fact.row] for fact in facts]
        seconds = arm.build_seconds if arm.run else None
        how = "tune again" if arm.run else "no document reaches it: the fact has to stand in the prompt"
    new = contains([fact.new for fact in facts], given)
    old = contains([fact.old for fact in facts], given)
    return Update(facts=len(facts), new=float(new.mean()), old=float(old.mean()), seconds=seconds, how=how)


def _again(context: ComparisonContext, arm: ArmAnswers, index: Index, rows: Sequence[Example]) -> list[str]:
    """The answers of an arm with passages from the changed documents."""
    retrieval = context.retrieval()
    hits = index.find([retrieval.asked(row) for row in rows], shown=arm.shown)
    model, questions = _model(context, arm), plain_prompt(context, rows)
    batch = [within(model, asked, hit, arm.form) for asked, hit in zip(questions, hits, strict=True)]
    return ask_model(model, batch, context.objective).given


def _model(context: ComparisonContext, arm: ArmAnswers) -> LocalModel:
    """The model that an arm asks."""
    if not arm.run:
        return context.base()
    model = context.tuned(arm.run)
    model.limit = max(model.limit, max_prompt_tokens(model.policy))
    return model
