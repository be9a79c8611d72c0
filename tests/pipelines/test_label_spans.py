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
from tunesmith.errors import DataError, OptionError, Refused
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


TASK = {
    "id": 7, "meta": {"from": "wiki"}, "data": {"text": "bash 5.2", "title": "A shell"},
    "annotations": [{"id": 5, "result": [
        {"type": "labels", "to_name": "text", "value": {"start": 0, "end": 4, "text": "bash", "labels": ["PACKAGE"]}}
    ]}],
}  # fmt: skip


def results(*changes: dict[str, Any]) -> list[dict[str, Any]]:
    """The annotations of a task whose results are changed ones of TASK."""
    (first,) = TASK["annotations"][0]["result"]  # type: ignore[index]
    return [{"result": [{**first, **change} for change in changes]}]


def tasks(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text(json.dumps(rows), "utf-8")
    return path


def exported(data: Path, out: Path, **wish: Any) -> list[Any]:
    export_labels(LabelRequest(str(data), **wish), out, log=lambda line: None)
    documents = out.read_text("utf-8").splitlines() if out.suffix == ".jsonl" else [out.read_text("utf-8")]
    found = [json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON")) for text in documents]
    return found if out.suffix == ".jsonl" else list(found[0])


def test_rows_with_spans_are_labelled_with_spans_without_an_option(tmp_path: Path):
    data = write(tmp_path / "rows.jsonl", ROWS)
    assert [row["spans"] for row in exported(data, tmp_path / "out.jsonl")][1] == []
    assert isinstance(opened(data), SpanSession)
    assert opened(data).labels() == ["PACKAGE", "VERSION", "A, B \u00e9"]
    # Unless labels are asked for.
    assert not isinstance(opened(data, labels=("good",), store=tmp_path / "other.db"), SpanSession)


def test_an_export_leaves_no_store_and_reads_annotations_as_they_are_now(tmp_path: Path):
    data = write(tmp_path / "rows.jsonl", ROWS)
    assert len(exported(data, tmp_path / "out.jsonl")) == 3
    write(data, [{**ROWS[0], "spans": None}, *ROWS[1:]])
    assert len(exported(data, tmp_path / "out.jsonl")) == 2
    plain = write(tmp_path / "plain.jsonl", [{"text": "bash 5.2"}])
    with pytest.raises(Refused, match="no row has a label yet"):
        exported(plain, tmp_path / "out.jsonl")
    assert not list(tmp_path.glob("*.db"))


def test_a_store_without_votes_may_become_one_of_spans(tmp_path: Path):
    data = write(tmp_path / "rows.jsonl", [{"text": "bash 5.2"}])
    first = opened(data)
    assert isinstance(opened(data, spans=SPANS), SpanSession)
    with pytest.raises(DataError, match="expected votes on labels, got votes on spans"):
        first.vote(ANA, first.rows.items[0].key, "good")


def test_a_session_of_spans_stores_no_label(tmp_path: Path):
    work = opened(write(tmp_path / "rows.jsonl", [{"text": "bash 5.2"}]), spans=SPANS)
    with pytest.raises(DataError, match="spans of these texts are marked"):
        work.vote(ANA, work.rows.items[0].key, "PACKAGE")
    with pytest.raises(DataError, match="'O' means no span"):
        opened(tmp_path / "rows.jsonl", spans=("O",))


def test_labels_with_spaces_are_classes_of_their_own(tmp_path: Path):
    work = opened(write(tmp_path / "rows.jsonl", [{"text": "bash 5.2"}]), spans=SPANS)
    one, two = '[[0,4,"A B"]]', '[[0,4,"A"],[5,8,"B"]]'
    assert work.learned(one) != work.learned(two)


@pytest.mark.parametrize("bad", [["0", 4, "A"], [0.0, 4.0, "A"]])
@pytest.mark.parametrize("share", [1, 5])
def test_spans_that_are_none_are_refused_in_any_share_of_the_rows(tmp_path: Path, bad: list[Any], share: int):
    rows = [["bash 5.2", {"entities": [[0, 4, "A"]]}] for _ in range(6 - share)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *[["x y z w", {"entities": [bad]}]] * share]))
    with pytest.raises(DataError, match=r"rows.jsonl:6: .*column 'entities' must be a list"):
        opened(data, spans=SPANS)


def test_empty_lists_say_that_nothing_is_marked(tmp_path: Path):
    data = write(tmp_path / "rows.jsonl", [{"text": "one", "entities": []}, {"text": "two", "entities": []}])
    assert exported(data, tmp_path / "out.jsonl", spans=SPANS) == [
        {"text": "one", "entities": []}, {"text": "two", "entities": []}
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("annotations", "why"),
    [
        (results({"type": "hypertextlabels"}), "type 'hypertextlabels' do not count characters"),
        (results({}, {"type": "paragraphlabels"}), "type 'paragraphlabels'"),
        (results({"to_name": "a"}, {"to_name": "b"}), "spans of 'a' and 'b'"),
        (results({"to_name": "title"}), "name the column of the text data.title"),
    ],
)
def test_results_of_label_studio_that_are_not_spans_of_the_text_are_refused(tmp_path: Path, annotations: Any, why: str):
    path = tasks(tmp_path / "tasks.json", TASK, {**TASK, "annotations": annotations})
    for read in (lambda: Tag().examples(read_rows(path), group=""), lambda: opened(path, spans=SPANS)):
        with pytest.raises(DataError, match=re.escape(why)):
            read()


def test_results_of_another_kind_say_nothing_about_spans(tmp_path: Path):
    choices = results({"type": "choices", "value": {"choices": ["A"]}})
    other = {**TASK, "id": 8, "data": {"text": "zsh 5.9"}, "annotations": choices}
    second = {**other, "id": 9, "data": {"text": "ksh"}, "annotations": [*choices, {"result": []}]}
    path = tasks(tmp_path / "tasks.json", *[TASK] * 10, other, second)
    assert {row["text"] for row in exported(path, tmp_path / "out.jsonl")} == {"bash 5.2", "ksh"}
    with pytest.raises(DataError, match="has no annotation of this text"):
        Tag().examples(read_rows(tasks(tmp_path / "more.json", TASK, other)), group="")


def test_copied_text_of_several_lines_is_the_text(tmp_path: Path):
    for text in ("one\ntwo", "one\\ntwo"):
        annotations = results({"value": {"start": 0, "end": 7, "text": text, "labels": ["A"]}})
        path = tasks(tmp_path / "tasks.json", {"data": {"text": "one\ntwo"}, "annotations": annotations})
        assert tagged(path) == [("one\ntwo", [(0, 7, "A")])]


def test_an_export_keeps_columns_and_their_names(tmp_path: Path):
    spans = [{"start": 0, "end": 4, "label": "A"}]
    data = write(tmp_path / "rows.jsonl", [{"text": "TITLE", "body": "bash 5.2", "n": float("nan"), "spans": spans}])
    (task,) = exported(data, tmp_path / "out.json", columns=Columns("body"), form="label-studio")
    assert task["data"] == {"text": "TITLE", "body": "bash 5.2", "n": None}
    # Rows that only look like tasks are rows.
    nested = write(tmp_path / "nested.jsonl", [{"data": {"text": "bash 5.2"}, "id": 0, "spans": spans}])
    assert exported(nested, tmp_path / "out.jsonl") == [{"data": {"text": "bash 5.2"}, "id": 0, "spans": spans}]
    # Tasks keep what identifies them.
    path = tasks(tmp_path / "tasks.json", TASK)
    (task,) = exported(path, tmp_path / "out.json", form="label-studio")
    assert {name: task[name] for name in ("id", "meta", "data")} == {
        name: TASK[name] for name in ("id", "meta", "data")
    }
    (row,) = exported(path, tmp_path / "out.jsonl")
    assert (row["id"], row["title"], row["text"]) == (7, "A shell", "bash 5.2")
    clash = tasks(tmp_path / "clash.json", {**TASK, "data": {"text": "bash 5.2", "spans": 3}})
    with pytest.raises(DataError, match="would overwrite column 'spans'"):
        exported(clash, tmp_path / "out.jsonl")


def test_annotations_of_spacy_do_not_replace_the_text(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(["real text", {"entities": [[0, 4, "A"]], "text": "other thing"}]) + "\n")
    assert tagged(path) == [("real text", [(0, 4, "A")])]


def test_tasks_without_annotations_are_opened(tmp_path: Path):
    prediction = {"result": results({})[0]["result"]}
    path = tasks(tmp_path / "tasks.json", {**TASK, "annotations": [], "predictions": [prediction]})
    work = opened(path, spans=SPANS)
    assert isinstance(work, SpanSession)
    assert [item.text for item in work.rows.items] == ["bash 5.2"]
    assert work.progress().labelled == 0
    work.mark(ANA, work.rows.items[0].key, [Span(0, 4, "PACKAGE")])
    work.store.close()
    (task,) = exported(path, tmp_path / "out.json", form="label-studio")
    assert (task["id"], len(task["annotations"])) == (7, 1)


@pytest.mark.parametrize("form", ["spacy", "label-studio"])
def test_spans_of_another_format_are_imported(tmp_path: Path, form: str):
    data = write(tmp_path / "rows.jsonl", [{"text": row["text"], "spans": None} for row in ROWS])
    marked = write(tmp_path / "marked.jsonl", ROWS)
    other = tmp_path / ("out.jsonl" if form == "spacy" else "out.json")
    exported(marked, other, form=form)
    assert opened(data, spans=SPANS, brought=str(other)).progress().labelled == 3
