"""The rows to be labelled, the labels that exist already, and the labelled rows as a file that `tune` reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.annotation.span_votes import read, written
from tunesmith.annotation.vote_state import VOTE, WORD, VoteState, can_be_read
from tunesmith.annotation.vote_store import Entry, Event
from tunesmith.data.examples.parsers import question, text_of, texts
from tunesmith.data.examples.span_formats import ROWS, SpanRow, formatted, line
from tunesmith.data.examples.spans import ANNOTATIONS, OUTSIDE, TASK, checked, is_annotated, is_task, spans_in
from tunesmith.data.files import quoted, write_whole
from tunesmith.data.readers.read import read_rows
from tunesmith.data.readers.row import Row, as_word, columns_of, file_of, missing_column, refuse
from tunesmith.data.schema.cells import cell
from tunesmith.data.schema.formats import LABELS, SPANS, TEXTS, by_word, span_columns
from tunesmith.data.schema.values import LONGEST_LABEL, is_blank, is_spans, label_items, listed, span_items
from tunesmith.errors import DataError

# Column with the name of the rater who gave a label.
RATER = "rater"
# Fields of a task of Label Studio, besides its data, that an export keeps: its identity, so that it is imported once.
TASK_FIELDS = ("id", "meta")


@dataclass(frozen=True, slots=True)
class LabelItem:
    """One text to label. Texts that differ only in letter case and spacing are one item and are labelled once.

    For spans, only equal texts are one item, as positions are those of characters.
    """

    key: str
    text: str
    where: str  # file:line of its first row
    beside: tuple[tuple[str, str], ...] = ()  # names and values of other columns that the page shows


@dataclass(frozen=True, slots=True)
class RowsFile:
    """The rows of a file, and the columns that are read and written."""

    rows: list[Row]
    text: str  # name of the column with the text
    label: str  # name of the column with the label or the spans
    items: list[LabelItem]
    keys: list[str]  # key of the item of each row
    blank: int = 0  # rows without a text, which are left out
    spans: bool = False  # spans of the texts are labelled

    @property
    def tasks(self) -> bool:
        """Return whether the rows are tasks of Label Studio."""
        return self.spans and is_task(self.text, self.label)

    @property
    def copies(self) -> int:
        """Return the number of rows that repeat the text of another row."""
        return len(self.rows) - len(self.items)


@dataclass(frozen=True, slots=True)
class Columns:
    """Column names given by the user; empty ones are detected."""

    text: str = ""
    label: str = ""
    beside: tuple[str, ...] = ()  # columns that the page shows with the text

    def options(self) -> str:
        """Return the options of `label` that name these columns, for commands in messages."""
        named = {"--text": self.text, "--label": self.label, "--show": ",".join(self.beside)}
        return "".join(f" {option} {quoted(value)}" for option, value in named.items() if value)


@dataclass(frozen=True, slots=True)
class Given:
    """Labels of a file, as votes."""

    entries: list[Entry]
    contradictions: int  # rows whose label differs from that of the first row with the same text
    strangers: int = 0  # rows whose text is not to be labelled


@dataclass(frozen=True, slots=True)
class LabelExport:
    """The result of an export."""

    rows: int  # rows with a label
    tied: int  # rows left out because two labels have equally many votes


def items_of(rows: Sequence[Row], columns: Columns, *, spans: bool | None = False) -> RowsFile:
    """Return the items of the rows of a file.

    Args:
        rows: all rows of the file.
        columns: the columns to read; empty ones are detected.
        spans: spans of the texts are labelled; None: if rows have spans.

    Raises:
        DataError: a named column is missing, no text column is detected, or it is blank in every row.
    """
    if absent := [name for name in (columns.text, *columns.beside) if name and name not in columns_of(rows)]:
        refuse([missing_column(rows, name) for name in absent])
    by_name = by_word(rows)
    if spans is None:
        spans = bool(_spans_column(rows, columns.label))
    found = span_columns(rows, text=columns.text, spans=columns.label) if spans else {}
    names = (f"{TASK}text", *TEXTS) if spans and ANNOTATIONS in by_name else (*TEXTS, f"{TASK}text")
    text = columns.text or found.get("text") or next((by_name[name] for name in names if name in by_name), None)
    if text is None and "words" in found:
        problem = f"words with tags, in {found['words']!r} and {found['tags']!r}, are not read here"
        raise DataError(f"{file_of(rows)}: {problem}; write rows with a text and its spans")
    if text is None:
        fix = "name the column that raters read with --text COLUMN"
        raise DataError(f"{file_of(rows)}: expected a column named {', '.join(TEXTS[:4])} or similar; {fix}")
    label = columns.label or next((by_name[name] for name in LABELS if name in by_name), LABELS[0])
    if spans:
        label = columns.label or found.get("spans") or _spans_column(rows) or _new_column(rows, text)
    with_text = [row for row in rows if not is_blank(row.fields.get(text))]
    if not with_text:
        raise DataError(f"{file_of(rows)}: column {text!r} is blank in every row; name another with --text COLUMN")
    keys: list[str] = []
    items: dict[str, LabelItem] = {}
    for row, example in zip(with_text, texts(with_text, text=text), strict=True):
        same = example.text if spans else question(example)
        key = hashlib.blake2b(same.encode(), digest_size=12).hexdigest()
        keys.append(key)
        beside = tuple((name, _shown(row.fields.get(name))) for name in columns.beside)
        items.setdefault(key, LabelItem(key, example.text, row.where, beside))
    return RowsFile(with_text, text, label, list(items.values()), keys, len(rows) - len(with_text), spans)


def _spans_column(rows: Sequence[Row], named: str = "") -> str:
    """Return the first column in which any row has spans; empty if none has."""
    by_name = by_word(rows)
    columns = [named] if named else [by_name[name] for name in SPANS if name in by_name]

    def has_spans(value: object) -> bool:
        return is_spans(value) and bool(span_items(value))

    return next((name for name in columns if any(has_spans(row.fields.get(name)) for row in rows)), "")


def _new_column(rows: Sequence[Row], text: str) -> str:
    """Return the column of the spans of rows that have none: one of lists if there is one, otherwise a new one."""
    by_name = by_word(rows)
    columns = [by_name[name] for name in SPANS if name in by_name]
    for name in columns:
        # Under `label` and `labels`, lists may be of anything.
        if name not in LABELS and any(is_spans(row.fields.get(name)) or listed(row.fields.get(name)) for row in rows):
            return name
    return ANNOTATIONS if text.startswith(TASK) and not columns else SPANS[0]


def given_labels(rows: RowsFile, *, rater: str) -> Given:
    """Return the labels that the file contains already, as votes.

    Args:
        rows: the file.
        rater: name of the votes of rows that name no rater.

    Raises:
        DataError: a value of the label column is not a label.
    """
    entries: list[Entry] = []
    errors: list[str] = []
    first: dict[tuple[str, str], str] = {}  # item and rater -> label of the first row
    contradictions = 0
    for row, key in zip(rows.rows, rows.keys, strict=True):
        try:
            label = _spans_of(row, rows) if rows.spans else _label_of(row, rows.label)
        except DataError as error:
            errors.append(str(error))
            continue
        name = _shown(row.fields.get(RATER)).strip() or rater
        if not label:
            continue
        if (key, name) in first:
            contradictions += first[key, name] != label
            continue
        first[key, name] = label
        entries.append(Entry(name, VOTE, key, {"label": label, "from": row.where}))
    return Given(entries, contradictions) if not errors else refuse(errors)


def brought_labels(source: str, rows: RowsFile, *, offline: bool = False) -> Given:
    """Return the labels that another file gives to the same texts, as votes.

    Args:
        source: file or Hub data set with the same text and label columns, or with spans in any format.
        rows: the rows to be labelled.
        offline: do not access the network.

    Raises:
        DataError: a column is missing, or a value of the label column is not a label.
    """
    loaded = read_rows(source, offline=offline)
    columns = columns_of(loaded)
    # Formats of spans of other tools have columns of their own.
    text, label = (name if name in columns or not rows.spans else "" for name in (rows.text, rows.label))
    labelled = items_of(loaded, Columns(text, label), spans=rows.spans)
    if labelled.label not in columns:
        refuse([missing_column(loaded, rows.label)])
    known = {item.key for item in rows.items}
    given = given_labels(labelled, rater=Path(source).name)
    entries = [entry for entry in given.entries if entry.item in known]
    return Given(entries, given.contradictions, sum(key not in known for key in labelled.keys))


def not_yet(given: Given, votes: VoteState, events: Sequence[Event]) -> list[Entry]:
    """Return the votes of a file that are not in the store and were not imported before.

    A rater may have changed or undone a vote since the file was read. Reading the same file again must not restore
    the old vote.

    Args:
        given: the votes of the file.
        votes: present state of the store.
        events: all events of the store, oldest first.
    """
    last = dict(_source_and_label(event) for event in events if event.kind == VOTE)  # source -> its last label
    new = [entry for entry in given.entries if last.get((vote := _source_and_label(entry))[0]) != vote[1]]
    return [e for e in new if e.body and votes.on(e.item).get(e.rater) != e.body["label"]]


def words(labels: Sequence[str], votes: VoteState) -> list[Entry]:
    """Return an event for each label, in the form of `check_label`, that the store does not know yet."""
    return [Entry("", WORD, "", {"label": label}) for label in dict.fromkeys(labels) if label not in votes.words]


def check_label(label: str, *, spans: bool = False) -> str:
    """Return a label with normalized spaces.

    Raises DataError if it is empty, too long, contains a control character, or cannot be one of `spans`.
    """
    plain = " ".join(label.split())
    if not plain:
        raise DataError("label: empty; write a word")
    if len(plain) > LONGEST_LABEL:
        raise DataError(f"label: expected at most {LONGEST_LABEL} characters, got {len(plain)}; shorten it")
    if not can_be_read(plain):
        raise DataError("label: contains a control character; write a word")
    if spans and plain == OUTSIDE:
        raise DataError(f"label: {OUTSIDE!r} means no span; write another word")
    return plain


def export(rows: RowsFile, votes: VoteState, path: Path, *, form: str = ROWS) -> LabelExport:
    """Write every labelled row, with the majority label in the label column.

    Args:
        rows: the rows of the page.
        votes: state of the store.
        path: file to write.
        form: of the file, one of `span_formats.FORMATS`; labels are written as rows.
    """
    lines, result = labelled_lines(rows, votes, form=form)
    write_whole(path, "".join(lines))
    return result


def labelled_lines(rows: RowsFile, votes: VoteState, *, form: str = ROWS) -> tuple[list[str], LabelExport]:
    """Return the lines of an export, with line ends, and the result; arguments as in `export`."""
    found: list[tuple[Row, str]] = []  # row and its majority vote
    tied = 0
    for row, key in zip(rows.rows, rows.keys, strict=True):
        label = votes.label(key)
        if label is None:
            tied += bool(votes.on(key))
        else:
            found.append((row, label))
    if rows.spans and (form != ROWS or rows.tasks):
        lines = formatted([_span_row(row, vote, rows) for row, vote in found], form)
    else:
        lines = [line({**row.fields, rows.label: _written(vote, rows)}) for row, vote in found]
    return lines, LabelExport(len(found), tied)


def _source_and_label(vote: Entry | Event) -> tuple[tuple[str, str, str], str]:
    """Return the item, rater and file of a vote, without the line, and its label."""
    body = vote.body or {}
    return (vote.item, vote.rater, str(body.get("from", "")).rpartition(":")[0]), str(body.get("label", ""))


def _label_of(row: Row, column: str) -> str:
    """Return the label of a row, empty if it has none; raise DataError if the value is not a label."""
    value = row.fields.get(column)
    if len(items := label_items(value)) <= 1:
        value = items[0] if items else None
    elif isinstance(value, str):
        value = items
    word = "" if is_blank(value) else as_word(value)
    if word is None:
        fix = "name another column with --label COLUMN"
        raise DataError(f"{row.where}: column {column!r}: expected one label, got {value!r}; {fix}")
    try:
        return check_label(word) if word.strip() else ""
    except DataError as error:
        raise DataError(f"{row.where}: column {column!r}, {error}, or use --label COLUMN") from error


def _spans_of(row: Row, rows: RowsFile) -> str:
    """Return the spans of a row as a vote, empty if it is not annotated; raise DataError for invalid ones."""
    value = cell(row, rows.label)
    if not is_annotated(value, task=rows.tasks):
        return ""
    text = text_of(row, rows.text)
    spans = checked(spans_in(row, rows.label, text, of=rows.text), text, row.where)
    return written([span._replace(label=check_label(span.label)) for span in spans])


def _written(vote: str, rows: RowsFile) -> object:
    """Return what a row has in the column of the label."""
    return [span._asdict() for span in read(vote)] if rows.spans else vote


def _span_row(row: Row, vote: str, rows: RowsFile) -> SpanRow:
    """Return a row for a file in another format."""
    fields, column = row.fields, rows.text
    outer: dict[str, object] = {}
    if rows.tasks:
        outer = {name: fields[name] for name in TASK_FIELDS if name in fields}
        fields = data if isinstance(data := fields.get(TASK.rstrip(".")), Mapping) else {}
        column = column.removeprefix(TASK)
    own = column if column in set(fields) else TEXTS[0]  # a dotted or joined name is none of the row
    left_out = {column} if rows.tasks else {column, rows.label}
    other = {name: value for name, value in fields.items() if name not in left_out}
    return SpanRow(row.where, text_of(row, rows.text), read(vote), own, other, outer)


def _shown(value: object) -> str:
    if is_blank(value):
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
