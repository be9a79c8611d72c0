"""`python -m bench.rater URL --name Rule-1`: a scripted rater who judges pairs through the real page in Chromium.

Such votes are *simulated*: they show that the loop learns what it is told, not what people want. The rule is Debian's
for a one-line description, as `examples/synopsis.yaml` states it: one point each for fewer than 80 characters, no
article at the start, no full stop at the end, and being one line. More points win; as many points are a tie, none at
all on either side are both bad. `--care 0.9` lets one vote in ten be a coin's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
from collections import Counter
from dataclasses import dataclass

from playwright.sync_api import Page, expect, sync_playwright

from tunesmith.evaluation.style import Rule

RULES = (
    Rule("under_80_characters", "max_chars", limit=79),
    Rule("no_leading_article", "not_match", pattern=r"(?i)^(an?|the)\b"),
    Rule("no_full_stop", "not_match", pattern=r"\.\s*$"),
    Rule("one_line", "match", pattern=r"^\S[^\n]*$"),
)
PATIENCE = 60_000  # milliseconds: the machine may train beside it


@dataclass(frozen=True)
class Rater:
    """Somebody who judges by the rule, in this share of the votes; else by a coin."""

    name: str
    care: float = 1.0
    seed: int = 0


def points(answer: str) -> int:
    """How many of the rules an answer keeps."""
    return sum(rule.holds(answer.strip()) for rule in RULES)


def key_for(answers: list[str], rater: Rater, chance: random.Random) -> str:
    """The key that the rater presses for these answers, from left to right."""
    if chance.random() >= rater.care:
        return chance.choice("12")
    found = [points(answer) for answer in answers]
    if len(found) == 1:
        return "1" if found[0] == len(RULES) else "2"
    if found[0] == found[1]:
        return "b" if found[0] == 0 else "0"
    return "1" if found[0] > found[1] else "2"


def judge(page: Page, url: str, rater: Rater, *, most: int) -> Counter[str]:
    """Judge until nothing is left or so many votes are cast; how often each key was pressed."""
    chance, pressed = random.Random(f"{rater.seed}/{rater.name}"), Counter[str]()
    page.set_default_timeout(PATIENCE)
    page.goto(url)
    page.get_by_label("Your name").fill(rater.name)
    page.keyboard.press("Enter")
    expect(page.locator(".answer, #end:not([hidden])").first).to_be_visible(timeout=PATIENCE)
    while pressed.total() < most and page.locator("#work").is_visible():
        key = key_for([body.inner_text() for body in page.locator(".answer .body").all()], rater, chance)
        page.locator("#said").evaluate("said => { said.textContent = ''; }")
        page.keyboard.press(key)
        expect(page.locator("#said")).to_contain_text("Saved", timeout=PATIENCE)
        pressed[key] += 1
    return pressed


def main() -> None:
    """Judge through the page at an address, and print what was pressed."""
    parser = argparse.ArgumentParser(prog="python -m bench.rater", description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--name", default="simulated")
    parser.add_argument("--care", type=float, default=1.0)
    parser.add_argument("--votes", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    path = shutil.which("chromium") or shutil.which("google-chrome")
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=flags)
        rater = Rater(asked.name, asked.care, asked.seed)
        pressed = judge(browser.new_page(), asked.url, rater, most=asked.votes)
        browser.close()
    print(json.dumps({"rater": asked.name, "simulated": True, "pressed": dict(pressed)}))


if __name__ == "__main__":
    main()
