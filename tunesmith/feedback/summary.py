"""What a store of judgements amounts to, as one page of figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from pydantic import BaseModel

from tunesmith.feedback.agreement import Agreement, agreement
from tunesmith.feedback.items import Item
from tunesmith.feedback.quality import Gold, Position, Rater, gold, position, raters
from tunesmith.feedback.ranking import Duel, Ranked, duels, games, rank
from tunesmith.feedback.votes import Votes


class Summary(BaseModel):
    """Everything that can be said about the votes; planted items count only in `gold` and for their raters."""

    store: str
    items: int
    judged: int
    votes: dict[str, int]
    agreement: Agreement
    position: Position
    gold: Gold
    raters: list[Rater]
    at_random: list[str]
    models: list[Ranked]
    duels: list[Duel]


def summarise(items: Mapping[str, Item], votes: Votes, *, store: str) -> Summary:
    """The page of these votes."""
    cast = [vote for vote in votes.standing() if vote.item in items]
    plain = [vote for vote in cast if not items[vote.item].gold]
    people = raters(items, cast)
    played = games(items, plain)
    return Summary(
        store=store,
        items=sum(not item.gold for item in items.values()),
        judged=len({vote.item for vote in plain}),
        votes=dict(Counter(str(vote.body["label"]) for vote in plain).most_common()),
        agreement=agreement([votes.on(key) for key in votes.items() if _is_plain(items, key)], each_two=True),
        position=position(plain),
        gold=gold(items, cast),
        raters=people,
        at_random=[person.rater for person in people if person.at_random],
        models=rank(played),
        duels=duels(played),
    )


def _is_plain(items: Mapping[str, Item], key: str) -> bool:
    return key in items and not items[key].gold
