"""`tunesmith ask` with a run of `embed`: the passages of its rows and documents that are nearest to a query."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from tunesmith.config import load_recipe
from tunesmith.config.recipe import Documents
from tunesmith.data.readers.read import read_rows
from tunesmith.errors import CheckpointError, RecipeError
from tunesmith.events import EventHandler
from tunesmith.inference.identify import read_manifest
from tunesmith.objectives import Embed
from tunesmith.objectives.embed import PASSAGES
from tunesmith.retrieval.chunks import Chunk
from tunesmith.retrieval.index import LIMIT, open_index

INDEX = "index"
SHOWN = 5


def nearest(
    run: Path, text: str, *, shown: int = SHOWN, on_event: EventHandler, offline: bool = False
) -> dict[str, Any]:
    """Return the passages nearest to a query by the vectors of a run; only passages that are new are embedded.

    Args:
        run: folder of a run of `embed`.
        text: the query.
        shown: number of passages.
        on_event: receives progress.
        offline: do not access the network.

    Returns:
        {"passages": [{"score": ..., "text": ...}]}, the nearest first.

    Raises:
        CheckpointError: the run has no passages.
        DataError: its documents cannot be read.
        RecipeError: its prompts cannot be used.
    """
    source = run / PASSAGES
    if not source.is_file():
        raise CheckpointError(f"{run}: {PASSAGES} is missing, which has the passages to search; restore it")
    rows = read_rows(str(source))
    recipe = load_recipe(run / "recipe.yaml")[0]
    objective = read_manifest(run / "model").objective
    prompts = isinstance(objective, Embed) and (objective.query_prompt or objective.passage_prompt)
    if prompts and not (run / "model" / "modules.json").is_file():
        raise RecipeError(f"{run}: an adapter of a decoder with prompts is not searched by; tune with technique: full")
    if documents := getattr(recipe.objective, "documents", ""):
        rows = [*rows, *read_rows(documents, offline=offline)]
    texts = dict.fromkeys(found.strip() for row in rows if isinstance(found := row.fields.get("text"), str))
    chunks = [
        Chunk(str(number), "", hashlib.sha256(passage.encode(errors="replace")).hexdigest(), "", passage)
        for number, passage in enumerate(filter(None, texts), 1)
    ]
    settings = Documents(search="vectors", encoder=str(run))
    index = open_index(run / INDEX, chunks, settings=settings, on_event=on_event, offline=offline)
    assert index.encoder is not None
    assert index.vectors is not None
    cosines = index.vectors @ index.encoder.vectors([text], LIMIT, questions=True)[0]
    best = (-cosines).argsort(kind="stable")[:shown]
    return {"passages": [{"score": float(cosines[i]), "text": chunks[i].text} for i in best]}
