"""The page on which people label rows, as a FastAPI app; `serve` puts the guard before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from tunesmith.errors import DataError
from tunesmith.web.desk import AskVote, Routes, Visitor
from tunesmith.web.parts import make_app
from tunesmith.workflows.label import Labelling, LabelProgress


class AskLabel(AskVote):
    """This label for this row."""

    label: str


class ShownRow(BaseModel):
    """A row as the page shows it."""

    key: str
    text: str
    where: str
    beside: list[tuple[str, str]]


class LabelState(BaseModel):
    """What the page shows next: a row or none, the labels, how far it is, whether there is anything to undo."""

    item: ShownRow | None
    labels: list[str]
    progress: LabelProgress
    undo: bool


def label_app(work: Labelling) -> Any:
    """The app: the page, what it is made of, and what it asks for."""
    app = make_app("label", refuses=DataError)

    def state(ask: Visitor, key: str | None) -> LabelState:
        shown = None
        if key is not None:
            item = work.item(key)
            shown = ShownRow(key=item.key, text=item.text, where=item.where, beside=list(item.beside))
        undo = work.turns.can_undo(ask.rater)
        return LabelState(item=shown, labels=work.labels(), progress=work.progress(ask.rater), undo=undo)

    routes = Routes(work, state)
    routes.add_to(app)

    def vote(ask: AskLabel) -> BaseModel:
        work.vote(ask.who, ask.item, ask.label, took=ask.took)
        return routes.next(ask)

    app.post("/api/vote", response_model=None)(vote)
    app.get("/export.jsonl")(_download(work))
    return app


def _download(work: Labelling) -> Callable[[], Any]:
    from fastapi.responses import Response

    def export() -> Any:
        attached = {"content-disposition": 'attachment; filename="labelled.jsonl"'}
        return Response("".join(work.lines()), media_type="application/x-ndjson", headers=attached)

    return export
