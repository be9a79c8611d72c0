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
from playwright.sync_api import Browser, Page, Route, expect

from tests.web.conftest import SCRIPT, Serve, Served, enter, write_rows
from tunesmith.data.readers.read import read_rows
from tunesmith.objectives import Tag

pytestmark = pytest.mark.browser

# Characters outside the basic plane, several code points that are one character, and a letter with a separate accent.
FAMILY, ACCENT = "👩‍👩‍👧", "cafe\u0301"
TEXT = f"openssl 3.0 breaks {FAMILY} lib{ACCENT} 1.2 here."
POST = """async ({ path, ...body }) => {
    const headers = { "content-type": "application/json", "x-tunesmith": "1" };
    return (await fetch(`/api/${path}`, { method: "POST", headers, body: JSON.stringify(body) })).json();
}"""


def exported(rows: Path, out: Path) -> list[dict[str, Any]]:
    """The marked rows, written by the command."""
    command = [sys.executable, "-m", "tunesmith", "label", str(rows), "--export", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    return [json.loads(line) for line in out.read_text("utf-8").splitlines()]


def expect_marks(page: Page, *expected: tuple[str, str]) -> None:
    """Wait until the text has exactly these marks (label, text), in order: a dialog closes later than its key."""
    found = page.locator("#text mark")
    expect(found).to_have_text([text for _, text in expected])
    for mark, (label, _) in zip(found.all(), expected, strict=True):
        expect(mark).to_have_attribute("data-label", label)


def drag(page: Page, part: str, *, leave: bool = False) -> None:
    """Select a part of the text with the mouse; with `leave`, the mouse ends below the text."""
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
    if leave:
        page.mouse.move(right + 40, middle + 60, steps=3)
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
    expect_marks(page, ("PACKAGE", "openssl"), ("VERSION", FAMILY), ("PACKAGE", f"lib{ACCENT}"), ("VERSION", "1.2"))
    page.keyboard.press("u")
    expect(page.locator("#text mark")).to_have_count(3)

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
    expect_marks(page, ("PACKAGE", "GNU bash"))
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
    expect_marks(page, ("PACKAGE", "GNU bash"))

    # The same span gets another label; it is removed by Delete, by a click and by its button, and undo brings it back.
    page.keyboard.press("ArrowDown")
    page.keyboard.press("2")
    expect_marks(page, ("VERSION", "GNU bash"))
    page.keyboard.press("Delete")
    expect_marks(page)
    page.keyboard.press("u")
    page.locator("#text mark").click(position={"x": 8, "y": 8})
    expect_marks(page)
    page.keyboard.press("u")
    page.get_by_role("button", name="Remove VERSION “GNU bash”").click()
    expect_marks(page)
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
    expect_marks(page, ("<i>SHELL</i>", "bash"))
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
    keys = page.get_by_role("application", name="Text to mark", exact=True)  # the text is not part of its name
    expect(keys).to_be_visible()
    expect(keys).to_be_empty()
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


def until(page: Page, condition: str) -> None:
    """Wait for a condition; the page forbids the `eval` by which Playwright would wait."""
    for _ in range(300):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(100)
    raise AssertionError(condition)


def one_text(serve: Serve, tmp_path: Path, *texts: str) -> Served:
    """A page on the given texts, with two labels."""
    return serve("label", write_rows(tmp_path / "rows.jsonl", texts), "--spans", "A,B", "--seed", "0")


def stored(tmp_path: Path) -> list[dict[str, Any]]:
    """The marked rows as the store has them now."""
    return exported(tmp_path / "rows.jsonl", tmp_path / "out.jsonl")


def test_undo_brings_the_marks_back_after_a_reload_and_in_another_browser(
    browser: Browser, page: Page, serve: Serve, tmp_path: Path
):
    server = one_text(serve, tmp_path, TEXT)
    enter(page, server.url, "Ana")
    drag(page, f"lib{ACCENT}")
    page.keyboard.press("1")
    drag(page, FAMILY)
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    expect(page.locator("#end")).to_be_visible()
    page.reload()
    expect(page.locator("#end")).to_be_visible()
    page.keyboard.press("u")
    expect(page.locator("#text mark")).to_have_count(2)
    expect_marks(page, ("B", FAMILY), ("A", f"lib{ACCENT}"))

    page.reload()  # the withdrawn marks are still those of this rater
    expect(page.locator("#text mark")).to_have_count(2)
    page.close()
    context = browser.new_context()
    other = context.new_page()
    enter(other, server.url, "Ana")
    expect_marks(other, ("B", FAMILY), ("A", f"lib{ACCENT}"))
    other.locator("#text mark").first.click()
    other.keyboard.press("Delete")
    other.keyboard.press("Enter")
    expect(other.locator("#end")).to_be_visible()
    other.keyboard.press("u")
    expect(other.locator("#text mark")).to_have_count(1)
    context.close()


@pytest.mark.long
def test_try_again_saves_the_marks_that_are_on_the_page(page: Page, serve: Serve, tmp_path: Path):
    server = one_text(serve, tmp_path, "bash is a shell")
    enter(page, server.url, "Ana")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("1")
    server.kill(signal.SIGKILL)
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer")
    page.keyboard.press("2")
    expect_marks(page, ("B", "bash"))
    server.start()
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#end")).to_be_visible()
    server.kill(signal.SIGKILL)
    assert [span["label"] for row in stored(tmp_path) for span in row["spans"]] == ["B"]


def test_marks_stay_as_they_are_while_they_are_being_saved(page: Page, serve: Serve, tmp_path: Path):
    server = one_text(serve, tmp_path, "bash is a shell")
    enter(page, server.url, "Ana")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("1")
    expect_marks(page, ("A", "bash"))
    waiting: list[Route] = []
    page.route("**/api/vote", lambda route: waiting.append(route))
    with page.expect_request("**/api/vote"):
        page.keyboard.press("Enter")
    page.keyboard.press("2")
    expect(page.get_by_role("status")).to_have_text("Not changed: the server has not answered yet.")
    page.keyboard.press("u")
    expect_marks(page, ("A", "bash"))
    waiting[0].continue_()
    expect(page.locator("#end")).to_be_visible()
    assert [span["label"] for row in stored(tmp_path) for span in row["spans"]] == ["A"]


def test_only_what_is_seen_to_be_selected_is_marked(page: Page, serve: Serve, tmp_path: Path):
    server = one_text(serve, tmp_path, "bash is a shell")
    enter(page, server.url, "Ana")
    status = page.get_by_role("status")
    drag(page, "shell")
    page.locator("h1").click()
    page.keyboard.press("1")
    expect(status).to_contain_text("Nothing is selected")

    # A drag that leaves the text selects up to its end, and a triple click the whole line.
    drag(page, "a shell", leave=True)
    page.keyboard.press("1")
    expect_marks(page, ("A", "a shell"))
    page.keyboard.press("u")
    page.locator("#text").click(click_count=3, position={"x": 12, "y": 12})
    page.keyboard.press("2")
    expect_marks(page, ("B", "bash is a shell"))


def test_a_click_selects_a_mark_and_a_double_click_does_not_remove_it(page: Page, serve: Serve, tmp_path: Path):
    server = one_text(serve, tmp_path, "bash is a shell")
    enter(page, server.url, "Ana")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("1")
    page.locator("h1").click()
    mark, place = page.locator("#text mark"), {"x": 8.0, "y": 8.0}
    mark.dblclick(position=place)  # type: ignore[arg-type]
    expect_marks(page, ("A", "bash"))
    page.locator("h1").click()
    page.wait_for_timeout(600)  # longer than between the clicks of a double click
    mark.click(position=place)  # type: ignore[arg-type]
    page.keyboard.press("2")
    expect_marks(page, ("B", "bash"))
    page.wait_for_timeout(600)
    mark.click(position=place)  # type: ignore[arg-type]
    expect_marks(page)


@pytest.mark.long
def test_a_long_text_scrolls_with_the_selection_and_without_marks_by_the_arrow_keys(
    page: Page, serve: Serve, tmp_path: Path
):
    server = one_text(serve, tmp_path, " ".join(f"word{n}" for n in range(1500)))
    enter(page, server.url, "Ana")
    page.keyboard.press("ArrowDown")
    until(page, "scrollY > 0")
    page.evaluate("scrollTo({ top: 0, behavior: 'instant' })")
    seen = """() => {
        const { top, bottom } = getSelection().getRangeAt(0).getBoundingClientRect();
        return top >= 0 && bottom <= document.querySelector(".answers").getBoundingClientRect().top;
    }"""
    for _ in range(600):
        page.keyboard.press("ArrowRight")
    assert page.evaluate("scrollY") > 500
    assert page.evaluate(seen)
    page.evaluate("scrollTo({ top: document.body.scrollHeight, behavior: 'instant' })")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(seen)


@pytest.mark.long
def test_more_marks_than_fit_into_64_kib_are_saved(page: Page, serve: Serve, tmp_path: Path):
    words = [f"w{n}" for n in range(3000)]
    server = one_text(serve, tmp_path, " ".join(words))
    page.goto(server.url)
    item = page.evaluate(POST, {"path": "next", "rater": "Ana", "tab": "tab-aaaa"})["item"]
    spans, at = [], 0
    for word in words:
        spans.append({"start": at, "end": at + len(word), "label": "\U0001f600" * 60})
        at += len(word) + 1
    vote = {"path": "vote", "rater": "Ana", "tab": "tab-aaaa", "item": item["key"], "spans": spans}
    assert page.evaluate(POST, vote)["item"] is None
    assert len(stored(tmp_path)[0]["spans"]) == 3000


def test_a_change_reserves_the_text_for_longer_and_closing_with_marks_asks(page: Page, serve: Serve, tmp_path: Path):
    server = one_text(serve, tmp_path, "bash is a shell")
    page.clock.install()
    enter(page, server.url, "Ana")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.rpartition("/")[2]))
    page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    page.keyboard.press("ArrowRight")
    page.keyboard.press("1")
    assert "renew" not in asked
    page.clock.fast_forward(61_000)
    with page.expect_response("**/api/renew") as answered:
        page.keyboard.press("2")
    assert answered.value.json() == {"held": True}
    page.keyboard.press("1")
    assert asked.count("renew") == 1
    page.reload()
    assert "beforeunload" in asked
    expect(page.locator("#text")).to_be_visible()
    page.keyboard.press("Enter")
    expect(page.locator("#end")).to_be_visible()
    page.reload()
    assert asked.count("beforeunload") == 1


def test_the_label_o_is_refused_at_once(page: Page, serve: Serve, tmp_path: Path):
    server = one_text(serve, tmp_path, "bash is a shell")
    enter(page, server.url, "Ana")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("e")
    page.get_by_role("combobox", name="Another label").fill("O")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_have_text("Not marked: the label O means no span; write another one.")
    expect_marks(page)
    expect(page.locator("#labels button")).to_have_count(2)


def test_keys_move_both_ends_of_a_selection_in_both_directions_of_writing(page: Page, serve: Serve, tmp_path: Path):
    server = one_text(serve, tmp_path, "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd")
    enter(page, server.url, "Ana")
    status = page.get_by_role("status")
    page.keyboard.press("ArrowLeft")  # the first word is the rightmost one
    expect(status).to_have_text("Selected: \u201c\u05e9\u05dc\u05d5\u05dd\u201d")
    page.keyboard.press("Alt+Shift+ArrowRight")
    expect(status).to_have_text("Selected: \u201c\u05e9\u05dc\u05d5\u201d")
    page.keyboard.press("Alt+Shift+ArrowLeft")
    page.keyboard.press("Alt+Shift+ArrowDown")
    expect(status).to_have_text("Selected: \u201c\u05dc\u05d5\u05dd\u201d")
    page.keyboard.press("Alt+Shift+ArrowUp")
    expect(status).to_have_text("Selected: \u201c\u05e9\u05dc\u05d5\u05dd\u201d")


def test_a_label_that_is_named_like_a_message_is_not_highlighted(page: Page, serve: Serve, tmp_path: Path):
    rows = write_rows(tmp_path / "rows.jsonl", ["bash"])
    server = serve("label", rows, "--spans", "1 span")
    enter(page, server.url, "Ana")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    expect(page.locator("#end")).to_be_visible()
    page.keyboard.press("u")
    expect(page.locator("#text mark")).to_have_count(1)
    expect(page.locator("#labels .given")).to_have_count(0)
