"""What it takes until an arm knows a changed fact: the documents are changed, and the same questions asked again."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence

from pydantic import TypeAdapter

from tunesmith.data.examples import Example
from tunesmith.data.files import read_page, write_whole
from tunesmith.decision.chunks import cut
from tunesmith.decision.facts import Fact, change
from tunesmith.decision.index import Index, open_index
from tunesmith.decision.page import Update
from tunesmith.decision.recall import origins_of
from tunesmith.evaluation.metrics import contains
from tunesmith.events import StageStarted
from tunesmith.inference.local import LocalModel
from tunesmith.workflows.answers import gold
from tunesmith.workflows.asking import plainly, say, within
from tunesmith.workflows.contest import ArmAnswers, Contest, room_of

_Kept = TypeAdapter(dict[str, Update])


def knowledge(contest: Contest, arms: Sequence[ArmAnswers]) -> dict[str, Update]:
    """For each arm the share of changed facts that it gives as they are now and as they were; empty without any.

    An arm without passages says what it said before: nothing that it knows has changed until it is tuned again.
    """
    file = contest.folder / "knowledge.json"
    if file.exists():
        known = read_page(file, dict[str, Update])
        if set(known) >= {arm.name for arm in arms}:
            return known
    retrieval, test = contest.retrieval(), contest.test
    fields = [retrieval.rows.get(row.where, {}) for row in test]
    origins = origins_of(fields, gold(test), retrieval.columns)
    asked = [retrieval.asked(row) for row in test]
    pages, facts = change(retrieval.pages, asked, gold(test), origins, most=contest.recipe.compare.facts)
    if not facts:
        return {}
    contest.on_event(StageStarted(f"{len(facts)} facts changed in the documents"))
    changed = contest.folder / "changed"
    shutil.rmtree(changed, ignore_errors=True)
    shutil.copytree(contest.folder / "index", changed)
    began = time.perf_counter()
    settings = contest.recipe.documents
    chunks = cut(pages, settings.size)
    index = open_index(changed, chunks, settings=settings, on_event=lambda event: None, offline=contest.offline)
    indexed = time.perf_counter() - began
    rows = [test[fact.row] for fact in facts]
    found = {arm.name: _known(contest, arm, index, (facts, rows), indexed) for arm in arms}
    shutil.rmtree(changed, ignore_errors=True)
    write_whole(file, _Kept.dump_json(found, indent=1).decode())
    return found


def _known(
    contest: Contest, arm: ArmAnswers, index: Index, changed: tuple[Sequence[Fact], Sequence[Example]], indexed: float
) -> Update:
    """What one arm says to the questions after the change."""
    facts, rows = changed
    seconds: float | None
    if arm.shown:
        began = time.perf_counter()
        given = _again(contest, arm, index, rows)
        seconds, how = indexed + (time.perf_counter() - began) / len(rows), "the index follows the documents"
    else:
        given = [arm.given[fact.row] for fact in facts]
        seconds = arm.build_seconds if arm.run else None
        how = "tune again" if arm.run else "no document reaches it: the fact has to stand in the prompt"
    new = contains([fact.new for fact in facts], given)
    old = contains([fact.old for fact in facts], given)
    return Update(facts=len(facts), new=float(new.mean()), old=float(old.mean()), seconds=seconds, how=how)


def _again(contest: Contest, arm: ArmAnswers, index: Index, rows: Sequence[Example]) -> list[str]:
    """The answers of an arm with passages from the changed documents."""
    retrieval = contest.retrieval()
    hits = index.find([retrieval.asked(row) for row in rows], shown=arm.shown)
    model, questions = _model(contest, arm), plainly(contest, rows)
    batch = [within(model, asked, hit, arm.form) for asked, hit in zip(questions, hits, strict=True)]
    return say(model, batch, contest.objective).given


def _model(contest: Contest, arm: ArmAnswers) -> LocalModel:
    """The model that an arm asks."""
    if not arm.run:
        return contest.base()
    model = contest.tuned(arm.run)
    model.limit = max(model.limit, room_of(model.policy))
    return model
