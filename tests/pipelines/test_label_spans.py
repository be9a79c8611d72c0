"""Marked spans: what is stored and refused, and files in the formats of spaCy and Label Studio and back."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.test_label import ANA, opened, write
from tunesmith.annotation.label_rows import Columns
from tunesmith.annotation.labelling import SpanSession
from tunesmith.data.examples.types import Span, TaggedText
from tunesmith.data.readers.read import read_rows
from tunesmith.data.schema.formats import detect
from tunesmith.errors import DataError, OptionError
from tunesmith.objectives import Tag
from tunesmith.pipelines.label import export_labels
from tunesmith.pipelines.requests import LabelRequest

SPANS = ("PACKAGE", "VERSION")
EMOJI = "👩‍👩‍👧 café\u0301 5.2\nnext line"
ROWS: list[dict[str, object]] = [
    {"text": EMOJI, "source": "a", "spans": [{"start": 6, "end": 11, "label": "PACKAGE"}, [12, 15, "VERSION"]]},
    {"text": "nothing here", "source": "b", "spans": []},
    {"text": "not annotated", "source": "c", "spans": None},
    {"text": "  bash 5.2 ", "source": "d", "spans": [[2, 6, "PACKAGE"], [7, 10, "A, B \u00e9"]]},
]


def tagged(path: Path) -> list[tuple[str, list[tuple[int, int, str]]]]:
    """Text and spans of each row, as the objective reads them with columns that are detected."""
    rows = read_rows(path)
    assert detect(rows).objective == "tag"
    found = Tag().examples(rows, group="")
    return [(row.text, [tuple(span) for span in row.spans]) for row in found if isinstance(row, TaggedText)]


def test_marked_spans_are_on_disk_and_come_out_as_rows_of_tag(tmp_path: Path):
    data = write(tmp_path / "rows.jsonl", [{"text": "bash 5.2"}, {"text": "BASH 5.2"}, {"text": "nothing"}])
    work = opened(data, spans=SPANS)
    assert isinstance(work, SpanSession)
    assert work.labels() == list(SPANS)
    by_text = {item.text: item.key for item in work.rows.items}
    assert len(by_text) == 3  # positions depend on letters
    work.mark(ANA, by_text["bash 5.2"], [Span(4, 8, "VERSION"), Span(0, 4, "PACKAGE")])
    work.mark(ANA, by_text["nothing"], [])
    assert work.progress("Ana").labels == {"PACKAGE": 1, "VERSION": 1}
    work.store.close()

    # No option is needed again: the store knows that it has spans.
    assert export_labels(LabelRequest(str(data)), tmp_path / "out.jsonl", log=print).rows == 2
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert found == [
        {
            "text": "bash 5.2",
            "spans": [{"start": 0, "end": 4, "label": "PACKAGE"}, {"start": 5, "end": 8, "label": "VERSION"}],
        },
        {"text": "nothing", "spans": []},
    ]
    assert isinstance(opened(data), SpanSession)
    # They are votes of the file when it is labelled further.
    again = opened(tmp_path / "out.jsonl", spans=SPANS)
    assert again.progress().labelled == 2


@pytest.mark.parametrize(
    ("spans", "why"),
    [
        ([Span(0, 9, "A")], "at 0 to 9 of 8 characters"),
        ([Span(-1, 2, "A")], "at -1 to 2"),
        ([Span(10**30, 10**31, "A")], "of 8 characters"),
        ([Span(0, 4, "A"), Span(2, 6, "B")], "overlaps A 'bash'"),
        ([Span(0, 8, "A"), Span(5, 8, "B")], "is inside A 'bash 5.2'"),
        ([Span(4, 5, "A")], "is blank"),
        ([Span(0, 4, " ")], "label: empty"),
        ([Span(0, 4, "O")], "means no span"),
        ([Span(0, 4, "a\x00")], "control character"),
    ],
)
def test_a_span_that_no_row_can_have_is_refused_and_stores_nothing(tmp_path: Path, spans: list[Span], why: str):
    work = opened(write(tmp_path / "rows.jsonl", [{"text": "bash 5.2"}]), spans=SPANS)
    assert isinstance(work, SpanSession)
    before = work.store.since()
    with pytest.raises(DataError, match=re.escape(why)) as error:
        work.mark(ANA, work.rows.items[0].key, spans)
    assert "\n" not in str(error.value)
    assert work.store.since() == before


def test_a_store_of_labels_takes_no_spans(tmp_path: Path):
    data = write(tmp_path / "rows.jsonl", [{"text": "one"}, {"text": "two"}])
    opened(data, labels=("good",)).store.close()
    with pytest.raises(DataError, match="expected votes on spans, got votes on labels"):
        opened(data, spans=SPANS)
    with pytest.raises(OptionError, match="--labels"):
        opened(data, spans=SPANS, labels=("good",), store=data.with_name("other.db"))


@pytest.mark.parametrize(
    ("form", "name"), [("spacy", "out.jsonl"), ("label-studio", "out.json"), ("rows", "out.jsonl")]
)
def test_rows_in_another_format_and_back_are_the_same_rows(tmp_path: Path, form: str, name: str):
    data = write(tmp_path / "rows.jsonl", ROWS)
    expected = [(str(row["text"]), [tuple(x.values() if isinstance(x, dict) else x) for x in row["spans"]])  # type: ignore[attr-defined]
                for row in ROWS if row["spans"] is not None]  # fmt: skip
    opened(data, spans=SPANS).store.close()
    assert export_labels(LabelRequest(str(data), form=form), tmp_path / name, log=print).rows == 3
    assert tagged(tmp_path / name) == expected
    # And from that format to rows.
    back = tmp_path / "back.jsonl"
    export_labels(LabelRequest(str(tmp_path / name), spans=SPANS, form="rows"), back, log=print)
    assert tagged(back) == expected
    if form != "spacy":  # further columns
        assert [json.loads(line)["source"] for line in back.read_text("utf-8").splitlines()] == ["a", "b", "d"]


def test_an_export_is_what_spacy_and_label_studio_read(tmp_path: Path):
    data = write(tmp_path / "rows.jsonl", ROWS[:1])
    export_labels(LabelRequest(str(data), form="spacy"), tmp_path / "spacy.jsonl", log=print)
    assert json.loads((tmp_path / "spacy.jsonl").read_text("utf-8")) == [
        EMOJI, {"entities": [[6, 11, "PACKAGE"], [12, 15, "VERSION"]]}
    ]  # fmt: skip
    export_labels(LabelRequest(str(data), form="label-studio"), tmp_path / "tasks.json", log=print)
    (task,) = json.loads((tmp_path / "tasks.json").read_text("utf-8"))
    assert task["data"] == {"text": EMOJI, "source": "a"}
    (annotation,) = task["annotations"]
    assert annotation["result"][0] == {
        "id": "0000000000", "from_name": "label", "to_name": "text", "type": "labels",
        "value": {"start": 6, "end": 11, "text": "café\u0301", "labels": ["PACKAGE"]},
    }  # fmt: skip


def as_value(entity: Any) -> Any:
    """An entity of spaCy as a value of Label Studio, if it is a list of three."""
    names = ("start", "end", "labels")
    listed = isinstance(entity, list) and len(entity) == 3
    return dict(zip(names, [*entity[:2], [entity[2]]], strict=True)) if listed else entity


@pytest.mark.parametrize(
    ("entities", "why"),
    [
        ([[0, 400, "A"]], "at 0 to 400 of 8 characters"),
        ([[0, 10**30, "A"]], "of 8 characters"),
        ([[-3, 4, "A"]], "at -3 to 4"),
        ([[4, 0, "A"]], "at 4 to 0"),
        ([[0, 4, "A"], [2, 6, "B"]], "overlaps A 'bash'"),
        ([[0, 8, "A"], [5, 8, "B"]], "is inside A 'bash 5.2'"),
        ([[0, 4, ""]], "without start, end or one label"),
        ([[0, float("nan"), "A"]], "must be a list of {start, end, label}"),
        ([[0, float("inf"), "A"]], "must be a list of {start, end, label}"),
        ([[True, 4, "A"]], "must be a list of {start, end, label}"),
        ([["0", "4", "A"]], "must be a list of {start, end, label}"),
        ([[0, 4, {"x": 1}]], "must be a list of {start, end, label}"),
        ([{"start": 0.5, "end": 4, "label": "A"}], "without start, end or one label"),
        ([{"start": 0, "end": 4, "labels": ["A", "B"]}], "without start, end or one label"),
        ({"start": 0}, "must be a list of {start, end, label}"),
        ("[[0, 4", "must be a list of {start, end, label}"),
        ([[[[]]]], "must be a list of {start, end, label}"),
    ],
)
@pytest.mark.parametrize("form", ["spacy", "label-studio"])
def test_spans_of_other_tools_that_are_none_are_one_line(tmp_path: Path, entities: Any, why: str, form: str):
    if form == "spacy":
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps(["bash 5.2", {"entities": entities}]) + "\n", "utf-8")
    else:
        values = [as_value(entity) for entity in entities] if isinstance(entities, list) else [entities]
        path = tmp_path / "tasks.json"
        result = [{"type": "labels", "value": value} for value in values]
        path.write_text(json.dumps([{"data": {"text": "bash 5.2"}, "annotations": [{"result": result}]}]), "utf-8")
    columns = {
        "spacy": {"text": "text", "spans": "entities"},
        "label-studio": {"text": "data.text", "spans": "annotations"},
    }
    with pytest.raises(DataError) as error:
        Tag(**columns[form]).examples(read_rows(path), group="")  # type: ignore[arg-type]
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 400
    if form == "spacy":
        assert why in message
    with pytest.raises(DataError):
        opened(path, spans=SPANS, columns=Columns(columns[form]["text"], columns[form]["spans"]))


def test_a_format_of_spans_is_refused_for_labels(tmp_path: Path):
    data = write(tmp_path / "rows.jsonl", [{"text": "one", "label": "a"}])
    opened(data, labels=("a",)).store.close()
    for form, name, why in (
        ("spacy", "out.jsonl", "has labels"),
        ("spacy", "out.json", "ending in .jsonl"),
        ("label-studio", "out.jsonl", "ending in .json"),
        ("docbin", "out.jsonl", "--format: expected rows, spacy, label-studio"),
    ):
        with pytest.raises(OptionError, match=why):
            export_labels(LabelRequest(str(data), form=form), tmp_path / name, log=print)
