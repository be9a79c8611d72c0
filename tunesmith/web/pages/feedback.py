"""Page for judging answers as a FastAPI app; `serve` adds the security middleware."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from tunesmith.annotation.pair_judging import JudgingProgress, PageChoice, PairSession
from tunesmith.errors import DataError
from tunesmith.web.pages.app import make_app
from tunesmith.web.pages.markdown import Node, render
from tunesmith.web.pages.routes import AskVote, RaterSession, Routes


class AskJudgement(AskVote):
    """A vote on the answers of one item."""

    choice: str
    text: str = ""  # the rater's own answer, for the choice "own"


class ShownTurn(BaseModel):
    """One turn of the prompt."""

    role: str
    text: str


class ShownAnswers(BaseModel):
    """Answers as the page displays them, without their authors."""

    key: str
    turns: list[ShownTurn]
    answers: list[list[Node]]
    plain: list[str]  # the answers as plain text, from which an own answer may start


class FeedbackState(BaseModel):
    """State of the page."""

    item: ShownAnswers | None
    progress: JudgingProgress
    undo: bool  # whether there is an action to undo


def feedback_app(work: PairSession) -> Any:
    """Create the app: page, static files and API."""
    app = make_app("feedback", refuses=DataError)

    def state(ask: RaterSession, key: str | None) -> FeedbackState:
        shown = None
        if key is not None:
            item = work.item(key)
            answers = [item.answers[index] for index in work.shown(key, ask.rater)]
            turns = [ShownTurn(role=message.role, text=message.content) for message in item.messages]
            shown = ShownAnswers(key=key, turns=turns, answers=[render(text) for text in answers], plain=answers)
        return FeedbackState(item=shown, progress=work.progress(ask.rater), undo=work.assignment.can_undo(ask.rater))

    routes = Routes(work, state)
    routes.add_to(app)

    def vote(ask: AskJudgement) -> BaseModel:
        work.vote(ask.who, ask.item, PageChoice(ask.choice, ask.text, ask.took))
        return routes.next(ask)

    app.post("/api/vote", response_model=None)(vote)
    return app
