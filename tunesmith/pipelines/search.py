"""`tunesmith ask` with a run that searches: the passages of its rows and documents that answer a query best."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from tunesmith.config import load_recipe
from tunesmith.config.recipe import Documents
from tunesmith.data.files import report_edit
from tunesmith.data.readers.read import read_rows
from tunesmith.errors import CheckpointError
from tunesmith.evaluation.candidates import check_encoders
from tunesmith.events import EventHandler
from tunesmith.inference.identify import read_manifest
from tunesmith.inference.saved_model import load
from tunesmith.objectives.passages import PASSAGES
from tunesmith.retrieval.chunks import Chunk
from tunesmith.retrieval.index import LIMIT, open_index

INDEX = "index"
SHOWN = 5


def nearest(
    run: Path, text: str, *, shown: int = SHOWN, on_event: EventHandler, offline: bool = False
) -> dict[str, Any]:
    """Return the passages that are best for a query, by the vectors of a run or by its scores of what a search finds.

    Only passages that are new are embedded.

    Args:
        run: folder of a run of `embed` or `rerank`.
        text: the query.
        shown: number of passages.
        on_event: receives progress.
        offline: do not access the network.

    Returns:
        {"passages": [{"score": ..., "text": ...}]}, the best first.

    Raises:
        CheckpointError: the run has no passages, or the model that finds candidates is missing or another one.
        DataError: its documents cannot be read.
        ModelError: its prompts cannot be used.
    """
    source = run / PASSAGES
    if not source.is_file():
        raise CheckpointError(f"{run}: {PASSAGES} is missing, which has the passages to search; restore it")
    report_edit(source)
    rows = read_rows(str(source))
    recipe = load_recipe(run / "recipe.yaml")[0]
    manifest = read_manifest(run / "model")
    check_encoders(manifest, where=str(run), offline=offline)
    objective = manifest.objective
    if documents := getattr(recipe.objective, "documents", ""):
        rows = [*rows, *read_rows(documents, offline=offline)]
    texts = dict.fromkeys(found.strip() for row in rows if isinstance(found := row.fields.get("text"), str))
    chunks = [
        Chunk(str(number), "", hashlib.sha256(passage.encode(errors="replace")).hexdigest(), "", passage)
        for number, passage in enumerate(filter(None, texts), 1)
    ]
    if (retriever := objective.retriever) is not None:
        settings = Documents(search=retriever.search, encoder=retriever.encoder)
        index = open_index(run / INDEX, chunks, settings=settings, on_event=on_event, offline=offline)
        found = [hit.chunk.text for hit in index.find([text], shown=retriever.candidates)[0]]
        ranked = load(run, offline=offline).rank(text, found)[:shown]
        return {"passages": [{"score": score, "text": found[i]} for i, score in ranked]}
    settings = Documents(search="vectors", encoder=str(run))
    index = open_index(run / INDEX, chunks, settings=settings, on_event=on_event, offline=offline)
    assert index.encoder is not None
    assert index.vectors is not None
    cosines = index.vectors @ index.encoder.vectors([text], LIMIT, questions=True)[0]
    best = (-cosines).argsort(kind="stable")[:shown]
    return {"passages": [{"score": float(cosines[i]), "text": chunks[i].text} for i in best]}
