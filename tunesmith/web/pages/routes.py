"""Routes shared by all annotation pages: next, skip, undo, renew and release, with their request bodies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Protocol

from pydantic import BaseModel, Field, StringConstraints, field_validator

from tunesmith.annotation.assignment import Assignment
from tunesmith.annotation.vote_state import can_be_read
from tunesmith.annotation.vote_store import Who

Key = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{1,64}$")]
Tab = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{8,64}$")]
LONGEST_NAME = 40  # characters


class RaterSession(BaseModel):
    """The rater and browser tab that send a request."""

    rater: str
    tab: Tab

    @field_validator("rater")
    @classmethod
    def _check_name(cls, value: str) -> str:
        name = " ".join(value.split())
        if len(name) > LONGEST_NAME or not can_be_read(name):
            raise ValueError(f"your name: write 1 to {LONGEST_NAME} visible characters")
        return name

    @property
    def who(self) -> Who:
        """Return rater and tab as the store identifies them."""
        return Who(self.rater, self.tab)


class AskNext(RaterSession):
    """Request for the next item, or with `skipped` for a skipped one."""

    skipped: bool = False


class AskItem(AskNext):
    """Request about one item."""

    item: Key


class AskVote(AskItem):
    """A vote on one item."""

    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None  # for which the item was shown

    @property
    def took(self) -> dict[str, object]:
        """Return the seconds as part of the body of a vote event."""
        return {} if self.seconds is None else {"seconds": round(self.seconds, 2)}


class VotePage(Protocol):
    """Items that raters judge, and their assignment."""

    assignment: Assignment

    def item(self, key: str) -> object:
        """Return the item with this key; raise DataError if there is none."""
        ...


class Routes:
    """Handlers of one annotation page.

    `state` makes the response from the request and the key of the item to show, if any.
    """

    def __init__(self, desk: VotePage, state: Callable[[RaterSession, str | None], BaseModel]) -> None:
        self._desk, self._turns, self._state = desk, desk.assignment, state

    def add_to(self, app: Any) -> None:
        """Register the routes in a FastAPI app."""
        for function in (self.next, self.skip, self.undo, self.renew, self.release):
            app.post(f"/api/{function.__name__}", response_model=None)(function)

    def next(self, ask: AskNext) -> BaseModel:
        """Return the next item for this tab."""
        return self._state(ask, self._turns.next(ask.who, skipped=ask.skipped))

    def skip(self, ask: AskItem) -> BaseModel:
        """Skip this item and return the next one."""
        self._desk.item(ask.item)
        self._turns.skip(ask.who, ask.item)
        return self.next(ask)

    def undo(self, ask: RaterSession) -> BaseModel:
        """Undo the last action of this rater and return its item."""
        return self._state(ask, self._turns.undo(ask.who) or self._turns.next(ask.who))

    def renew(self, ask: AskItem) -> dict[str, bool]:
        """Reserve the item for this tab for longer; `held` is false if another rater has it now."""
        self._desk.item(ask.item)
        return {"held": self._turns.renew(ask.who, ask.item)}

    def release(self, ask: RaterSession) -> dict[str, bool]:
        """Release the item of a closed tab."""
        self._turns.release(ask.who)
        return {"released": True}
