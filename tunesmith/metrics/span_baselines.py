"""Baselines of span labelling: a dictionary of the training spans, and a conditional random field over features.

Both read words: runs of letters and digits, and single other characters.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from tunesmith.data.examples.spans import spans_of, tags_of
from tunesmith.data.examples.types import Span

# A text with its spans, in order.
Marked = tuple[str, Sequence[Span]]
WORD = re.compile(r"[^\W_]+|[^\w\s]|_")
# Of the occurrences of a text in the training rows, the share that must be a span for an entry in the dictionary.
LEAST_SHARE = 0.5
# Regularization and steps of CRFsuite's own example of named entities (L1 and L2 of its tutorial).
CRF_OPTIONS = {"c1": 0.1, "c2": 0.01, "max_iterations": 100, "feature.possible_transitions": True}


def pieces_of(text: str) -> list[tuple[int, int]]:
    """Return first and last character of each word, the last one exclusive."""
    return [match.span() for match in WORD.finditer(text)]


def dictionary_tagger(train: Sequence[Marked], texts: Sequence[str]) -> list[list[Span]]:
    """Mark in each text the spans of the training rows, the longest first, with the label that each mostly has.

    Args:
        train: texts with their spans.
        texts: to mark.
    """
    labels: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for text, spans in train:
        for span in spans:
            labels[_words(text[span.start : span.end])][span.label] += 1
    labels.pop((), None)
    longest = max(map(len, labels), default=0)
    seen = Counter[tuple[str, ...]]()
    for text, _ in train:
        words = _words(text)
        seen.update(
            words[at : at + size] for size in range(1, longest + 1) for at in range(len(words) - size + 1)
            if words[at : at + size] in labels
        )  # fmt: skip
    entries = {
        words: max(sorted(found), key=found.__getitem__)
        for words, found in labels.items()
        if found.total() >= LEAST_SHARE * seen[words]
    }
    return [_looked_up(text, entries, longest) for text in texts]


def crf_tagger(train: Sequence[Marked], texts: Sequence[str]) -> list[list[Span]]:
    """Fit a linear-chain conditional random field to the words of the training rows, and mark each text.

    Features of a word are itself, its ends, its shape and those of the two words on either side.

    Args:
        train: texts with their spans.
        texts: to mark.
    """
    import pycrfsuite

    trainer = pycrfsuite.Trainer(algorithm="lbfgs", params=CRF_OPTIONS, verbose=False)
    for text, spans in train:
        if pieces := pieces_of(text):
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


def _words(text: str) -> tuple[str, ...]:
    return tuple(match.group() for match in WORD.finditer(text))


def _looked_up(text: str, entries: dict[tuple[str, ...], str], longest: int) -> list[Span]:
    words, pieces = _words(text), pieces_of(text)
    spans, at = [], 0
    while at < len(words):
        sizes = range(min(longest, len(words) - at), 0, -1)
        size = next((size for size in sizes if words[at : at + size] in entries), 0)
        if size:
            spans.append(Span(pieces[at][0], pieces[at + size - 1][1], entries[words[at : at + size]]))
        at += size or 1
    return spans


def _features(text: str, pieces: Sequence[tuple[int, int]]) -> list[list[str]]:
    """Return the features of each word as names."""
    own = []
    for start, end in pieces:
        word = text[start:end]
        letters = re.sub(r"\d", "0", re.sub(r"[A-Z]", "X", word))
        shape = re.sub(r"(.)\1+", r"\1", re.sub(r"[^\W\d_X]", "x", letters))
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
