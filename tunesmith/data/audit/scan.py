"""One chunk of rows looked at row by row: what can be told without any other row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.audit.damage import damage
from tunesmith.data.audit.keys import keys
from tunesmith.data.audit.personal import personal
from tunesmith.data.audit.shingles import Longs, digest, grams, signatures, slots, words_of
from tunesmith.data.audit.stream import Chunk, parsed
from tunesmith.data.audit.table import CUT, Digest
from tunesmith.data.audit.view import LETTERS, View, view
from tunesmith.data.audit.wording import chat_tokens, edges, language, refusal
from tunesmith.data.rows import Row, as_word

# Of a test row's runs of 13 words, the share that a row must have for it to be a leak.
LEAKED_SHARE = 0.5
MOST_OWNERS = 2


@dataclass(frozen=True, slots=True)
class Held:
    """The runs of 13 words of a test file, sorted; whose they are, and how many each test row has."""

    runs: Longs
    owners: NDArray[np.int64]
    sizes: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Plan:
    """How to look at rows: the file's name, its columns, which rows to keep, and what must not be in them."""

    name: str
    columns: Mapping[str, str]
    where: Mapping[str, frozenset[str]] = field(default_factory=dict)
    held: tuple[Held, ...] = ()

    @property
    def labelled(self) -> bool:
        """Whether the answer is a label."""
        return "label" in self.columns and "text" in self.columns

    @property
    def answered(self) -> bool:
        """Whether there is an answer in words, whose language may be another than the question's."""
        return not self.labelled and "text" not in self.columns


def digest_of(plan: Plan, chunk: Chunk) -> Digest:
    """The digest of a chunk."""
    return scan(plan, chunk)[0]


def scan(plan: Plan, chunk: Chunk) -> tuple[Digest, list[NDArray[np.uint32]]]:
    """The digest of a chunk, and the word slots of each of its questions."""
    found = _Found()
    for line, raw in zip(chunk.lines, chunk.rows, strict=True):
        fields = parsed(raw)
        if isinstance(fields, dict):
            if not _kept(fields, plan.where):
                continue
            seen = view(Row(f"{plan.name}:{line}", fields), plan.columns)
        else:
            seen = View("", "", (), "unreadable", fields)
        found.take(line, seen, plan)
    leaks = [leaked(found.slots, held) for held in plan.held]
    return found.digest(leaks), found.slots


def _kept(fields: Mapping[str, object], where: Mapping[str, frozenset[str]]) -> bool:
    return all(as_word(fields.get(column)) in words for column, words in where.items())


class _Found:
    """What the rows of a chunk came to so far."""

    def __init__(self) -> None:
        self.lines: list[int] = []
        self.views: list[View] = []
        self.hashes: list[tuple[int, int, int, int, int, int]] = []
        self.plain: list[bytes] = []
        self.slots: list[NDArray[np.uint32]] = []
        self.counted: list[NDArray[np.uint32]] = []
        self.marks: dict[str, dict[int, str]] = {}

    def take(self, line: int, seen: View, plan: Plan) -> None:
        """Look at one row."""
        row = len(self.lines)
        self.lines.append(line)
        self.views.append(seen)
        whole = seen.question if plan.labelled or not seen.answer else f"{seen.question}\n{seen.answer}"
        asked = words_of(seen.question)
        words = asked if whole is seen.question else words_of(whole)
        self.plain.append(" ".join(words).encode(errors="surrogatepass"))
        self.slots.append(slots(asked))
        self.counted.append(np.unique(self.slots[-1] if words is asked else slots(words)))
        first, last = edges(seen.question if plan.labelled or not seen.answer else seen.answer)
        ends = (digest(first) if first else 0, digest(last) if last else 0)
        both = digest(f"{seen.question.strip()}{CUT}{seen.answer.strip()}", exact=True)
        speaks = language(seen.answer, words_of(seen.answer)) if plan.answered else language(whole, words)
        self.hashes.append((digest(seen.question), digest(seen.answer), both, *ends, speaks))
        if seen.fault:
            self.marks.setdefault(seen.fault, {})[row] = seen.why
        if seen.fault == "unreadable":
            return
        for kind, look in LOOKS:
            if note := look(whole):
                self.marks.setdefault(kind, {})[row] = note
        if not seen.fault and len(LETTERS.findall(seen.question[:1000])) < 3:
            self.marks.setdefault("too_short", {})[row] = repr(seen.question.strip())

    def digest(self, leaks: list[dict[int, int]]) -> Digest:
        """All of it as arrays."""
        numbers = np.array([hashes[:5] for hashes in self.hashes], np.uint64).reshape(-1, 5)
        stacked = np.concatenate(self.counted) if self.counted else np.zeros(0, np.uint32)
        places, counts = np.unique(stacked, return_counts=True)
        texts = [f"{seen.question}{CUT}{seen.answer}".encode(errors="surrogatepass") for seen in self.views]
        return Digest(
            lines=np.array(self.lines, np.int64),
            asked=numbers[:, 0].copy(),
            said=numbers[:, 1].copy(),
            whole=numbers[:, 2].copy(),
            near=signatures(self.plain),
            edges=numbers[:, 3:].copy(),
            language=np.array([hashes[5] for hashes in self.hashes], np.uint8),
            labels=[seen.labels for seen in self.views],
            marks=self.marks,
            texts=texts,
            counts=(places, counts.astype(np.uint32)),
            leaks=leaks,
        )


def _secret(text: str) -> str:
    """How many; the note must not tell the secret on."""
    found = keys(text)
    return f"{len(found)} of {', '.join(str(span.end - span.start) for span in found[:3])} characters" if found else ""


def _personal(text: str) -> str:
    return ", ".join(dict.fromkeys(span.word for span in personal(text)))


# Kind -> what tells it from one row's text: a note, blank for none.
LOOKS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("secret", _secret),
    ("personal_data", _personal),
    ("encoding_damage", damage),
    ("template_tokens", chat_tokens),
    ("boilerplate", refusal),
)


def held(questions: list[NDArray[np.uint32]]) -> Held:
    """The index of a test file's runs of 13 words, without those that several of its rows share."""
    runs, owners = grams(questions)
    pairs = np.unique(np.stack([runs, owners.astype(np.uint64)], axis=1), axis=0) if len(runs) else np.zeros((0, 2))
    runs, owners = pairs[:, 0].astype(np.uint64), pairs[:, 1].astype(np.int64)
    _, place, times = np.unique(runs, return_inverse=True, return_counts=True)
    alone = times[place] <= MOST_OWNERS
    runs, owners = runs[alone], owners[alone]
    return Held(runs, owners, np.bincount(owners, minlength=len(questions)))


def leaked(questions: list[NDArray[np.uint32]], test: Held) -> dict[int, int]:
    """Row -> the test row of whose runs of 13 words it has at least half, or which has half of its own."""
    runs, owners = grams(questions)
    if not len(runs) or not len(test.runs):
        return {}
    sizes = np.bincount(owners, minlength=len(questions))
    hits: dict[tuple[int, int], int] = {}
    start, end = (np.searchsorted(test.runs, runs, side=side) for side in ("left", "right"))
    for step in range(MOST_OWNERS):
        for i in np.flatnonzero(start + step < end):
            pair = (int(owners[i]), int(test.owners[start[i] + step]))
            hits[pair] = hits.get(pair, 0) + 1
    found: dict[int, int] = {}
    for (row, other), count in hits.items():
        if count >= LEAKED_SHARE * min(sizes[row], test.sizes[other]):
            found.setdefault(row, other)
    return found
