"""Files that are encrypted, broken, empty or made to harm: one line each, and nothing of it reaches anybody."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import fpdf
import pytest

from tests.data.test_collect_documents import as_docx, as_epub, as_pdf
from tunesmith.data.documents import worker_pool as pool
from tunesmith.data.documents.convert import READERS, convert
from tunesmith.data.documents.document import Block, markdown
from tunesmith.data.documents.formats import zip_xml as archive
from tunesmith.data.documents.worker_pool import convert_all
from tunesmith.errors import DataError

TEXT = [Block("heading", "Head", 1), Block("paragraph", "Some text that is there.")]
SECRET = "the content of a file elsewhere"


def fault(folder: Path, name: str, data: bytes) -> str:
    path = folder / name
    path.write_bytes(data)
    with pytest.raises(DataError) as error:
        convert(path)
    assert "\n" not in str(error.value)
    assert "; " in str(error.value)
    return str(error.value)


def zipped(parts: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in parts.items():
            made.writestr(name, data)
    return file.getvalue()


def with_part(data: bytes, name: str, change: bytes) -> bytes:
    """An Office file with one part exchanged."""
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        return zipped({part: change if part == name else old.read(part) for part in old.namelist()})


@pytest.mark.parametrize("suffix", READERS)
def test_an_empty_file_of_any_kind_is_named_as_such(tmp_path: Path, suffix: str):
    assert fault(tmp_path, f"a{suffix}", b" \n") == "empty; give a file with text, or remove it"


@pytest.mark.parametrize("suffix", [".pdf", ".docx", ".pptx", ".epub"])
def test_a_file_that_is_not_what_its_ending_says_is_broken(tmp_path: Path, suffix: str):
    assert "broken" in fault(tmp_path, f"a{suffix}", b"this is no such file " * 50)


def test_half_a_file_is_broken(tmp_path: Path):
    assert "broken" in fault(tmp_path, "a.docx", as_docx(TEXT)[:-200])
    assert "broken" in fault(tmp_path, "a.pdf", as_pdf(TEXT)[:400])


def test_a_pdf_with_a_password_says_what_helps(tmp_path: Path):
    assert fault(tmp_path, "a.pdf", as_pdf(TEXT, user_password="x")).startswith("encrypted; remove the password")


def test_an_office_file_with_a_password_says_what_helps(tmp_path: Path):
    ole = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\x00" * 600
    assert "remove the password" in fault(tmp_path, "a.docx", ole)


def test_a_pdf_of_pictures_alone_asks_for_ocr(tmp_path: Path):
    pdf = fpdf.FPDF()
    pdf.add_page()
    pdf.rect(10, 10, 100, 100)
    said = fault(tmp_path, "a.pdf", bytes(pdf.output()))
    assert said == "no text on its 1 pages, only images; run OCR on it first"


def test_a_page_that_only_scripts_fill_has_no_text(tmp_path: Path):
    page = b"<html><body><div id=app></div><script>document.write('hi')</script></body></html>"
    assert "no visible text" in fault(tmp_path, "a.html", page)


ENTITY = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file://{path}">]>'
BILLION = b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><x>&b;</x>'


def test_an_external_entity_in_a_word_file_is_refused_and_its_file_not_read(tmp_path: Path):
    (tmp_path / "secret.txt").write_text(SECRET)
    with zipfile.ZipFile(io.BytesIO(as_docx(TEXT))) as old:
        body = old.read("word/document.xml").decode().partition("?>")[2]
    evil = ENTITY.format(path=tmp_path / "secret.txt") + body.replace("Some text", "&e;")
    said = fault(tmp_path, "a.docx", with_part(as_docx(TEXT), "word/document.xml", evil.encode()))
    assert "declares XML entities" in said
    assert SECRET not in said
    utf16 = fault(tmp_path, "b.docx", with_part(as_docx(TEXT), "word/styles.xml", evil.encode("utf-16")))
    assert "declares XML entities" in utf16


@pytest.mark.parametrize("name", ["META-INF/container.xml", "a/b.opf"])
def test_entities_in_a_book_are_refused(tmp_path: Path, name: str):
    assert "declares XML entities" in fault(tmp_path, "a.epub", with_part(as_epub(["<p>x</p>"]), name, BILLION))


def test_an_entity_in_a_chapter_stays_unread(tmp_path: Path):
    (tmp_path / "secret.txt").write_text(SECRET)
    chapter = ENTITY.format(path=tmp_path / "secret.txt") + "<html><body><p>Seen. &e;</p></body></html>"
    path = tmp_path / "a.epub"
    path.write_bytes(with_part(as_epub(["<p>x</p>"]), "a/c 0.xhtml", chapter.encode()))
    text = markdown(convert(path).blocks)
    assert "Seen." in text
    assert SECRET not in text


def test_a_zip_bomb_is_refused_by_what_it_says_it_unpacks_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(archive, "MOST_PART", 2**20)
    bomb = zipped({"word/document.xml": b"\x00" * (2 * 2**20)})
    assert len(bomb) < 10_000
    assert "unpacks to 2 MiB" in fault(tmp_path, "a.docx", bomb)


def test_a_part_that_lies_about_its_size_is_not_read_past_it(tmp_path: Path):
    data = bytearray(zipped({"word/document.xml": b"\x00" * 1_000_000}))
    real = (1_000_000).to_bytes(4, "little")
    place = data.rfind(real)
    data[place : place + 4] = (100).to_bytes(4, "little")
    assert "broken" in fault(tmp_path, "a.docx", bytes(data))


def test_elements_without_end_are_refused_and_not_followed(tmp_path: Path):
    page = b"<p>Seen.</p>" + b"<div>" * 50_000 + b"deep"
    assert "elements nested more than 200 deep" in fault(tmp_path, "a.html", page)


def test_aliases_in_yaml_that_multiply_are_not_followed(tmp_path: Path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]" for n in range(1, 12)]
    assert "its aliases expand to more than 100000 values" in fault(tmp_path, "a.yaml", "\n".join(lines).encode())


# ------------------------------------------------------------------ the process apart


def by_worker(*paths: Path, silence: float = 60.0) -> dict[str, str]:
    """Name -> its text, or why there is none."""
    done = convert_all(list(paths), silence=silence)
    return {
        each.path.name: each.error or markdown(each.document.blocks) for each in done if each.document or each.error
    }


def test_a_file_that_breaks_the_reader_harms_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "good.txt").write_text("Good text.")
    (tmp_path / "bad.pdf").write_bytes(b"%PDF-1.7 broken")
    monkeypatch.setattr(pool, "cores", lambda: 1)
    found = by_worker(tmp_path / "bad.pdf", tmp_path / "good.txt")
    assert found["good.txt"] == "Good text."
    assert found["bad.pdf"].startswith("broken")


def test_a_reader_that_hangs_is_ended_and_the_next_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hang = tmp_path / "tunesmith" / "data" / "documents"
    hang.mkdir(parents=True)
    for folder in (hang, hang.parent, hang.parent.parent):
        (folder / "__init__.py").touch()
    (hang / "worker.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(pool, "PACKAGE", tmp_path)
    (tmp_path / "a.txt").write_text("text")
    assert by_worker(tmp_path / "a.txt", silence=0.5) == {"a.txt": "no result within 0 s; split it or save it as text"}


def test_no_key_is_in_the_reach_of_the_process_that_opens_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hang = tmp_path / "tunesmith" / "data" / "documents"
    hang.mkdir(parents=True)
    for folder in (hang, hang.parent, hang.parent.parent):
        (folder / "__init__.py").touch()
    (hang / "worker.py").write_text(
        "import json, os\ninput()\nprint(json.dumps({'error': ' '.join(os.environ) + '; end'}), flush=True)\ninput()\n"
    )
    monkeypatch.setattr(pool, "PACKAGE", tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    (tmp_path / "a.txt").write_text("text")
    said = by_worker(tmp_path / "a.txt")["a.txt"]
    assert "PYTHONPATH" in said
    assert "KEY" not in said


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the limit on memory is not kept")
def test_the_process_that_opens_files_can_neither_write_nor_fill_the_memory(tmp_path: Path):
    code = """
import sys
from tunesmith.data.documents.worker import MEMORY, bound
bound()
try:
    bytearray(MEMORY + 1)
except MemoryError:
    print("no memory")
try:
    open(sys.argv[1], "w").write("x" * 100_000)
except OSError as error:
    print("no file")
"""
    command = [sys.executable, "-c", code, str(tmp_path / "x")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=pool.PACKAGE)
    assert done.stdout.split("\n")[:2] == ["no memory", "no file"], done.stderr
