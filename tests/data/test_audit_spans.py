"""Findings of an audit in rows with spans."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from tunesmith.data.audit.checks.span_checks import disagreements
from tunesmith.data.audit.fix import log_of
from tunesmith.data.examples.types import Span
from tunesmith.pipelines.audit import audit_rows
from tunesmith.pipelines.label import export_labels
from tunesmith.pipelines.requests import AuditRequest, LabelRequest


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


def write(path: Path, rows: list[tuple[str, list[Span]]]) -> Path:
    path.write_text("".join(json.dumps({"text": text, "spans": spans}) + "\n" for text, spans in rows), "utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("Install foo now", "  install  FOO \n now"),
        ("a café in Lyon, foo", unicodedata.normalize("NFD", "a café in Lyon, foo")),
    ],
)
def test_the_same_spans_of_texts_that_differ_in_case_spaces_or_composition_contradict_nothing(
    tmp_path: Path, text: str, other: str
):
    filler = [named(f"row {n} has openssl in it", f"L{n}") for n in range(30)]
    same = [named(text, part="foo"), named(other, part="FOO" if "FOO" in other else "foo")]
    data, fixed = tmp_path / "rows.jsonl", tmp_path / "fixed.jsonl"
    audit = audit_rows(AuditRequest(str(write(data, [*filler, *same])), fix=fixed), log=lambda line: None).audit
    assert "contradiction" not in {one.kind for one in audit.findings}
    # Another label, or the same label at another place, does.
    for third in (named(other.lower(), "package", "foo"), (text, [Span(0, 1, "PACKAGE")]), (text, [])):
        audit = audit_rows(AuditRequest(str(write(data, [*filler, *same, third]))), log=lambda line: None).audit
        assert [len(one.rows) for one in audit.findings if one.kind == "contradiction"] == [3]


def test_labels_that_look_like_a_range_are_counted_as_they_are(tmp_path: Path):
    rows = [named(f"row {n} has openssl in it", "A[0:1] B") for n in range(5)]
    data = write(tmp_path / "rows.jsonl", [*rows, ("this row has openssl unmarked", [])])
    audit = audit_rows(AuditRequest(str(data)), log=lambda line: None).audit
    (found,) = [one for one in audit.findings if one.kind == "span_disagreement"]
    assert "'openssl' is not marked here, A[0:1] B in 5 places" in str(found.samples)


@pytest.mark.parametrize(("form", "name"), [("rows", "r.jsonl"), ("spacy", "s.jsonl"), ("label-studio", "t.json")])
def test_an_audit_reads_every_format_that_label_writes(tmp_path: Path, form: str, name: str):
    data = write(tmp_path / "rows.jsonl", [*ALIKE, ("this row has openssl unmarked", [])])
    export_labels(LabelRequest(str(data), spans=("PACKAGE",), form=form), tmp_path / name, log=print)
    done = audit_rows(AuditRequest(str(tmp_path / name), fix=tmp_path / "fixed.jsonl"), log=lambda line: None)
    assert done.audit.rows == 6
    assert {one.kind for one in done.audit.findings} >= {"span_disagreement"}
    assert not {one.kind for one in done.audit.findings} & {"unreadable", "contradiction"}
    assert done.fixed is not None
    assert done.fixed.kept == 6


MAIL = "Mail anna@firma.de to ACME, then call Bob"


def fixed_spans(tmp_path: Path, row: dict[str, object]) -> dict[str, Any]:
    """A row with spans in the cleaned copy, or its line in the log if it was dropped."""
    data, fixed = tmp_path / "rows.jsonl", tmp_path / "fixed.jsonl"
    filler = [{"text": text, "spans": spans} for text, spans in ALIKE]
    data.write_text("".join(json.dumps(one) + "\n" for one in [*filler, row]), "utf-8")
    audit_rows(AuditRequest(str(data), fix=fixed), log=lambda line: None)
    log = [json.loads(line) for line in log_of(fixed).read_text("utf-8").splitlines()]
    last: dict[str, Any] = json.loads(fixed.read_text("utf-8").splitlines()[-1])
    dropped = [line for line in log if line["where"] == "rows.jsonl:6" and line["action"] == "dropped"]
    return dropped[0] if dropped else last


def test_spans_move_with_a_text_that_is_masked_or_repaired(tmp_path: Path):
    spans = [{"start": 5, "end": 18, "label": "ADDRESS", "text": "anna@firma.de"}, [22, 26, "ORG"]]
    row = fixed_spans(tmp_path, {"text": MAIL, "spans": spans})
    assert row["text"] == "Mail <email> to ACME, then call Bob"
    assert row["spans"] == [{"start": 5, "end": 12, "label": "ADDRESS", "text": "<email>"}, [16, 20, "ORG"]]
    (tmp_path / "fixed.jsonl").unlink()
    log_of(tmp_path / "fixed.jsonl").unlink()
    # Two repairs, one of them inside a span, before what is masked; and a list that is text.
    text = "Ich grÃ¼ÃŸe MÃ¼ller: anna@firma.de und ACME"
    named = [(text.index(part), part) for part in ("MÃ¼ller", "ACME")]
    written = json.dumps([{"start": at, "end": at + len(part), "label": "A"} for at, part in named])
    row = fixed_spans(tmp_path, {"text": text, "spans": written})
    assert row["text"] == "Ich grüße Müller: <email> und ACME"
    assert [row["text"][span["start"] : span["end"]] for span in json.loads(row["spans"])] == ["Müller", "ACME"]


def test_a_span_that_cuts_into_masked_text_covers_it_and_two_of_them_drop_the_row(tmp_path: Path):
    row = fixed_spans(tmp_path, {"text": MAIL, "spans": [[5, 9, "PERSON"], [22, 26, "ORG"]]})
    assert [row["text"][start:end] for start, end, _ in row["spans"]] == ["<email>", "ACME"]
    (tmp_path / "fixed.jsonl").unlink()
    log_of(tmp_path / "fixed.jsonl").unlink()
    dropped = fixed_spans(tmp_path, {"text": MAIL, "spans": [[5, 9, "PERSON"], [10, 15, "ORG"]]})
    assert dropped["why"].startswith("after repair or masking, ")


def test_spans_of_label_studio_move_with_their_text(tmp_path: Path):
    result = {"type": "labels", "value": {"start": 22, "end": 26, "text": "ACME", "labels": ["ORG"]}}
    tasks = [{"id": n, "data": {"text": f"{MAIL} {n}"}, "annotations": [{"result": [result]}]} for n in range(5)]
    data, fixed = tmp_path / "tasks.json", tmp_path / "fixed.jsonl"
    data.write_text(json.dumps(tasks), "utf-8")
    audit_rows(AuditRequest(str(data), fix=fixed), log=lambda line: None)
    for line in fixed.read_text("utf-8").splitlines():
        row = json.loads(line)
        value = row["annotations"][0]["result"][0]["value"]
        assert row["data"]["text"][value["start"] : value["end"]] == value["text"] == "ACME"
