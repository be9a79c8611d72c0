"""What lies in a store of judgements: written as rows, read from rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tunesmith.annotation.items import ANSWER, FIRST, OWN, SECOND, Item, prompt_key, read_items
from tunesmith.annotation.pair_judging import WHAT
from tunesmith.annotation.summary import Summary, summarise
from tunesmith.annotation.vote_rows import (
    LONGEST_NAME,
    PAIRS,
    THUMBS,
    ImportedVote,
    VoteRows,
    pair_rows,
    read_votes,
    thumb_rows,
)
from tunesmith.annotation.vote_state import VOTE, VoteState
from tunesmith.annotation.vote_store import Entry, Event, VoteStore
from tunesmith.config.recipe import nearest
from tunesmith.data.files import write_whole
from tunesmith.data.readers.read import read_rows
from tunesmith.data.readers.row import refuse
from tunesmith.errors import DataError, Refused

FORMATS: dict[str, Callable[[dict[str, Item], VoteState], VoteRows]] = {PAIRS: pair_rows, THUMBS: thumb_rows}


@dataclass(frozen=True, slots=True)
class VoteExport:
    """What an export wrote: rows, their format, and judged items that gave none because nothing was preferred."""

    rows: int
    format: str
    undecided: int


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import added: votes and items; `known` votes stood there already."""

    votes: int
    items: int
    known: int


def export_votes(path: Path, out: Path, *, format: str = "", without: Collection[str] = ()) -> VoteExport:
    """Write the votes of a store as rows that `objective: preference` reads; without a format as they were cast.

    Raises DataError for what is no store and for a name in `without` of nobody there, Refused where no vote prefers
    anything.
    """
    events = read_events(path)
    items, votes = read_items(events), _votes_without(without, events, path)
    sizes = {len(items[key].answers) for key in votes.items() if key in items and not items[key].gold}
    if not format and len(sizes) > 1:
        raise Refused(f"{path}: holds votes on pairs and on single answers; give --format {PAIRS} or {THUMBS}")
    format = format or (THUMBS if sizes == {1} else PAIRS)
    found = FORMATS[format](items, votes)
    if not found.rows:
        raise Refused(f"{path}: no vote that makes a row of {format}; judge some with `tunesmith feedback`")
    write_whole(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found.rows))
    return VoteExport(len(found.rows), format, found.undecided)


def preference_rows(path: Path, format: str) -> VoteRows:
    """The rows that the votes of a store make, perhaps none. Raises DataError for what is no store."""
    events = read_events(path)
    return FORMATS[format](read_items(events), VoteState(events))


def import_votes(path: Path, source: str, *, rater: str = "", offline: bool = False) -> Imported:
    """Add the judgements of a file to a store, which is made if it is not there; all of them or none.

    Rows that name nobody are the votes of the file; where it has several on the same answers, of one person each.
    Raises DataError for rows that judge nothing, for a person who says two things about the same answers, and for
    prompts that are not those of the store.
    """
    if len(rater) > LONGEST_NAME:
        raise DataError(f"--rater: {len(rater)} characters; a name has at most {LONGEST_NAME}")
    brought = _named(read_votes(read_rows(source, offline=offline), rater=rater), Path(source).name)
    store = VoteStore(path, what=WHAT)
    try:
        events = store.since()
        entries = _entries(brought, events, path)
        if entries:
            store.append(*entries)
    finally:
        store.close()
    votes = sum(entry.kind == VOTE for entry in entries)
    return Imported(votes, len(entries) - votes, len(brought) - votes)


def summarise_votes(path: Path, *, without: Collection[str] = ()) -> Summary:
    """What the votes of a store amount to. Raises DataError for what is no store and for a name of nobody there."""
    events = read_events(path)
    return summarise(read_items(events), _votes_without(without, events, path), store=str(path))


def schema() -> str:
    """The JSON schema of what `votes summary --json` prints."""
    return json.dumps(Summary.model_json_schema(), indent=1)


def read_events(path: Path) -> list[Event]:
    """All that happened in a store. Raises DataError where there is none."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; `tunesmith feedback` says where it keeps the votes")
    if not path.stat().st_size:
        raise DataError(f"{path}: empty, no file of votes; `tunesmith feedback` says where it keeps them")
    store = VoteStore(path, what=WHAT)
    try:
        return store.since()
    finally:
        store.close()


def _votes_without(names: Collection[str], events: Sequence[Event], path: Path) -> VoteState:
    """What stands of everybody else."""
    people = {event.rater for event in events if event.kind == VOTE}
    for name in names:
        if name not in people:
            known = ", ".join(map(repr, sorted(people))) or "nobody yet"
            raise DataError(
                f"--without: no vote of {name!r} in {path}{nearest(name, sorted(people))}; who voted: {known}"
            )
    return VoteState(event for event in events if event.rater not in names)


def _named(brought: Sequence[ImportedVote], file: str) -> list[ImportedVote]:
    """The votes with a name on each: FILE, FILE #2, ... where nobody is named, the same every time."""
    met, found = Counter[tuple[str, ...]](), list[ImportedVote]()
    for one in brought:
        if not one.rater:
            answers = _content(one.item)
            met[answers] += 1
            one = replace(one, rater=file if met[answers] == 1 else f"{file} #{met[answers]}")
        found.append(one)
    return found


def _entries(brought: Sequence[ImportedVote], events: Sequence[Event], path: Path) -> list[Entry]:
    """The events that a file adds to those of a store."""
    items, votes = read_items(events), VoteState(events)
    held = {prompt_key(item.messages) for item in items.values() if not item.gold}
    held |= {event.item for event in events if event.kind == ANSWER}  # equal or empty answers make no item
    if held and (strange := [one for one in brought if prompt_key(one.item.messages) not in held]):
        cure = "name another store for votes on other prompts"
        refuse([f"{one.where}: its prompt is none of the {len(held)} that {path} holds; {cure}" for one in strange])
    known = {_content(item): item for item in items.values() if not item.gold}
    stands = {(vote.item, vote.rater): _said(vote.body) for vote in votes.standing()}
    # A person may have said another thing since, or taken it back: their file, read again, must not overrule that.
    read = {(e.item, e.rater, _file(e.body["from"])): _said(e.body) for e in events if "from" in e.body}
    entries, first = list[Entry](), dict[tuple[str, str], tuple[str, dict[str, str]]]()
    for one in brought:
        item = known.setdefault(_content(one.item), one.item)
        if item.key in items and items[item.key].gold:
            raise DataError(f"{one.where}: these answers are planted in {path}, so a vote on them is none; drop it")
        if item is one.item and item.key not in items:
            entries.append(item.entry)
            items[item.key] = item
        place = (item.key, one.rater)
        said = {"label": _label_on(item, one), **({"text": one.text} if one.label == OWN else {})}
        where, before = first.setdefault(place, (one.where, said))
        if before != said:
            cure = "keep one of the two lines"
            raise DataError(f"{one.where}: {one.rater} says another thing of the same answers at {where}; {cure}")
        if stands.get(place) != said != read.get((*place, _file(one.where))):
            entries.append(Entry(one.rater, VOTE, item.key, {**said, "from": one.where}))
            stands[place] = said
    return entries


def _file(where: object) -> str:
    """The file of a place in it."""
    return str(where).rpartition(":")[0]


def _said(body: Mapping[str, object]) -> dict[str, str]:
    """What of a vote makes it another one."""
    return {name: str(body[name]) for name in ("label", "text") if name in body}


def _content(item: Item) -> tuple[str, ...]:
    """What tells answers to a prompt from others, whoever gave them."""
    return (prompt_key(item.messages), *sorted(item.answers))


def _label_on(item: Item, brought: ImportedVote) -> str:
    """What was said, of the answers in the order of the store's own item."""
    if len(item.answers) == 1 or brought.label == OWN:
        return brought.label
    chosen = brought.item.answers[(FIRST, SECOND).index(brought.label)]
    return (FIRST, SECOND)[item.answers.index(chosen)]
