"""Hard negatives: passages that the base model and BM25 rank high for a query, and that do not answer it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tunesmith.data.documents.document import plain
from tunesmith.data.examples.types import Example, Query
from tunesmith.data.files import read_page, write_whole
from tunesmith.events import EventHandler, StageStarted
from tunesmith.inference.local_model import LocalModel
from tunesmith.models.world import current_world
from tunesmith.objectives import Embed
from tunesmith.objectives.embed import MOST_NEGATIVES
from tunesmith.phases import phase
from tunesmith.retrieval.index import has_words, rank_by_vectors, rank_by_words, reciprocal_ranks
from tunesmith.training.own_thoughts import with_own_thoughts
from tunesmith.training.prepare import TrainingContext, encode_all
from tunesmith.training.train import untouched_policy

FILE = "negatives.json"


def search(model: LocalModel, queries: Sequence[str], passages: Sequence[str]) -> list[list[int]]:
    """Rank `passages` for each of `queries` by the vectors of `model`, lists of indices, best first."""
    found = model.embed(list(passages), passage=True).numpy()
    return rank_by_vectors(model.embed(list(queries)).numpy(), found)


def with_hard_negatives(prepared: TrainingContext, out: Path, *, on_event: EventHandler) -> TrainingContext:
    """Add mined negatives to the training and validation rows of a task of `embed` with `hard_negatives`.

    A passage is none if it is the right one of any row with the same query, or contains the evidence of the row. The
    negatives are kept in `out/negatives.json`, so that a resumed run uses the same.

    Args:
        prepared: the context of one task.
        out: its run folder.
        on_event: receives the stage.
    """
    objective, split = prepared.recipe.objective, prepared.loaded.split
    if not isinstance(objective, Embed) or not objective.hard_negatives or not objective.passages:
        return prepared
    parts = [[row for row in part if isinstance(row, Query)] for part in (split.train, split.validation)]
    path = out / FILE
    if not current_world().broadcast(path.exists()):
        on_event(StageStarted(f"searching {len(objective.passages)} passages for hard negatives"))
        with phase("hard negatives"):
            model = LocalModel(
                untouched_policy(prepared), prepared.template, objective, prepared.recipe.data.max_tokens
            )
            model.policy.train(False)
            mined = [_mined(model, rows, objective) for rows in parts]
        out.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(mined))
    found = read_page(path, list[list[list[int]]])
    added: list[list[Example]] = [
        [
            replace(row, negatives=(*row.negatives, *(objective.passages[i] for i in indices)))
            for row, indices in zip(rows, kept, strict=True)
        ]
        for rows, kept in zip(parts, found, strict=True)
    ]
    most = min(MOST_NEGATIVES, objective.negatives + objective.hard_negatives)
    own = objective.model_copy(update={"negatives": most})
    limit = prepared.recipe.data.max_tokens
    train, validation = (encode_all(own, rows, prepared.template, limit=limit) for rows in added)
    recipe = prepared.recipe.model_copy(update={"objective": own})
    loaded = replace(prepared.loaded, split=replace(split, train=added[0], validation=added[1]))
    return replace(prepared, recipe=recipe, loaded=loaded, train=train, validation=validation)


def with_rows_of_base(prepared: TrainingContext, out: Path, *, on_event: EventHandler) -> TrainingContext:
    """Add what the base model contributes to the rows of a task; arguments as in `with_hard_negatives`."""
    return with_hard_negatives(with_own_thoughts(prepared, out, on_event=on_event), out, on_event=on_event)


def _mined(model: LocalModel, rows: Sequence[Query], objective: Embed) -> list[list[int]]:
    """Return the negatives of each row, as indices of passages."""
    queries, passages = [row.text for row in rows], objective.passages
    if not rows:
        return []
    ranked = search(model, queries, passages)
    if has_words():
        ranked = reciprocal_ranks(rank_by_words(passages, queries), ranked)
    words = [f" {plain(passage)} " for passage in passages]
    right: dict[str, set[str]] = {}
    for row in rows:
        right.setdefault(row.text, set()).add(row.passage.strip())
    found = []
    for row, ranking in zip(rows, ranked, strict=True):
        evidence = f" {plain(row.evidence)} " if row.evidence else ""
        wrong = (i for i in ranking if passages[i] not in right[row.text] and not (evidence and evidence in words[i]))
        found.append([index for index, _ in zip(wrong, range(objective.hard_negatives), strict=False)])
    return found
