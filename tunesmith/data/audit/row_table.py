"""Results of the pass over a file: a few hashes of each row in memory, the texts on disk."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.examples.types import Span
from tunesmith.data.text.minhash import WORD_BITS, K, Longs, Shorts

CUT = "\x1f"
SPANS_CUT = CUT + CUT
# Kinds of invalid rows, which other checks skip.
BROKEN = ("unreadable", "wrong_roles", "empty", "nothing_to_learn")
# Limits memory for files with a million invalid rows.
MOST_NOTES = 20_000


@dataclass(slots=True)
class Digest:
    """The rows of one chunk; arrays have one entry per row, N rows."""

    lines: NDArray[np.int64]  # line of each row, [N]
    asked: Longs  # hash of the prompt, normalized, [N]
    said: Longs  # hash of the answer, normalized, [N]
    whole: Longs  # hash of both, exact, [N]
    near: Shorts  # MinHash signatures, [N, K]
    edges: Longs  # hashes of the first and last sentence, [N, 2]; 0: none
    language: NDArray[np.bytes_]  # ISO 639 code of each row, empty if uncertain, [N]
    labels: list[tuple[str, ...]]  # labels of each row
    types: set[tuple[str, str]]  # pairs of a label and its type in the file
    marks: dict[str, dict[int, str]]  # kind -> row -> note
    texts: list[bytes]  # prompt, answer and spans, from `stored`
    counts: tuple[NDArray[np.uint32], NDArray[np.uint32]]  # word slots, and the number of rows that contain each
    leaks: list[dict[int, int]] = field(default_factory=list)  # per test file, row -> row of that file


def stored(question: str, answer: str, spans: Sequence[Span]) -> bytes:
    """Return the prompt, the answer and the spans of a row as they are kept on disk."""
    marks = f"{SPANS_CUT}{json.dumps(spans)}" if spans else ""
    return f"{question}{CUT}{answer}{marks}".encode(errors="surrogatepass")


class RowTable:
    """All rows of a file. A context manager: the texts are in a temporary file that is deleted on exit."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows = 0
        self.counts = np.zeros(1 << WORD_BITS, np.uint32)
        self.labels: list[tuple[str, ...]] = []
        self.types: set[tuple[str, str]] = set()
        self.marks: dict[str, dict[int, str]] = {}
        self.leaks: list[dict[int, int]] = []
        self._digests: list[Digest] = []
        self._sizes: list[NDArray[np.int64]] = []
        self._known: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._spool = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> RowTable:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._spool.close()

    def add(self, digest: Digest) -> None:
        """Add the rows of the next chunk."""
        self._sizes.append(np.fromiter(map(len, digest.texts), np.int64, len(digest.texts)))
        self._spool.write(b"".join(digest.texts))
        # One tuple for each combination of labels, not one for each row.
        self.labels += [self._known.setdefault(labels, labels) for labels in digest.labels]
        self.types |= digest.types
        slots, counts = digest.counts
        self.counts[slots] += counts
        for kind, rows in digest.marks.items():
            notes = self.marks.setdefault(kind, {})
            for row, note in rows.items():
                notes[self.rows + row] = note if len(notes) < MOST_NOTES else ""
        self.leaks = self.leaks or [{} for _ in digest.leaks]
        for leaks, new in zip(self.leaks, digest.leaks, strict=True):
            leaks.update({self.rows + row: held for row, held in new.items()})
        self.rows += len(digest.lines)
        digest.texts, digest.labels, digest.marks, digest.leaks = [], [], {}, []
        self._digests.append(digest)

    def close(self) -> None:
        """Concatenate the chunks; afterwards the arrays can be read."""
        self._spool.flush()
        digests = self._digests
        self._digests = []
        self.lines = np.concatenate([digest.lines for digest in digests] or [np.zeros(0, np.int64)])
        self.asked = np.concatenate([digest.asked for digest in digests] or [np.zeros(0, np.uint64)])
        self.said = np.concatenate([digest.said for digest in digests] or [np.zeros(0, np.uint64)])
        self.whole = np.concatenate([digest.whole for digest in digests] or [np.zeros(0, np.uint64)])
        self.near = np.concatenate([digest.near for digest in digests] or [np.zeros((0, K), np.uint16)])
        self.edges = np.concatenate([digest.edges for digest in digests] or [np.zeros((0, 2), np.uint64)])
        self.language = np.concatenate([digest.language for digest in digests] or [np.zeros(0, "S3")])
        self._starts = np.concatenate([[0], np.cumsum(np.concatenate(self._sizes or [np.zeros(0, np.int64)]))])

    def text(self, row: int) -> tuple[str, str]:
        """Return the prompt and the answer of a row."""
        question, _, answer = self._stored(row).partition(CUT)
        return question, answer.partition(SPANS_CUT)[0]

    def spans(self, row: int) -> list[Span]:
        """Return the spans of a row, in order."""
        found = self._stored(row).rpartition(SPANS_CUT)
        return [Span(*span) for span in json.loads(found[2])] if found[1] else []

    def _stored(self, row: int) -> str:
        start, end = int(self._starts[row]), int(self._starts[row + 1])
        self._spool.seek(start)
        return self._spool.read(end - start).decode("utf-8", errors="surrogatepass")

    def where(self, row: int) -> str:
        """Return the location of a row, `file.jsonl:17`."""
        return f"{self.name}:{self.lines[row]}"

    def places(self, rows: Sequence[int] | NDArray[np.int64]) -> tuple[str, ...]:
        """Return the locations of rows in file order."""
        lines = np.sort(self.lines[np.asarray(rows, np.int64)])
        return tuple(f"{self.name}:{line}" for line in lines.tolist())

    def sound(self) -> NDArray[np.int64]:
        """Return the valid rows."""
        return self._without(BROKEN)

    def asking(self) -> NDArray[np.int64]:
        """Return the rows with a prompt, including those without an answer, which a test file may omit."""
        return self._without([kind for kind in BROKEN if kind != "nothing_to_learn"])

    def _without(self, kinds: Sequence[str]) -> NDArray[np.int64]:
        keep = np.ones(self.rows, bool)
        keep[[row for kind in kinds for row in self.marks.get(kind, ())]] = False
        return np.flatnonzero(keep)
