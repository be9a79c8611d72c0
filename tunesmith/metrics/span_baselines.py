"""Baselines of span labelling: a dictionary of the training spans, and a conditional random field over features.

Both read words: runs of letters and digits, and single other characters.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from tunesmith.data.examples.spans import spans_of, tags_of
from tunesmith.data.examples.types import Span
from tunesmith.metrics.spans import counts, value
from tunesmith.progress import track

# A text with its spans, in order.
Marked = tuple[str, Sequence[Span]]
Words = tuple[str, ...]
WORD = re.compile(r"[^\W_]+|[^\w\s]|_")
# Of the places where an entry of the dictionary is looked up in the training rows, the share that must be spans.
LEAST_SHARE = 0.5
# c1 and c2 of CRFsuite (L1 and L2), the first two as in the examples of python-crfsuite and sklearn-crfsuite for the
# names of CoNLL 2002; the third is weaker than both. The share of the training rows that decides between them.
CRF_SETTINGS = ((1.0, 0.001), (0.1, 0.1), (0.1, 0.01))
DECIDING = 1 / 3
CRF_OPTIONS = {"max_iterations": 100, "feature.possible_transitions": True}


def pieces_of(text: str) -> list[tuple[int, int]]:
    """Return first and last character of each word, the last one exclusive."""
    return [match.span() for match in WORD.finditer(text)]


def dictionary_tagger(train: Sequence[Marked], texts: Sequence[str]) -> list[list[Span]]:
    """Mark in each text the spans of the training rows, the longest first, with the label that each mostly has.

    Args:
        train: texts with their spans.
        texts: to mark.
    """
    labels: dict[Words, Counter[str]] = defaultdict(Counter)
    cut, marked = [], []
    for text, spans in train:
        pieces = pieces_of(text)
        found = spans_of(tags_of(spans, pieces, text), pieces, text)  # whole words, also where a span cuts one
        cut.append(words := _words(text))
        marked.append({(part.start, part.stop) for _, part in found})
        for span, part in found:
            labels[words[part]][span.label] += 1
    entries = {words: max(sorted(counts), key=counts.__getitem__) for words, counts in labels.items()}
    for size in sorted({*map(len, entries)}, reverse=True):  # without a longer entry, its words are free for others
        seen, right = Counter[Words](), Counter[Words]()
        for words, spans_here, places in zip(cut, marked, _looked_up(cut, entries), strict=True):
            for start, stop in places:
                seen[words[start:stop]] += 1
                right[words[start:stop]] += (start, stop) in spans_here
        rare = {entry for entry in seen if len(entry) == size and right[entry] < LEAST_SHARE * seen[entry]}
        entries = {entry: label for entry, label in entries.items() if entry not in rare}
    asked, results = [_words(text) for text in texts], []
    for text, words, places in zip(texts, asked, _looked_up(asked, entries), strict=True):
        pieces = pieces_of(text)
        results.append([Span(pieces[a][0], pieces[b - 1][1], entries[words[a:b]]) for a, b in places])
    return results


def crf_tagger(train: Sequence[Marked], texts: Sequence[str]) -> list[list[Span]]:
    """Fit a linear-chain conditional random field to the words of the training rows, and mark each text.

    Features of a word are itself, its ends, its shape and those of the two words on either side. The regularization is
    the one of CRF_SETTINGS with the highest F1 on the first third of the rows, after a fit to the others.

    Args:
        train: texts with their spans.
        texts: to mark.
    """
    asked, rest = train[: int(DECIDING * len(train))], train[int(DECIDING * len(train)) :]
    gold, scores = [spans for _, spans in asked], dict[tuple[float, float], float]()
    for setting in track(CRF_SETTINGS if asked else (), "fitting a random field", unit="settings"):
        scores[setting] = value("entity_f1", counts(gold, _random_field(rest, [text for text, _ in asked], setting)))
    return _random_field(train, texts, max(scores, key=scores.__getitem__, default=CRF_SETTINGS[0]))


def _random_field(train: Sequence[Marked], texts: Sequence[str], setting: tuple[float, float]) -> list[list[Span]]:
    import pycrfsuite

    rows = [(text, pieces, spans) for text, spans in train if (pieces := pieces_of(text))]
    if not rows:  # the library ends the process
        return [[] for _ in texts]
    options = {"c1": setting[0], "c2": setting[1], **CRF_OPTIONS}
    trainer = pycrfsuite.Trainer(algorithm="lbfgs", params=options, verbose=False)
    for text, pieces, spans in rows:
        trainer.append(_features(text, pieces), tags_of(spans, pieces, text))
    tagger, found = pycrfsuite.Tagger(), []
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "model.crfsuite")
        trainer.train(file)
        tagger.open(file)
        for text in texts:
            pieces = pieces_of(text)
            tags = tagger.tag(_features(text, pieces)) if pieces else []
            found.append([span for span, _ in spans_of(tags, pieces, text)])
        tagger.close()
    return found


def _words(text: str) -> Words:
    return tuple(match.group() for match in WORD.finditer(text))


def _looked_up(texts: Iterable[Words], entries: Collection[Words]) -> Iterator[list[tuple[int, int]]]:
    """Yield the places of entries in each text, from left to right, the longest first; their end is exclusive."""
    sizes: dict[str, list[int]] = defaultdict(list)
    for entry in sorted(entries, key=len, reverse=True):
        sizes[entry[0]].append(len(entry))
    for words in texts:
        places, at = [], 0
        while at < len(words):
            found = (words[at : at + size] for size in sizes.get(words[at], ()))
            size = next((len(entry) for entry in found if entry in entries), 0)
            places += [(at, at + size)] if size else []
            at += size or 1
        yield places


def _features(text: str, pieces: Sequence[tuple[int, int]]) -> list[list[str]]:
    """Return the features of each word as names."""
    own = []
    for start, end in pieces:
        word = text[start:end]
        kinds = ("X" if c.isupper() else "x" if c.isalpha() else "0" if c.isdigit() else c for c in word)
        shape = re.sub(r"(.)\1+", r"\1", "".join(kinds))
        joined = start > 0 and not text[start - 1].isspace()
        own.append([f"word={word.lower()}", f"shape={shape}", f"length={min(end - start, 6)}", f"joined={joined}"])
    features = []
    for index, (start, end) in enumerate(pieces):
        word = text[start:end]
        ends = [name for n in (1, 2, 3) for name in (f"begin={word[:n]}", f"end={word[-n:]}")]
        found = ["bias", *own[index], *ends]
        for away in (-2, -1, 1, 2):
            around = own[index + away] if 0 <= index + away < len(pieces) else ["none"]
            found += [f"{away:+d}:{name}" for name in around]
        features.append(found)
    return features
