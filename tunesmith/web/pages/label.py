"""Labelling page as a FastAPI app; `serve` adds the security middleware."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tunesmith.annotation.labelling import LabelProgress, LabelSession, SpanSession
from tunesmith.data.examples.types import Span
from tunesmith.data.schema.values import LONGEST_LABEL
from tunesmith.errors import DataError
from tunesmith.web.pages.app import make_app
from tunesmith.web.pages.routes import AskVote, RaterSession, Routes
from tunesmith.web.security import PAGE, RequestPolicy

MOST_SPANS = 10_000  # of one row, also in spans.js
# A span takes at most four bytes for each character of its label, and 50 for both positions and the JSON around them.
SPANS_POLICY = RequestPolicy(most_bytes=MOST_SPANS * (4 * LONGEST_LABEL + 50) + 4096)


class AskLabel(AskVote):
    """A label for one row."""

    label: str


class MarkedSpan(BaseModel):
    """A span as the page sends it, in code points."""

    model_config = ConfigDict(strict=True)

    start: int
    end: int
    label: str


class AskSpans(AskVote):
    """All spans of one row."""

    spans: list[MarkedSpan] = Field(max_length=MOST_SPANS)


class ShownRow(BaseModel):
    """A row as the page displays it."""

    key: str
    text: str
    where: str  # `file:line`
    beside: list[tuple[str, str]]  # further columns: name and value
    spans: list[Span] = []  # start, end and label of what this rater has saved in the text and withdrawn by an undo


class LabelState(BaseModel):
    """State of the page."""

    item: ShownRow | None
    labels: list[str]
    progress: LabelProgress
    undo: bool  # whether there is an action to undo


def label_policy(work: LabelSession) -> RequestPolicy:
    """Return the limits of requests to the app of a session."""
    return SPANS_POLICY if isinstance(work, SpanSession) else PAGE


def label_app(work: LabelSession) -> Any:
    """Create the app: page, static files and API; for a session of spans, the page on which they are marked."""
    from fastapi.responses import Response

    app = make_app("spans" if isinstance(work, SpanSession) else "label", refuses=DataError)

    def state(ask: RaterSession, key: str | None) -> LabelState:
        shown = None
        if key is not None:
            item = work.item(key)
            spans = work.withdrawn(ask.rater, key) if isinstance(work, SpanSession) else []
            shown = ShownRow(key=item.key, text=item.text, where=item.where, beside=list(item.beside), spans=spans)
        undo = work.assignment.can_undo(ask.rater)
        return LabelState(item=shown, labels=work.labels(), progress=work.progress(ask.rater), undo=undo)

    routes = Routes(work, state)
    routes.add_to(app)

    def vote(ask: AskLabel) -> BaseModel:
        work.vote(ask.who, ask.item, ask.label, took=ask.took)
        return routes.next(ask)

    def mark(ask: AskSpans) -> BaseModel:
        assert isinstance(work, SpanSession)
        spans = [Span(span.start, span.end, span.label) for span in ask.spans]
        work.mark(ask.who, ask.item, spans, took=ask.took)
        return routes.next(ask)

    app.post("/api/vote", response_model=None)(mark if isinstance(work, SpanSession) else vote)

    def export() -> Any:
        headers = {"content-disposition": 'attachment; filename="labelled.jsonl"'}
        return Response("".join(work.lines()), media_type="application/x-ndjson", headers=headers)

    app.get("/export.jsonl")(export)
    return app
