"""What of the audit is cheap and grave enough to stop a run: at most 1.63 s on the six sets of bench/AUDIT.md.

Rows that cannot be read, blank ones, wrong roles and copies of held-out questions are not looked for: reading, parsing
and splitting have refused or removed them before.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tunesmith.data.audit.damage import damage
from tunesmith.data.audit.finding import CHECKS
from tunesmith.data.audit.keys import keys
from tunesmith.data.audit.near import KNOWN, Words, cross_pairs
from tunesmith.data.audit.runs import QuotationRule, held, leaked
from tunesmith.data.audit.shingles import WORD_BITS, signatures, slots
from tunesmith.data.examples import Example, Labelled, question
from tunesmith.data.pairs import written
from tunesmith.data.split import Split
from tunesmith.data.words import words_of

NAMED = 5  # places that are named before they are only counted
# Near-copies of held-out rows: from so many held-out rows on their share can be told. Real sets that are cut row by
# row have up to a tenth (bench/AUDIT.md): that is noted. That a fifth stops a run is chosen, not measured.
ENOUGH_HELD, NOTED_SHARE, COPIED_SHARE = 50, 0.01, 0.2
LONGEST = 20_000  # letters by which a row is told from near-copies


@dataclass(frozen=True, slots=True)
class Gate:
    """One line for each fault that stops a run, and for each that belongs into its report."""

    faults: tuple[str, ...]
    notes: tuple[str, ...]


def gate(split: Split) -> Gate:
    """What is gravely wrong with the rows that a run is to learn from, and with those it is to be scored on."""
    train, test = split.train, split.test or split.validation
    texts = [written(example) for example in train]
    found = [
        _told("secret", [e.where for e, text in zip(train, texts, strict=True) if keys(text)], len(train)),
        _told("encoding_damage", [e.where for e, text in zip(train, texts, strict=True) if damage(text)], len(train)),
        _told("contradiction", _contradicting(train), len(train)),
    ]
    share, copies = _near_copies(train, test)
    faults = [*filter(None, found), *([copies] if share > COPIED_SHARE else [])]
    notes = [copies] if NOTED_SHARE < share <= COPIED_SHARE else []
    return Gate(tuple(faults), tuple(notes))


def _told(kind: str, places: Sequence[str], rows: int) -> str:
    """The finding as a line, where it is above the share from which its kind blocks."""
    check = CHECKS[kind]
    if check.blocks_from is None or not places or len(places) <= check.blocks_from * rows:
        return ""
    return f"{kind}: {len(places)} of {rows} training rows ({_listed(places)}): {check.about}"


def _listed(places: Sequence[str]) -> str:
    return ", ".join(places[:NAMED]) + (", ..." if len(places) > NAMED else "")


def _contradicting(train: Sequence[Example]) -> list[str]:
    """Places of texts that stand twice with other labels."""
    by_text: dict[str, list[Labelled]] = defaultdict(list)
    for example in train:
        if isinstance(example, Labelled):
            by_text[question(example)].append(example)
    return [e.where for same in by_text.values() if len({frozenset(e.labels) for e in same}) > 1 for e in same]


def _asked(examples: Sequence[Example], shared: Collection[str]) -> list[str]:
    """What is asked, without the turns that most rows share: a system turn may be longer than all else."""
    return ["\x1e".join(turn for turn in question(e).split("\x1e") if turn not in shared) for e in examples]


def _shared(examples: Sequence[Example]) -> set[str]:
    """System turns that stand in most rows."""
    counts = Counter(turn for e in examples for turn in question(e).split("\x1e") if turn.startswith("system\x1f"))
    return {turn for turn, count in counts.items() if count > len(examples) / 2}


def _near_copies(train: Sequence[Example], test: Sequence[Example]) -> tuple[float, str]:
    """The share of the held-out rows that have a near-copy among the training rows, and the finding."""
    if len(test) < ENOUGH_HELD:
        return 0.0, ""
    shared = _shared(train)
    split_up = [[words_of(text[:LONGEST]) for text in _asked(part, shared)] for part in (train, test)]
    placed = [[slots(words) for words in part] for part in split_up]
    counts = np.zeros(1 << WORD_BITS, np.uint32)
    for one in (*placed[0], *placed[1]):
        counts[np.unique(one)] += 1
    words = Words(counts, len(train) + len(test))
    mine, theirs = (signatures([" ".join(w).encode(errors="surrogatepass") for w in part]) for part in split_up)
    counted = [lru_cache(KNOWN)(lambda row, part=part: Counter(part[row])) for part in split_up]
    pairs = cross_pairs(theirs, mine, lambda i, j: words.alike(counted[1](i), counted[0](j)))
    copied = {int(i): int(j) for i, j in pairs}
    copied.update({other: row for row, other in leaked(placed[0], held(placed[1], QuotationRule())).items()})
    listed = _listed([f"{test[i].where} like {train[j].where}" for i, j in sorted(copied.items())])
    finding = f"leak: {len(copied)} of {len(test)} held-out rows nearly stand in the training rows ({listed})"
    return len(copied) / len(test), f"{finding}; name their source as data.group"
