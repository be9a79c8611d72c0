"""One chunk of rows looked at row by row: what can be told without any other row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.audit.ask import AuditSource
from tunesmith.data.audit.damage import damage
from tunesmith.data.audit.keys import keys
from tunesmith.data.audit.personal import personal
from tunesmith.data.audit.runs import HeldOutRuns, leaked
from tunesmith.data.audit.shingles import digest, signatures, slots
from tunesmith.data.audit.stream import RowChunk, parsed
from tunesmith.data.audit.table import CUT, Digest
from tunesmith.data.audit.view import LETTERS, View, view
from tunesmith.data.audit.wording import chat_tokens, edges, language, refusal
from tunesmith.data.rows import Row, has_listed, listed
from tunesmith.data.words import words_of


@dataclass(frozen=True, slots=True)
class ScanPlan:
    """How to look at the rows of a file: its name, what is asked, and the test rows that must not be in it."""

    name: str
    ask: AuditSource
    held: tuple[HeldOutRuns, ...] = ()


def digest_of(plan: ScanPlan, chunk: RowChunk) -> Digest:
    """The digest of a chunk."""
    return scan(plan, chunk)[0]


def scan(plan: ScanPlan, chunk: RowChunk) -> tuple[Digest, list[NDArray[np.uint32]]]:
    """The digest of a chunk, and the word slots of each of its questions."""
    found, wanted = _Found(), listed(plan.ask.where)
    for line, raw in zip(chunk.lines, chunk.rows, strict=True):
        fields = parsed(raw)
        if isinstance(fields, dict):
            if not has_listed(fields, wanted):
                continue
            seen = view(Row(f"{plan.name}:{line}", fields), plan.ask.columns)
        else:
            seen = View("", "", (), "unreadable", fields)
        found.take(line, seen, plan.ask)
    leaks = [leaked(found.slots, test) for test in plan.held]
    return found.digest(leaks), found.slots


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

    def take(self, line: int, seen: View, ask: AuditSource) -> None:
        """Look at one row."""
        row = len(self.lines)
        self.lines.append(line)
        self.views.append(seen)
        whole = seen.question if ask.labelled or not seen.answer else f"{seen.question}\n{seen.answer}"
        asked = words_of(seen.question)
        words = asked if whole is seen.question else words_of(whole)
        self.plain.append(" ".join(words).encode(errors="surrogatepass"))
        self.slots.append(slots(asked))
        self.counted.append(np.unique(self.slots[-1] if words is asked else slots(words)))
        first, last = edges(seen.question if ask.labelled or not seen.answer else seen.answer)
        ends = (digest(first) if first else 0, digest(last) if last else 0)
        both = digest(f"{seen.question.strip()}{CUT}{seen.answer.strip()}", exact=True)
        speaks = language(seen.answer, words_of(seen.answer)) if ask.answered else language(whole, words)
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
