"""The label page in a real Chromium."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.web.conftest import SCRIPT, Serve, enter, press, write_rows
from tunesmith.data.examples.parsers import labelled
from tunesmith.data.readers.read import read_rows

pytestmark = pytest.mark.browser

PHONE = {"width": 360, "height": 740}
# A phone zooms out until all is in sight, and innerWidth grows with it: only the width of the content tells.
WIDEST = "Math.max(document.documentElement.scrollWidth, document.body.scrollWidth, window.innerWidth)"


def exported(rows: Path, out: Path) -> list[dict[str, object]]:
    """The labelled rows, written by the command."""
    command = [sys.executable, "-m", "tunesmith", "label", str(rows), "--export", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    return [json.loads(line) for line in out.read_text("utf-8").splitlines()]


@pytest.mark.long
def test_ten_labels_by_keyboard_outlive_a_kill_of_the_server(page: Page, serve: Serve, rows: Path, tmp_path: Path):
    server = serve("label", rows, "--labels", "good,bad")
    enter(page, server.url, "Ana")
    given = {press(page, key): {"1": "good", "2": "bad"}[key] for key in "1212121212"}
    expect(page.locator("#done")).to_have_text("10 labelled")
    server.kill(signal.SIGKILL)

    # Nobody answers: the page must not say that it saved.
    eleventh = page.locator("#text").inner_text()
    page.keyboard.press("1")
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer")
    expect(page.locator("#text")).to_have_text(eleventh, use_inner_text=True)
    expect(page.locator("#status")).not_to_contain_text("Saved: good")

    server.start()
    assert server.about["labelled"] == 10
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#done")).to_have_text("11 labelled")
    expect(page.get_by_role("alert")).to_be_hidden()
    assert server.kill(signal.SIGINT) == 130

    found = exported(rows, tmp_path / "labelled.jsonl")
    assert {str(row["text"]): row["label"] for row in found} == {**given, eleventh: "good"}
    # What is written is what `tune` reads.
    assert len(labelled(read_rows(tmp_path / "labelled.jsonl"), text="text", label="label")) == 11


def test_undo_skip_new_labels_and_two_tabs(page: Page, serve: Serve, rows: Path):
    server = serve("label", rows)
    enter(page, server.url, "Ana")

    # No label is known: e asks for one, and it becomes the first key.
    first = page.locator("#text").inner_text()
    page.keyboard.press("e")
    page.get_by_role("combobox", name="Another label").fill("good")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="1 good", exact=True)).to_be_visible()
    expect(page.locator("#status")).to_have_text("Saved: good.")

    # u brings the row back, with what was said about it; another label is given instead.
    press(page, "u")
    expect(page.locator("#text")).to_have_text(first, use_inner_text=True)
    expect(page.locator("#done")).to_have_text("0 labelled")
    expect(page.locator("button.given")).to_have_text("1good")
    assert press(page, "1") == first

    # s puts a row aside; it does not come back by itself.
    aside = press(page, "s")
    expect(page.locator("#done")).to_have_text("1 labelled")

    # A second tab of the same person, and one of another, never get a row that is looked at.
    second, third = page.context.new_page(), page.context.new_page()
    second.goto(server.url)
    expect(second.locator("#text")).not_to_be_empty()
    third.goto(server.url)
    expect(third.locator("#text")).not_to_be_empty()
    seen = [tab.locator("#text").inner_text() for tab in (page, second, third)]
    assert len(set(seen)) == 3
    assert aside not in seen
    second.close()
    third.close()

    # The word "s" in a text field is a letter and no skipping.
    page.bring_to_front()
    page.keyboard.press("e")
    page.keyboard.type("ssu1")
    page.keyboard.press("Escape")
    expect(page.locator("#text")).to_have_text(seen[0], use_inner_text=True)
    expect(page.locator("#done")).to_have_text("1 labelled")


def test_a_script_in_a_row_stays_text_and_the_phone_needs_no_sideways_scroll(
    browser: Browser, serve: Serve, tmp_path: Path
):
    long = "unbroken" * 60
    label = f"<b>{'wide' * 12}</b>"
    rows = write_rows(tmp_path / "rows.jsonl", [SCRIPT, long])
    server = serve("label", rows, "--labels", f"{label},no", "--show", "id", "--overlap", "1")
    context = browser.new_context(viewport=PHONE, is_mobile=True, has_touch=True, color_scheme="dark")
    page = context.new_page()
    enter(page, server.url, "<i>Eve</i>")
    seen = []
    for _ in range(2):
        assert page.evaluate(WIDEST) <= PHONE["width"]
        seen.append(page.locator("#text").inner_text())
        page.get_by_role("group", name="Labels").get_by_role("button", name=label).tap()
        page.wait_for_function(
            "seen => document.getElementById('text').textContent !== seen || !document.getElementById('end').hidden",
            arg=seen[-1],
        )
    assert sorted(seen) == sorted([SCRIPT, long])
    expect(page.get_by_role("heading", name="Every row has a label")).to_be_visible()
    page.get_by_text("Progress").tap()
    expect(page.locator("#by-label th").first).to_have_text(label)
    expect(page.locator("#by-person th")).to_have_text("<i>Eve</i>")
    assert page.evaluate(WIDEST) <= PHONE["width"]
    assert page.evaluate("window.hurt") is None
    assert page.locator("main b, main i, main img, main script").count() == page.locator(".track i").count()
    context.close()


def test_a_page_elsewhere_needs_the_token_and_two_people_agree(page: Page, serve: Serve, tmp_path: Path):
    rows = write_rows(tmp_path / "rows.jsonl", ["one phone", "two boats", "three cars", "four trees"])
    server = serve("label", rows, "--labels", "good,bad", "--overlap", "1", "--host", "0.0.0.0")
    here, _, token = server.url.partition("?token=")
    here = f"http://127.0.0.1:{server.port}/"
    assert page.goto(here).status == 401  # type: ignore[union-attr]
    assert page.goto(f"{here}?token=guess").status == 401  # type: ignore[union-attr]

    enter(page, f"{here}?token={token}", "Ana")
    assert page.url == here  # the token has left the address
    ana = {press(page, "1") for _ in range(3)} | {page.locator("#text").inner_text()}
    page.keyboard.press("2")
    expect(page.get_by_role("heading", name="Every row has a label")).to_be_visible()

    # Another name at the same browser: the same rows again, as overlap was asked for.
    page.get_by_role("button", name="change").click()
    page.get_by_label("Your name").fill("Bo")
    page.keyboard.press("Enter")
    expect(page.locator("#work")).to_be_visible()
    bo = {press(page, "1") for _ in range(3)} | {page.locator("#text").inner_text()}
    page.keyboard.press("1")
    assert ana == bo
    expect(page.get_by_role("heading", name="On 1 row raters disagree")).to_be_visible()  # it has no label
    expect(page.locator("#done")).to_have_text("3 labelled")
    page.get_by_text("Progress").click()
    # Seven of eight are "good": 1 - (2/8) / (2*7*1 / (8*7)) = 0.
    expect(page.locator("#agreement")).to_contain_text("on 4 rows")
    expect(page.locator("#agreement")).to_contain_text("75 % of the votes; Krippendorff's alpha: 0.00")


def test_everything_that_can_be_pressed_has_a_name_and_every_row_is_announced(page: Page, serve: Serve, rows: Path):
    server = serve("label", rows, "--labels", "good,bad")
    enter(page, server.url, "Ana")
    assert page.evaluate("document.activeElement.id") == "row"
    expect(page.get_by_role("article", name="Row to label")).to_be_visible()
    expect(page.get_by_role("progressbar")).to_have_accessible_name("0 labelled of 30 rows")
    for button in page.get_by_role("button").all():
        expect(button).to_have_accessible_name(re.compile(r"\w"))
    press(page, "1")
    expect(page.get_by_role("status")).to_have_text("Saved: good.")
    assert page.evaluate("document.activeElement.id") == "row"

    # Whoever speaks to the machine can switch single keys off.
    page.get_by_label("Single-key shortcuts").uncheck()
    shown = page.locator("#text").inner_text()
    page.locator("#row").focus()
    page.keyboard.press("1")
    page.wait_for_timeout(150)
    expect(page.locator("#text")).to_have_text(shown, use_inner_text=True)
    expect(page.locator("#done")).to_have_text("1 labelled")


def test_who_takes_over_while_nobody_answers_votes_on_nothing_unseen(page: Page, serve: Serve, rows: Path):
    server = serve("label", rows, "--labels", "good,bad")
    enter(page, server.url, "Ana")
    press(page, "1")
    server.kill(signal.SIGKILL)
    page.locator("#rename").click()
    page.locator("#rater").fill("Ben")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer")
    server.start()
    for key in ("1", "s", "u"):  # Ana's item is not on the page any more
        page.locator("body").press(key)
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#text")).to_be_visible()
    expect(page.locator("#done")).to_have_text("1 labelled")
    expect(page.locator("#my-name")).to_have_text("Ben")
