"""The screen Data in the studio: uploads, the list of rows of any file, columns, findings and their fixes."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from playwright.sync_api import Page, expect

from tests.served import await_here
from tests.tiny import tiny_encoder
from tests.web.conftest import Serve, Served
from tunesmith.data.audit import row_index
from tunesmith.data.audit.fix import log_of
from tunesmith.data.audit.row_index import RowIndex
from tunesmith.data.readers.read import read_rows
from tunesmith.web.studio import data_file
from tunesmith.web.studio.data import Data
from tunesmith.web.studio.data_file import CHANGED, DataFile, chosen_in, marked, recipe_name
from tunesmith.web.studio.jobs import Command, Job, State, process_mark
from tunesmith.web.studio.people import People
from tunesmith.web.studio.screen import Studio, redirect
from tunesmith.web.studio.workspace import WorkspaceError, clean_name

COMMAND = 300_000  # milliseconds for a command in a process of its own
ROWS = 200_000
# Resolves to the milliseconds from the navigation to the first rows on the screen.
SHOWN = """() => new Promise((done) => new PerformanceObserver((list) => {
    const mark = list.getEntriesByName("rows-shown")[0];
    if (mark) done(mark.startTime);
}).observe({type: "mark", buffered: true}))"""
MAIL = "Write to jane.doe@web.de"


def row_of(n: int) -> dict[str, object]:
    return {"text": f"message {n} is {('good', 'bad')[n % 2]} enough", "kind": "ab"[n % 2], "from": f"c{n // 5}"}


def job_of(folder: Path, *words: str) -> Job:
    """A job that has ended, without a process."""
    folder.mkdir(parents=True)
    folder.joinpath("command.json").write_text(json.dumps(asdict(Command([*words], ".", subject=words[1]))), "utf-8")
    State("finished", started=1.0, ended=2.0, code=0).write(folder)
    return Job(folder)


def write_lines(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


def drop(page: Page, path: Path) -> None:
    """Drag a file or folder from outside the browser to the page."""
    box = page.locator("#drop").bounding_box()
    assert box is not None
    protocol = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        event = {"type": kind, "x": box["x"] + 9, "y": box["y"] + 9, "data": data}
        protocol.send("Input.dispatchDragEvent", event)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with a tiny model."""
    folder = tmp_path / "work"
    folder.mkdir()
    tiny_encoder(folder / "tiny")
    return folder


@pytest.fixture
def studio(folder: Path, serve: Serve) -> Served:
    return serve("studio", str(folder), "--offline")


@pytest.mark.long
@pytest.mark.browser
def test_documents_become_rows_and_a_dropped_file_is_mapped_checked_fixed_and_seen_by_a_model(
    page: Page, studio: Served, folder: Path, tmp_path: Path
):
    manuals = tmp_path / "my manuals"
    manuals.joinpath("old").mkdir(parents=True)
    manuals.joinpath("printer.md").write_text("# Printer\n\nOpen the cover to change the toner.\n", "utf-8")
    manuals.joinpath("old", "router.html").write_text("<h1>Router</h1><p>Press the button to reset it.</p>", "utf-8")
    manuals.joinpath("old", "disk.bin").write_bytes(b"\0")
    page.goto(studio.url)
    drop(page, manuals)
    expect(page.get_by_role("heading", level=1)).to_have_text("uploads/my-manuals")
    page.goto(studio.url)
    page.locator("#folder").set_input_files(manuals)  # again, chosen
    expect(page.get_by_role("heading", level=1)).to_have_text("uploads/my-manuals-2")
    expect(page.locator(".what")).to_contain_text("2 documents")
    page.get_by_role("button", name="Make rows").click()
    page.get_by_role("link", name="Look at the rows").click(timeout=COMMAND)
    expect(page.locator(".rows")).to_contain_text("change the toner")

    rows = [*map(row_of, range(60)), {**row_of(3), "from": "c9"}, {**row_of(100), "text": MAIL}, "{broken"]
    page.goto(f"{studio.url}data")
    page.locator("#file").set_input_files(write_lines(tmp_path / "mail box.jsonl", *rows))
    expect(page.get_by_role("heading", level=1)).to_have_text("uploads/mail-box.jsonl")
    page.get_by_label("Go to row").fill("63")
    page.get_by_label("Go to row").press("Enter")
    expect(page.locator("#row")).to_contain_text("Not a row")
    page.get_by_label("Objective").focus()
    page.get_by_label("Objective").select_option("classify")
    page.locator("[name=label]").select_option("kind")
    expect(page.get_by_label("Objective")).to_be_focused()  # though it was replaced
    page.locator("[name=text]").select_option("text")
    page.get_by_text("Groups and held-out rows").click()
    page.get_by_label("Rows of one group").select_option("from")
    page.get_by_role("button", name="Check the data").click()
    expect(page.locator("#audit")).to_contain_text("63 rows", timeout=COMMAND)
    expect(page.locator("#audit code")).to_contain_text("--set=objective.label=kind")

    page.get_by_text("e-mail, phone number").click()
    page.get_by_role("link", name="Open the 1 row").and_(page.locator("[href*=personal]")).click()
    expect(page.locator(".rows tbody tr")).to_have_count(1)
    expect(page.locator(".rows tbody")).to_contain_text(MAIL)
    expect(page.locator("[name=label]")).to_have_value("kind")  # as chosen
    page.get_by_role("button", name="Show what fixes would change").click()
    expect(page.locator("#fixes ins")).to_have_text("<email>", timeout=COMMAND)
    expect(page.locator("#fixes")).to_contain_text("unreadable")
    assert not list(folder.joinpath("uploads").glob("*.clean.*"))
    page.get_by_role("button", name="Keep the fixed copy").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("uploads/mail-box.clean.jsonl")
    expect(page.locator(".row-list")).to_contain_text("61 rows")

    page.locator("[name=label]").select_option("kind")
    page.get_by_text("Groups and held-out rows").click()
    page.get_by_label("Rows of one group").select_option("from")
    page.get_by_role("combobox", name="Model").fill("tiny")
    page.get_by_role("button", name="as the model sees them").click()
    expect(page.locator("#seen .parts tbody tr")).to_have_count(3, timeout=COMMAND)
    expect(page.locator("#seen .tokens").first).to_contain_text("message")
    counts = [int(cell) for cell in page.locator("#seen .parts td:nth-child(2)").all_inner_texts()]
    assert sum(counts) == 61


@pytest.mark.browser
def test_any_row_of_a_long_file_is_shown_without_the_file_in_memory(page: Page, studio: Served, folder: Path):
    write_lines(folder / "long.jsonl", *map(row_of, range(ROWS)))
    page.goto(f"{studio.url}data/file?path=long.jsonl")
    expect(page.locator(".rows tbody")).to_contain_text("message 0 ")
    assert page.evaluate(SHOWN) < 20_000  # milliseconds; about 400 (bench/NOTES.md)
    expect(page.locator(".row-list")).to_contain_text("200,000 rows")
    grid = page.get_by_role("grid")
    grid.focus()
    page.keyboard.press("End")
    expect(page.locator("tr[aria-selected=true]")).to_contain_text(f"message {ROWS - 1} ")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    expect(page.locator("#row")).to_contain_text(f"Row {ROWS - 1:,}")
    page.get_by_label("Go to row").fill("123456")
    page.get_by_label("Go to row").press("Enter")
    expect(page.locator("tr[aria-selected=true]")).to_contain_text("message 123455 ")
    page.locator(".rows").evaluate("view => { view.scrollTop = view.scrollHeight / 2; }")
    expect(page.locator(".rows tbody tr").first).to_contain_text(re.compile(r"message (99|100)\d{3} "))
    assert page.locator(".rows tr").count() < 40
    server = psutil.Process(studio.pid)
    assert server.memory_info().rss < 500e6  # bytes


def test_what_a_request_names_stays_in_the_folder(folder: Path, tmp_path: Path):
    write_lines(folder / "rows.jsonl", row_of(0))
    write_lines(folder / "kept.jsonl", {"turns": [{"content": "grüße <b>"}]})
    write_lines(tmp_path / "outside.jsonl", row_of(2))
    screen, data = DataFile(Studio(folder)), Data(Studio(folder))
    assert "grüße &lt;b&gt;" in screen._row("kept.jsonl").body.decode()
    request = SimpleNamespace(body=lambda: asyncio.sleep(0, b"{}"))
    for screened, problem in (
        (lambda: screen._rows("../outside.jsonl"), "not in"),
        (lambda: screen._rows("rows.jsonl", finding="leak"), "not checked yet"),
        (lambda: screen._keep({"path": "rows.jsonl", "name": "kept.jsonl"}), "choose another name"),
        (lambda: screen._keep({"path": "rows.jsonl", "name": "../kept.jsonl"}), "use letters"),
        (lambda: await_here(data._upload(request, "u", "run.exe")), "unknown kind"),
        (lambda: await_here(data._upload(request, "../u", "rows.jsonl")), "use letters"),
        (lambda: data._uploaded({"upload": ".."}), "use letters"),
    ):
        with pytest.raises(WorkspaceError, match=problem):
            screened()
    await_here(data._upload(request, "u", "../a b/.x/rows (1).jsonl"))
    files = [path.relative_to(folder) for path in folder.rglob("rows*.jsonl")]
    assert sorted(map(str, files)) == [".studio/uploads/u/file-9608161c/a-b/x/rows-1.jsonl", "rows.jsonl"]


def test_dropped_files_keep_names_of_any_language_and_all_of_them_are_listed(folder: Path):
    data = Data(Studio(folder))

    def dropped(*names: str) -> str:
        for name in names:
            request = SimpleNamespace(body=lambda: asyncio.sleep(0, b'{"text": "a"}\n'))
            await_here(data._upload(request, "u", name))
        return str(json.loads(data._uploaded({"upload": "u"}).body)["open"])

    long = "long " * 20
    assert dropped("u\u0308ber uns.csv") == "/data/file?path=uploads/über-uns.csv"
    assert dropped("数据.jsonl", f"{long}1.csv", f"{long}2.csv", "😀.csv") == "/data"
    assert dropped("manual.pdf") == "/data/documents?path=uploads/manual.pdf"
    assert dropped("book/one.pdf", "book/two.md") == "/data/documents?path=uploads/book"
    assert len(list(folder.joinpath("uploads").iterdir())) == 7
    write_lines(folder / "recipe.yaml", "model: tiny")
    page = data._files().body.decode()
    assert re.findall(r"documents\?path=(\S+)\"", page) == ["uploads%2Fbook", "uploads%2Fmanual.pdf"]
    assert len(re.findall(r"file\?path=", page)) == 5
    with pytest.raises(FileExistsError):  # one of them would be lost
        dropped("a b.csv", "a-b.csv")
    Data(Studio(folder))
    assert not folder.joinpath(".studio", "uploads").exists()


@pytest.mark.parametrize("name", ["my data.csv", "数据 (1).csv", "\U0001f600.csv", f"{'数' * 90}.csv", ".x"])
def test_names_are_proposed_that_the_page_accepts(name: str, tmp_path: Path):
    page = Studio(tmp_path)
    for proposed in (recipe_name(name), clean_name(Path(name).stem), clean_name(name)):
        assert page.workspace.new_name(proposed) == proposed
        assert len(proposed.encode()) < 220
    assert redirect(f"/runs/{clean_name('数据')}").headers["HX-Redirect"] == "/runs/%E6%95%B0%E6%8D%AE"


def test_rows_are_labelled_in_one_session_whichever_screen_asks(folder: Path, monkeypatch: pytest.MonkeyPatch):
    write_lines(folder / "rows.jsonl", row_of(0))
    people = People(Studio(folder))
    started: list[str] = []
    monkeypatch.setattr(people.studio, "start", lambda *words, **_: started.extend(words))
    people._label({"path": "./rows.jsonl", "text": "text", "label": "kind", "labels": "good, bad"})
    assert started == ["label", "rows.jsonl", "--text=text", "--label=kind", "--labels=good,bad", "--port", "0"]
    job = job_of(people.jobs.folder / "1", *started)
    State("running", process_mark(), started=1.0).write(job.folder)
    with pytest.raises(WorkspaceError, match="open already"):
        people._label({"path": "rows.jsonl", "labels": "good bad"})


def test_changes_are_shown_wherever_they_are_in_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(row_index, "SECONDS", -1.0)  # each call indexes up to the next mark
    rows = [row_of(n) for n in range(3000)]
    path = write_lines(folder / "rows.jsonl", *rows, {"text": MAIL, "kind": "a"}, "{broken")
    screen = DataFile(Studio(folder))
    copy = screen._copy_of("rows.jsonl")
    copy.parent.mkdir(parents=True)
    write_lines(copy, *rows, {"text": MAIL.replace("jane.doe@web.de", "<email>"), "kind": "a"})
    changes = [
        {"where": "rows.jsonl:3001", "action": "changed", "row": 3001, "kind": "personal_data", "column": "text"},
        {"where": "rows.jsonl:3002", "action": "dropped", "kind": "unreadable", "why": "invalid JSON"},
    ]
    write_lines(log_of(copy), *changes)
    shown = screen._changes("rows.jsonl").body.decode()
    assert "Write to <del>jane.doe@web.de</del><ins>&lt;email&gt;</ins>" in shown
    write_lines(path, *rows)
    assert f"<del>{CHANGED}</del>" in screen._changes("rows.jsonl").body.decode()


def test_files_of_different_folders_have_fixed_copies_of_their_own(folder: Path):
    screen, names = DataFile(Studio(folder)), ("a/b.jsonl", "a--b.jsonl", "b.jsonl")
    (folder / "a").mkdir()
    for name in names:
        (folder / name).write_text("")
    copies = {screen._copy_of(name) for name in names}
    assert len(copies) == 3
    assert {screen._copy_of(str(folder / name)) for name in names} == copies  # not next to the file


def test_a_file_that_is_indexed_in_part_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(row_index, "SECONDS", -1.0)
    table = tmp_path / "rows.csv"
    table.write_text("text,label\n" + '"two\nlines",a\n' * 2000, "utf-8")
    for path in (table, write_lines(tmp_path / "rows.jsonl", *map(row_of, range(2000)))):
        index = RowIndex(path)
        index.read(1500, 1)
        assert index.rows == row_index.STEP
        assert str(path) not in [file.path for file in psutil.Process().open_files()]
        assert len(index.read(1500, 9, wait=True)) == 9
        assert len(index.read(1990, 99, wait=True)) == 10
        assert index.rows == 2000


def test_long_files_in_memory_replace_each_other_and_others_are_opened_meanwhile(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(data_file, "LARGE_BYTES", 100)
    monkeypatch.setattr(data_file, "RowIndex", lambda path: slow(path) if path.stem == "slow" else RowIndex(path))
    opening, done = threading.Event(), threading.Event()

    def slow(path: Path) -> RowIndex:
        opening.set()
        assert done.wait(60)
        return RowIndex(path)

    for name in ("slow", "one", "two"):
        folder.joinpath(f"{name}.txt").write_text(name * 20, "utf-8")
    screen = DataFile(Studio(folder))
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(screen._index, folder / "slow.txt")
        assert opening.wait(60)
        screen._index(folder / "one.txt")
        done.set()
        assert other.result().rows == 1
    screen._index(folder / "two.txt")
    assert [path.stem for path in screen._indices] == ["two"]


def test_rows_of_a_finding_that_the_file_has_no_longer_are_named(folder: Path):
    write_lines(folder / "rows.jsonl", *map(row_of, range(3)))
    screen = DataFile(Studio(folder))
    finding = {"kind": "leak", "about": "a leak", "rows": [f"rows.jsonl:{line}" for line in (2, 3, 9)]}
    job = job_of(screen.jobs.folder / "1", "audit", "rows.jsonl")
    for state, problem in (("stopped", "check is stopped"), ("waiting", "is being checked")):  # and not remembered
        State(state, runner=process_mark()).write(job.folder)
        with pytest.raises(WorkspaceError, match=problem):
            screen._rows("rows.jsonl", finding="leak")
    job.folder.joinpath("output.json").write_text(json.dumps({"findings": [finding]}), "utf-8")
    found = json.loads(screen._rows("rows.jsonl", finding="leak").body)
    assert [row["n"] for row in found["rows"]] == [1, 2, 8]
    assert (found["total"], found["whole"]) == (3, True)
    assert found["rows"][1]["fields"] == row_of(2)
    assert found["rows"][2]["fields"] == CHANGED


TEXT = 'text,label\r\n"one\r\nof, two",a\r\n\r\ntwo,b\r\n"say ""x""",c\r\nshort\r\nlast,d\r\n'
FILES = {
    "rows.jsonl": "".join(json.dumps(row_of(n)) + "\n" * (1 + n % 3) for n in range(11)).encode(),
    "mark.jsonl": b"\xef\xbb\xbf" + b'{"a": 1}\n[2]\n{"a": 3}\nno\n{"a": "\xc3\xbc"}',
    "rows.csv": TEXT.encode(),
    "mark.csv": b"\xef\xbb\xbf" + TEXT.encode(),
    "latin.csv": TEXT.replace("one", "f\xfcr M\xfcller gr\xfc\xdfen").encode("latin-1"),
    "carriage.csv": TEXT.replace("\r\n", "\r").encode(),
    "title.csv": b"Mails of 2026\r\n\r\ntext;label\r\na;b\r\nc;d\r\ne;f\r\ng;h\r\n",
    "rows.jsonl.gz": gzip.compress(b'{"a": 1}\n\n{"a": 2}\n{"a": 3}\n{"a": 4}\n'),
    "rows.json": b'[{"a": 1}, {"a": 2}, {"a": 3}]',
    "rows.txt": b"first\n\nsecond\n\nthird\n",
}


@pytest.mark.parametrize("name", FILES)
def test_each_row_is_found_by_number_and_by_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(row_index, "STEP", 2)
    path = tmp_path / name
    path.write_bytes(FILES[name])
    rows = RowIndex(path).read(0, 1000)
    index = RowIndex(path)
    for start in (3, 0, 1, len(rows) - 1, 2, len(rows)):
        assert index.read(start, 2) == rows[start : start + 2]
    assert index.whole
    assert index.rows == len(rows)
    assert [index.at_line(row.line) for row in rows] == rows
    assert index.at_line(rows[-1].line + 1) is None
    good = [row for row in rows if not isinstance(row.fields, str)]
    assert (index.note != "") == (name in ("latin.csv", "title.csv", "rows.jsonl.gz"))
    if len(good) == len(rows):  # else `read_rows` refuses the file
        expected = [(int(row.where.rpartition(":")[2]), row.fields) for row in read_rows(path)]
        assert [(row.line, row.fields) for row in rows] == expected
    assert good[-1].fields == {**good[-1].fields, **({"label": "d"} if "text,label" in str(FILES[name]) else {})}


def test_rows_of_parquet_are_found_across_its_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("tunesmith.data.readers.parquet_hub.ROWS_AT_ONCE", 4)
    parquet.write_table(arrow.Table.from_pylist([{"a": n} for n in range(11)]), tmp_path / "rows.parquet")
    index = RowIndex(tmp_path / "rows.parquet")
    assert [row.fields["a"] for row in index.read(3, 7)] == list(range(3, 10))  # type: ignore[index]
    assert [(row.number, row.line) for row in index.read(9, 5)] == [(9, 10), (10, 11)]
    assert index.at_line(8) == index.read(7, 1)[0]


def test_a_table_is_shown_up_to_a_quote_that_is_not_closed(tmp_path: Path):
    path = tmp_path / "rows.csv"
    path.write_text('a,b\n1,2\n3,4\n"5,6\n', "utf-8")
    index = RowIndex(path)
    assert [row.line for row in index.read(0, 9)] == [2, 3]
    assert index.problem.startswith("rows.csv:4: invalid table")


@pytest.mark.parametrize(
    ("before", "after", "marks"),
    [
        ("a b", "a b", ("a b", "", "", "")),
        ("call 1 now", "call <phone> now", ("call ", "1", "<phone>", " now")),
        ("aa", "aaa", ("aa", "", "a", "")),
        ("", "x", ("", "", "x", "")),
        ("x", "", ("", "x", "", "")),
    ],
)
def test_what_a_fix_changes_in_a_text_is_marked(before: str, after: str, marks: tuple[str, ...]):
    assert marked(before, after) == marks


def test_the_form_remembers_what_the_last_command_was_given(tmp_path: Path):
    options = ["--objective=classify", "--set=objective.text=a=b", "--set=data.group=who", "--set=technique.rank=8"]
    assert chosen_in(job_of(tmp_path / "1", "init", "a.jsonl", *options)) == {
        "kind": "classify",
        "text": "a=b",
        "group": "who",
    }
    assert chosen_in(None) == {}
