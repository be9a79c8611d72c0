"""The rows to be labelled, the labels that exist already, and the labelled rows as a file that `tune` reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.annotation.vote_state import VOTE, WORD, VoteState, can_be_read
from tunesmith.annotation.vote_store import Entry, Event
from tunesmith.data.examples.parsers import question, texts
from tunesmith.data.examples.types import Text
from tunesmith.data.files import write_whole
from tunesmith.data.readers.read import read_rows
from tunesmith.data.readers.row import Row, as_word, columns_of, file_of, missing_column, refuse
from tunesmith.data.schema.formats import LABELS, TEXTS, by_word
from tunesmith.data.schema.values import LONGEST_LABEL, label_items
from tunesmith.errors import DataError

RATER = "rater"


@dataclass(frozen=True, slots=True)
class LabelItem:
    """One text to label. Copies of it, letter case and spacing aside, are the same item: they are labelled once."""

    key: str
    text: str
    where: str
    beside: tuple[tuple[str, str], ...] = ()  # other columns that are shown with it: name, value


@dataclass(frozen=True, slots=True)
class RowsFile:
    """A file of rows and which columns of it are read and written; `keys` names the item of each row."""

    rows: list[Row]
    text: str
    label: str
    items: list[LabelItem]
    keys: list[str]
    blank: int = 0  # rows without a text, which are left out

    @property
    def copies(self) -> int:
        """Rows that repeat the text of another."""
        return len(self.rows) - len(self.items)


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns that a person named; empty ones are found by their usual names."""

    text: str = ""
    label: str = ""
    beside: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Given:
    """Labels of a file as votes; rows that say another label than the first with their text, and rows of no item."""

    entries: list[Entry]
    contradictions: int
    strangers: int = 0


@dataclass(frozen=True, slots=True)
class LabelExport:
    """What an export wrote: rows with a label, and rows left out because as many people said one thing as another."""

    rows: int
    tied: int


def read_items(source: str, columns: Columns, *, offline: bool = False) -> RowsFile:
    """The items of a file. Raises DataError for rows without text or a column that is not there."""
    rows = read_rows(source, offline=offline)
    if absent := [name for name in (columns.text, *columns.beside) if name and name not in columns_of(rows)]:
        refuse([missing_column(rows, name) for name in absent])
    text, label = columns.text or _text_column(rows), columns.label or _label_column(rows)
    found, rows = rows, [row for row in rows if (value := row.fields.get(text)) is not None and str(value).strip()]
    if not rows:
        raise DataError(f"{file_of(found)}: column {text!r} is blank in every row; name another with --text COLUMN")
    keys, items = [], dict[str, LabelItem]()
    for row, read in zip(rows, texts(rows, text=text), strict=True):
        key = _key(read)
        keys.append(key)
        beside = tuple((name, _shown(row.fields.get(name))) for name in columns.beside)
        items.setdefault(key, LabelItem(key, read.text, row.where, beside))
    return RowsFile(rows, text, label, list(items.values()), keys, len(found) - len(rows))


def given_labels(rows: RowsFile, *, rater: str) -> Given:
    """The labels that stand in the file already, as votes. Raises DataError for what is no label."""
    entries, faults, first, others = list[Entry](), list[str](), dict[tuple[str, str], str](), 0
    for row, key in zip(rows.rows, rows.keys, strict=True):
        try:
            label = _given(row, rows.label)
        except DataError as error:
            faults.append(str(error))
            continue
        name = _shown(row.fields.get(RATER)).strip() or rater
        if not label or (key, name) in first:
            others += bool(label) and first[key, name] != label
            continue
        first[key, name] = label
        entries.append(Entry(name, VOTE, key, {"label": label, "from": row.where}))
    return Given(entries, others) if not faults else refuse(faults)


def brought_labels(source: str, rows: RowsFile, *, offline: bool = False) -> Given:
    """The labels of another file as votes on the same texts. Raises DataError."""
    columns = Columns(text=rows.text, label=rows.label)
    brought = read_items(source, columns, offline=offline)
    if rows.label not in columns_of(brought.rows):
        refuse([missing_column(brought.rows, rows.label)])
    known = {item.key for item in rows.items}
    found = given_labels(brought, rater=Path(source).name)
    mine = [entry for entry in found.entries if entry.item in known]
    return Given(mine, found.contradictions, sum(key not in known for key in brought.keys))


def not_yet(given: Given, votes: VoteState, events: Sequence[Event]) -> list[Entry]:
    """The votes of a file without those that stand, and without those that were taken over before.

    A person may have said another thing since, or taken the vote back: their file, read again, must not overrule it.
    """
    last = dict(_vote(event) for event in events if event.kind == VOTE)  # what a file said when it was read last
    new = [entry for entry in given.entries if last.get((vote := _vote(entry))[0]) != vote[1]]
    return [e for e in new if e.body and votes.on(e.item).get(e.rater) != e.body["label"]]


def words(labels: Sequence[str], votes: VoteState) -> list[Entry]:
    """Labels that may be given, as events; those that are known already are left out."""
    checked = [check_label(label) for label in labels]
    return [Entry("", WORD, "", {"label": label}) for label in dict.fromkeys(checked) if label not in votes.words]


def check_label(label: str) -> str:
    """The label without blanks around it. Raises DataError for one that no row could hold."""
    plain = " ".join(label.split())
    if not plain:
        raise DataError("label: empty; write a word")
    if len(plain) > LONGEST_LABEL:
        raise DataError(f"label: {len(plain)} characters; a label has at most {LONGEST_LABEL}")
    if not can_be_read(plain):
        raise DataError("label: holds a control character; write a word")
    return plain


def export(rows: RowsFile, votes: VoteState, path: Path) -> LabelExport:
    """Write every row whose text has a label, with that label in the label's column, as JSON lines."""
    lines, counts = labelled_lines(rows, votes)
    write_whole(path, "".join(lines))
    return counts


def labelled_lines(rows: RowsFile, votes: VoteState) -> tuple[list[str], LabelExport]:
    """The lines of an export, each with its line end."""
    lines, tied = [], 0
    for row, key in zip(rows.rows, rows.keys, strict=True):
        label = votes.label(key)
        if label is None:
            tied += bool(votes.on(key))
            continue
        fields = {**row.fields, rows.label: label}
        line = json.dumps(fields, ensure_ascii=False, default=str)
        lines.append(line.encode(errors="backslashreplace").decode() + "\n")  # half an emoji, in a column nobody reads
    return lines, LabelExport(len(lines), tied)


def _vote(vote: Entry | Event) -> tuple[tuple[str, str, str], str]:
    """Whose vote it is, on what and of which file, wherever its row stands; and the label."""
    body = vote.body or {}
    return (vote.item, vote.rater, str(body.get("from", "")).rpartition(":")[0]), str(body.get("label", ""))


def _key(read: Text) -> str:
    return hashlib.blake2b(question(read).encode(), digest_size=12).hexdigest()


def _text_column(rows: Sequence[Row]) -> str:
    here = by_word(rows)
    found = next((here[name] for name in TEXTS if name in here), None)
    if found is None:
        cure = "name the column that people are to read, with --text COLUMN"
        raise DataError(f"{file_of(rows)}: no column is called {', '.join(TEXTS[:4])} or the like; {cure}")
    return found


def _label_column(rows: Sequence[Row]) -> str:
    here = by_word(rows)
    return next((here[name] for name in LABELS if name in here), LABELS[0])


def _given(row: Row, column: str) -> str:
    """The label that a row has already, empty for none."""
    value = row.fields.get(column)
    if len(items := label_items(value)) <= 1:
        value = items[0] if items else None
    elif isinstance(value, str):
        value = items
    word = "" if value is None else as_word(value)
    if word is None:
        cure = "name another column for the label, with --label COLUMN"
        raise DataError(f"{row.where}: column {column!r} holds {value!r}, not one word; {cure}")
    try:
        return check_label(word) if word.strip() else ""
    except DataError as error:
        raise DataError(f"{row.where}: column {column!r}, {error}, or use --label COLUMN") from error


def _shown(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
