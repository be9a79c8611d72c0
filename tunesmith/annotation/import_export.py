"""Votes of a store: written as rows, read from rows, and summarised."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
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
    """The result of an export."""

    rows: int
    format: str
    undecided: int  # judged items without a row, because no answer was preferred


@dataclass(frozen=True, slots=True)
class Imported:
    """The result of an import."""

    votes: int  # added
    items: int  # added
    known: int  # votes that the store contained already


def export_votes(path: Path, out: Path, *, format: str = "", without: Collection[str] = ()) -> VoteExport:
    """Write the votes of a store as rows for `objective: preference`.

    Args:
        path: the store.
        out: the JSON lines file to write.
        format: a key of `FORMATS`; empty for the format in which votes were cast.
        without: raters whose votes are left out.

    Raises:
        DataError: the store is missing, or a rater in `without` is unknown.
        Refused: no vote makes a row, or votes of both formats exist and none is chosen.
    """
    events = read_events(path)
    items = read_items(events)
    votes = _votes_without(without, events, path)
    sizes = {len(items[key].answers) for key in votes.items() if key in items and not items[key].gold}
    if not format and len(sizes) > 1:
        raise Refused(f"{path}: contains votes on pairs and on single answers; add --format {PAIRS} or {THUMBS}")
    format = format or (THUMBS if sizes == {1} else PAIRS)
    exported = FORMATS[format](items, votes)
    if not exported.rows:
        raise Refused(f"{path}: no vote makes a row of the format {format}; judge answers with `tunesmith feedback`")
    write_whole(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in exported.rows))
    return VoteExport(len(exported.rows), format, exported.undecided)


def preference_rows(path: Path, format: str) -> VoteRows:
    """Return the votes of a store as rows, possibly none, in one of the `FORMATS`. Raises DataError without a store."""
    events = read_events(path)
    return FORMATS[format](read_items(events), VoteState(events))


def import_votes(path: Path, source: str, *, rater: str = "", offline: bool = False) -> Imported:
    """Add all votes of a file to a store, or none if one is invalid.

    Args:
        path: the store, created if it does not exist.
        source: file or Hub data set with preference pairs or unpaired preferences.
        rater: rater of rows that name none; by default the name of the file. Several such rows on the same answers
            count as votes of different raters.
        offline: do not access the network.

    Raises:
        DataError: a row contains no judgement, a rater contradicts themselves, or a prompt is not one of the store's.
    """
    if len(rater) > LONGEST_NAME:
        raise DataError(f"--rater: expected at most {LONGEST_NAME} characters, got {len(rater)}; shorten the name")
    votes: list[ImportedVote] = []
    unnamed = Counter[tuple[str, ...]]()  # rows without a rater on the same answers: FILE, FILE #2, ...
    file = Path(source).name
    for vote in read_votes(read_rows(source, offline=offline), rater=rater):
        if not vote.rater:
            content = _content(vote.item)
            unnamed[content] += 1
            vote = replace(vote, rater=file if unnamed[content] == 1 else f"{file} #{unnamed[content]}")
        votes.append(vote)
    store = VoteStore(path, what=WHAT)
    try:
        entries = _entries(votes, store.since(), path)
        if entries:
            store.append(*entries)
    finally:
        store.close()
    added = sum(entry.kind == VOTE for entry in entries)
    return Imported(added, len(entries) - added, len(votes) - added)


def summarise_votes(path: Path, *, without: Collection[str] = ()) -> Summary:
    """Summarise the votes of a store.

    Args:
        path: the store.
        without: raters whose votes are left out.

    Raises:
        DataError: the store is missing, or a rater in `without` is unknown.
    """
    events = read_events(path)
    return summarise(read_items(events), _votes_without(without, events, path), store=str(path))


def read_events(path: Path) -> list[Event]:
    """Read all events of a store. Raises DataError if the file is missing, empty or not a store of votes."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; `tunesmith feedback` prints the path of the votes")
    if not path.stat().st_size:
        raise DataError(f"{path}: expected a file of votes, got an empty file; `tunesmith feedback` prints its path")
    with closing(VoteStore(path, what=WHAT, read_only=True)) as store:
        return store.since()


def _votes_without(names: Collection[str], events: Sequence[Event], path: Path) -> VoteState:
    """Return the votes of all other raters; raise DataError for an unknown name."""
    raters = {event.rater for event in events if event.kind == VOTE}
    for name in names:
        if name not in raters:
            known = ", ".join(map(repr, sorted(raters))) or "none yet"
            raise DataError(
                f"--without: no vote of {name!r} in {path}{nearest(name, sorted(raters))}; name one of: {known}"
            )
    return VoteState(event for event in events if event.rater not in names)


def _entries(votes: Sequence[ImportedVote], events: Sequence[Event], path: Path) -> list[Entry]:
    """Return the events that imported votes add to those of a store."""
    items = read_items(events)
    prompts = {prompt_key(item.messages) for item in items.values() if not item.gold}
    prompts |= {event.item for event in events if event.kind == ANSWER}  # equal or empty answers make no item
    if prompts and (strange := [vote for vote in votes if prompt_key(vote.item.messages) not in prompts]):
        fix = "name another store for votes on other prompts"
        refuse([f"{vote.where}: its prompt is not one of the {len(prompts)} of {path}; {fix}" for vote in strange])
    by_content = {_content(item): item for item in items.values() if not item.gold}
    current = {(vote.item, vote.rater): _judgement(vote.body) for vote in VoteState(events).standing()}
    # A rater may have changed or undone a vote since the file was read. Reading it again must not restore the vote.
    imported = {(e.item, e.rater, _file(e.body["from"])): _judgement(e.body) for e in events if "from" in e.body}
    entries: list[Entry] = []
    first: dict[tuple[str, str], tuple[str, dict[str, str]]] = {}  # item and rater -> location and judgement
    for vote in votes:
        item = by_content.setdefault(_content(vote.item), vote.item)
        if item.key in items and items[item.key].gold:
            raise DataError(f"{vote.where}: these answers are a control item of {path}; delete the row")
        if item is vote.item and item.key not in items:
            entries.append(item.entry)
            items[item.key] = item
        label = vote.label
        if len(item.answers) > 1 and label != OWN:  # the store may have the answers in the other order
            preferred = vote.item.answers[(FIRST, SECOND).index(label)]
            label = (FIRST, SECOND)[item.answers.index(preferred)]
        key = (item.key, vote.rater)
        judgement = {"label": label, **({"text": vote.text} if vote.label == OWN else {})}
        where, earlier = first.setdefault(key, (vote.where, judgement))
        if earlier != judgement:
            raise DataError(
                f"{vote.where}: {vote.rater} judges the same answers differently at {where}; delete one row"
            )
        if current.get(key) != judgement != imported.get((*key, _file(vote.where))):
            entries.append(Entry(vote.rater, VOTE, item.key, {**judgement, "from": vote.where}))
            current[key] = judgement
    return entries


def _file(where: object) -> str:
    """Return the file of `file:line`."""
    return str(where).rpartition(":")[0]


def _judgement(body: Mapping[str, object]) -> dict[str, str]:
    """Return the fields of a vote that make two votes equal."""
    return {name: str(body[name]) for name in ("label", "text") if name in body}


def _content(item: Item) -> tuple[str, ...]:
    """Return the prompt and the sorted answers, which identify an item regardless of authors and order."""
    return (prompt_key(item.messages), *sorted(item.answers))
