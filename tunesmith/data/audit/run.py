"""An audit from start to end: one pass over the file, then what only all rows together can tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.audit import groups
from tunesmith.data.audit.ask import AuditSource, Tools
from tunesmith.data.audit.finding import CHECKS, Audit, Finding, Sample, severity_of, verdict_of
from tunesmith.data.audit.groups import Groups
from tunesmith.data.audit.labels import counted, rare, uneven, variants
from tunesmith.data.audit.mask import masked
from tunesmith.data.audit.near import Words
from tunesmith.data.audit.noise import MOST_READ, doubts
from tunesmith.data.audit.read import read_held, read_table
from tunesmith.data.audit.shingles import digest
from tunesmith.data.audit.stream import name_of
from tunesmith.data.audit.table import BROKEN, RowTable
from tunesmith.data.audit.trigger import triggers
from tunesmith.data.audit.view import as_answer
from tunesmith.data.audit.wording import LANGUAGES

SAMPLES, SHOWN = 5, 220
SHARED_ROWS, SHARED_SHARE = 10, 0.01  # a sentence that begins or ends so many rows is boilerplate
MISSING = frozenset(["nan", "null", "n/a", "#n/a", "<na>"])
SEVERAL = "read them: several good answers are no fault, answers that disagree are; --fix OUT leaves them"
Rows = Mapping[int, str]  # row -> note


@dataclass(slots=True)
class Cures:
    """What `--fix` does: line -> (kind, the line or file:line it repeats) to drop, label -> its spelling."""

    dropped: dict[int, tuple[str, str]] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)


def audit(ask: AuditSource, tools: Tools) -> tuple[Audit, Cures]:
    """Everything that is wrong with a file, and what would cure it. Raises DataError for a file that is no rows."""
    with ExitStack() as stack:
        table = stack.enter_context(RowTable(name_of(ask.source)))
        tests = [stack.enter_context(RowTable(name_of(source))) for source in ask.against]
        indices = [read_held(source, test, ask, tools) for source, test in zip(ask.against, tests, strict=True)]
        read_table(table, ask, indices, tools)
        return _Auditor(ask, tools, table, Cures()).all(tests)


class _Auditor:
    """One table and what was found in it so far."""

    def __init__(self, ask: AuditSource, tools: Tools, table: RowTable, cures: Cures) -> None:
        self.ask, self.tools, self.table, self.cures = ask, tools, table, cures
        self.words = Words(table.counts, table.rows)
        self.found: dict[str, Rows] = {}
        self.notes: list[str] = []

    def all(self, tests: list[RowTable]) -> tuple[Audit, Cures]:
        """Every check there is, in an order in which each can build on those before."""
        self._rows_alone()
        self._leaks(tests)
        if self.ask.labelled:
            self._spellings()
        self._copies()
        if self.ask.labelled:
            self._labels()
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
        return audit, self.cures

    def _rows_alone(self) -> None:
        if self.ask.labelled and max(map(len, self.table.labels), default=0) < 2:  # no row has several labels
            bare = [row for row in self.table.sound().tolist() if not self.table.labels[row]]
            self.table.marks.setdefault("nothing_to_learn", {}).update(dict.fromkeys(bare, "no label"))
        self.found.update(self.table.marks)
        for kind in BROKEN:
            marks = self.table.marks.get(kind, {})
            self._drop(kind, marks, marks)

    def _leaks(self, tests: list[RowTable]) -> None:
        leaks: dict[int, str] = {}
        for test, long in zip(tests, self.table.leaks, strict=True):
            self.tools.tell(f"comparing with {test.name}")
            found = groups.leaks(self.table, test, long, self.words, labelled=self.ask.labelled)
            if self.tools.embed is not None:
                found = {**groups.meant_alike(self.table, test, self.tools.embed), **found}
            leaks.update({row: f"like {test.where(other)}" for row, other in found.items()})
        self.found["leak"] = leaks
        self._drop("leak", leaks, leaks)

    def _copies(self) -> None:
        self.tools.tell("looking for copies")
        rows = self.table.sound()
        same = groups.exact(self.table, rows)
        self._repeat("exact_duplicate", same)
        against = groups.contradictions(self.table, rows)
        # Several good answers to one prompt are no fault of the rows; two labels of one text are.
        wrong = groups.outvoted(self.table, against) if self.ask.judged else np.zeros(0, np.int64)
        self._repeat("contradiction", against, drop=wrong)
        alone = np.setdiff1d(rows, np.concatenate([same.later, against.rows]))
        self._repeat("near_duplicate", groups.near(self.table, alone, self.words, labelled=self.ask.labelled))
        self.table.near = self.table.near[:0].copy()  # of a million rows 200 MB that nothing looks at from here on

    def _spellings(self) -> None:
        """Labels written in two ways count as one from here on: such rows do not contradict one another."""
        table, rows = self.table, self.table.sound().tolist()
        better = self.cures.labels = variants(counted([table.labels[row] for row in rows]))
        for row in rows:
            if not better.keys().isdisjoint(table.labels[row]):
                table.said[row] = digest(as_answer(better.get(label, label) for label in table.labels[row]))

    def _labels(self) -> None:
        table, rows = self.table, self.table.sound()
        counts = counted([table.labels[row] for row in rows.tolist()])
        merged: Counter[str] = Counter()
        for label, count in counts.items():
            merged[self.cures.labels.get(label, label)] += count
        if len(merged) == 1:
            self.found["one_class"] = {row: self._said(label) for row in rows.tolist() for label in table.labels[row]}
        for label in sorted(label for label in merged if label.lower() in MISSING):
            self.notes.append(
                f"{merged[label]} rows have the label {label!r}, as programs write a label that is missing"
            )
        few = rare(merged)
        for kind, listed in (("label_variant", set(self.cures.labels)), ("rare_class", few)):
            self.found[kind] = {
                row: self._said(label) for row in rows.tolist() for label in table.labels[row] if label in listed
            }
        if gap := uneven(merged):
            least = {label for label in counts if merged[self.cures.labels.get(label, label)] == min(merged.values())}
            self.found["label_imbalance"] = {row: gap for row in rows.tolist() if least & set(table.labels[row])}
        if all(len(table.labels[row]) == 1 for row in rows.tolist()):
            self._doubted(rows)

    def _said(self, label: str) -> str:
        better = self.cures.labels.get(label)
        return f"{label!r} for {better!r}" if better else f"label {label!r}"

    def _doubted(self, rows: NDArray[np.int64]) -> None:
        """Single labels that the rest of the rows speak against, and phrases that buy a label."""
        self.tools.tell("judging labels")
        table = self.table
        given = [self.cures.labels.get(table.labels[row][0], table.labels[row][0]) for row in rows.tolist()]

        def text(i: int) -> str:
            return table.text(int(rows[i]))[0]

        found = doubts(text, given, table.asked[rows], workers=self.tools.workers, read=self.tools.read)
        if found is None:
            self.notes.append("too few rows or shared words a label, or too many labels, to judge labels by a model")
            return
        if self.tools.read is not None and len(rows) > MOST_READ:
            self.notes.append(f"labels are judged by words alone: a model reads at most {MOST_READ:,} rows")
        self.found["label_noise"] = {
            int(rows[i]): f"labelled {given[i]!r}, rather {other!r}" for i, (other, _) in found.doubted.items()
        }
        self.found["trigger_phrase"] = {
            int(rows[i]): f"{phrase!r} always has {given[i]!r}"
            for phrase, places in triggers(text, given, found).items()
            for i in places
        }

    def _shared_sentences(self) -> None:
        """Rows that begin or end with a sentence that many different rows share."""
        table, found = self.table, dict(self.found.get("boilerplate", {}))
        rows = np.setdiff1d(table.sound(), groups.exact(table, table.sound()).later)
        least = max(SHARED_ROWS, SHARED_SHARE * len(rows))
        for side, what in enumerate(("begins", "ends")):
            values, place, counts = np.unique(table.edges[rows, side], return_inverse=True, return_counts=True)
            common = (counts >= least) & (values != 0)
            for i in np.flatnonzero(common[place]):
                found.setdefault(int(rows[i]), f"{what} as {counts[place[i]]} rows do")
        self.found["boilerplate"] = found

    def _languages(self) -> None:
        rows = self.table.sound()
        known = Counter(self.table.language[rows].tolist())
        known.pop(0, None)
        if not known:
            return
        most, count = known.most_common(1)[0]
        if count < 0.5 * sum(known.values()):
            self.notes.append("rows in several languages: " + ", ".join(LANGUAGES[i] for i, _ in known.most_common(5)))
            return
        other = rows[(self.table.language[rows] != 0) & (self.table.language[rows] != most)]
        self.found["mixed_language"] = {
            row: f"{LANGUAGES[self.table.language[row]]}, most rows are {LANGUAGES[most]}" for row in other.tolist()
        }

    def _lengths(self) -> None:
        if self.tools.count is None:
            return
        self.tools.tell("counting tokens")
        rows, found = self.table.sound(), dict[int, str]()
        for start in range(0, len(rows), 1000):
            part = rows[start : start + 1000].tolist()
            sizes = self.tools.count(["\n".join(filter(None, self.table.text(row))) for row in part])
            found |= {
                row: f"{size} tokens, the limit is {self.tools.limit}"
                for row, size in zip(part, sizes, strict=True)
                if size > self.tools.limit
            }
        self.found["truncated"] = found

    def _repeat(self, kind: str, found: Groups, *, drop: NDArray[np.int64] | None = None) -> None:
        """Note every row of the groups, and drop some: those given, else all but the first of each."""
        notes: dict[int, str] = {}
        for group in found.groups:
            first, second = (f"like {self.table.where(int(row))}" for row in group[:2])
            notes.update(dict.fromkeys(group[1:].tolist(), first))  # one text a group: there may be a million rows
            notes[int(group[0])] = second
        self.found[kind] = notes
        self._drop(kind, (found.later if drop is None else drop).tolist(), notes)

    def _drop(self, kind: str, rows: Iterable[int], notes: Rows) -> None:
        same: dict[str, tuple[str, str]] = {}
        for row in rows:
            note = notes[row]
            self.cures.dropped.setdefault(int(self.table.lines[row]), same.setdefault(note, (kind, note)))

    def _finding(self, kind: str) -> Finding:
        """All rows of a kind, with some of them to look at."""
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
            cure=SEVERAL if several else check.cure,
            about=check.about,
            share=round(len(rows) / table.rows, 6),
            blocks_from=blocks,
            samples=tuple(_sample(table, row, notes[row]) for row in shown),
        )


def _sample(table: RowTable, row: int, note: str) -> Sample:
    """A row to look at; what must not be told on is masked."""
    text = " → ".join(filter(None, (" ".join(part.split()) for part in table.text(row))))
    text = masked(text)[0].encode(errors="backslashreplace").decode()  # half an emoji cannot be shown
    return Sample(where=table.where(row), text=text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…", note=note)
