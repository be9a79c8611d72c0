"""The audit checks that run before every training run: fast and severe ones.

They take at most 1.63 s on the six datasets of bench/AUDIT.md.

Unreadable rows, blank rows, wrong roles and copies of held-out prompts need no check here: reading, parsing and
splitting have already rejected or removed them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tunesmith.data.audit.checks.mojibake import damage
from tunesmith.data.audit.checks.near_duplicates import KNOWN, Words, cross_pairs
from tunesmith.data.audit.checks.secrets import keys
from tunesmith.data.audit.findings import CHECKS
from tunesmith.data.examples.parsers import question
from tunesmith.data.examples.preferences import written
from tunesmith.data.examples.types import Example, LabelledText, Text
from tunesmith.data.splits.split import Split
from tunesmith.data.text.minhash import WORD_BITS, signatures, slots
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


@dataclass(frozen=True, slots=True)
class Gate:
    """Result of the checks.

    Attributes:
        problems: one line per problem that stops a run.
        notes: one line per problem for the report.
    """

    problems: tuple[str, ...]
    notes: tuple[str, ...]


def gate(split: Split) -> Gate:
    """Run the checks on the rows of a run.

    Args:
        split: train, validation and test examples.
    """
    train = split.train
    texts = [written(example) for example in train]
    findings = [
        _finding("secret", [e.where for e, text in zip(train, texts, strict=True) if keys(text)], len(train)),
        _finding(
            "encoding_damage", [e.where for e, text in zip(train, texts, strict=True) if damage(text)], len(train)
        ),
        _finding("contradiction", _contradicting(train), len(train)),
    ]
    share, copies = _near_copies(train, split.test or split.validation)
    # The split of documents has removed their near-duplicates; lines of a log are alike without being copies.
    stops = share > COPIED_SHARE and not all(isinstance(example, Text) for example in train)
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
    """Return the locations of texts that occur with different labels."""
    by_text: dict[str, list[LabelledText]] = defaultdict(list)
    for example in train:
        if isinstance(example, LabelledText):
            by_text[question(example)].append(example)
    return [e.where for same in by_text.values() if len({frozenset(e.labels) for e in same}) > 1 for e in same]


def _near_copies(train: Sequence[Example], test: Sequence[Example]) -> tuple[float, str]:
    """Return the share of held-out rows with a near-duplicate in the training rows, and the finding."""
    if len(test) < ENOUGH_HELD:
        return 0.0, ""
    prompts = [[question(example).split("\x1e") for example in part] for part in (train, test)]
    systems = Counter(turn for turns in prompts[0] for turn in turns if turn.startswith("system\x1f"))
    # A system turn that most rows share is ignored; it may be longer than everything else.
    shared = {turn for turn, count in systems.items() if count > len(train) / 2}
    texts = [["\x1e".join(turn for turn in turns if turn not in shared) for turns in part] for part in prompts]
    words = [[words_of(text[:MAX_CHARS_COMPARED]) for text in part] for part in texts]
    word_slots = [[slots(row) for row in part] for part in words]
    counts = np.zeros(1 << WORD_BITS, np.uint32)
    for row_slots in (*word_slots[0], *word_slots[1]):
        counts[np.unique(row_slots)] += 1
    information = Words(counts, len(train) + len(test))
    train_signatures, test_signatures = (
        signatures([" ".join(row).encode(errors="surrogatepass") for row in part]) for part in words
    )
    counted = [lru_cache(KNOWN)(lambda row, part=part: Counter(part[row])) for part in words]
    pairs = cross_pairs(test_signatures, train_signatures, lambda i, j: information.alike(counted[1](i), counted[0](j)))
    copied = {int(i): int(j) for i, j in pairs}
    copied.update({other: row for row, other in leaked(word_slots[0], held(word_slots[1], QuotationRule())).items()})
    copies = first_names([f"{test[i].where} like {train[j].where}" for i, j in sorted(copied.items())], NAMED)
    finding = f"leak: {len(copied)} of {len(test)} held-out rows have a near-duplicate in the training rows ({copies})"
    return len(copied) / len(test), f"{finding}; set data.group to the column with their source"
