"""From documents to rows: passages, questions, tables, calls, and where each row says it came from."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tunesmith.data.documents.document import Block, Document, from_json, markdown, plain, to_json
from tunesmith.data.documents.faq import bare, pairs
from tunesmith.data.documents.find_files import find
from tunesmith.data.documents.formats.html import html_document
from tunesmith.data.documents.formats.openapi import schema_errors, tools_document
from tunesmith.data.documents.formats.plain_text import markdown_document
from tunesmith.data.documents.passages import passages, repeated, without
from tunesmith.data.documents.to_rows import SHAPES, DocumentPart, once
from tunesmith.data.readers.row import Row
from tunesmith.data.schema.formats import detect
from tunesmith.errors import DataError

MANUAL = Path(__file__).parents[2] / "docs" / "reference" / "data-formats.md"


def asked(page: str) -> list[tuple[str, str, str]]:
    return [(pair.question, pair.answer, pair.kind) for pair in pairs(html_document(page.encode()))]


# ------------------------------------------------------------------ passages


@pytest.mark.parametrize("size", [300, 1000, 100_000])
def test_joined_passages_hold_every_word_once_and_none_is_too_long(size: int):
    blocks = [block for block in markdown_document(MANUAL.read_bytes()).blocks if block.kind != "table"]
    found = passages(blocks, size=size, joined=True)
    assert " ".join(plain(passage.text) for passage in found) == plain(markdown(blocks))
    assert max(len(passage.text) for passage in found) <= size


def test_a_long_table_is_cut_between_its_lines_and_each_part_has_the_header():
    cells = (("name", "size"), *((f"part number {n}", str(n)) for n in range(50)))
    found = passages([Block("heading", "Parts", 1), Block("table", "", cells=cells)], size=300, joined=False)
    assert len(found) > 3
    assert all(passage.text.startswith("Parts\n\n| name | size |") for passage in found)
    lines = [line for passage in found for line in passage.text.split("\n")[4:]]
    assert lines == [f"| part number {n} | {n} |" for n in range(50)]


def test_a_table_line_that_is_too_long_for_a_passage_is_told_as_text():
    cells = (("name", "about"), ("valve", "It opens slowly. " * 40))
    found = passages([Block("table", "", cells=cells)], size=300, joined=False)
    assert plain(" ".join(p.text for p in found)) == plain("name: valve about: " + "It opens slowly. " * 40)
    assert max(len(passage.text) for passage in found) <= 300


def test_a_passage_to_be_found_names_the_title_and_the_headings_above_it():
    blocks = [
        Block("heading", "Pumps", 1), Block("paragraph", "Words about the pumps in general."),
        Block("heading", "Starting", 2, 3), Block("paragraph", "Press the green button, then wait.", 0, 4),
        Block("heading", "Fans", 1), Block("paragraph", "Words about the fans in general."),
    ]  # fmt: skip
    found = passages(blocks, size=500, joined=False, title="The Manual")
    assert [(p.text.split("\n\n")[0], p.page) for p in found] == [
        ("The Manual > Pumps", None), ("The Manual > Pumps > Starting", 4), ("The Manual > Fans", None)
    ]  # fmt: skip


def test_what_stands_on_most_pages_of_a_site_is_taken_out():
    pages = [[Block("paragraph", f"Own words {n}"), Block("paragraph", "Subscribe now!")] for n in range(5)]
    assert repeated(pages[:4]) == frozenset()
    assert [b.text for b in without(pages[0], repeated(pages))] == ["Own words 0"]


# ------------------------------------------------------------------ questions


def test_schema_org_pairs_are_taken_from_json_and_from_marks():
    data = {"@graph": [{"@type": "FAQPage", "mainEntity": [
        {"@type": "Question", "name": "How long?", "acceptedAnswer": {"text": "<p>Two <b>days</b>.</p>"}},
        {"@type": ["Question"], "name": "No answer?"},
    ]}]}  # fmt: skip
    page = f"""<script type="application/ld+json">{json.dumps(data)}</script>
    <script type="application/ld+json">{{not json</script>
    <div itemscope itemtype="https://schema.org/Question"><h3 itemprop="name">How much?</h3>
    <div itemtype="https://schema.org/Answer"><div itemprop="text">Ten <i>euros</i>.</div></div></div>"""
    assert asked(page) == [("How long?", "Two days.", "faq"), ("How much?", "Ten euros.", "faq")]


def test_a_question_that_a_page_shows_and_marks_is_taken_once():
    data = {
        "@type": "FAQPage",
        "mainEntity": {"@type": "Question", "name": "How long?", "acceptedAnswer": {"text": "2 days."}},
    }
    page = f'<script type="application/ld+json">{json.dumps(data)}</script><h2>1. How long?</h2><p>About 2 days.</p>'
    assert asked(page) == [("How long?", "2 days.", "faq")]


def test_headings_that_ask_are_answered_by_what_stands_below_them():
    page = """<h1>FAQ</h1><h2>3.1 What is it?</h2><p>A pump.</p><h3>Sizes</h3><ul><li>big</li></ul>
    <h2>Contact</h2><p>By mail.</p><h2>Is it loud?</h2><h2>Why？</h2><p>So.</p>"""
    assert asked(page) == [("What is it?", "A pump.\n\n### Sizes\n\n- big", "faq"), ("Why？", "So.", "faq")]


def test_a_question_loses_its_number_and_not_what_it_counts():
    numbered = ["1. What?", "2) What?", "3.1 What?", "Q3 What?", "Question 4: What?"]
    assert {bare(text) for text in numbered} == {"What?"}
    for text in ("3 days late, what now?", "10 GB reached?", "2.5 GB reached?", "24 hours passed?"):
        assert bare(text) == text


def test_details_and_definition_lists_are_pairs():
    page = """<details><summary>Can I return it?</summary><p>Yes.</p><p>In 30 days.</p></details>
    <dl><dt>Valve:</dt><dd>It opens.</dd><dt>4.2</dt><dd>no term</dd><dt>Ever?</dt><dd>Never.</dd></dl>
    <dl><dt>Index term</dt><dd><a href="x">only links</a></dd></dl><p>End.</p>"""
    found = asked(f"<title>Pumps</title>{page}")
    assert found[0] == ("Can I return it?", "Yes.\n\nIn 30 days.", "faq")
    assert ("What does Valve mean in Pumps?", "It opens.", "definition") in found
    assert ("Ever?", "Never.", "faq") in found
    assert len(found) == 3


def test_lines_with_q_and_a_and_bold_questions_are_pairs():
    page = """<p>Q: How do I\nstart? A: Press it.</p><p>Q2. And stop?</p><p>A: Press again.</p>
    <p><b>Is it safe?</b></p><p>Quite.</p>"""
    assert asked(page) == [
        ("How do I start?", "Press it.", "faq"), ("And stop?", "Press again.", "faq"), ("Is it safe?", "Quite.", "faq")
    ]  # fmt: skip


# ------------------------------------------------------------------ shapes

PAGE = """<title>Pumps</title><h1>Pumps</h1><p>Pumps move water from one place to another.</p>
<h2>How big?</h2><p>As big as a hand or a house.</p>
<table><tr><th>page<th>size<th>size</tr><tr><td>P1<td>small<td>1</tr>
<tr><td colspan=3>Others</tr><tr><td>P2<td>big<td>2</tr></table>"""


@pytest.mark.parametrize(("shape", "objective"), [("domain", "domain"), ("rag", "domain"), ("instruct", "instruct")])
def test_rows_are_of_a_format_that_tune_detects(shape: str, objective: str):
    document = html_document(PAGE.encode())
    rows = list(SHAPES[shape].rows(DocumentPart("a.html", "00", document, document.blocks), 1800))
    found = detect([Row(f"r:{n}", row) for n, row in enumerate(rows)])
    assert found.objective == objective
    assert all({"doc_id": "a.html", "sha256": "00"}.items() <= row.items() for row in rows)


def test_each_line_of_a_table_is_a_row_with_the_columns_of_the_table():
    document = html_document(PAGE.encode())
    rows = list(SHAPES["table"].rows(DocumentPart("a.html", "00", document, document.blocks), 1800))
    origin = {"table": 1, "doc_id": "a.html", "page": None, "origin": "table", "sha256": "00"}
    assert rows == [
        {"page_": "P1", "size": "small", "size_": "1", **origin}, {"page_": "P2", "size": "big", "size_": "2", **origin}
    ]  # fmt: skip


def test_copies_are_told_by_what_rows_say_and_not_by_where_they_are_from():
    rows = [{"text": "a  b", "doc_id": "1"}, {"text": "a b", "doc_id": "2"}, {"text": "a-b", "doc_id": "2"}]
    assert once(rows) == ([rows[0], rows[2]], 1)


def test_a_document_survives_being_kept():
    document = tools_document(SPEC)
    assert from_json(json.loads(json.dumps(to_json(document)))) == document
    with pytest.raises(ValueError, match="another version"):
        from_json({**to_json(document), "version": 0})


# ------------------------------------------------------------------ calls

SPEC = {
    "openapi": "3.1.0",
    "info": {"title": "Pets"},
    "paths": {
        "/pets/{id}": {
            "parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "integer"}, "example": 7}],
            "get": {"operationId": "getPet", "summary": "Find a pet.",
                    "parameters": [{"$ref": "#/components/parameters/as"}]},
            "put": {"summary": "Change it.", "requestBody": {"content": {"application/json": {
                "schema": {"$ref": "#/components/schemas/Pet"}}}}},
        }
    },
    "components": {
        "parameters": {"as": {"name": "as", "in": "query", "schema": {"type": "string", "enum": ["text", "json"]}}},
        "schemas": {"Pet": {"required": ["name"],
                            "properties": {"name": {"type": "string", "description": "what it hears"}}}},
    },
}  # fmt: skip


def test_openapi_becomes_sections_and_questions():
    document = tools_document(SPEC)
    assert markdown(document.blocks).startswith(
        "# Pets\n\n## getPet\n\nFind a pet.\n\n| argument | kind | needed | meaning |\n|---|---|---|---|\n"
        "| id | integer | yes |  |\n| as | string | no | one of text, json |\n\n## put_pets_id"
    )
    found = {pair.question: pair.answer for pair in pairs(document)}
    assert found["What does the call `getPet` do?"] == "Find a pet."
    example = found["Write the call for this: Find a pet (id = 7)."]
    assert json.loads(example) == {"name": "getPet", "arguments": {"id": 7}}
    assert "what it hears" in found["Which arguments does the call `put_pets_id` take?"]


def test_function_descriptions_of_chat_formats_are_calls():
    function = {
        "name": "f",
        "description": "Does f.",
        "parameters": {"type": "object", "properties": {"x": {"type": "number"}}},
    }
    for value in (function, [function], {"tools": [{"type": "function", "function": function}]}):
        assert [tool.name for tool in tools_document(value).tools] == ["f"]
    with pytest.raises(DataError, match="no function descriptions"):
        tools_document([{"text": "a row"}])


def test_references_that_go_in_circles_or_elsewhere_lead_nowhere():
    circle = {"$ref": "#/components/parameters/a"}
    spec = {"openapi": "3", "components": {"parameters": {"a": circle}},
            "paths": {"/x": {"get": {"parameters": [circle, {"$ref": "http://x/p"}, {"$ref": "#"}]}}}}  # fmt: skip
    (tool,) = tools_document(spec).tools
    assert tool.parameters["properties"] == {}


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"id": 3, "as": "text"}, ""),
        ({"as": "text"}, "id is missing"),
        ({"id": "3"}, "id is not of type integer"),
        ({"id": True}, "id is not of type integer"),
        ({"id": float("inf")}, "id is not of type integer"),
        ({"id": float("nan")}, "id is not of type integer"),
        ({"id": 3, "as": "xml"}, "as is not one of the listed values"),
        ({"id": 3, "color": "red"}, "unknown argument color"),
        ([3], "the arguments are not an object"),
    ],
)
def test_the_arguments_of_a_call_are_held_against_its_schema(arguments: object, fault: str):
    assert schema_errors(arguments, tools_document(SPEC).tools[0]) == fault


# ------------------------------------------------------------------ sources


def test_a_folder_gives_its_documents_by_relative_name_and_counts_the_rest(tmp_path: Path):
    top = tmp_path / "manual"
    for name in ("b.md", "a/c.txt", ".git/x.md", "_sources/d.txt", "data.json", "x.png"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text("text")
    (top / "link.md").symlink_to("/etc/hostname")
    found = find([top])
    assert [source.doc_id for source in found.sources] == ["manual/a/c.txt", "manual/b.md"]
    assert found.skipped == {".json": 1, ".png": 1, "_sources/": 1}
    assert [source.doc_id for source in find([top / "data.json"]).sources] == ["data.json"]


def test_reports_of_runs_and_comparisons_are_no_documents(tmp_path: Path):
    """The answers to held-out rows stand in them."""
    for name in ("manual.md", "runs/x/report.html", "comparisons/y/report.html", "comparisons/y/tuned/report.html"):
        (tmp_path / "top" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "top" / name).write_text("text")
    for name in ("runs/x/run.json", "runs/x/recipe.yaml", "comparisons/y/identity.json", "comparisons/y/recipe.yaml"):
        (tmp_path / "top" / name).write_text("{}")
    assert [source.doc_id for source in find([tmp_path / "top"]).sources] == ["top/manual.md"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("manul", "no such file or folder; did you mean 'manual'?"),
        ("x.png", "unsupported file type"), ("manual", "no documents found"),
    ],
)  # fmt: skip
def test_sources_that_give_nothing_say_why(tmp_path: Path, name: str, said: str):
    (tmp_path / "manual").mkdir()
    (tmp_path / "x.png").write_text("x")
    with pytest.raises(DataError, match=said):
        find([tmp_path / name])


def test_a_document_that_is_not_known_is_not_made_up():
    assert pairs(Document(())) == []
    assert passages([], size=500, joined=True) == []


def test_questions_of_one_paragraph_are_told_apart_and_what_only_looks_like_one_is_not():
    lines = "Q: How do I reset it?\nA: Press the button.\nQ: What does it cost?\nA: Ten euros."
    assert asked(f"<p>{lines}</p>") == [
        ("How do I reset it?", "Press the button.", "faq"), ("What does it cost?", "Ten euros.", "faq"),
    ]  # fmt: skip
    (one,) = asked("<p>Q: Who made it?\nA: Section Q: of the plant, and Mr. Q. A. Smith.</p>")
    assert one[1].startswith("Section Q: of the plant")


def test_a_folder_called_collected_is_left_out_only_where_we_made_it(tmp_path: Path):
    for name in ("a/collected/x.txt", "b/collected/y.txt", "b/collected/documents/z.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    assert [source.path.name for source in find([tmp_path]).sources] == ["x.txt"]


def test_a_file_whose_name_is_no_utf8_has_one_in_rows(tmp_path: Path):
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("text")
    (source,) = find([tmp_path]).sources
    assert source.doc_id.endswith("/caf\\xe9.txt")
