"""Texts with labelled spans: parsing of the formats of span annotation, and BIO tags of pieces of a text.

Rows have spans by character (`spans`, spaCy's `ents` and `entities`, Label Studio's exports), or words with BIO tags.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tunesmith.data.examples.parsers import group_of, need, parsed, row_error, text_of
from tunesmith.data.examples.types import Span, TaggedText
from tunesmith.data.readers.row import Row, as_word
from tunesmith.data.schema.cells import cell
from tunesmith.data.schema.values import TAG, is_blank, is_spans, is_tag, listed, span_items, span_results
from tunesmith.errors import DataError

OUTSIDE = "O"
# Columns of a task of Label Studio: the beginning of that of the text, and that of the spans.
TASK, ANNOTATIONS = "data.", "annotations"
SHOWN = 30  # characters of a span in messages


def tagged(rows: Sequence[Row], *, columns: Mapping[str, str], group: str = "") -> list[TaggedText]:
    """Parse one TaggedText per row.

    Args:
        rows: rows of one file.
        columns: `text` and `spans`, or `words` and `tags`.
        group: column with the source of a row; may be empty.

    Raises:
        DataError: if a column is missing or no row is valid.
        RowError: if some rows are invalid.
    """
    need(rows, *columns.values(), group)

    def parse(row: Row) -> TaggedText:
        if "words" in columns:
            text, spans = _from_words(row, columns["words"], columns["tags"])
        else:
            text = text_of(row, columns["text"])
            spans = spans_in(row, columns["spans"], text, of=columns["text"])
        return TaggedText(row.where, text, checked(spans, text, row.where), group_of(row, group))

    return parsed(rows, parse)


def is_task(text: str, spans: str) -> bool:
    """Return whether a file with these columns of the text and the spans has tasks of Label Studio."""
    return text.startswith(TASK) and spans == ANNOTATIONS


def is_annotated(value: object, *, task: bool) -> bool:
    """Return whether a cell says which spans a text has, if only by `[]`.

    Args:
        value: the cell.
        task: it has the annotations of a task, where an empty list is of a text without any.
    """
    without = is_spans(value) and span_items(value) is None  # annotations that are not of spans
    return not (is_blank(value) or without or (task and listed(value) == []))


def spans_in(row: Row, column: str, text: str, *, of: str) -> list[Span]:
    """Return the spans of a row as they are written.

    Args:
        row: the row.
        column: holds the spans. Only an empty list says that there are none, as a text may not be annotated at all.
        text: the text of the row.
        of: column of the text.

    Raises:
        DataError: the row is not annotated, or has what is not a span of the text.
    """
    value = cell(row, column)
    if not is_annotated(value, task=is_task(of, column)):
        problem = f"{row.where}: column {column!r} has no annotation of this text"
        raise DataError(f"{problem}; drop the row, or write [] if nothing in it is a span")
    items = span_items(value)
    if items is None or not is_spans(value):
        raise row_error(row, column, "must be a list of {start, end, label}")
    _check_results(row, value, of)
    return [_span(item, text, row, column) for item in items]


def _check_results(row: Row, value: object, text: str) -> None:
    """Raise DataError for results of Label Studio that do not mark characters of this column of a text."""
    results = span_results(value)
    for kind in sorted({str(item["type"]) for item in results} - {"labels"}):
        problem = f"results of type {kind!r} do not count characters of a plain text"
        raise DataError(f"{row.where}: {problem}; mark them with <Labels> of a <Text> in Label Studio")
    marked = sorted({str(item["to_name"]) for item in results if item.get("to_name")})
    if len(marked) > 1:
        problem = f"spans of {' and '.join(map(repr, marked))}"
        raise DataError(f"{row.where}: {problem}; a row has spans of one text, so export one task for each")
    # A name that is a field as well is usually its field; "text" is the name in Label Studio's own templates.
    for name in marked:
        if name != "text" and text != f"{TASK}{name}" and isinstance(row.fields.get(f"{TASK}{name}"), str):
            raise DataError(
                f"{row.where}: spans of {name!r}, not of {text!r}; name the column of the text {TASK}{name}"
            )


def checked(spans: Iterable[Span], text: str, where: str) -> tuple[Span, ...]:
    """Return spans in order, each once and without spaces at its ends.

    Args:
        spans: in any order.
        text: the text.
        where: its place, for messages.

    Raises:
        DataError: a span is outside the text or blank, has the label O, or shares a character with another.
    """
    trimmed = []
    for span in spans:
        if not 0 <= span.start < span.end <= len(text):
            at = f"{span.start} to {span.end} of {len(text)} characters"
            raise DataError(f"{where}: span {span.label} is at {at}; count code points from 0, the end is exclusive")
        if span.label == OUTSIDE:
            raise DataError(f"{where}: span at {span.start} has the label {OUTSIDE!r}, which means no span; rename it")
        if (one := trim(span, text)) is None:
            raise DataError(f"{where}: span {span.label} at {span.start} is blank; remove it")
        trimmed.append(one)
    ordered = sorted(set(trimmed))
    for first, second in zip(ordered, ordered[1:], strict=False):
        if second.start < first.end:
            inside = second.end <= first.end
            raise DataError(
                f"{where}: {shown(second, text)} {'is inside' if inside else 'overlaps'} {shown(first, text)}, and a "
                "character can have one label only; keep one of them, or make a run for each kind of label"
            )
    return tuple(ordered)


def trim(span: Span, text: str) -> Span | None:
    """Return a span without the spaces at its ends; None if nothing is left."""
    part = text[span.start : span.end]
    start = span.start + len(part) - len(part.lstrip())
    return Span(start, start + len(part.strip()), span.label) if part.strip() else None


def shown(span: Span, text: str) -> str:
    """Return a span for messages: its label and its text."""
    return f"{span.label} {text[span.start : span.end][:SHOWN]!r}"


def readable(spans: Iterable[Span], text: str) -> str:
    """Return spans in one line: label, range and text of each."""
    return "; ".join(f"{span.label}[{span.start}:{span.end}] {text[span.start : span.end]}" for span in spans)


def inline(spans: Iterable[Span], text: str) -> str:
    """Return a text with its spans marked in it, equal for equal spans of texts that differ in case or spacing."""
    parts, at = [], 0
    for span in spans:
        # In hexadecimal, as labels in upper and lower case are different labels.
        parts += [text[at : span.start], f"\x01{span.label.encode(errors='surrogatepass').hex()}\x02"]
        parts += [text[span.start : span.end], "\x03"]
        at = span.end
    return "".join([*parts, text[at:]])


def tags_of(spans: Sequence[Span], pieces: Sequence[tuple[int, int]], text: str) -> list[str]:
    """Return the BIO tag of each piece of a text, [T].

    A piece that only partly belongs to a span belongs to it as a whole; one that touches two, to the first.

    Args:
        spans: in order, without overlaps.
        pieces: first and last character of each piece, exclusive; in order. A piece may begin with spaces.
        text: the text.
    """
    tags: list[str] = []
    index, begun = 0, -1
    for start, end in pieces:
        blank = not text[start:end].strip()  # such a piece begins no span, but may be inside one
        start += 0 if blank else end - start - len(text[start:end].lstrip())
        while index < len(spans) and spans[index].end <= start:
            index += 1
        if index == len(spans) or end <= spans[index].start or (blank and begun != index):
            tags.append(OUTSIDE)
            continue
        tags.append(f"{'I' if begun == index else 'B'}-{spans[index].label}")
        begun = index
    return tags


def spans_of(tags: Sequence[str], pieces: Sequence[tuple[int, int]], text: str) -> list[tuple[Span, slice]]:
    """Return the spans that BIO tags mark, each with the indices of its pieces; an I after another label begins one.

    These are the rules of transformers' token-classification pipeline, except that a character of several pieces has
    one answer, that of the first piece.

    Args:
        tags: of each piece, [T].
        pieces: first and last character of each piece, exclusive; in order.
        text: the text.
    """
    spans: list[tuple[Span, slice]] = []
    start = 0
    for index in range(1, len(tags) + 1):
        label = tags[start].partition("-")[2]
        if index < len(tags) and tags[index] == (f"I-{label}" if label else OUTSIDE):
            continue
        after = spans[-1][0].end if spans else 0
        span = trim(Span(max(after, pieces[start][0]), pieces[index - 1][1], label), text) if label else None
        if span is not None:
            spans.append((span, slice(start, index)))
        start = index
    return spans


def _from_words(row: Row, words_column: str, tags_column: str) -> tuple[str, list[Span]]:
    """Return the words joined by spaces, and the spans of their tags."""
    words, tags = (listed(cell(row, column)) for column in (words_column, tags_column))
    if not words or not all(isinstance(word, str) and word.strip() for word in words):
        raise row_error(row, words_column, "must be a list of words")
    if len(words) != len(tags) or not all(map(is_tag, tags)):
        raise row_error(row, tags_column, f"must be a list of {len(words)} tags such as B-NAME, I-NAME and O")
    pieces, at = [], 0
    for word in words:
        pieces.append((at, at + len(word)))
        at += len(word) + 1
    text = " ".join(words)
    bio = [tag if tag == OUTSIDE else TAG.sub(lambda m: f"B-{m[2]}" if m[1] else f"I-{m[4]}", tag) for tag in tags]
    return text, [span for span, _ in spans_of(bio, pieces, text)]


def _span(item: object, text: str, row: Row, column: str) -> Span:
    if isinstance(item, list | tuple) and len(item) == 3:
        item = dict(zip(("start", "end", "label"), item, strict=True))
    assert isinstance(item, Mapping)
    start, end = item.get("start"), item.get("end")
    label = item.get("label", item.get("labels"))
    if isinstance(label, list) and len(label) == 1:
        label = label[0]
    word = (as_word(label) or "").strip()
    if type(start) is not int or type(end) is not int or not word:
        raise row_error(row, column, f"has a span without start, end or one label: {str(dict(item))[:80]}")
    copied = item.get("text")
    if isinstance(copied, str) and text[start:end].strip() not in (copied.strip(), copied.replace("\\n", "\n").strip()):
        problem = f"the span {copied[:SHOWN]!r} at {start} to {end} is {text[start:end][:SHOWN]!r} in the text"
        raise DataError(f"{row.where}: {problem}; count code points, not bytes or UTF-16 units")
    return Span(start, end, word)
