"""Scan a chunk of rows: all checks that need no other row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.audit.checks.mojibake import damage
from tunesmith.data.audit.checks.personal_data import personal
from tunesmith.data.audit.checks.secrets import keys
from tunesmith.data.audit.checks.text_checks import chat_tokens, edges, refusal
from tunesmith.data.audit.chunks import RowChunk, parsed
from tunesmith.data.audit.options import AuditSource
from tunesmith.data.audit.row_table import CUT, Digest, stored
from tunesmith.data.audit.row_view import LETTERS, View, view
from tunesmith.data.readers.row import Row, allowed_values, has_allowed
from tunesmith.data.text.language import language
from tunesmith.data.text.minhash import digest, signatures, slots
from tunesmith.data.text.overlap import HeldOutRuns, leaked
from tunesmith.data.text.words import words_of


@dataclass(frozen=True, slots=True)
class ScanPlan:
    """Options for scanning the rows of a file."""

    name: str  # file name for locations
    ask: AuditSource  # the audit's options
    held: tuple[HeldOutRuns, ...] = ()  # indices of the test files


def digest_of(plan: ScanPlan, chunk: RowChunk) -> Digest:
    """Return the digest of a chunk."""
    return scan(plan, chunk)[0]


def scan(plan: ScanPlan, chunk: RowChunk) -> tuple[Digest, list[NDArray[np.uint32]]]:
    """Return the digest of a chunk and the word slots of each prompt."""
    result = _ChunkScan()
    allowed = allowed_values(plan.ask.where)
    for line, raw in zip(chunk.lines, chunk.rows, strict=True):
        fields = parsed(raw)
        if not isinstance(fields, str):
            if not has_allowed(fields, allowed):
                continue
            seen = view(Row(f"{plan.name}:{line}", fields), plan.ask.columns, plan.ask.separator)
        else:
            seen = View("", "", (), "unreadable", fields)
        result.take(line, seen, plan.ask)
    leaks = [leaked(result.slots, test) for test in plan.held]
    return result.digest(leaks), result.slots


class _ChunkScan:
    """Results for the rows of a chunk so far."""

    def __init__(self) -> None:
        self.lines: list[int] = []
        self.views: list[View] = []
        self.hashes: list[tuple[int, int, int, int, int]] = []
        self.languages: list[str] = []
        self.plain: list[bytes] = []
        self.slots: list[NDArray[np.uint32]] = []
        self.counted: list[NDArray[np.uint32]] = []
        self.marks: dict[str, dict[int, str]] = {}

    def take(self, line: int, seen: View, ask: AuditSource) -> None:
        """Scan one row."""
        row = len(self.lines)
        self.lines.append(line)
        self.views.append(seen)
        text = seen.question if ask.labelled or not seen.answer else f"{seen.question}\n{seen.answer}"
        prompt_words = words_of(seen.question)
        words = prompt_words if text is seen.question else words_of(text)
        self.plain.append(" ".join(words).encode(errors="surrogatepass"))
        self.slots.append(slots(prompt_words))
        self.counted.append(np.unique(self.slots[-1] if words is prompt_words else slots(words)))
        first, last = edges(seen.question if ask.labelled or not seen.answer else seen.answer)
        ends = (digest(first) if first else 0, digest(last) if last else 0)
        both = digest(f"{seen.question.strip()}{CUT}{seen.answer.strip()}", exact=True)
        self.languages.append(language(seen.answer if ask.answered else text))
        self.hashes.append((digest(seen.question), digest(seen.compared or seen.answer), both, *ends))
        if seen.problem:
            self.marks.setdefault(seen.problem, {})[row] = seen.why
        if seen.problem == "unreadable":
            return
        for kind, note in seen.calls.items():
            self.marks.setdefault(kind, {})[row] = note
        for kind, check in TEXT_CHECKS:
            if note := check(text):
                self.marks.setdefault(kind, {})[row] = note
        if not seen.problem and len(LETTERS.findall(seen.question[:1000])) < 3:
            self.marks.setdefault("too_short", {})[row] = repr(seen.question.strip())

    def digest(self, leaks: list[dict[int, int]]) -> Digest:
        """Return all results as arrays."""
        numbers = np.array(self.hashes, np.uint64).reshape(-1, 5)
        stacked = np.concatenate(self.counted) if self.counted else np.zeros(0, np.uint32)
        word_slots, counts = np.unique(stacked, return_counts=True)
        texts = [stored(seen.question, seen.answer, seen.spans) for seen in self.views]
        return Digest(
            lines=np.array(self.lines, np.int64),
            asked=numbers[:, 0].copy(),
            said=numbers[:, 1].copy(),
            whole=numbers[:, 2].copy(),
            near=signatures(self.plain),
            edges=numbers[:, 3:].copy(),
            language=np.array(self.languages, "S3"),
            labels=[seen.labels for seen in self.views],
            types={pair for seen in self.views for pair in zip(seen.labels, seen.types, strict=False)},
            marks=self.marks,
            texts=texts,
            counts=(word_slots, counts.astype(np.uint32)),
            leaks=leaks,
        )


def _secret(text: str) -> str:
    """Return the number and lengths of secrets; the note must not contain them."""
    spans = keys(text)
    return f"{len(spans)} of {', '.join(str(span.end - span.start) for span in spans[:3])} characters" if spans else ""


# (kind, check of one text that returns a note, empty for no finding)
TEXT_CHECKS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("secret", _secret),
    ("personal_data", lambda text: ", ".join(dict.fromkeys(span.word for span in personal(text)))),
    ("encoding_damage", damage),
    ("template_tokens", chat_tokens),
    ("boilerplate", refusal),
)
