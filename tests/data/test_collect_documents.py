"""Real files, made from this project's own manual by the tools that people use, come out as the manual again."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import docx
import fpdf
import pptx
import pytest

from tunesmith.data.documents.convert import convert
from tunesmith.data.documents.document import Block, Document, clean, markdown, plain
from tunesmith.data.documents.formats.html import html_document
from tunesmith.data.documents.formats.plain_text import markdown_document
from tunesmith.data.documents.passages import passages

MANUAL = Path(__file__).parents[2] / "docs" / "reference" / "data-formats.md"


@pytest.fixture(scope="module")
def manual() -> list[Block]:
    """The blocks of the manual, in letters that every font of the tools below has."""

    def plainer(text: str) -> str:
        return text.replace("`", "").encode("latin-1", "replace").decode("latin-1")

    return [
        replace(b, text=plainer(b.text), cells=tuple(tuple(map(plainer, row)) for row in b.cells))
        for b in markdown_document(MANUAL.read_bytes()).blocks
    ]


def headings(blocks: Sequence[Block]) -> list[str]:
    return [block.text for block in blocks if block.kind == "heading"]


def levels(blocks: Sequence[Block]) -> list[int]:
    return [block.level for block in blocks if block.kind == "heading"]


def tables(blocks: Sequence[Block]) -> list[tuple[tuple[str, ...], ...]]:
    return [block.cells for block in blocks if block.kind == "table"]


def words(blocks: Sequence[Block]) -> list[str]:
    return plain(markdown(blocks)).split()


def as_docx(blocks: Sequence[Block]) -> bytes:
    """The manual as somebody would have it in Word."""
    made = docx.Document()
    for block in blocks:
        if block.kind == "heading":
            made.add_heading(block.text, block.level)
        elif block.kind == "table":
            table = made.add_table(len(block.cells), len(block.cells[0]))
            for row, cells in zip(table.rows, block.cells, strict=True):
                for cell, text in zip(row.cells, cells, strict=True):
                    cell.text = text
        else:
            made.add_paragraph(block.text, style="List Bullet" if block.kind == "item" else None)
    file = io.BytesIO()
    made.save(file)
    return file.getvalue()


def as_pdf(blocks: Sequence[Block], **security: str) -> bytes:
    """The manual set on pages, with a running head and page numbers."""

    class Pages(fpdf.FPDF):
        def header(self) -> None:
            self.set_font("Times", "I", 9)
            self.cell(0, 6, "The manual, edition of today", new_x="LMARGIN", new_y="NEXT")
            self.ln(4)

        def footer(self) -> None:
            self.set_y(-12)
            self.cell(0, 8, str(self.page_no()), align="C")

    pdf = Pages()
    pdf.set_margin(20)
    if security:
        pdf.set_encryption("owner", **security)
    pdf.add_page()
    for block in blocks:
        if block.kind == "table":
            pdf.set_font("Times", size=10)
            with pdf.table() as table:
                for cells in block.cells:
                    table.row(cells)
        else:
            size = {1: 20, 2: 16, 3: 13}.get(block.level, 10) if block.kind == "heading" else 10
            pdf.set_font("Courier" if block.kind == "code" else "Times", "B" if block.kind == "heading" else "", size)
            text = f"- {block.text}" if block.kind == "item" else block.text
            pdf.multi_cell(0, size * 0.5, text, align="L", new_x="LMARGIN", new_y="NEXT")
        pdf.ln(3)
    return bytes(pdf.output())


def as_epub(chapters: Sequence[str]) -> bytes:
    file = io.BytesIO()
    items = "".join(
        f'<item id="c{n}" href="c%20{n}.xhtml" media-type="application/xhtml+xml"/>' for n in range(len(chapters))
    )
    spine = "".join(f'<itemref idref="c{n}"/>' for n in reversed(range(len(chapters))))
    with zipfile.ZipFile(file, "w") as book:
        book.writestr(
            "META-INF/container.xml", '<container><rootfiles><rootfile full-path="a/b.opf"/></rootfiles></container>'
        )
        book.writestr("a/b.opf", f'<package xmlns:dc="d"><metadata><dc:title>The Book</dc:title></metadata>'
                                 f"<manifest>{items}</manifest><spine>{spine}</spine></package>")  # fmt: skip
        for number, chapter in enumerate(chapters):
            book.writestr(
                f"a/c {number}.xhtml", f'<?xml version="1.0" encoding="utf-8"?><html><body>{chapter}</body></html>'
            )
    return file.getvalue()


def read(folder: Path, name: str, data: bytes) -> Document:
    path = folder / name
    path.write_bytes(data)
    return convert(path)


def test_the_manual_has_what_the_tests_below_look_for(manual: list[Block]):
    assert len(headings(manual)) >= 4
    assert tables(manual)
    assert len(words(manual)) > 300
    assert {block.kind for block in manual} >= {"heading", "paragraph", "table", "code"}


def test_a_word_file_keeps_headings_tables_and_every_word(tmp_path: Path, manual: list[Block]):
    found = read(tmp_path, "manual.docx", as_docx(manual))
    assert headings(found.blocks) == headings(manual)
    assert levels(found.blocks) == levels(manual)
    assert tables(found.blocks) == tables(manual)
    assert words(found.blocks) == words(manual)
    assert found.title == headings(manual)[0]


def test_a_pdf_keeps_headings_tables_and_every_word_and_loses_its_running_head(tmp_path: Path, manual: list[Block]):
    found = read(tmp_path, "manual.pdf", as_pdf(manual))
    assert headings(found.blocks) == headings(manual)
    assert levels(found.blocks) == levels(manual)
    assert [tuple(map(plain, row)) for table in tables(found.blocks) for row in table] == [
        tuple(map(plain, row)) for table in tables(manual) for row in table
    ]
    assert "edition of today" not in markdown(found.blocks)
    assert words(found.blocks) == words(manual)
    pages = [block.page for block in found.blocks]
    assert pages == sorted(pages)
    assert max(pages) >= 3


def test_a_paragraph_of_a_pdf_is_one_block_over_line_and_page_ends(tmp_path: Path):
    sentence = "The well-known answer is long enough to go over many lines and even pages of print, as it is here"
    long = " and ".join([sentence] * 60) + "."
    found = read(tmp_path, "long.pdf", as_pdf([Block("heading", "Long", 1), Block("paragraph", long)]))
    assert [block.kind for block in found.blocks] == ["heading", "paragraph"]
    assert plain(found.blocks[1].text) == plain(long)


def test_two_columns_of_a_pdf_are_read_one_after_the_other(tmp_path: Path):
    pdf = fpdf.FPDF()
    pdf.add_page()
    pdf.set_font("Times", size=10)
    with pdf.text_columns(ncols=2, gutter=10, text_align="J") as columns:
        columns.write(text=" ".join(f"word{n}" for n in range(500)))
    found = read(tmp_path, "columns.pdf", bytes(pdf.output()))
    assert words(found.blocks) == [f"word{n}" for n in range(500)]


def test_an_html_page_keeps_headings_and_tables_and_loses_what_leads_elsewhere(tmp_path: Path):
    page = """<html><head><title>Pumps</title><script>track()</script><style>p {}</style></head><body>
    <nav><a href="/">Home</a></nav><main><h1>Pumps<a class="headerlink" href="#pumps">¶</a></h1>
    <p>Press <code>start</code>,<br>then wait.<script>alert(1)</script></p><p hidden>not seen</p>
    <ol start="3"><li><p>Third</p><ul><li>inner</li></ul></li><li>Fourth</li></ol>
    <table><tr><th>Part<th>Size</tr><tr><td rowspan="2">Valve<td>1</tr><tr><td>2</tr></table>
    <div class="note"><h3>Note</h3><p>Hot.</p></div><p>After.</p>
    <pre>a\n  b</pre></main><footer>Imprint</footer></body></html>"""
    found = read(tmp_path, "page.html", page.encode())
    assert found.title == "Pumps"
    assert markdown(found.blocks) == (
        "# Pumps\n\nPress `start`,\nthen wait.\n\n3. Third\n  - inner\n4. Fourth\n\n"
        "| Part | Size |\n|---|---|\n| Valve | 1 |\n| Valve | 2 |\n\nNote\n\nHot.\n\nAfter.\n\n```\na\n  b\n```"
    )


def test_a_page_may_leave_out_its_body_tag(tmp_path: Path):
    page = "<!doctype html><title>Pumps</title><meta charset=utf-8><main><p>Seen.</p></main>"
    found = read(tmp_path, "page.html", page.encode())
    assert (found.title, markdown(found.blocks)) == ("Pumps", "Seen.")


def test_the_encoding_that_a_page_declares_is_believed_and_one_that_is_wrong_is_not(tmp_path: Path):
    declared = '<meta charset="windows-1251"><p>Привет, мир</p>'.encode("cp1251")
    wrong = '<meta charset="ascii"><p>Grüße</p>'.encode()
    assert read(tmp_path, "a.html", declared).blocks[0].text == "Привет, мир"
    assert read(tmp_path, "b.html", wrong).blocks[0].text == "Grüße"


def test_a_text_that_is_not_utf8_is_read_with_a_note(tmp_path: Path):
    text = "Die Größe der Bälle hängt von der Übung ab. Schöne Grüße aus München und Köln! " * 5
    found = read(tmp_path, "a.txt", text.encode("cp1252"))
    assert found.blocks[0].text == " ".join(text.split())
    assert "not UTF-8, read as" in found.notes[0]


def test_accents_far_into_a_long_file_are_told_by_what_stands_around_them(tmp_path: Path):
    german = "Der Käufer zahlt die Gebühr für die Rücksendung selbst.\n\n"
    found = read(tmp_path, "a.txt", ("plain words here\n\n" * 15_000 + 40 * german).encode("cp1252"))
    assert found.blocks[-1].text == german.strip()
    chinese = "买方自行支付退货费用，卖方应在收到包裹后退款。\n\n" * 6000
    assert read(tmp_path, "b.txt", ("a" + chinese).encode("gb18030")).blocks[-1].text == chinese.strip()[-23:]
    broken = german.encode() * 10 + b"\xff" + german.encode()
    assert read(tmp_path, "c.txt", broken).blocks[0].text == german.strip()
    short = read(tmp_path, "d.txt", (2 * german).encode() + b"d\xe9j\xe0")
    assert (short.blocks[0].text, short.notes[0][:36]) == (german.strip(), "invalid UTF-8 at 2 positions, read a")


def test_words_of_blocks_in_a_cell_a_heading_or_a_term_are_apart(tmp_path: Path):
    cell = "<td><p>Mon-Fri</p><p>9-17</p></td><td><ul><li>chat</li><li>phone</li></ul></td>"
    page = f"<table><tr><th>When</th><th>How</th></tr><tr>{cell}</tr></table><h2>Fees<div>of 2024</div></h2><p>Up.</p>"
    table, heading, _ = read(tmp_path, "a.html", page.encode()).blocks
    assert [" ".join(one.split()) for one in table.cells[1]] == ["Mon-Fri 9-17", "chat phone"]
    assert heading.text == "Fees of 2024"


def test_code_keeps_its_line_ends_and_drops_what_a_reader_does_not_see(tmp_path: Path):
    lines = '<span class="token-line">pip install a<br></span><span class="token-line">pip install b<br></span>'
    page = f"<pre><button>Copy</button><span hidden>no</span><script>no()</script>{lines}</pre>"
    (code,) = read(tmp_path, "a.html", page.encode()).blocks
    assert (code.kind, code.text) == ("code", "pip install a\npip install b")


def test_a_text_may_be_one_heading_after_another(tmp_path: Path):
    found = read(tmp_path, "a.txt", "".join(f"Part {n}\n-----------\n" for n in range(3000)).encode() + b"the end")
    assert (len(found.blocks), found.blocks[-1].text) == (3001, "the end")


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("It’s the buyer’s duty to pay the fee – about £5 or €6 – for the “return”.", "cp1252"),
        ("Der Käufer zahlt die Gebühr für die Rücksendung selbst.", "cp1252"),
        ("I don’t know.", "cp1252"),
        ("It costs £5, or £7 with the tea at 180°C.", "cp1252"),
        ("3½ stars, © Acme", "cp1252"),
        ("Brand™ and Brand™", "cp1252"),
        ("2024年3月5日 到着", "cp932"),
        ("カタカナ ポジティブ ネガティブ", "cp932"),
        ("La devolución se hará después de recibir el paquete; el año siguiente será más fácil.", "cp1252"),
        ("Zwrot pieniędzy nastąpi po otrzymaniu przesyłki; kupujący płaci za odesłanie towaru łącznie.", "cp1250"),
        ("Возврат денег производится после получения товара, покупатель платит за пересылку.", "cp1251"),
    ],
)
def test_a_few_accents_of_windows_are_not_taken_for_those_of_dos(tmp_path: Path, text: str, encoding: str):
    found = read(tmp_path, "a.txt", text.encode(encoding))
    assert found.blocks[0].text == text
    assert f"read as {encoding}; check its accents" in found.notes[0]


def test_raised_digits_stay_raised_and_what_was_struck_out_is_left_out(tmp_path: Path):
    page = b"<p>It draws 10<sup>3</sup> watts on 4 m<sup>2</sup> and costs <del>15</del> <ins>12</ins> euros.</p>"
    assert read(tmp_path, "a.html", page).blocks[0].text == "It draws 10³ watts on 4 m² and costs 12 euros."


def test_plain_text_has_headings_lists_and_code_by_its_layout(tmp_path: Path):
    text = "Title\n=====\n\nOne line\ngoes on.\n\nPart\n----\n* first\n  goes on\n* second\n\n    code here\n      in\n"
    found = read(tmp_path, "a.txt", text.encode())
    assert markdown(found.blocks) == (
        "# Title\n\nOne line goes on.\n\n## Part\n\n- first goes on\n- second\n\n```\ncode here\n  in\n```"
    )


def test_markdown_is_read_with_its_tables_and_without_its_front_matter(tmp_path: Path):
    text = "---\ntitle: x\n---\n# Head\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n<script>x()</script>\n\nSee [here](x).\n"
    found = read(tmp_path, "a.md", text.encode())
    assert markdown(found.blocks) == "# Head\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\nSee here."


def test_a_front_matter_in_toml_is_left_out_too(tmp_path: Path):
    found = read(tmp_path, "a.md", b'+++\ntitle = "x"\ndraft = true\n+++\n# Head\n\nThe first part.\n')
    assert markdown(found.blocks) == "# Head\n\nThe first part."


def test_a_short_passage_in_a_script_without_spaces_is_a_passage():
    (found,) = passages([Block("paragraph", "请在十四天内申请退款，逾期不退。")], size=500, joined=True)
    assert found.text == "请在十四天内申请退款，逾期不退。"


def test_text_between_two_rules_is_no_front_matter(tmp_path: Path):
    found = read(tmp_path, "a.md", b"---\n\n# Title\n\nThe first part.\n\n---\n\nThe second part.\n")
    assert markdown(found.blocks) == "# Title\n\nThe first part.\n\nThe second part."


def test_slides_are_pages_with_title_text_table_and_notes(tmp_path: Path):
    show = pptx.Presentation()
    for number in (1, 2):
        slide = show.slides.add_slide(show.slide_layouts[1])
        slide.shapes.title.text = f"Slide {number}"
        slide.placeholders[1].text = "first\nsecond"
    table = slide.shapes.add_table(1, 2, 0, 0, 100, 100).table
    table.cell(0, 0).text, table.cell(0, 1).text = "left", "right"
    slide.notes_slide.notes_text_frame.text = "say this"
    file = io.BytesIO()
    show.save(file)
    found = read(tmp_path, "a.pptx", file.getvalue())
    assert [(b.kind, b.text or b.cells, b.page) for b in found.blocks] == [
        ("heading", "Slide 1", 1), ("item", "first", 1), ("item", "second", 1),
        ("heading", "Slide 2", 2), ("item", "first", 2), ("item", "second", 2),
        ("table", (("left", "right"),), 2), ("paragraph", "say this", 2),
    ]  # fmt: skip


def test_a_book_is_read_in_the_order_of_its_spine(tmp_path: Path):
    found = read(tmp_path, "a.epub", as_epub(["<h1>Second</h1>", "<h1>First</h1><p>Text &amp; more.</p>"]))
    assert (found.title, [(b.text, b.page) for b in found.blocks]) == (
        "The Book",
        [("First", 1), ("Text & more.", 1), ("Second", 2)],
    )


def test_what_cannot_be_seen_is_taken_out():
    assert clean("a\u200bb\u202ec\U000e0041d\x1be\ufb01 \ud800f\u00ad") == "abcdefi f"
    assert clean("e\u0301") == "\u00e9"


def test_a_line_that_ends_within_a_paragraph_keeps_its_words_apart():
    assert clean("Annual\x0bReport\x85a\u2028b\r\nc") == "Annual\nReport\na\nb\nc"


def test_a_class_of_the_whole_page_leaves_out_nothing():
    page = b"<html><body class='home sidebar'><p>Text of it.</p><div class='sidebar'>links</div></body></html>"
    assert [block.text for block in html_document(page).blocks] == ["Text of it."]


def test_long_prose_is_cut_where_sentences_end_and_keeps_its_marks():
    told = "他说：「好。」产品如何安装。" * 30
    parts = [piece.text for piece in passages([Block("paragraph", told)], size=100, joined=True)]
    assert "".join(parts) == told
    assert all(part.endswith(("。", "」")) for part in parts)
    said = 'She said "Stop." Then he went (slowly.) Home it is. ' * 8
    parts = [piece.text for piece in passages([Block("paragraph", said.strip())], size=100, joined=True)]
    assert " ".join(parts) == said.strip()
