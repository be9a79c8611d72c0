"""Run an audit: one pass over the file, then the checks that compare rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.audit.checks import duplicates as groups
from tunesmith.data.audit.checks.duplicates import Groups
from tunesmith.data.audit.checks.label_checks import counted, rare, uneven, variants
from tunesmith.data.audit.checks.label_noise import MOST_READ, doubts
from tunesmith.data.audit.checks.mojibake import has_lost_characters
from tunesmith.data.audit.checks.near_duplicates import Words
from tunesmith.data.audit.checks.secrets import masked
from tunesmith.data.audit.checks.span_checks import disagreements
from tunesmith.data.audit.checks.triggers import triggers
from tunesmith.data.audit.chunks import name_of
from tunesmith.data.audit.findings import CHECKS, Audit, Finding, Sample, severity_of, verdict_of
from tunesmith.data.audit.options import AuditSource, Tools
from tunesmith.data.audit.row_table import BROKEN, RowTable
from tunesmith.data.audit.row_view import as_answer
from tunesmith.data.audit.scan_file import read_held, read_table
from tunesmith.data.examples.types import Span
from tunesmith.data.schema.cells import same_flags
from tunesmith.data.text.minhash import digest

SAMPLES = 5  # rows shown per finding
MAX_SAMPLE_CHARS = 220  # characters shown of a row
# A sentence that begins or ends at least this number and share of rows is boilerplate.
SHARED_ROWS = 10
SHARED_SHARE = 0.01
MISSING = frozenset(["nan", "null", "n/a", "#n/a", "<na>"])
SEVERAL = "check them: several good answers are fine, conflicting answers are not; --fix OUT keeps them"
Rows = Mapping[int, str]  # row -> note


@dataclass(slots=True)
class Fixes:
    """Changes that `--fix` makes."""

    dropped: dict[int, tuple[str, str]] = field(default_factory=dict)  # line -> (kind, reason) of rows to drop
    labels: dict[str, str] = field(default_factory=dict)  # label -> common spelling


def audit(ask: AuditSource, tools: Tools) -> tuple[Audit, Fixes]:
    """Find the problems of a file, and what `fix` should do about them.

    Raises:
        DataError: if a file cannot be read or has no rows.
    """
    with ExitStack() as stack:
        table = stack.enter_context(RowTable(name_of(ask.source)))
        tests = [stack.enter_context(RowTable(name_of(source))) for source in ask.against]
        indices = [read_held(source, test, ask, tools) for source, test in zip(ask.against, tests, strict=True)]
        read_table(table, ask, indices, tools)
        return _Auditor(ask, tools, table, Fixes()).all(tests)


class _Auditor:
    """One table and its findings so far."""

    def __init__(self, ask: AuditSource, tools: Tools, table: RowTable, fixes: Fixes) -> None:
        self.ask, self.tools, self.table, self.fixes = ask, tools, table, fixes
        self.words = Words(table.counts, table.rows)
        self.found: dict[str, Rows] = {}
        self.lost: list[int] = []  # rows with lost characters
        self.notes: list[str] = []

    def all(self, tests: list[RowTable]) -> tuple[Audit, Fixes]:
        """Run all checks, each after those that it builds on."""
        self._rows_alone()
        self._leaks(tests)
        if self.ask.labelled:
            self._spellings()
        self._copies()
        if self.ask.labelled:
            self._labels()
        if self.ask.spanned:
            self._spans()
        self._shared_sentences()
        self._languages()
        self._lengths()
        findings = tuple(self._finding(kind) for kind in CHECKS if self.found.get(kind))
        audit = Audit(
            source=self.ask.source,
            against=", ".join(self.ask.against),
            shape=self.ask.shape,
            rows=self.table.rows,
            findings=findings,
            notes=tuple(self.notes),
            verdict=verdict_of(findings),
        )
        return audit, self.fixes

    def _rows_alone(self) -> None:
        if self.ask.labelled and max(map(len, self.table.labels), default=0) < 2:  # single-label
            bare = [row for row in self.table.sound().tolist() if not self.table.labels[row]]
            self.table.marks.setdefault("nothing_to_learn", {}).update(dict.fromkeys(bare, "no label"))
        self.found.update(self.table.marks)
        for kind in BROKEN:
            marks = self.table.marks.get(kind, {})
            self._drop(kind, marks, marks)
        damaged = self.table.marks.get("encoding_damage", {})
        self.lost = [row for row in damaged if has_lost_characters("\n".join(self.table.text(row)))]
        self._drop("encoding_damage", self.lost, damaged)

    def _leaks(self, tests: list[RowTable]) -> None:
        leaks: dict[int, str] = {}
        for test, long in zip(tests, self.table.leaks, strict=True):
            self.tools.log(f"comparing with {test.name}")
            copies = groups.leaks(self.table, test, long, self.words, labelled=self.ask.labelled)
            if self.tools.embed is not None:
                copies = {**groups.meant_alike(self.table, test, self.tools.embed), **copies}
            leaks.update({row: f"like {test.where(other)}" for row, other in copies.items()})
        self.found["leak"] = leaks
        self._drop("leak", leaks, leaks)

    def _copies(self) -> None:
        self.tools.log("looking for duplicates")
        # A copy keeps one row of several that are alike: not one with lost characters, which it drops.
        rows = np.setdiff1d(self.table.sound(), self.lost)
        same = groups.exact(self.table, rows)
        self._repeat("exact_duplicate", same)
        against = groups.contradictions(self.table, rows)
        # A prompt may have several good answers; a text with two labels is an error.
        outvoted = groups.outvoted(self.table, against) if self.ask.judged else np.zeros(0, np.int64)
        self._repeat("contradiction", against, drop=outvoted)
        others = np.setdiff1d(rows, np.concatenate([same.later, against.rows]))
        self._repeat("near_duplicate", groups.near(self.table, others, self.words, labelled=self.ask.labelled))
        self.table.near = self.table.near[:0].copy()  # frees 200 MB per million rows; not used below

    def _spellings(self) -> None:
        """Unify labels with two spellings before the following checks: such rows do not contradict each other."""
        table = self.table
        rows = table.sound().tolist()
        better = self.fixes.labels = variants(counted([table.labels[row] for row in rows]))
        for row in rows:
            if not better.keys().isdisjoint(table.labels[row]):
                table.said[row] = digest(as_answer(better.get(label, label) for label in table.labels[row]))

    def _labels(self) -> None:
        table = self.table
        rows = table.sound()
        counts = counted([table.labels[row] for row in rows.tolist()])
        merged: Counter[str] = Counter()
        for label, count in counts.items():
            merged[self.fixes.labels.get(label, label)] += count
        if len(merged) == 1:
            self.found["one_class"] = {row: self._label(label) for row in rows.tolist() for label in table.labels[row]}
        for label in sorted(label for label in merged if label.lower() in MISSING):
            self.notes.append(f"{merged[label]} rows have the label {label!r}, which usually means a missing label")
        types: dict[str, list[str]] = {}
        for label, kind in sorted(table.types):
            types.setdefault(label, []).append(kind)
        for label in (label for label in types if len(types[label]) > 1):
            self.notes.append(
                f"the label {label!r} is written as {' and '.join(types[label])}: they count as one label"
            )
        self.notes += same_flags(merged)
        few = rare(merged)
        for kind, listed in (("label_variant", set(self.fixes.labels)), ("rare_class", few)):
            self.found[kind] = {
                row: self._label(label) for row in rows.tolist() for label in table.labels[row] if label in listed
            }
        if gap := uneven(merged):
            least = {label for label in counts if merged[self.fixes.labels.get(label, label)] == min(merged.values())}
            self.found["label_imbalance"] = {row: gap for row in rows.tolist() if least & set(table.labels[row])}
        if all(len(table.labels[row]) == 1 for row in rows.tolist()):
            self._doubted(rows)

    def _spans(self) -> None:
        """Find words that are marked otherwise than in most rows."""
        self.tools.log("comparing spans")

        def read(row: int) -> tuple[str, list[Span]]:
            return self.table.text(row)[0], self.table.spans(row)

        self.found["span_disagreement"] = disagreements(self.table.sound().tolist(), read)

    def _label(self, label: str) -> str:
        better = self.fixes.labels.get(label)
        return f"{label!r} instead of {better!r}" if better else f"label {label!r}"

    def _doubted(self, rows: NDArray[np.int64]) -> None:
        """Find single labels that the models doubt, and phrases that always have one label."""
        self.tools.log("checking labels")
        table = self.table
        given = [self.fixes.labels.get(table.labels[row][0], table.labels[row][0]) for row in rows.tolist()]

        def text(i: int) -> str:
            return table.text(int(rows[i]))[0]

        result = doubts(text, given, table.asked[rows], workers=self.tools.workers, read=self.tools.read)
        if result is None:
            self.notes.append("label noise not checked: too few rows or shared words per label, or too many labels")
            return
        if self.tools.read is not None and len(rows) > MOST_READ:
            self.notes.append(
                f"labels checked by words only: the language model is used for at most {MOST_READ:,} rows"
            )
        self.found["label_noise"] = {
            int(rows[i]): f"labelled {given[i]!r}, predicted {other!r}" for i, (other, _) in result.doubted.items()
        }
        self.found["trigger_phrase"] = {
            int(rows[i]): f"{phrase!r} always has {given[i]!r}"
            for phrase, indices in triggers(text, given, result).items()
            for i in indices
        }

    def _shared_sentences(self) -> None:
        """Find rows that begin or end with a sentence that many different rows share."""
        table = self.table
        notes = dict(self.found.get("boilerplate", {}))
        rows = np.setdiff1d(table.sound(), groups.exact(table, table.sound()).later)
        least = max(SHARED_ROWS, SHARED_SHARE * len(rows))
        for side, verb in enumerate(("begins", "ends")):
            values, inverse, counts = np.unique(table.edges[rows, side], return_inverse=True, return_counts=True)
            common = (counts >= least) & (values != 0)
            for i in np.flatnonzero(common[inverse]):
                notes.setdefault(int(rows[i]), f"{verb} like {counts[inverse[i]]} rows")
        self.found["boilerplate"] = notes

    def _languages(self) -> None:
        rows = self.table.sound()
        languages = Counter(self.table.language[rows].tolist())
        languages.pop(b"", None)
        if not languages:
            return
        most, count = languages.most_common(1)[0]
        if count < 0.5 * sum(languages.values()):
            self.notes.append(
                "rows in several languages: " + ", ".join(code.decode() for code, _ in languages.most_common(5))
            )
            return
        other = rows[(self.table.language[rows] != b"") & (self.table.language[rows] != most)]
        self.found["mixed_language"] = {
            row: f"{self.table.language[row].decode()}, most rows are {most.decode()}" for row in other.tolist()
        }

    def _lengths(self) -> None:
        if self.tools.count is None:
            return
        self.tools.log("counting tokens")
        rows = self.table.sound()
        notes: dict[int, str] = {}
        for start in range(0, len(rows), 1000):
            part = rows[start : start + 1000].tolist()
            sizes = self.tools.count(["\n".join(filter(None, self.table.text(row))) for row in part])
            notes |= {
                row: f"{size} tokens, the limit is {self.tools.limit}"
                for row, size in zip(part, sizes, strict=True)
                if size > self.tools.limit
            }
        self.found["truncated"] = notes

    def _repeat(self, kind: str, found: Groups, *, drop: NDArray[np.int64] | None = None) -> None:
        """Add a finding for all rows of the groups; drop the given rows, else all but the first of each group."""
        notes: dict[int, str] = {}
        for group in found.groups:
            first, second = (f"like {self.table.where(int(row))}" for row in group[:2])
            notes.update(dict.fromkeys(group[1:].tolist(), first))  # one string per group: there may be a million rows
            notes[int(group[0])] = second
        self.found[kind] = notes
        self._drop(kind, (found.later if drop is None else drop).tolist(), notes)

    def _drop(self, kind: str, rows: Iterable[int], notes: Rows) -> None:
        same: dict[str, tuple[str, str]] = {}
        for row in rows:
            note = notes[row]
            self.fixes.dropped.setdefault(int(self.table.lines[row]), same.setdefault(note, (kind, note)))

    def _finding(self, kind: str) -> Finding:
        """Build the finding of one kind with samples."""
        notes, table, check = self.found[kind], self.table, CHECKS[kind]
        rows = np.fromiter(notes, np.int64, len(notes))
        several = kind == "contradiction" and not self.ask.judged
        blocks = None if kind == "contradiction" and not self.ask.labelled else check.blocks_from
        severity = severity_of(check, blocks, len(rows) / table.rows)
        shown = np.sort(rows)[:SAMPLES].tolist()
        return Finding(
            kind=kind,
            severity=severity,
            count=len(rows),
            rows=table.places(rows),
            fix=SEVERAL if several else check.fix,
            about=check.about,
            share=round(len(rows) / table.rows, 6),
            blocks_from=blocks,
            samples=tuple(_sample(table, row, notes[row]) for row in shown),
        )


def _sample(table: RowTable, row: int, note: str) -> Sample:
    """Build a sample; personal data and secrets are masked."""
    text = " → ".join(filter(None, (" ".join(part.split()) for part in table.text(row))))
    text = masked(text)[0].encode(errors="backslashreplace").decode()  # half an emoji cannot be shown
    return Sample(
        where=table.where(row),
        text=text if len(text) <= MAX_SAMPLE_CHARS else f"{text[: MAX_SAMPLE_CHARS - 1]}…",
        note=note,
    )
