"""What every page of votes asks of the server: the next item, later, take back, let go; and who asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Protocol

from pydantic import BaseModel, Field, StringConstraints, field_validator

from tunesmith.feedback.store import Who
from tunesmith.feedback.turns import Turns
from tunesmith.feedback.votes import can_be_read

Key = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{1,64}$")]
Tab = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{8,64}$")]
LONGEST_NAME = 40


class Visitor(BaseModel):
    """Who asks: the name they gave, and the tab they sit at."""

    rater: str
    tab: Tab

    @field_validator("rater")
    @classmethod
    def _named(cls, value: str) -> str:
        plain = " ".join(value.split())
        if len(plain) > LONGEST_NAME or not can_be_read(plain):
            raise ValueError(f"your name: write 1 to {LONGEST_NAME} characters that can be read")
        return plain

    @property
    def who(self) -> Who:
        """The person at the tab."""
        return Who(self.rater, self.tab)


class AskNext(Visitor):
    """An item, or with `skipped` one that was put aside."""

    skipped: bool = False


class AskItem(AskNext):
    """This item: later, or by somebody else."""

    item: Key


class AskVote(AskItem):
    """A vote on this item, after so many seconds of looking at it."""

    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None

    @property
    def took(self) -> dict[str, object]:
        """The seconds as a vote keeps them."""
        return {} if self.seconds is None else {"seconds": round(self.seconds, 2)}


class Desk(Protocol):
    """Items that people judge."""

    turns: Turns

    def item(self, key: str) -> object:
        """The item of this key. Raises DataError where there is none."""
        ...


class Routes:
    """What the page asks for; each answer is the next thing to show, made by `state` of who asks and an item's key."""

    def __init__(self, desk: Desk, state: Callable[[Visitor, str | None], BaseModel]) -> None:
        self._desk, self._turns, self._state = desk, desk.turns, state

    def add_to(self, app: Any) -> None:
        """Put them into the app."""
        for function in (self.next, self.skip, self.undo, self.release):
            app.post(f"/api/{function.__name__}", response_model=None)(function)

    def next(self, ask: AskNext) -> BaseModel:
        """The item that this tab is to judge."""
        return self._state(ask, self._turns.next(ask.who, skipped=ask.skipped))

    def skip(self, ask: AskItem) -> BaseModel:
        """Another one: this one is put aside."""
        self._desk.item(ask.item)
        self._turns.skip(ask.who, ask.item)
        return self.next(ask)

    def undo(self, ask: Visitor) -> BaseModel:
        """The item of what this person did last, which is taken back."""
        return self._state(ask, self._turns.undo(ask.who) or self._turns.next(ask.who))

    def release(self, ask: Visitor) -> dict[str, bool]:
        """Nothing to show: the tab was closed."""
        self._turns.release(ask.who)
        return {"released": True}
