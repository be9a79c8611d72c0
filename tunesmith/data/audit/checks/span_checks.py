"""Spans of the same words that are marked differently in different texts."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

from tunesmith.data.examples.types import Span

WORD = re.compile(r"[^\W_]+|[^\w\s]|_")
# A place after or before which one of these is, is part of something longer: a version in gir1.2-rsvg-2.0 or HTTP/1.1.
JOINED_BEFORE = re.compile(r"[\w./:+@#-]")
JOINED_AFTER = re.compile(r"[./:+@#-]*\w")
# Of the places with the same words, the share that must be marked alike, and the number of these places at least.
ALIKE = 0.8
FEWEST_PLACES = 4
SHOWN = 40  # characters of a span in notes

Words = tuple[str, ...]
ReadRow = Callable[[int], tuple[str, Sequence[Span]]]


def disagreements(rows: Sequence[int], read: ReadRow) -> dict[int, str]:
    """Find rows in which words have another label, or none, although most rows mark them alike.

    Words that are marked in different ways about equally often are ambiguous and not found. Places inside a longer span
    or a longer name, such as `gir1.2-rsvg-2.0`, do not count.

    Args:
        rows: numbers of the rows.
        read: returns the text of a row and its spans in order.

    Returns:
        Row -> note.
    """
    labels: dict[Words, Counter[str]] = defaultdict(Counter)
    for row in rows:
        text, spans = read(row)
        for span in spans:
            labels[tuple(WORD.findall(text[span.start : span.end]))][span.label] += 1
    labels.pop((), None)
    known = {words: count for words, count in labels.items() if count.total() >= FEWEST_PLACES}
    sizes = sizes_of(known)
    unmarked: Counter[Words] = Counter()
    for row in rows:
        unmarked.update(words for words, _ in _unmarked(*read(row), sizes, known))
    most = {}
    for words, count in known.items():
        label, times = count.most_common(1)[0]
        total = count.total() + unmarked[words]
        if times >= FEWEST_PLACES and ALIKE * total <= times < total:
            most[words] = (label, times)
    notes: dict[int, str] = {}
    sizes = sizes_of(most)
    for row in rows if most else ():
        text, spans = read(row)
        marked = [(tuple(WORD.findall(text[span.start : span.end])), span.label, span) for span in spans]
        other = [(words, label, span) for words, label, span in marked if words in most and label != most[words][0]]
        places = [(words, label, text[span.start : span.end]) for words, label, span in other]
        places += [(words, "not marked", text[a:b]) for words, (a, b) in _unmarked(text, spans, sizes, most)]
        if places:
            words, here, shown = places[0]
            label, times = most[words]
            more = f", and {len(places) - 1} more" if len(places) > 1 else ""
            notes[row] = f"{shown[:SHOWN]!r} is {here} here, {label} in {times} places{more}"
    return notes


def sizes_of(entries: Mapping[Words, object]) -> dict[str, list[int]]:
    """Return the lengths of the entries that begin with each word, the longest first."""
    sizes: dict[str, set[int]] = defaultdict(set)
    for words in entries:
        sizes[words[0]].add(len(words))
    return {word: sorted(found, reverse=True) for word, found in sizes.items()}


def _unmarked(
    text: str, spans: Sequence[Span], sizes: Mapping[str, Sequence[int]], entries: Mapping[Words, object]
) -> Iterator[tuple[Words, tuple[int, int]]]:
    """Yield each entry that is in a text where no span is, and its place; of several at one place, the longest."""
    pieces = [(match.group(), *match.span()) for match in WORD.finditer(text)]
    index = at = 0
    while at < len(pieces):
        start = pieces[at][1]
        while index < len(spans) and spans[index].end <= start:
            index += 1
        free = spans[index].start if index < len(spans) else len(text)
        for size in sizes.get(pieces[at][0], ()):
            part = pieces[at : at + size]
            words = tuple(word for word, _, _ in part)
            if words in entries and part[-1][2] <= free and not _joined(text, start, part[-1][2]):
                yield words, (start, part[-1][2])
                at += size - 1
                break
        at += 1


def _joined(text: str, start: int, end: int) -> bool:
    """Return whether a place of a text is part of a longer name."""
    return bool((start and JOINED_BEFORE.match(text, start - 1)) or JOINED_AFTER.match(text, end))
