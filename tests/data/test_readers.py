import csv
import gzip
import json
import sys
from datetime import date
from decimal import Decimal
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from tunesmith.data.audit.chunks import head
from tunesmith.data.examples.parsers import texts
from tunesmith.data.readers.document_folder import passed_over
from tunesmith.data.readers.read import notes_of, read_file, read_rows
from tunesmith.data.readers.row import Row, as_word, keep
from tunesmith.data.splits.load import Sources, load
from tunesmith.errors import DataError


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def places(rows: list[Row]) -> list[str]:
    return [row.where for row in rows]


def test_blank_lines_are_skipped_and_counted(tmp_path):
    rows = read_rows(write(tmp_path, "a.jsonl", '\n{"text": "x"}\n\n  \r\n{"text": "y"}\r\n'))
    assert places(rows) == ["a.jsonl:2", "a.jsonl:5"]
    assert [row.fields["text"] for row in rows] == ["x", "y"]


def test_only_a_newline_ends_a_json_line(tmp_path):
    rows = read_rows(write(tmp_path, "a.ndjson", '{"text": "one\u2028two\u0085three"}\n{"text": "x"}'))
    assert places(rows) == ["a.ndjson:1", "a.ndjson:2"]


def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path):
    assert read_rows(write(tmp_path, "a.csv", b"\xef\xbb\xbftext,label\nhi,1\n"))[0].fields == {
        "text": "hi",
        "label": "1",
    }


def test_a_line_that_is_not_json_is_named(tmp_path):
    lines = ['{"n": 1}'] * 16 + ['{"n": }', '{"n": NaN}']
    with pytest.raises(DataError, match=r"^train\.jsonl:17: invalid JSON \(Expecting value at column 7\); write one"):
        read_rows(write(tmp_path, "train.jsonl", "\n".join(lines)))


def test_twenty_faults_are_told_and_the_rest_counted(tmp_path):
    with pytest.raises(DataError) as caught:
        read_rows(write(tmp_path, "a.jsonl", "[1]\n" * 23))
    told = str(caught.value).split("\n")
    assert len(told) == 21
    assert told[0].startswith("a.jsonl:1: expected an object, got list; ")
    assert told[-1] == "... and 3 more"


@pytest.mark.parametrize("content", ["", "  \n\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(tmp_path, content):
    with pytest.raises(DataError, match=r"/a\.jsonl: empty; "):
        read_rows(write(tmp_path, "a.jsonl", content))


def test_a_table_with_nothing_below_its_header_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"/a\.csv: no rows; "):
        read_rows(write(tmp_path, "a.csv", "text,label\n"))


def test_one_broken_byte_in_a_file_of_utf8_is_named_with_its_line(tmp_path):
    with pytest.raises(DataError, match=r"^a\.csv:3: byte 0xe9 is not UTF-8, as the rest of the file is; correct"):
        read_rows(write(tmp_path, "a.csv", "text\nfür Größe und ähnliche Übel\ncaf".encode() + b"\xe9\n"))


@pytest.mark.parametrize(
    "content",
    ['[{"t": "x"},\n {"t": "y"}]', '{"data": [{"t": "x"}, {"t": "y"}]}', '{"t": "x"}\n{"t": "y"}\n'],
)
def test_json_is_an_array_a_data_key_or_lines(tmp_path, content):
    rows = read_rows(write(tmp_path, "a.json", content))
    assert places(rows) == ["a.json:1", "a.json:2"]
    assert [row.fields["t"] for row in rows] == ["x", "y"]


@pytest.mark.parametrize(
    ("name", "pack"),
    [("a.jsonl", bytes), ("a.jsonl.gz", gzip.compress), ("b.jsonl", lambda text: text.decode().encode("utf-16"))],
)
def test_an_array_in_a_file_named_as_lines_is_read_packed_or_in_another_encoding(tmp_path, name, pack):
    content = '[\n{"t": "x"},\n{"t": "é"}\n]\n'
    rows = read_rows(write(tmp_path, name, pack(content.encode())))
    assert [row.fields["t"] for row in rows] == ["x", "é"]


def test_json_that_holds_no_rows_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"expected rows, got one JSON object with the keys 'train'; give an array"):
        read_rows(write(tmp_path, "a.json", '{\n "train": []\n}'))
    with pytest.raises(DataError, match=r"^b\.json:2: invalid JSON"):
        read_rows(write(tmp_path, "b.json", '[{"t": "x"},\n {"t" "y"}]'))
    with pytest.raises(DataError, match=r"/c\.json: no rows"):
        read_rows(write(tmp_path, "c.json", "[]"))


def test_an_object_of_alike_objects_is_a_table_with_its_keys_as_a_column(tmp_path):
    content = '{"a": {"t": "x", "u": 1}, "b": {"t": "y"}, "c": {"t": "z", "u": 3}}'
    path = write(tmp_path, "a.json", content)
    assert [row.fields for row in read_rows(path)][:2] == [{"key": "a", "t": "x", "u": 1}, {"key": "b", "t": "y"}]
    assert notes_of(path) == ("a.json: rows are the values of one object, its keys the column 'key'",)
    for unlike in ('{\n"a": {"t": 1}, "b": {"u": 1}, "c": {"v": 1}}', '{\n"a": {"t": 1}, "b": {"t": 1}}'):
        with pytest.raises(DataError, match="got one JSON object with the keys 'a', 'b'"):
            read_rows(write(tmp_path, "b.json", unlike))
    many = ", ".join(f'"k{number}": {number}' for number in range(99))
    with pytest.raises(DataError, match=r"'k7', \.\.\.; give an array"):
        read_rows(write(tmp_path, "c.json", f"{{\n{many}}}"))


def test_csv_rows_are_named_by_the_line_they_start_on(tmp_path):
    content = 'text,label\r\n"two\r\nlines, one cell",a\r\n\r\nplain,b\r\n'
    rows = read_rows(write(tmp_path, "a.csv", content))
    assert places(rows) == ["a.csv:2", "a.csv:5"]
    assert rows[0].fields == {"text": "two\r\nlines, one cell", "label": "a"}


@pytest.mark.parametrize("mark", [";", "\t"])
def test_a_header_may_hold_commas(tmp_path, mark):
    lines = [["id", "Name, Vorname", "label"], ["1", "Doe, John", "pos"]]
    content = "".join(mark.join(cells) + "\n" for cells in lines)
    assert read_rows(write(tmp_path, "a.csv", content))[0].fields == dict(zip(*lines, strict=True))
    content = f'id{mark}"Review, full text"{mark}label\n1{mark}"good, really"{mark}pos\n'
    assert list(read_rows(write(tmp_path, "b.csv", content))[0].fields) == ["id", "Review, full text", "label"]


def test_csv_takes_semicolons_where_the_header_has_no_comma(tmp_path):
    assert read_rows(write(tmp_path, "a.csv", "text;label\na, b;1\n"))[0].fields == {
        "text": "a, b",
        "label": "1",
    }


def test_rows_with_too_many_or_too_few_cells_are_all_named(tmp_path):
    with pytest.raises(DataError) as caught:
        read_rows(write(tmp_path, "a.csv", "text,label\na,b,c\nok,1\nd\n"))
    first, second = str(caught.value).split("\n")
    assert first.startswith("a.csv:2: expected 2 cells as in the header, got 3; ")
    assert second.startswith("a.csv:4: expected 2 cells as in the header, got 1; ")


def test_a_quote_that_never_closes_is_named_where_its_row_starts(tmp_path):
    with pytest.raises(DataError, match=r"^a\.csv:3: invalid table \(unexpected end of data\)"):
        read_rows(write(tmp_path, "a.csv", 'text,label\nok,1\n"open,2\nnext,3\n'))


def test_a_header_that_names_a_column_twice_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"^a\.csv:1: duplicate column names \['text'\]"):
        read_rows(write(tmp_path, "a.csv", "text,label,text\na,b,c\n"))


def test_cells_may_be_longer_than_the_csv_module_allows_and_its_limit_is_put_back(tmp_path):
    limit = csv.field_size_limit()
    rows = read_rows(write(tmp_path, "a.csv", f"text\n{'x' * (limit + 1)}\n"))
    assert len(str(rows[0].fields["text"])) == limit + 1
    assert csv.field_size_limit() == limit


def test_a_header_may_hold_a_cell_of_any_length(tmp_path):
    (row,) = read_rows(write(tmp_path, "a.csv", f"{'x' * 200_000},label\nfine,good\n"))
    assert row.fields["label"] == "good"


def test_tsv_reads_quoted_cells_and_bare_quotes(tmp_path):
    quoted = read_rows(write(tmp_path, "a.tsv", 'text\tlabel\n"he said ""hi"""\tx\n'))
    assert quoted[0].fields["text"] == 'he said "hi"'
    bare = read_rows(write(tmp_path, "b.tsv", 'text\tlabel\n"great" phone\tx\n"open\ty\nend"\tz\n'))
    assert [row.fields["text"] for row in bare] == ['"great" phone', '"open', 'end"']


def test_an_object_in_a_parquet_cell_has_no_keys_of_other_rows(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    calls = [[{"name": "f", "arguments": {"a": 1}}], [{"name": "g", "arguments": {"b": "x"}}]]
    parquet.write_table(arrow.table({"calls": calls}), tmp_path / "a.parquet")
    assert [row.fields["calls"] for row in read_rows(tmp_path / "a.parquet")] == calls


def test_texts_that_a_parquet_file_stores_as_bytes_are_decoded_and_other_bytes_are_kept(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {"text": ["größer".encode()], "turns": [[{"role": b"user"}]], "image": [b"\xff\xd8"]}
    parquet.write_table(arrow.table(columns), tmp_path / "a.parquet")
    (row,) = read_rows(tmp_path / "a.parquet")
    assert row.fields == {"text": "größer", "turns": [{"role": "user"}], "image": b"\xff\xd8"}


def test_parquet_rows_are_numbered_from_one(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"text": ["x", "y"], "tags": [["a"], []]}), tmp_path / "a.parquet")
    rows = read_rows(tmp_path / "a.parquet")
    assert places(rows) == ["a.parquet:1", "a.parquet:2"]
    assert rows[1].fields == {"text": "y", "tags": []}
    far = arrow.array([2**62], type=arrow.timestamp("us"))  # what databases write for "for ever"
    parquet.write_table(arrow.table({"text": ["x"], "until": far}), tmp_path / "far.parquet")
    with pytest.raises(DataError, match=r"^far\.parquet: date after the year 9999 .*; store this column as text"):
        read_rows(tmp_path / "far.parquet")
    with pytest.raises(DataError, match=r"^b\.parquet: invalid Parquet file"):
        read_rows(write(tmp_path, "b.parquet", "text"))


def test_a_missing_file_is_told_with_the_nearest_name(tmp_path):
    write(tmp_path, "reviews.csv", "text\nx\n")
    with pytest.raises(DataError, match=r"revews\.csv: no such file; did you mean '.*/reviews\.csv'\?"):
        read_rows(tmp_path / "revews.csv")
    with pytest.raises(DataError, match=r"quite-another\.csv: no such file; files here: reviews\.csv$"):
        read_rows(tmp_path / "quite-another.csv")
    with pytest.raises(DataError, match=r"no such file; the folder '.*/nowhere' does not exist; check the path$"):
        read_rows(tmp_path / "nowhere" / "deep" / "reviews.csv")
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match=r"the folder '.*/dta' does not exist; did you mean '.*/data/reviews\.csv'\?"):
        read_rows(tmp_path / "dta" / "reviews.csv")


def test_folders_and_unknown_endings_are_refused(tmp_path):
    with pytest.raises(DataError, match="no documents found"):
        read_rows(tmp_path)
    with pytest.raises(DataError, match=r"/a\.dat: unsupported file type; give one of \.jsonl"):
        read_rows(write(tmp_path, "a.dat", "x"))
    with pytest.raises(DataError, match=r"/a\.docx: .*; convert it: `tunesmith collect .*/a\.docx --as domain --out"):
        read_rows(write(tmp_path, "a.docx", "x"))
    (tmp_path / "rows").mkdir()
    write(tmp_path / "rows", "a.csv", "text\nx\n")
    with pytest.raises(
        DataError, match=r"/rows: expected a file, got a folder; give one of its files: .*/rows/a\.csv$"
    ):
        read_rows(tmp_path / "rows")


class ClassLabel:
    def __init__(self, names: list[str]):
        self.names = names


class HubList:
    def __init__(self, feature: object):
        self.feature = feature


class Table(list[dict[str, object]]):
    features: dict[str, object]


def fake_datasets(
    monkeypatch, version: str, rows: list[dict[str, object]], classes: dict[str, list[str]] | None = None
) -> list[tuple[str, str]]:
    asked = []

    def load_dataset(name: str, *, split: str) -> Table:
        asked.append((name, split))
        if split == "gone":
            raise ValueError("Unknown split\n'gone'")
        table = Table(rows)
        table.features = {"text": "string", **{name: ClassLabel(names) for name, names in (classes or {}).items()}}
        if "moods" in rows[0]:
            table.features |= {"moods": HubList(ClassLabel(["calm", "cross"])), "words": HubList("string")}
        return table

    library = ModuleType("datasets")
    library.__dict__.update(
        __version__=version,
        load_dataset=load_dataset,
        ClassLabel=ClassLabel,
        List=HubList,
        exceptions=SimpleNamespace(DatasetsError=type("DatasetsError", (Exception,), {})),
    )
    monkeypatch.setitem(sys.modules, "datasets", library)
    return asked


def test_a_hub_dataset_is_read_by_its_name_and_split(monkeypatch):
    asked = fake_datasets(monkeypatch, "4.8.0", [{"text": "x"}, {"text": "y"}])
    assert places(read_rows("nobody/reviews")) == ["nobody/reviews:1", "nobody/reviews:2"]
    assert places(read_rows("nobody/reviews:test")) == ["nobody/reviews:test:1", "nobody/reviews:test:2"]
    assert asked == [("nobody/reviews", "train"), ("nobody/reviews", "test")]
    assert places(head("nobody/reviews:test", 1)) == ["nobody/reviews:test:1"]
    with pytest.raises(DataError, match=r"cannot load the 'gone' split \(Unknown split 'gone'\)"):
        read_rows("nobody/reviews:gone")


def test_classes_of_the_hub_are_read_by_their_names(monkeypatch):
    rows = [{"text": "x", "label": 1}, {"text": "y", "label": 0}, {"text": "z", "label": -1}]
    rows = [{**row, "moods": [None, [1, -1], [1, 0]][place], "words": ["a"]} for place, row in enumerate(rows)]
    fake_datasets(monkeypatch, "4.8.0", rows, classes={"label": ["neg", "pos"]})
    read = read_rows("nobody/reviews")
    assert [row.fields["label"] for row in read] == ["pos", "neg", None]
    assert [row.fields["moods"] for row in read] == [None, ["cross"], ["cross", "calm"]]
    assert read[0].fields["words"] == ["a"]


def test_the_hub_is_never_asked_offline_or_with_a_library_that_runs_remote_code(monkeypatch):
    asked = fake_datasets(monkeypatch, "3.6.0", [{"text": "x"}])
    with pytest.raises(DataError, match="omit --offline"):
        read_rows("nobody/reviews", offline=True)
    with pytest.raises(DataError, match="can run remote code"):
        read_rows("nobody/reviews")
    assert asked == []


def test_a_missing_library_is_told_with_its_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"^nobody/reviews: requires 'datasets'; pip install datasets"):
        read_rows("nobody/reviews")


ROWS = [Row(f"a.jsonl:{n}", {"label": label, "n": n}) for n, label in enumerate(["pos", "neg", "pos"], 1)]


def test_keep_takes_the_rows_with_a_listed_value_in_every_column():
    assert places(keep(ROWS, {"label": ["pos"], "n": [2, 3]})) == ["a.jsonl:3"]
    assert keep(ROWS, {}) == ROWS


def test_keep_finds_numbers_of_a_recipe_in_the_text_of_a_csv():
    rows = [Row("a.csv:2", {"stars": "1"}), Row("a.csv:3", {"stars": "5"})]
    assert places(keep(rows, {"stars": [5]})) == ["a.csv:3"]


def test_keep_finds_a_fraction_as_a_number_and_as_text():
    rows = [Row("a:1", {"p": 0.5}), Row("a:2", {"p": "0.5"}), Row("a:3", {"p": 0.25}), Row("a:4", {"p": None})]
    assert places(keep(rows, {"p": [0.5]})) == ["a:1", "a:2"]
    assert places(keep(rows, {"p": [None]})) == ["a:4"]


def test_days_and_truth_values_of_a_recipe_find_the_texts_that_a_file_holds():
    rows = [Row("a:1", {"day": "2024-01-05", "ok": "TRUE"}), Row("a:2", {"day": date(2024, 1, 5), "ok": True})]
    assert places(keep(rows, {"day": [date(2024, 1, 5)], "ok": [True]})) == ["a:1", "a:2"]
    assert places(keep(rows, {"day": ["2024-01-05"], "ok": ["true"]})) == ["a:1", "a:2"]


def test_keep_refuses_unknown_columns_and_empty_results():
    with pytest.raises(DataError, match=r"^a\.jsonl: no column 'lable'; did you mean 'label'\? columns here: "):
        keep(ROWS, {"lable": ["pos"]})
    with pytest.raises(DataError, match=r"no row has label in \['x'\]; values in the file: 'pos' \(2\), 'neg' \(1\)"):
        keep(ROWS, {"label": ["x"]})


@pytest.mark.parametrize(
    ("value", "word"),
    [
        *[("a", "a"), (3, "3"), (True, "True"), (2.0, "2"), (0.5, None), (None, None), ([], None)],
        *[(Decimal("7"), "7"), (Decimal("0.5"), None), (Decimal("NaN"), None), (float("inf"), None)],
    ],
)
def test_words_are_texts_truth_values_and_whole_numbers(value, word):
    assert as_word(value) == word


def test_a_hundred_thousand_lines_are_read(tmp_path):
    line = json.dumps({"text": "a sentence of about the usual length for a review", "label": "positive"})
    rows = read_rows(write(tmp_path, "a.jsonl", f"{line}\n" * 100_000))
    assert rows[-1].where == "a.jsonl:100000"


def test_tables_as_programs_really_write_them_are_read(tmp_path):
    assert [row.fields for row in read_rows(write(tmp_path, "a.csv", "v1,v2,,\nham,hello,,\nspam,win,,\n"))][0][
        "v2"
    ] == "hello"
    assert read_rows(write(tmp_path, "b.csv", "text,label\nx,a,\ny,b,\n"))[1].fields == {"text": "y", "label": "b"}
    assert read_rows(write(tmp_path, "c.csv", "text|label\nx|a\n"))[0].fields == {"text": "x", "label": "a"}
    (tmp_path / "d.csv").write_bytes(b"text,label\rx,a\ry,b\r")  # as Macs once wrote them
    assert [row.fields["label"] for row in read_rows(tmp_path / "d.csv")] == ["a", "b"]
    (row,) = read_rows(write(tmp_path, "e.csv", "sep=;\ntext;label\nx;a\n"))
    assert row == Row("e.csv:3", {"text": "x", "label": "a"})


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ('"Text\n(DE)";label\n"a;b";x\nc;y\n', {"Text\n(DE)": "a;b", "label": "x"}),
        ("text;label;note, extra, more, most\na;b;z\nc;d;e, f\n",
         {"text": "a", "label": "b", "note, extra, more, most": "z"}),
        ("text,label\na;b;c,x\nd;e;f,y\n", {"text": "a;b;c", "label": "x"}),
    ],
)  # fmt: skip
def test_the_mark_is_the_one_that_cuts_the_rows_as_it_cuts_the_header(tmp_path, text, fields):
    assert read_rows(write(tmp_path, "a.csv", text))[0].fields == fields


def test_columns_without_a_name_that_hold_values_are_told_before_one_is_lost(tmp_path):
    with pytest.raises(DataError, match=r"^a\.csv:3: 2 columns with values have no name; name them in line 1$"):
        read_rows(write(tmp_path, "a.csv", "text,label,,\nhi,a,,\nho,b,x,y\n"))
    assert len(read_rows(write(tmp_path, "b.csv", ",text,label\n0,hi,a\n"))[0].fields) == 3


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_key_that_stands_twice_is_told_and_not_the_last_one_taken(tmp_path, name):
    row = '{"text": "x", "label": "a", "label": "b"}'
    text = row if name == "a.jsonl" else f"[{row}]"
    with pytest.raises(DataError, match=r"^a\.jsonl?:1: invalid JSON \(duplicate key 'label'\)"):
        read_rows(write(tmp_path, name, text))


@pytest.mark.parametrize("rows", ['"rows": [{"text": "x"}]', '"data": {"train": [{"text": "x"}]}'])
def test_a_list_of_rows_inside_a_document_is_found(tmp_path, rows):
    (row,) = read_rows(write(tmp_path, "a.json", f'{{"version": "1", {rows}}}'))
    assert row == Row("a.json:1", {"text": "x"})
    turns = '{"messages": [{"role": "user", "content": "hi"}]}'
    assert list(read_rows(write(tmp_path, "b.json", turns))[0].fields) == ["messages"]


def test_a_link_that_leads_nowhere_is_told_as_one(tmp_path):
    (tmp_path / "a.jsonl").symlink_to("gone.jsonl")
    with pytest.raises(DataError, match=r"it is a broken link to 'gone\.jsonl'"):
        read_rows(tmp_path / "a.jsonl")


def test_subfolders_of_documents_are_a_column_that_may_be_the_label(tmp_path):
    for name in ("bills", "letters"):
        for number in range(3):
            (tmp_path / "mail" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "mail" / name / f"{number}.txt").write_text(f"{name} number {number}", encoding="utf-8")
    file = read_file(tmp_path / "mail")
    assert [row.fields["folder"] for row in file.rows] == ["bills"] * 3 + ["letters"] * 3
    assert "to predict them: --set 'objective={kind: classify, text: text, label: folder}'" in file.notes[0]
    (tmp_path / "mail" / "readme.txt").write_text("what this is", encoding="utf-8")
    assert "folder" not in read_rows(tmp_path / "mail")[0].fields


def test_of_a_folder_of_documents_what_is_not_read_is_told(tmp_path):
    for name in ("a.txt", "b.doc", "c", "d.doc", "e.txt"):
        (tmp_path / name).write_text(f"some words of {name}")
    told = f"{tmp_path}: skipped files of unsupported types: .doc (2), no ending (1)"
    assert (len(read_rows(tmp_path)), passed_over(str(tmp_path))) == (2, told)
    assert passed_over(str(tmp_path / "a.txt")) == ""
    sources = Sources(str(tmp_path), 0.0, 0.0, "", {})
    loaded = load(sources, lambda rows: texts(rows, text="text"), seed=0, offline=True)
    assert told in loaded.split.notes


def test_a_tsv_of_one_column_keeps_line_ends_in_quoted_cells(tmp_path):
    read = read_rows(write(tmp_path, "a.tsv", 'text\n"first line\nsecond line"\n"another\nhere"\n'))
    assert [row.fields["text"] for row in read] == ["first line\nsecond line", "another\nhere"]
