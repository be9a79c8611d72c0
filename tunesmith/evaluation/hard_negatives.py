"""Hard negatives: passages that a search ranks high for a query, and that do not answer it."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

from tunesmith.config import AnyObjective
from tunesmith.data.documents.document import plain
from tunesmith.data.examples.types import Example, Query
from tunesmith.data.files import read_page, write_whole
from tunesmith.data.text.words import folded
from tunesmith.errors import DataError
from tunesmith.evaluation.candidates import candidates
from tunesmith.events import EventHandler, StageStarted
from tunesmith.inference.local_model import LocalModel
from tunesmith.models.world import current_world
from tunesmith.objectives.base import PassageSearch
from tunesmith.phases import phase
from tunesmith.retrieval.index import has_words, rank_by_vectors, rank_by_words, reciprocal_ranks
from tunesmith.training.own_thoughts import with_own_thoughts
from tunesmith.training.prepare import TrainingContext, encode_all
from tunesmith.training.train import untouched_policy

FILE = "negatives.json"
DRAWN = 100  # passages that are tried for a row without one that the search finds


@dataclass(frozen=True, slots=True)
class Mined:
    """Content of `negatives.json`: the passages that were mined, and their indices for the rows of both parts."""

    passages: list[str]
    rows: list[list[int]]


def search(model: LocalModel, queries: Sequence[str], passages: Sequence[str]) -> list[list[int]]:
    """Rank `passages` for each of `queries` by the vectors of `model`, lists of indices, best first."""
    found = model.embed(list(passages), passage=True).numpy()
    return rank_by_vectors(model.embed(list(queries)).numpy(), found)


def with_hard_negatives(prepared: TrainingContext, out: Path, *, on_event: EventHandler) -> TrainingContext:
    """Add mined negatives to the training and validation rows of a task with `hard_negatives`.

    They are found by the search of the objective, or for one that searches by itself by the base model and BM25. They
    are passages of training rows and documents, so that nothing of a held-out row is learned. A passage is none if it
    is the right one of any row with the same query, in whatever part, or contains the evidence of such a row. The
    negatives are kept in `out/negatives.json`, so that a resumed run uses the same. Of an objective that learns nothing
    from a row without negatives, such rows are left out with a note.

    Args:
        prepared: the context of one task.
        out: its run folder.
        on_event: receives the stage.

    Raises:
        DataError: the objective learns nothing from a row without negatives, and none has one.
    """
    objective, split = prepared.recipe.objective.searching, prepared.loaded.split
    if objective is None or not objective.hard_negatives:
        return prepared
    parts = [[row for row in part if isinstance(row, Query)] for part in (split.train, split.validation)]
    path = out / FILE
    if not current_world().broadcast(path.exists()):
        passages = objective.for_rows(split.train).passages
        on_event(StageStarted(f"searching {len(passages)} passages for hard negatives"))
        with phase("hard negatives"):
            rows = [row for part in parts for row in part]
            ranked = _ranked(prepared, [row.text for row in rows], passages)
            mined = mined_negatives(rows, passages, ranked, objective)
        used = {index: number for number, index in enumerate(dict.fromkeys(i for row in mined for i in row))}
        page = Mined([passages[i] for i in used], [[used[i] for i in row] for row in mined])
        out.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(asdict(page), ensure_ascii=False))
    kept = read_page(path, Mined)
    added_to = iter(kept.rows)
    added: list[list[Example]] = [
        [replace(row, negatives=(*row.negatives, *(kept.passages[i] for i in next(added_to)))) for row in rows]
        for rows in parts
    ]
    notes = []
    if objective.needs_negatives:
        with_some = [[row for row in rows if isinstance(row, Query) and row.negatives] for rows in added]
        left_out = sum(map(len, added)) - sum(map(len, with_some))
        if any(rows and not some for rows, some in zip(added, with_some, strict=True)):
            fix = "add rows with other passages, `negative` or objective.documents"
            raise DataError(f"{prepared.recipe.data.train}: no passage is known that does not answer a query; {fix}")
        added = [list(rows) for rows in with_some]
        notes = [f"{left_out} rows are left out: every passage answers their query"] * bool(left_out)
    own = cast(AnyObjective, objective.with_mined())
    limit = prepared.recipe.data.max_tokens
    train, validation = (encode_all(own, rows, prepared.template, limit=limit) for rows in added)
    recipe = prepared.recipe.model_copy(update={"objective": own})
    loaded = replace(prepared.loaded, split=replace(split, train=added[0], validation=added[1]))
    return replace(prepared, recipe=recipe, loaded=loaded, train=train, validation=validation).noted(*notes)


def with_rows_of_base(prepared: TrainingContext, out: Path, *, on_event: EventHandler) -> TrainingContext:
    """Add what the base model contributes to the rows of a task; arguments as in `with_hard_negatives`."""
    return with_hard_negatives(with_own_thoughts(prepared, out, on_event=on_event), out, on_event=on_event)


def _ranked(prepared: TrainingContext, queries: Sequence[str], passages: Sequence[str]) -> list[list[int]]:
    """Rank passages for each query by the search of the objective, or by the base model and BM25."""
    objective = prepared.recipe.objective
    if (retriever := objective.retriever) is not None:
        return candidates(passages, queries, retriever)
    model = LocalModel(untouched_policy(prepared), prepared.template, objective, prepared.recipe.data.max_tokens)
    model.policy.train(False)
    ranked = search(model, queries, passages)
    return reciprocal_ranks(rank_by_words(passages, queries), ranked) if has_words() else ranked


def mined_negatives(
    rows: Sequence[Query], passages: Sequence[str], ranked: Sequence[Sequence[int]], objective: PassageSearch
) -> list[list[int]]:
    """Return the negatives of each row, as indices of `passages`, from a ranking of them for each row.

    If the search finds none for a row that needs one, such as for a query in another language, they are chosen at
    random.
    """
    words = [f" {plain(passage)} " for passage in passages]
    texts = [folded(passage) for passage in passages]
    found = []
    for row, ranking in zip(rows, ranked, strict=True):
        right, said = {*objective.right(row), *map(folded, row.negatives)}, objective.evidence_of(row)
        rankings: list[Sequence[int]] = [ranking]
        if objective.needs_negatives and not row.negatives:
            drawn = random.Random(row.where).sample(range(len(passages)), min(len(passages), DRAWN))
            rankings.append(drawn)
        for order in rankings:
            wrong = (i for i in order if texts[i] not in right and not any(f" {one} " in words[i] for one in said))
            chosen = [index for index, _ in zip(wrong, range(objective.hard_negatives), strict=False)]
            if chosen:
                break
        found.append(chosen)
    return found
