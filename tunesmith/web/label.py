"""The page on which people label rows, as a FastAPI app; `serve` puts the guard before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, StringConstraints, field_validator

from tunesmith.errors import DataError
from tunesmith.feedback.store import Who
from tunesmith.web.parts import make_app
from tunesmith.workflows.label import Labelling, Progress
from tunesmith.workflows.label_rows import Item

Key = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{1,64}$")]
Tab = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{8,64}$")]
LONGEST_NAME = 40


class Ask(BaseModel):
    """Who asks: the name they gave, and the tab they sit at."""

    rater: str
    tab: Tab

    @field_validator("rater")
    @classmethod
    def _named(cls, value: str) -> str:
        plain = " ".join(value.split())
        if not plain or len(plain) > LONGEST_NAME or not plain.isprintable():
            raise ValueError(f"a name of 1 to {LONGEST_NAME} characters is needed")
        return plain

    @property
    def who(self) -> Who:
        """The person at the tab."""
        return Who(self.rater, self.tab)


class AskNext(Ask):
    """A row, or with `skipped` one that was put aside."""

    skipped: bool = False


class AskSkip(AskNext):
    """This row later, or by somebody else."""

    item: Key


class AskVote(AskSkip):
    """This label for this row, after so many seconds of looking at it."""

    label: str
    seconds: float | None = None


class Shown(BaseModel):
    """A row as the page shows it."""

    key: str
    text: str
    where: str
    beside: list[tuple[str, str]]


class State(BaseModel):
    """What the page shows next: a row or none, the labels, how far it is, whether there is anything to undo."""

    item: Shown | None
    labels: list[str]
    progress: Progress
    undo: bool


def label_app(labelling: Labelling) -> Any:
    """The app: the page, what it is made of, and the five things it asks for."""
    app = make_app("label.html", refuses=DataError)
    routes: dict[str, Callable[..., Any]] = _Routes(labelling).all()
    for path, function in routes.items():
        app.post(f"/api/{path}")(function)
    app.get("/export.jsonl")(_download(labelling))
    return app


class _Routes:
    """What the page asks for; each answer is the next thing to show."""

    def __init__(self, labelling: Labelling) -> None:
        self._labelling = labelling

    def all(self) -> dict[str, Callable[..., Any]]:
        return {"next": self.next, "vote": self.vote, "skip": self.skip, "undo": self.undo, "release": self.release}

    def next(self, ask: AskNext) -> State:
        return self._state(ask, self._labelling.next(ask.who, skipped=ask.skipped))

    def vote(self, ask: AskVote) -> State:
        self._labelling.vote(ask.who, ask.item, ask.label, seconds=ask.seconds)
        return self.next(ask)

    def skip(self, ask: AskSkip) -> State:
        self._labelling.skip(ask.who, ask.item)
        return self.next(ask)

    def undo(self, ask: Ask) -> State:
        return self._state(ask, self._labelling.undo(ask.who) or self._labelling.next(ask.who))

    def release(self, ask: Ask) -> dict[str, bool]:
        self._labelling.release(ask.who)
        return {"released": True}

    def _state(self, ask: Ask, item: Item | None) -> State:
        shown = None
        if item is not None:
            shown = Shown(key=item.key, text=item.text, where=item.where, beside=list(item.beside))
        work = self._labelling
        return State(item=shown, labels=work.labels(), progress=work.progress(ask.rater), undo=work.can_undo(ask.rater))


def _download(labelling: Labelling) -> Callable[[], Any]:
    from fastapi.responses import Response

    def export() -> Any:
        attached = {"content-disposition": 'attachment; filename="labelled.jsonl"'}
        return Response("".join(labelling.lines()), media_type="application/x-ndjson", headers=attached)

    return export
