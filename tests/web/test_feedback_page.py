"""The page of judgements in a real Chromium."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from bench.rater import Rater, judge
from tests.web.conftest import SCRIPT, Serve
from tests.web.judged import give_answers, write_prompts
from tests.web.test_label_page import PHONE, WIDEST
from tunesmith.pipelines.requests import FeedbackRequest

pytestmark = pytest.mark.browser


@pytest.fixture
def command(tiny_llama: Path, tmp_path: Path) -> list[str]:
    """The command for twelve prompts with two answers each, which need not be made."""
    prompts = write_prompts(tmp_path / "prompts.jsonl", 12)
    wish = FeedbackRequest(str(tiny_llama), prompts=str(prompts), store=tmp_path / "votes.db")
    give_answers(wish, [[f"short {n}" for n in range(12)], [f"a longer answer {n}" for n in range(12)]])
    return words(wish)


def words(wish: FeedbackRequest, *more: str) -> list[str]:
    return ["feedback", wish.model, "--prompts", wish.prompts, "--store", str(wish.store), "--offline", *more]


def exported(store: Path, out: Path, *more: str) -> list[dict[str, object]]:
    """The votes as rows, written by the command."""
    subprocess.run([sys.executable, "-m", "tunesmith", "votes", "export", store, out, *more], check=True)
    return [json.loads(line) for line in out.read_text("utf-8").splitlines()]


def enter(page: Page, url: str, name: str) -> None:
    page.goto(url)
    page.get_by_label("Your name").fill(name)
    page.keyboard.press("Enter")
    expect(page.locator("#turns")).not_to_be_empty()


def look(page: Page) -> tuple[str, list[str]]:
    """The prompt and the answers from left to right."""
    return page.locator("#turns").inner_text(), [body.inner_text() for body in page.locator(".answer .body").all()]


def press(page: Page, key: str) -> tuple[str, list[str]]:
    """Press a key and wait until the next prompt is there; what it was pressed on."""
    before = look(page)
    page.keyboard.press(key)
    expect(page.locator("#turns")).not_to_have_text(before[0], use_inner_text=True)
    return before


@pytest.mark.long
def test_ten_judgements_by_keyboard_outlive_a_kill_of_the_server(
    page: Page, serve: Serve, command: list[str], tmp_path: Path
):
    server = serve(*command)
    enter(page, server.url, "Ana")
    wanted = {}
    for key in "1212101212":
        prompt, (left, right) = press(page, key)
        if key in "12":
            wanted[prompt] = (left, right) if key == "1" else (right, left)
    expect(page.locator("#done")).to_have_text("10 judged")
    server.kill(signal.SIGKILL)

    # Nobody answers: the page must not say that it saved.
    page.keyboard.press("1")
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer")
    expect(page.locator("#status")).not_to_contain_text("Saved: Answer 1")

    server.start()
    assert server.about["judged"] == 10
    assert server.kill(signal.SIGINT) == 130
    rows = exported(tmp_path / "votes.db", tmp_path / "rows.jsonl")
    assert {row["prompt"]: (row["chosen"], row["rejected"]) for row in rows} == wanted
    assert {name for row in rows for name in row["raters"]} == {"Ana"}


@pytest.mark.long
def test_undo_own_answers_skips_and_two_tabs(page: Page, serve: Serve, command: list[str], tmp_path: Path):
    server = serve(*command)
    enter(page, server.url, "Ana")
    first, (left, right) = press(page, "b")
    page.keyboard.press("u")
    expect(page.locator("#turns")).to_have_text(first, use_inner_text=True)
    expect(page.locator("button.given")).to_contain_text("Both are bad")
    assert look(page)[1] == [left, right]  # the sides stay where they were

    # e writes a better answer; keys are letters there, and Ctrl+Enter saves.
    page.keyboard.press("e")
    page.get_by_role("button", name="Start from answer 2").click()
    expect(page.get_by_role("textbox", name="Your answer")).to_have_value(right)
    # What the server refuses stays there to be mended.
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("alert")).to_contain_text("the same as one of the answers")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#problem")).to_be_hidden()
    page.keyboard.press("e")
    expect(page.get_by_role("textbox", name="Your answer")).to_have_value(right)
    page.get_by_role("textbox", name="Your answer").fill("1 best of all, su")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#turns")).not_to_have_text(first, use_inner_text=True)
    expect(page.locator("#status")).to_have_text("Saved: your own answer.")

    aside = press(page, "s")[0]
    expect(page.locator("#done")).to_have_text("1 judged")
    second, third = page.context.new_page(), page.context.new_page()
    for tab in (second, third):
        tab.goto(server.url)
        expect(tab.locator("#turns")).not_to_be_empty()
    seen = [look(tab)[0] for tab in (page, second, third)]
    assert len({*seen, aside, first}) == 5
    for tab in (second, third):
        tab.close()

    rows = exported(tmp_path / "votes.db", tmp_path / "rows.jsonl")
    assert {(row["chosen"], row["rejected"]) for row in rows} == {("1 best of all, su", text) for text in (left, right)}


@pytest.mark.long
def test_a_key_pressed_before_the_server_answered_is_not_said_to_be_the_vote(
    page: Page, serve: Serve, command: list[str]
):
    enter(page, serve(*command).url, "Ana")
    first = look(page)[0]
    # In one breath, so that no server is fast enough to answer between them.
    page.evaluate(
        """for (const key of "12") document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }))"""
    )
    expect(page.locator("#turns")).not_to_have_text(first, use_inner_text=True)
    page.keyboard.press("u")
    expect(page.locator("#turns")).to_have_text(first, use_inner_text=True)
    expect(page.locator("button.given")).to_contain_text("Answer 1 is better")


@pytest.mark.long
def test_an_undo_or_a_vote_whose_answer_is_lost_counts_once(
    page: Page, serve: Serve, command: list[str], tmp_path: Path
):
    server = serve(*command)
    enter(page, server.url, "Ana")
    for _ in range(3):
        press(page, "b")
    expect(page.locator("#done")).to_have_text("3 judged")
    for key, done in (("u", "2 judged"), ("b", "3 judged")):
        page.route("**/api/*", lambda route: (route.fetch(max_retries=3), route.abort()))  # idle connections are closed
        page.keyboard.press(key)
        expect(page.get_by_role("alert")).to_contain_text("The server does not answer")
        page.unroute("**/api/*")
        page.get_by_role("button", name="Try again").click()
        expect(page.locator("#done")).to_have_text(done)
    page.keyboard.press("u")
    expect(page.locator("#done")).to_have_text("2 judged")


@pytest.mark.long
def test_a_script_in_an_answer_stays_text_and_markdown_becomes_elements(
    browser: Browser, serve: Serve, tiny_llama: Path, tmp_path: Path
):
    marked = (
        f"**bold** and `code`\n\n- one\n- two\n\n[a link](javascript:alert(1)) ![x](http://127.0.0.1/x.png)\n\n{SCRIPT}"
    )
    wish = FeedbackRequest(
        str(tiny_llama), prompts=str(write_prompts(tmp_path / "p.jsonl", 1)), store=tmp_path / "votes.db"
    )
    give_answers(wish, [[marked], ["plain " + "unbroken" * 60]])
    server = serve(*words(wish))
    context = browser.new_context(viewport=PHONE, is_mobile=True, has_touch=True, color_scheme="dark")
    page = context.new_page()
    errors = list[str]()
    page.on("pageerror", lambda error: errors.append(str(error)))
    enter(page, server.url, "<i>Eve</i>")
    assert page.evaluate(WIDEST) <= PHONE["width"]
    expect(page.locator(".answer strong")).to_have_text("bold")
    expect(page.locator(".answer li")).to_have_count(2)
    expect(page.locator("#pair")).to_contain_text("<script>window.hurt = 1</script>")
    expect(page.locator("#pair")).to_contain_text("javascript:alert(1)")
    assert page.locator("main a[href], main img, main script").count() == 0
    tops = [box["y"] for one in page.locator(".answer").all() if (box := one.bounding_box())]
    assert tops[0] < tops[1]  # one below the other
    page.get_by_role("button", name="Both are bad").tap()
    expect(page.get_by_role("heading", name="Every prompt is judged")).to_be_visible()
    assert page.evaluate("window.hurt") is None
    assert errors == []
    context.close()


@pytest.mark.long
def test_single_answers_get_thumbs_and_every_part_has_a_name(
    page: Page, serve: Serve, tiny_llama: Path, tmp_path: Path
):
    wish = FeedbackRequest(
        str(tiny_llama), prompts=str(write_prompts(tmp_path / "p.jsonl", 2)), store=tmp_path / "votes.db"
    )
    give_answers(wish, [["fine", "poor"]])
    server = serve(*words(wish, "--thumbs"))
    enter(page, server.url, "Ana")
    expect(page.get_by_role("article", name="Prompt")).to_be_visible()
    expect(page.get_by_role("article", name="Answer", exact=True)).to_be_visible()
    expect(page.get_by_role("progressbar")).to_have_accessible_name("0 judged of 2 prompts")
    for button in page.get_by_role("button").all():
        assert button.inner_text().strip()
    page.keyboard.press("0")  # no tie where there is nothing to compare
    good = {"fine": "1", "poor": "2"}
    press(page, good[look(page)[1][0]])
    page.keyboard.press(good[look(page)[1][0]])
    expect(page.get_by_role("heading", name="Every prompt is judged")).to_be_visible()
    rows = exported(tmp_path / "votes.db", tmp_path / "rows.jsonl")
    assert {row["completion"]: row["label"] for row in rows} == {"fine": True, "poor": False}


@pytest.mark.long
def test_a_scripted_rater_votes_by_its_stated_rule_through_the_page(
    page: Page, serve: Serve, tiny_llama: Path, tmp_path: Path
):
    wish = FeedbackRequest(
        str(tiny_llama), prompts=str(write_prompts(tmp_path / "p.jsonl", 6)), store=tmp_path / "votes.db"
    )
    good, bad = [f"the prompt {n}" for n in range(6)], [f"a prompt and more {n}" for n in range(6)]
    give_answers(wish, [[*good[:5], "prompt 5 and a more"], bad])  # the last: the same words, a tie
    server = serve(*words(wish))
    pressed = judge(page, server.url, Rater("Rule"), most=100)
    assert pressed.total() == 6
    assert pressed["0"] == 1
    rows = exported(tmp_path / "votes.db", tmp_path / "rows.jsonl")
    assert sorted(str(row["chosen"]) for row in rows) == good[:5]
