"""The page on which people judge answers, as a FastAPI app; `serve` puts the guard before it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from tunesmith.errors import DataError
from tunesmith.web.desk import AskVote, Routes, Visitor
from tunesmith.web.markdown import Node, render
from tunesmith.web.parts import make_app
from tunesmith.workflows.panel import JudgingProgress, PageChoice, Panel


class AskJudgement(AskVote):
    """This choice between these answers, or an answer of one's own."""

    choice: str
    text: str = ""


class ShownTurn(BaseModel):
    """One turn of what was asked."""

    role: str
    text: str


class ShownAnswers(BaseModel):
    """Answers as the page shows them: nothing tells who gave which."""

    key: str
    turns: list[ShownTurn]
    answers: list[list[Node]]
    plain: list[str]  # what one's own answer can begin with


class FeedbackState(BaseModel):
    """What the page shows next: answers or none, how far it is, whether there is anything to undo."""

    item: ShownAnswers | None
    progress: JudgingProgress
    undo: bool


def feedback_app(work: Panel) -> Any:
    """The app: the page, what it is made of, and what it asks for."""
    app = make_app("feedback", refuses=DataError)

    def state(ask: Visitor, key: str | None) -> FeedbackState:
        shown = None
        if key is not None:
            item = work.item(key)
            answers = [item.answers[place] for place in work.shown(key, ask.rater)]
            turns = [ShownTurn(role=message.role, text=message.content) for message in item.messages]
            shown = ShownAnswers(key=key, turns=turns, answers=[render(text) for text in answers], plain=answers)
        return FeedbackState(item=shown, progress=work.progress(ask.rater), undo=work.turns.can_undo(ask.rater))

    routes = Routes(work, state)
    routes.add_to(app)

    def vote(ask: AskJudgement) -> BaseModel:
        work.vote(ask.who, ask.item, PageChoice(ask.choice, ask.text, ask.took))
        return routes.next(ask)

    app.post("/api/vote", response_model=None)(vote)
    return app
