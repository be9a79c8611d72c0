"""The audit checks that run before every training run: fast and severe ones.

They take at most 1.63 s on the six datasets of bench/AUDIT.md.

Unreadable rows, blank rows, wrong roles and copies of held-out prompts need no check here: reading, parsing and
splitting have already rejected or removed them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

import numpy as np

from tunesmith.data.audit.checks.mojibake import damage
from tunesmith.data.audit.checks.near_duplicates import KNOWN, Pairs, Words, cross_pairs
from tunesmith.data.audit.checks.secrets import keys
from tunesmith.data.audit.findings import CHECKS
from tunesmith.data.examples.parsers import question
from tunesmith.data.examples.preferences import written
from tunesmith.data.examples.types import Example, LabelledText, Text
from tunesmith.data.splits.split import Split, key_ranges
from tunesmith.data.stored import array_of, joined
from tunesmith.data.text.minhash import WORD_BITS, digest, signatures, slots
from tunesmith.data.text.overlap import QuotationRule, held, leaked
from tunesmith.data.text.words import words_of
from tunesmith.errors import first_names

NAMED = 5  # locations listed in a message; more are only counted
# Near-duplicates of held-out rows. Real datasets split by row have up to 10 % (bench/AUDIT.md), which is a note; the
# limit of 20 %, which stops a run, is chosen, not measured.
ENOUGH_HELD = 50  # held-out rows below which the share is not estimated
NOTED_SHARE = 0.01
COPIED_SHARE = 0.2
MAX_CHARS_COMPARED = 20_000  # characters compared
AT_ONCE = 50_000  # training rows compared together


@dataclass(frozen=True, slots=True)
class Gate:
    """Result of the checks."""

    problems: tuple[str, ...]  # one line per problem that stops a run
    notes: tuple[str, ...]  # one line per problem for the report


def gate(split: Split) -> Gate:
    """Run the checks on the rows of a run."""
    train = split.train
    found: dict[str, list[str]] = {"secret": [], "encoding_damage": [], "contradiction": _contradicting(train)}
    for example in train:
        text = written(example)
        if keys(text):
            found["secret"].append(example.where)
        if damage(text):
            found["encoding_damage"].append(example.where)
    findings = [_finding(kind, locations, len(train)) for kind, locations in found.items()]
    share, copies = _near_copies(train, split.test or split.validation)
    # The split of documents has removed their near-duplicates; lines of a log are alike without being copies.
    stops = share > COPIED_SHARE and not isinstance(next(iter(train), None), Text)
    faults = [*filter(None, findings), *([copies] if stops else [])]
    notes = [copies] if share > NOTED_SHARE and not stops else []
    return Gate(tuple(faults), tuple(notes))


def _finding(kind: str, locations: Sequence[str], rows: int) -> str:
    """Return the finding as one line if its share of the rows blocks; else empty."""
    check = CHECKS[kind]
    if check.blocks_from is None or not locations or len(locations) <= check.blocks_from * rows:
        return ""
    return f"{kind}: {len(locations)} of {rows} training rows ({first_names(locations, NAMED)}): {check.about}"


def _contradicting(train: Sequence[Example]) -> list[str]:
    """Return the locations of texts that occur with different labels, text by text."""
    if not isinstance(next(iter(train), None), LabelledText):
        return []
    texts = array_of(len(train), "<u8", (digest(question(example), exact=True) for example in train))
    known: dict[frozenset[str], int] = {}
    sets = (frozenset(example.labels) if isinstance(example, LabelledText) else frozenset() for example in train)
    labels = array_of(len(train), "<i4", (known.setdefault(own, len(known)) for own in sets))
    found: list[tuple[int, int]] = []  # first row with the text, row
    for part in key_ranges(texts):
        _, first, same = np.unique(texts[part], return_index=True, return_inverse=True)
        differs = np.zeros(len(first), bool)
        np.logical_or.at(differs, same, labels[part] != labels[part[first]][same])
        rows = np.flatnonzero(differs[same])
        found += zip(part[first[same[rows]]].tolist(), part[rows].tolist(), strict=True)
    return [train[row].where for _, row in sorted(found)]


def _near_copies(train: Sequence[Example], test: Sequence[Example]) -> tuple[float, str]:
    """Return the share of held-out rows with a near-duplicate in the training rows, and the finding.

    Training rows are compared in parts, so that they need not fit into memory.
    """
    if len(test) < ENOUGH_HELD:
        return 0.0, ""
    systems = Counter(turn for example in train for turn in _turns(example) if turn.startswith("system\x1f"))
    # A system turn that most rows share is ignored; it may be longer than everything else.
    shared = {turn for turn, count in systems.items() if count > len(train) / 2}
    counts = np.zeros(1 << WORD_BITS, np.uint32)
    for example in joined(train, test):
        counts[np.unique(slots(_words(example, shared)))] += 1
    information = Words(counts, len(train) + len(test))
    held_out = ComparedRows([_words(example, shared) for example in test])
    quotations = held(held_out.slots, QuotationRule())
    pairs: dict[int, int] = {}
    quoted: dict[int, int] = {}
    rest = iter(train)
    for start in range(0, len(train), AT_ONCE):
        part = ComparedRows([_words(example, shared) for example in islice(rest, AT_ONCE)])
        for row, other in held_out.copies_in(part, information).tolist():
            pairs.setdefault(row, start + other)
        quoted.update({other: start + row for row, other in leaked(part.slots, quotations).items()})
    copied = {**pairs, **quoted}
    copies = first_names([f"{test[i].where} like {train[j].where}" for i, j in sorted(copied.items())], NAMED)
    finding = f"leak: {len(copied)} of {len(test)} held-out rows have a near-duplicate in the training rows ({copies})"
    return len(copied) / len(test), f"{finding}; set data.group to the column with their source"


class ComparedRows:
    """The words of rows, their hashes and signatures."""

    def __init__(self, words: Sequence[list[str]]) -> None:
        self.slots = [slots(row) for row in words]
        self.signatures = signatures([" ".join(row).encode(errors="surrogatepass") for row in words])
        self.counted = lru_cache(KNOWN)(lambda row: Counter(words[row]))

    def copies_in(self, others: ComparedRows, information: Words) -> Pairs:
        """Return pairs (row, other row) of near-duplicates."""

        def alike(row: int, other: int) -> float:
            return information.alike(self.counted(row), others.counted(other))

        return cross_pairs(self.signatures, others.signatures, alike)


def _turns(example: Example) -> list[str]:
    return question(example).split("\x1e")


def _words(example: Example, without: Collection[str]) -> list[str]:
    """Return the words of a prompt that are compared, without some of its turns."""
    return words_of("\x1e".join(turn for turn in _turns(example) if turn not in without)[:MAX_CHARS_COMPARED])
