"""Findings of an audit in rows with spans."""

from __future__ import annotations

import json
from pathlib import Path

from tunesmith.data.audit.checks.span_checks import disagreements
from tunesmith.data.examples.spans import from_readable, readable
from tunesmith.data.examples.types import Span
from tunesmith.pipelines.audit import audit_rows
from tunesmith.pipelines.requests import AuditRequest


def found(*rows: tuple[str, list[Span]]) -> dict[int, str]:
    return disagreements(range(len(rows)), lambda row: rows[row])


def named(text: str, label: str = "PACKAGE", part: str = "openssl") -> tuple[str, list[Span]]:
    """A text in which a part is marked."""
    start = text.index(part)
    return text, [Span(start, start + len(part), label)]


ALIKE = [named(f"row {n} has openssl in it") for n in range(5)]


def test_words_that_are_marked_otherwise_than_in_most_rows_are_found():
    rows = [*ALIKE, named("here openssl is one", "VERSION"), *(named(f"also {n} openssl") for n in range(4))]
    assert found(*rows) == {5: "'openssl' is VERSION here, PACKAGE in 9 places"}


def test_words_that_are_not_marked_where_most_rows_mark_them_are_found():
    assert found(*ALIKE, ("openssl is not marked", [])) == {5: "'openssl' is not marked here, PACKAGE in 5 places"}
    # Not a part of another word, nor inside a longer span.
    longer = named("the openssl library", part="openssl library")
    assert found(*ALIKE, ("opensslx and my-openssl, openssl/x, the openssl: are others", []), longer) == {
        5: "'openssl' is not marked here, PACKAGE in 5 places"
    }


def test_ambiguous_and_rare_words_are_not_found():
    assert found(*ALIKE, *(named(f"openssl {n}", "VERSION") for n in range(3))) == {}
    assert found(*ALIKE[:3], ("openssl is not marked", [])) == {}
    assert found(*ALIKE, ("nothing", []), ("", [])) == {}


def test_spans_in_one_line_are_read_back():
    text = "a [0:1] b; X[2:3] 👩‍👩‍👧\nc"
    spans = [Span(0, 9, "A B"), Span(11, 17, "X"), Span(18, 23, "Y[")]
    assert from_readable(readable(spans, text), text) == spans
    assert from_readable("", text) == []


def test_an_audit_reports_spans_with_spaces_and_disagreements_and_fix_keeps_the_majority(tmp_path: Path):
    rows = [*ALIKE, ("this row has openssl unmarked", []), named("it has bash too", part=" bash ")]
    rows += [named("same text with zsh inside", part="zsh")] * 2 + [named("same text with zsh inside", "X", "zsh")]
    data, fixed = tmp_path / "rows.jsonl", tmp_path / "fixed.jsonl"
    data.write_text("".join(json.dumps({"text": text, "spans": spans}) + "\n" for text, spans in rows), "utf-8")
    audit = audit_rows(AuditRequest(str(data), fix=fixed), log=lambda line: None).audit
    at = {one.kind: [int(row.rpartition(":")[2]) for row in one.rows] for one in audit.findings}
    assert at["span_spaces"] == [7]
    assert at["span_disagreement"] == [6]
    assert at["contradiction"] == [8, 9, 10]
    left = [json.loads(line) for line in fixed.read_text("utf-8").splitlines()]
    assert [row["spans"][0][2] for row in left if "zsh" in row["text"]] == ["PACKAGE"]
