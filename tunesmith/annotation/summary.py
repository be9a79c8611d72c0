"""Summary of the votes of a store: agreement, rater quality and ranking."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from pydantic import BaseModel

from tunesmith.annotation.agreement import Agreement, agreement
from tunesmith.annotation.items import Item
from tunesmith.annotation.ranking import Duel, Ranked, duels, games, rank
from tunesmith.annotation.rater_quality import Gold, Position, Rater, gold, position, raters
from tunesmith.annotation.vote_state import VoteState
from tunesmith.display import Display, Displayed, model_labels


class Summary(Displayed, BaseModel):
    """Statistics of all votes of a store; control items count only in `gold` and `raters`."""

    store: str
    items: int
    judged: int  # items with a vote
    votes: dict[str, int]  # by label
    agreement: Agreement
    position: Position
    gold: Gold
    raters: list[Rater]
    at_random: list[str]
    models: list[Ranked]
    duels: list[Duel]

    def display(self) -> Display:
        """Show progress and the ranking of the models."""
        labels = model_labels(model.model for model in self.models)
        wins = [(labels[model.model], f"{100 * model.strength:.1f} %", str(model.votes)) for model in self.models]
        return Display(
            f"Votes({self.store}): {self.judged} of {self.items} prompts judged",
            [f"{name}: win rate {rate} against an average model ({votes} votes)" for name, rate, votes in wins],
            ("model", "win rate against average", "votes"),
            wins,
        )


def summarise(items: Mapping[str, Item], votes: VoteState, *, store: str) -> Summary:
    """Summarise votes; `store` is the name or path of their store, for display."""
    cast = [vote for vote in votes.standing() if vote.item in items]
    plain = [vote for vote in cast if not items[vote.item].gold]
    units = [votes.on(key) for key in votes.items() if key in items and not items[key].gold]
    people = raters(items, cast)
    played = games(items, plain)
    return Summary(
        store=store,
        items=sum(not item.gold for item in items.values()),
        judged=len({vote.item for vote in plain}),
        votes=dict(Counter(str(vote.body["label"]) for vote in plain).most_common()),
        agreement=agreement(units, each_two=True),
        position=position(plain),
        gold=gold(items, cast),
        raters=people,
        at_random=[person.rater for person in people if person.at_random],
        models=rank(played),
        duels=duels(played),
    )
