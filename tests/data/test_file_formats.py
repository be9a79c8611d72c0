"""Files as programs and people really write them: encodings, separators, workbooks, nested JSON, archives, logs."""

from __future__ import annotations

import gzip
import json
import zipfile
from datetime import date, datetime
from pathlib import Path

import openpyxl
import pytest

from tunesmith.data.audit.chunks import chunks, head, parsed
from tunesmith.data.audit.row_index import RowIndex
from tunesmith.data.documents.encoding import decode
from tunesmith.data.examples.usable import usable
from tunesmith.data.readers.read import notes_of, read_file, read_rows
from tunesmith.data.readers.row import Row, changed_at, columns_of, keep
from tunesmith.data.schema.formats import detect, detect_or_guess
from tunesmith.errors import DataError

GERMAN = (
    'text;label\n"Die Lieferung fehlt; bitte prüfen";Versand\nRechnung für März ist zu hoch, größer als üblich;Geld\n'
)
FIELDS = [
    {"text": "Die Lieferung fehlt; bitte prüfen", "label": "Versand"},
    {"text": "Rechnung für März ist zu hoch, größer als üblich", "label": "Geld"},
]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def audited_rows(path: Path | str) -> list[tuple[int, object]]:
    """The rows as the audit reads them."""
    return [
        (line, parsed(raw)) for chunk in chunks(str(path)) for line, raw in zip(chunk.lines, chunk.rows, strict=True)
    ]


@pytest.mark.parametrize(
    ("encoding", "note"),
    [
        ("cp1252", "read as cp1252"),
        ("latin-1", "read as cp1252"),
        ("utf-16", "decoded from UTF-16"),
        ("utf-16-le", "decoded from UTF-16-LE"),
        ("utf-16-be", "decoded from UTF-16-BE"),
        ("utf-32", "decoded from UTF-32"),
        ("utf-32-le", "decoded from UTF-32-LE"),
        ("utf-32-be", "decoded from UTF-32-BE"),
        ("utf-8-sig", ""),
        ("utf-8", ""),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_the_encoding_of_a_table_is_detected_and_noted(tmp_path, encoding, note, newline):
    path = write(tmp_path / "tickets.csv", GERMAN.replace("\n", newline).encode(encoding))
    file = read_file(path)
    assert [row.fields for row in file.rows] == FIELDS
    (line,) = file.notes
    assert line.startswith("tickets.csv: ")
    assert note in line
    assert "separated by semicolon" in line
    assert notes_of(path) == file.notes
    assert audited_rows(path) == [(2, FIELDS[0]), (3, FIELDS[1])]


def test_umlauts_are_not_read_as_chinese_nor_chinese_as_umlauts():
    words = ("frisch und reichlich", "alt und kalt")
    breakfast = [f"Das Frühstück war {words[i % 2]}, Aufenthalt Nummer {i} im Sommer.;zufrieden" for i in range(34)]
    german = "\r\n".join(["h", *breakfast, "Mein Ausweis L01X00T47, ich wohne in der Lindenstraße 12.;gut"])
    assert decode(german.encode("latin-1"))[0] == german
    eastern = {
        "gb18030": "这个酒店很干净，我们使用Python编程，非常满意。\n房间太吵，不能睡觉。早餐很好吃。",
        "cp932": "ホテルはとてもきれいでした。Wifiも速いです。\n部屋がうるさくて眠れませんでした。",
        "cp949": "호텔이 매우 깨끗했습니다. Wifi도 빨라요.\n방이 시끄러워서 잠을 잘 수 없었습니다.",
    }
    for encoding, text in eastern.items():
        rows = f"{text}\n" * 20
        assert decode(rows.encode(encoding))[0] == rows


def test_scripts_other_than_latin_are_decoded(tmp_path):
    russian = "text,label\n" + "Заказ так и не пришёл на почту,плохо\nСпасибо за быструю доставку,хорошо\n" * 20
    rows = read_rows(write(tmp_path / "ru.csv", russian.encode("cp1251")))
    assert rows[0].fields == {"text": "Заказ так и не пришёл на почту", "label": "плохо"}
    chinese = "text\tlabel\n" + "这个产品的质量非常好\t好\n送货太慢了我很失望\t坏\n" * 20
    rows = read_rows(write(tmp_path / "zh.tsv", chinese.encode("gb18030")))
    assert rows[0].fields == {"text": "这个产品的质量非常好", "label": "好"}


def test_json_lines_in_utf16_are_read_by_runs_and_audits(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "größer"}\n\n{"text": "x"}\n'.encode("utf-16"))
    assert [(row.where, row.fields) for row in read_rows(path)] == [
        ("a.jsonl:1", {"text": "größer"}),
        ("a.jsonl:3", {"text": "x"}),
    ]
    assert audited_rows(path) == [(1, {"text": "größer"}), (3, {"text": "x"})]


@pytest.mark.parametrize(
    "text",
    [
        '[{"text": "a"}, {"text": "b"}]',
        '[{"text": "a"},\n{"text": "b"}]\n',
        '[\n {\n  "text": "a"},\n {"text": "b"}\n]',
    ],
)
def test_one_array_in_a_file_named_as_json_lines_is_read_by_runs_and_audits(tmp_path, text):
    path = write(tmp_path / "a.jsonl", text)
    rows = [("a.jsonl:1", {"text": "a"}), ("a.jsonl:2", {"text": "b"})]
    assert [(row.where, row.fields) for row in read_rows(path)] == rows
    assert audited_rows(path) == [(1, {"text": "a"}), (2, {"text": "b"})]
    assert [row.fields for row in RowIndex(path).read(0, 5)] == [{"text": "a"}, {"text": "b"}]


def test_a_line_that_is_an_array_makes_no_array_of_a_file(tmp_path):
    path = write(tmp_path / "a.jsonl", '[{"text": "a"}]\n{"text": "b"}\n')
    assert audited_rows(path) == [(1, "expected an object, got list"), (2, {"text": "b"})]


@pytest.mark.parametrize("mark", [";", "\t", "|", ","])
def test_texts_with_commas_do_not_hide_the_separator(tmp_path, mark):
    lines = [("id", "text", "label"), *((str(i), f"well, {i}, it is, as I said, fine", "ab"[i % 2]) for i in range(20))]
    quote = '"' if mark == "," else ""
    text = "".join(f"{a}{mark}{quote}{b}{quote}{mark}{c}\n" for a, b, c in lines)
    rows = read_rows(write(tmp_path / "a.csv", text))
    assert rows[3].fields == {"id": "3", "text": "well, 3, it is, as I said, fine", "label": "b"}


def test_a_space_before_a_quoted_cell_is_no_part_of_it(tmp_path):
    (tmp_path / "a.csv").write_text('id, text, label\n1, "a, b", "x"\n2, "c ""d""", "y"\n')
    found = read_file(tmp_path / "a.csv")
    assert [dict(row.fields) for row in found.rows] == [
        {"id": "1", "text": "a, b", "label": "x"}, {"id": "2", "text": 'c "d"', "label": "y"},
    ]  # fmt: skip
    assert found.notes == ("a.csv: spaces before cells skipped",)
    for one, other in ((" x", " y"), (' "Hi" she said', ' "No" he said')):
        (tmp_path / "b.csv").write_text(f"text,label\n{one},a\n{other},b\n")
        assert [row.fields["text"] for row in read_file(tmp_path / "b.csv").rows] == [one, other]


def test_a_column_of_sentences_with_commas_stays_one_column(tmp_path):
    text = "text\n" + "".join(f'"Well, number {i}."\n' for i in range(20))
    assert read_rows(write(tmp_path / "a.csv", text))[0].fields == {"text": "Well, number 0."}
    assert read_rows(write(tmp_path / "a.csv", text.replace('"', "")))[0].fields == {"text": "Well, number 0."}


def test_a_title_above_the_header_is_skipped_and_noted(tmp_path):
    body = "".join(f"{i};text number {i}, more;a\n" for i in range(20))
    file = read_file(write(tmp_path / "a.csv", f"Export of 2024\n\nnr;text;label\n{body}"))
    assert file.rows[0] == Row("a.csv:4", {"nr": "0", "text": "text number 0, more", "label": "a"})
    assert file.notes == ("a.csv: separated by semicolon, 2 lines above the header skipped",)


def test_excels_directive_names_the_separator(tmp_path):
    file = read_file(write(tmp_path / "a.csv", 'sep=;\r\ntext;label\r\n"two\r\nlines, here";a\r\nx, y;b\r\n'))
    assert [(row.where, dict(row.fields)) for row in file.rows] == [
        ("a.csv:3", {"text": "two\r\nlines, here", "label": "a"}),
        ("a.csv:5", {"text": "x, y", "label": "b"}),
    ]
    assert "line 1 (sep=;) names the separator" in file.notes[0]


def test_decimal_commas_become_points_in_columns_of_numbers(tmp_path):
    lines = "".join(f"1,5;12;ja, {i};1.234,50\n" for i in range(10))
    file = read_file(write(tmp_path / "a.csv", f"score;n;text;price\n{lines}1,5;12;ja;1.234\n"))
    assert file.rows[0].fields == {"score": "1.5", "n": "12", "text": "ja, 0", "price": "1234.50"}
    assert file.rows[-1].fields["price"] == "1234"
    assert file.notes == ("a.csv: separated by semicolon, decimal commas in 'score', 'price' read as points",)


def test_commas_of_thousands_and_between_labels_are_no_decimal_commas(tmp_path):
    lines = "".join(f"1,234;{i},2\n" for i in range(10))
    file = read_file(write(tmp_path / "a.csv", f"price;tags\n{lines}"))
    assert file.rows[0].fields == {"price": "1,234", "tags": "0,2"}
    assert file.notes == ("a.csv: separated by semicolon",)


def test_headlines_without_full_stops_are_one_text_per_line(tmp_path):
    lines = [f"Minister number {i} announces a new plan for railways in the north of the country" for i in range(30)]
    file = read_file(write(tmp_path / "a.txt", "\n".join(lines)))
    assert [row.fields["text"] for row in file.rows] == lines


def test_a_single_column_has_no_separator_to_note(tmp_path):
    file = read_file(write(tmp_path / "a.csv", "text\nHello, world\nfoo, bar\nbaz\n"))
    assert [dict(row.fields) for row in file.rows] == [{"text": "Hello, world"}, {"text": "foo, bar"}, {"text": "baz"}]
    assert file.notes == ()


@pytest.mark.parametrize(
    "table",
    [
        '{"columns": ["a"], "data": 5}',
        '{"train": [{"a": 1}, {"a": 2}], "test": [{"a": 3}, {"a": 4}]}',
        '{"columns": null, "data": [[1]]}',
    ],
)
def test_json_that_only_resembles_a_table_is_refused(table, tmp_path):
    with pytest.raises(DataError, match=r"^a.json"):
        read_rows(write(tmp_path / "a.json", table))


def test_empty_tables_are_named_with_their_folder(tmp_path):
    for content in ("", "\n", "text,label\n"):
        path = write(tmp_path / "a.csv", content)
        with pytest.raises(DataError, match=f"^{path}: (empty|no rows); give a file with at least one"):
            read_rows(path)


def workbook(path: Path) -> Path:
    """A workbook with an empty sheet, a title, merged cells, an empty row and column, dates and numbers."""
    book = openpyxl.Workbook()
    book.active.title = "Cover"
    sheet = book.create_sheet("Tickets 2024")
    sheet["B2"] = "All tickets of the year"
    sheet.merge_cells("B2:F2")
    for column, name in zip("BCEF", ("Opened", "Message", "Team", "Hours"), strict=True):
        sheet[f"{column}4"] = name
    for number in range(30):
        row = 5 + number + (number >= 10)  # row 15 is empty
        sheet[f"B{row}"] = date(2024, 1, 1 + number) if number else datetime(2024, 1, 1, 10, 30)
        sheet[f"C{row}"] = f"printer {number} does not work" if number != 3 else 404
        sheet[f"F{row}"] = 2.0 if number else 1.5
    for start, team in ((5, "Hardware"), (16, "Network")):
        sheet[f"E{start}"] = team
        sheet.merge_cells(f"E{start}:E{start + 9}")
    for row in range(26, 36):
        sheet[f"E{row}"] = "Hardware"
    book.create_sheet("Notes")["A1"] = "nothing to see"
    book.save(path)
    return path


def test_a_workbook_is_read_as_its_author_sees_it(tmp_path):
    path = workbook(tmp_path / "export.xlsx")
    file = read_file(path)
    first = {"Opened": "2024-01-01 10:30:00", "Message": "printer 0 does not work", "Team": "Hardware", "Hours": 1.5}
    assert file.rows[0] == Row("export.xlsx:5", first)
    assert file.rows[1].fields["Hours"] == 2
    assert file.rows[3].fields["Message"] == "404"
    assert file.rows[9].fields["Team"] == "Hardware"
    assert file.rows[10] == Row("export.xlsx:16", {**file.rows[10].fields, "Team": "Network", "Opened": "2024-01-11"})
    assert len(file.rows) == 30
    other = f"other sheets: Cover, Notes (name one as '{path}#SHEET')"
    assert file.notes == (f"export.xlsx: sheet 'Tickets 2024', 1 row above the header skipped, {other}",)
    guessed = detect_or_guess(file.rows)
    assert dict(guessed.columns) == {"text": "Message", "label": "Team"}
    assert audited_rows(path)[0] == (5, first)


def test_a_sheet_of_one_line_before_the_table_is_a_note(tmp_path):
    book = openpyxl.Workbook()
    book.worksheets[0].append(["As of November"])
    for row in (["Deutsch", "Englisch"], ["Guten Tag", "Good day"], ["Auf Wiedersehen", "Goodbye"]):
        (book["Entries"] if "Entries" in book.sheetnames else book.create_sheet("Entries")).append(row)
    book.save(tmp_path / "words.xlsx")
    assert read_rows(tmp_path / "words.xlsx")[0].fields == {"Deutsch": "Guten Tag", "Englisch": "Good day"}


def test_a_sheet_is_named_behind_a_number_sign(tmp_path):
    path = workbook(tmp_path / "export.xlsx")
    assert read_rows(f"{path}#Tickets 2024")[0].where == "export.xlsx#Tickets 2024:5"  # sheets have equal lines
    with pytest.raises(DataError, match=r"no sheet 'Ticket'; sheets here: \['Cover', 'Tickets 2024', 'Notes'\]"):
        read_rows(f"{path}#Ticket")
    with pytest.raises(DataError, match=r"no rows in \['Notes'\]; give a sheet"):
        read_rows(f"{path}#Notes")
    with pytest.raises(DataError, match=r"broken\.xlsx: broken or incomplete zip archive"):
        read_rows(write(tmp_path / "broken.xlsx", "x"))


PRODUCTS = [
    {
        "id": i,
        "review": {"text": f"the colour of number {i} is fine", "title": f"title {i}"},
        "attributes": {"color": ("red", "blue")[i % 2], "tags": ["a", "b"]},
        "parts": [{"name": "lid"}, {"name": "cup"}],
    }
    for i in range(30)
]


@pytest.mark.parametrize(
    ("document", "note"),
    [
        (PRODUCTS, ()),
        ({"data": PRODUCTS}, ()),
        ({"count": 30, "products": PRODUCTS}, ("a.json: rows are the list 'products'",)),
        ({"result": {"items": PRODUCTS, "next": None}}, ("a.json: rows are the list 'result.items'",)),
    ],
)
def test_rows_are_found_inside_a_document(tmp_path, document, note):
    file = read_file(write(tmp_path / "a.json", json.dumps(document)))
    assert (len(file.rows), file.rows[4].where, file.notes) == (30, "a.json:5", note)
    assert file.rows[4].fields == PRODUCTS[4]


def test_of_several_lists_of_rows_one_is_named(tmp_path):
    path = write(tmp_path / "a.json", json.dumps({"train": PRODUCTS, "test": PRODUCTS[:3]}))
    with pytest.raises(DataError) as error:
        read_rows(path)
    assert "several lists of rows: train (30), test (3); name one, such as" in str(error.value)
    source = str(error.value).split("'")[-2]
    assert source == f"{path}#train"
    assert len(read_rows(source)) == 30
    with pytest.raises(DataError, match="no list of rows 'dev'; lists here: train, test"):
        read_rows(f"{path}#dev")


def test_geojson_and_tables_of_pandas_are_rows(tmp_path):
    features = [{"type": "Feature", "geometry": {"coordinates": [1, 2]}, "properties": {"text": "x y", "kind": "a"}}]
    file = write(tmp_path / "map.json", json.dumps({"type": "FeatureCollection", "features": features * 3}))
    assert [row.fields.get("properties.kind") for row in read_rows(file)] == ["a", "a", "a"]
    by_column = {"text": {"0": "x", "1": "y"}, "label": {"0": "a", "1": "b"}}
    split = {"columns": ["text", "label"], "index": [0, 1], "data": [["x", "a"], ["y", "b"]]}
    lists = {"text": ["x", "y"], "label": ["a", "b"]}
    for value in (by_column, split, lists):
        rows = read_rows(write(tmp_path / "pandas.json", json.dumps(value)))
        assert [row.fields for row in rows] == [{"text": "x", "label": "a"}, {"text": "y", "label": "b"}]


def test_a_table_of_pandas_with_filtered_or_shuffled_rows_is_stored_by_column(tmp_path):
    table = {"text": {"7": "x", "3": "y"}, "label": {"7": "a", "3": "b"}, "id": {"7": 1, "3": 2}}
    rows = read_rows(write(tmp_path / "a.json", json.dumps(table)))
    assert [row.fields for row in rows] == [{"text": "x", "label": "a", "id": 1}, {"text": "y", "label": "b", "id": 2}]


def test_columns_of_pandas_with_numbers_or_levels_as_names_are_read_and_two_of_one_name_are_refused(tmp_path):
    def read(*columns: object) -> list[list[str]]:
        table = {"columns": columns, "index": [4, 2], "data": [["t", "a"], ["u", "b"]]}
        return [list(row.fields) for row in read_rows(write(tmp_path / "a.json", json.dumps(table)))]

    assert read(0, 1) == [["0", "1"]] * 2
    assert read(["a", "x"], ["label", ""]) == [["a.x", "label"]] * 2
    for name in ("text", 0, ["a", "x"]):
        with pytest.raises(DataError, match=r"^a\.json: duplicate column names \[.*\]; give each column its own name"):
            read(name, name)


def test_nested_fields_have_dotted_names(tmp_path):
    rows = read_rows(write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in PRODUCTS)))
    fields = rows[0].fields
    assert (fields["review.text"], fields.get("parts.name")) == ("the colour of number 0 is fine", ["lid", "cup"])
    assert fields.get("attributes.tags") == ["a", "b"]
    assert ("review.color" in fields, fields.get("review.color", 7), fields.get("none.text")) == (False, 7, None)
    with pytest.raises(KeyError):
        fields["review.color"]
    assert fields == PRODUCTS[0]
    names = ["id", "review", "attributes", "parts"]
    inner = ["review.text", "review.title", "attributes.color", "attributes.tags", "parts.name"]
    assert columns_of(rows) == [*names, *inner]
    assert len(keep(rows, {"attributes.color": ["red"]})) == 15
    with pytest.raises(DataError, match=r"no column 'review\.txt'; did you mean 'review\.text'\?"):
        keep(rows, {"review.txt": ["x"]})
    assert len(usable([*rows, Row("a.jsonl:31", {"review": {"text": ""}})], {"text": "review.text"})[0]) == 30


def test_nested_fields_are_detected_by_their_last_name(tmp_path):
    rows = [{"doc": {"text": f"some text {i}"}, "meta": {"label": "ab"[i % 2]}} for i in range(30)]
    found = detect(read_rows(write(tmp_path / "a.json", json.dumps({"items": rows}))))
    assert (found.objective, dict(found.columns)) == ("classify", {"text": "doc.text", "label": "meta.label"})
    pairs = [Row(f"a:{i}", {"translation": {"en": f"a {i}", "fr": f"b {i}"}}) for i in range(9)]
    assert dict(detect(pairs).columns) == {"prompt": "translation.en", "answer": "translation.fr"}
    products = [{**row, "attributes": {"color": ("red", "blue")[i % 2]}} for i, row in enumerate(PRODUCTS)]
    guessed = detect_or_guess([Row(f"a:{i}", row) for i, row in enumerate(products)])
    assert dict(guessed.columns) == {"text": "review.text", "label": "attributes.color"}


def test_a_key_with_a_point_is_found_as_written():
    row = Row("a:1", {"a.b": {"c.d": 1}, "x": {"y.z": {"q": 2}}})
    assert (row.fields["a.b.c.d"], row.fields["x.y.z.q"]) == (1, 2)


def test_nested_values_are_changed_in_a_copy():
    fields = {"review": {"text": "x", "n": 1}, "parts": [{"name": "a"}, {"name": "b"}]}
    assert changed_at(fields, "review.text", lambda text: f"{text}!")["review"] == {"text": "x!", "n": 1}
    assert changed_at(fields, "parts.name", str.upper)["parts"] == [{"name": "A"}, {"name": "B"}]  # type: ignore[arg-type]
    assert changed_at(fields, "gone.text", str) == fields
    assert fields["review"] == {"text": "x", "n": 1}


@pytest.mark.parametrize("kind", ["gz", "zip"])
def test_packed_files_are_read_like_their_contents(tmp_path, kind):
    for name, content in (("a.csv", GERMAN.encode("cp1252")), ("b.jsonl", b'{"text": "x"}\n{"text": "y"}\n')):
        path = tmp_path / f"{name}.{kind}"
        if kind == "gz":
            path.write_bytes(gzip.compress(content))
        else:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr(f"folder/{name}", content)
                archive.writestr(f"__MACOSX/{name}", b"resource fork")
        file = read_file(path)
        assert len(file.rows) == 2
        assert file.rows[0].where.startswith(f"{name}.{kind}:")
        assert f"unpacked {'folder/' * (kind == 'zip')}{name}" in file.notes[0]
        assert [line for line, _ in audited_rows(path)] == [int(row.where.rpartition(":")[2]) for row in file.rows]
        assert head(str(path), 1)[0] == file.rows[0]


def test_of_an_archive_with_several_files_one_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("train.jsonl", "test.jsonl"):
            archive.writestr(name, f'{{"text": "{name}"}}\n')
    with pytest.raises(DataError, match=r"expected one file in the archive, got 2 \(train\.jsonl, test\.jsonl\)"):
        read_rows(tmp_path / "a.zip")
    assert read_rows(f"{tmp_path / 'a.zip'}#test.jsonl")[0].fields == {"text": "test.jsonl"}
    with pytest.raises(DataError, match=r"a\.zip: no file 'tset\.jsonl'; files here: train\.jsonl, test\.jsonl"):
        read_rows(f"{tmp_path / 'a.zip'}#tset.jsonl")
    for table in ({"x": ["a", "b"], "y": ["c", "d"]}, {"x": {"0": "a"}, "y": {"0": "c"}}):
        with pytest.raises(DataError, match=r"a\.json: no list of rows 'x'"):
            read_rows(f"{write(tmp_path / 'a.json', json.dumps(table))}#x")
    with pytest.raises(DataError, match=r"a\.json: a list of rows has no part 'x'"):
        read_rows(f"{write(tmp_path / 'a.json', '[{}]')}#x")
    with pytest.raises(DataError, match=r"a\.csv\.gz: broken gzip file"):
        read_rows(write(tmp_path / "a.csv.gz", b"\x1f\x8b\x08 broken"))
    with pytest.raises(DataError, match=r"a\.parquet\.gz: unsupported file type"):
        read_rows(write(tmp_path / "a.parquet.gz", b"x"))


LOG = """2024-05-01 10:00:00,123 INFO [main] app.Server: listening on port 8080
2024-05-01 10:00:01,000 ERROR [worker-1] app.Job: job 17 failed
java.lang.IllegalStateException: no connection
    at app.Job.run(Job.java:17)

2024-05-01 10:00:02,500 WARN [main] app.Server: slow answer, 300 ms
"""


def test_a_uniform_log_becomes_entries_with_level_and_message(tmp_path):
    file = read_file(write(tmp_path / "app.log", LOG))
    assert [(row.where, row.fields["level"]) for row in file.rows] == [
        ("app.log:1", "INFO"),
        ("app.log:2", "ERROR"),
        ("app.log:6", "WARN"),
    ]
    trace = "java.lang.IllegalStateException: no connection\n    at app.Job.run(Job.java:17)"
    assert file.rows[1].fields["message"] == f"main] app.Job: job 17 failed\n{trace}".replace("main]", "[worker-1]")
    assert file.notes == ("app.log: log: 3 entries with time, level, source and message",)


def test_logs_without_levels_or_times_are_texts(tmp_path):
    lines = "".join(f"May  1 10:00:{i:02} host sshd[7]: session {i} opened\n" for i in range(12))
    file = read_file(write(tmp_path / "auth.log", lines))
    assert file.rows[0].fields == {"time": "May  1 10:00:00", "text": "host sshd[7]: session 0 opened"}
    assert detect(file.rows).objective == "domain"
    file = read_file(write(tmp_path / "odd.log", "first thing\n\nsecond thing\n"))
    assert [row.fields for row in file.rows] == [{"text": "first thing"}, {"text": "second thing"}]
    assert file.notes == ("odd.log: log without a common pattern, one text per line: 2",)


def test_plain_text_is_lines_or_paragraphs(tmp_path):
    file = read_file(write(tmp_path / "lines.txt", "Good morning.\nHow are you?\n\nFine.\n"))
    assert [(row.where, row.fields["text"]) for row in file.rows] == [
        ("lines.txt:1", "Good morning."),
        ("lines.txt:2", "How are you?"),
        ("lines.txt:4", "Fine."),
    ] or file.notes == ("lines.txt: prose: 2 paragraphs, separated by blank lines",)
    prose = "\n\n".join(f"The first line of paragraph {i}\nand the second one." for i in range(4))
    file = read_file(write(tmp_path / "prose.txt", prose))
    assert [row.where for row in file.rows] == ["prose.txt:1", "prose.txt:4", "prose.txt:7", "prose.txt:10"]
    assert file.notes == ("prose.txt: prose: 4 paragraphs, separated by blank lines",)
    wrapped = "this line is part of a sentence that was wrapped at a margin by an editor and\n" * 5
    assert len(read_rows(write(tmp_path / "wrapped.txt", wrapped))) == 1


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_a_part_of_a_file_without_parts_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("text,label\na,b\n" if name.endswith("csv") else '{"text": "a"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=rf"{name}#x: a .{name.partition('.')[2]} file has no parts; use .*{name}"):
        read_rows(f"{path}#x")
