"""The page on which spans are marked, in a real Chromium."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.web.conftest import SCRIPT, Serve, enter, write_rows
from tunesmith.data.readers.read import read_rows
from tunesmith.objectives import Tag

pytestmark = pytest.mark.browser

# Characters outside the basic plane, several code points that are one character, and a letter with a separate accent.
FAMILY, ACCENT = "👩‍👩‍👧", "cafe\u0301"
TEXT = f"openssl 3.0 breaks {FAMILY} lib{ACCENT} 1.2 here."


def exported(rows: Path, out: Path) -> list[dict[str, Any]]:
    """The marked rows, written by the command."""
    command = [sys.executable, "-m", "tunesmith", "label", str(rows), "--export", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    return [json.loads(line) for line in out.read_text("utf-8").splitlines()]


def marks(page: Page) -> list[tuple[str, str]]:
    """Label and text of each mark, in order."""
    return [(mark.get_attribute("data-label") or "", mark.inner_text()) for mark in page.locator("#text mark").all()]


def drag(page: Page, part: str) -> None:
    """Select a part of the text with the mouse."""
    box = page.evaluate(
        """part => {
            const walker = document.createTreeWalker(document.getElementById("text"), NodeFilter.SHOW_TEXT);
            for (let node = walker.nextNode(); node; node = walker.nextNode()) {
                const at = node.data.indexOf(part);
                if (at < 0) continue;
                const range = document.createRange();
                range.setStart(node, at);
                range.setEnd(node, at + part.length);
                const { left, right, top, height } = range.getBoundingClientRect();
                return [left, right, top + height / 2];
            }
        }""",
        part,
    )
    left, right, middle = box
    page.mouse.move(left + 1, middle)
    page.mouse.down()
    page.mouse.move((left + right) / 2, middle)
    page.mouse.move(right - 1, middle)
    page.mouse.up()


def test_spans_marked_by_keyboard_and_mouse_are_rows_that_tag_reads(page: Page, serve: Serve, tmp_path: Path):
    rows = write_rows(tmp_path / "rows.jsonl", [TEXT])
    server = serve("label", rows, "--spans", "PACKAGE,VERSION")
    enter(page, server.url, "Ana")
    status = page.get_by_role("status")

    # The first word, by the keyboard.
    page.keyboard.press("ArrowRight")
    expect(status).to_have_text("Selected: “openssl”")
    page.keyboard.press("1")
    expect(status).to_have_text("Marked: PACKAGE “openssl”.")
    # A letter whose accent is a code point of its own, by the mouse: the accent belongs to it.
    drag(page, f"lib{ACCENT}")
    page.keyboard.press("1")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("2")
    drag(page, FAMILY)
    page.keyboard.press("2")
    assert marks(page) == [("PACKAGE", "openssl"), ("VERSION", FAMILY), ("PACKAGE", f"lib{ACCENT}"), ("VERSION", "1.2")]
    page.keyboard.press("u")
    assert len(marks(page)) == 3

    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Every text is marked")).to_be_visible()
    server.kill(signal.SIGKILL)  # what was acknowledged is on disk

    (row,) = exported(rows, tmp_path / "out.jsonl")
    assert row["text"] == TEXT
    assert [(row["text"][span["start"] : span["end"]], span["label"]) for span in row["spans"]] == [
        ("openssl", "PACKAGE"), (f"lib{ACCENT}", "PACKAGE"), ("1.2", "VERSION")
    ]  # fmt: skip
    (example,) = Tag().examples(read_rows(tmp_path / "out.jsonl"), group="")
    assert [tuple(span) for span in example.spans] == [tuple(span.values()) for span in row["spans"]]  # type: ignore[attr-defined]


def test_overlaps_are_refused_with_the_reason_and_marks_are_removed(page: Page, serve: Serve, tmp_path: Path):
    rows = write_rows(tmp_path / "rows.jsonl", ["GNU bash 5.2 is a shell", "another text"])
    server = serve("label", rows, "--spans", "PACKAGE,VERSION", "--seed", "0")
    enter(page, server.url, "Ana")
    if "bash" not in page.locator("#text").inner_text():
        page.keyboard.press("s")
        expect(page.locator("#text")).to_contain_text("bash")
    status = page.get_by_role("status")

    page.keyboard.press("1")
    expect(status).to_contain_text("Nothing is selected")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("1")
    assert marks(page) == [("PACKAGE", "GNU bash")]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowLeft")
    expect(status).to_have_text("Selected: “bash 5.2”, in PACKAGE “GNU bash”")
    page.keyboard.press("2")
    expect(status).to_contain_text(
        "Not marked: the selection overlaps PACKAGE “GNU bash”, and a character has one label only"
    )
    drag(page, "bash")
    page.keyboard.press("2")
    expect(status).to_contain_text("is nested with PACKAGE “GNU bash”")
    assert marks(page) == [("PACKAGE", "GNU bash")]

    # The same span gets another label; it is removed by Delete, by a click and by its button, and undo brings it back.
    page.keyboard.press("ArrowDown")
    page.keyboard.press("2")
    assert marks(page) == [("VERSION", "GNU bash")]
    page.keyboard.press("Delete")
    assert marks(page) == []
    page.keyboard.press("u")
    page.locator("#text mark").click(position={"x": 8, "y": 8})
    assert marks(page) == []
    page.keyboard.press("u")
    page.get_by_role("button", name="Remove VERSION “GNU bash”").click()
    assert marks(page) == []
    page.keyboard.press("u")
    # One character less, by the keyboard.
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Alt+Shift+ArrowLeft")
    expect(status).to_contain_text("Selected: “GNU bas”")

    # A saved text comes back with its marks.
    page.keyboard.press("Enter")
    expect(status).to_have_text("Saved: 1 span.")
    page.keyboard.press("u")
    expect(page.locator("#text mark")).to_have_attribute("data-label", "VERSION")


def test_a_new_label_a_text_without_spans_and_two_raters(page: Page, serve: Serve, tmp_path: Path):
    rows = write_rows(tmp_path / "rows.jsonl", ["only bash here"])
    server = serve("label", rows, "--spans", "PACKAGE", "--overlap", "1")
    enter(page, server.url, "Ana")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("e")
    page.get_by_role("combobox", name="Another label").fill("<i>SHELL</i>")
    page.keyboard.press("Enter")
    assert marks(page) == [("<i>SHELL</i>", "bash")]
    page.keyboard.press("Enter")
    expect(page.locator("#end")).to_be_visible()

    page.get_by_role("button", name="change").click()
    page.get_by_label("Your name").fill("Bo")
    page.keyboard.press("Enter")
    expect(page.locator("#work")).to_be_visible()
    expect(page.locator("#text mark")).to_have_count(0)  # another rater does not see the marks of the first
    page.get_by_role("button", name="Save: no spans in this text").click()
    expect(page.get_by_role("heading", name="On 1 text raters disagree")).to_be_visible()
    page.get_by_text("Progress").click()
    expect(page.locator("#agreement")).to_contain_text("on 1 text: F1 0 % of spans with the same ends and label; 0 %")


def test_the_page_is_named_for_screen_readers_and_a_script_stays_text(browser: Browser, serve: Serve, tmp_path: Path):
    rows = write_rows(tmp_path / "rows.jsonl", [f"{SCRIPT} {'unbroken' * 60}"])
    server = serve("label", rows, "--spans", f"<b>{'wide' * 12}</b>,no", "--show", "id")
    context = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme="dark")
    page = context.new_page()
    enter(page, server.url, "Ana")
    assert page.evaluate("document.activeElement.id") == "row"
    expect(page.get_by_role("application", name=re.compile("^Text to mark"))).to_be_visible()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+End")  # a key without a meaning here
    page.keyboard.press("1")
    for button in page.get_by_role("button").all():
        expect(button).to_have_accessible_name(re.compile(r"\w"))
    assert page.evaluate("Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)") <= 360
    assert page.evaluate("window.hurt") is None
    assert page.locator("main img, main script, main b:not(.marks b):not(#my-name), main i:not(.fill)").count() == 0
    assert page.evaluate("getComputedStyle(document.getElementById('row')).outlineStyle") == "solid"
    context.close()
