"""Labelling page as a FastAPI app; `serve` adds the security middleware."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from tunesmith.annotation.labelling import LabelProgress, LabelSession
from tunesmith.errors import DataError
from tunesmith.web.pages.app import make_app
from tunesmith.web.pages.routes import AskVote, RaterSession, Routes


class AskLabel(AskVote):
    """A label for one row."""

    label: str


class ShownRow(BaseModel):
    """A row as the page displays it."""

    key: str
    text: str
    where: str  # `file:line`
    beside: list[tuple[str, str]]  # further columns: name and value


class LabelState(BaseModel):
    """State of the page."""

    item: ShownRow | None
    labels: list[str]
    progress: LabelProgress
    undo: bool  # whether there is an action to undo


def label_app(work: LabelSession) -> Any:
    """Create the app: page, static files and API."""
    from fastapi.responses import Response

    app = make_app("label", refuses=DataError)

    def state(ask: RaterSession, key: str | None) -> LabelState:
        shown = None
        if key is not None:
            item = work.item(key)
            shown = ShownRow(key=item.key, text=item.text, where=item.where, beside=list(item.beside))
        undo = work.assignment.can_undo(ask.rater)
        return LabelState(item=shown, labels=work.labels(), progress=work.progress(ask.rater), undo=undo)

    routes = Routes(work, state)
    routes.add_to(app)

    def vote(ask: AskLabel) -> BaseModel:
        work.vote(ask.who, ask.item, ask.label, took=ask.took)
        return routes.next(ask)

    app.post("/api/vote", response_model=None)(vote)

    def export() -> Any:
        headers = {"content-disposition": 'attachment; filename="labelled.jsonl"'}
        return Response("".join(work.lines()), media_type="application/x-ndjson", headers=headers)

    app.get("/export.jsonl")(export)
    return app
