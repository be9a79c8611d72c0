"""`python -m bench.rater URL --name Rule-1`: a scripted rater who judges pairs through the real page in Chromium.

Such votes are *simulated*: they show that the loop learns what it is told, not what people want. The rule: of two
one-line descriptions the one wins that says more of what the long description's first sentence says, without other
words (`alike` in examples/synopsis_rules.py). Less than 0.05 apart is a tie, nothing on either side is both bad, and a
single answer is good from 0.3 on. `--care 0.9` lets one vote in ten be a coin's.
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

from examples.synopsis_rules import alike

TIE, GOOD = 0.05, 0.3
PATIENCE = 60_000  # milliseconds: the machine may train beside it


@dataclass(frozen=True)
class Rater:
    """Somebody who judges by the rule, in this share of the votes; else by a coin."""

    name: str
    care: float = 1.0
    seed: int = 0


def key_for(question: str, answers: list[str], rater: Rater, chance: random.Random) -> str:
    """The key that the rater presses for these answers, from left to right."""
    if chance.random() >= rater.care:
        return chance.choice("12")
    description = question.partition("\n\n")[2] or question  # what stands before is the instruction
    found = [alike(answer, description) for answer in answers]
    if len(found) == 1:
        return "1" if found[0] >= GOOD else "2"
    if abs(found[0] - found[1]) < TIE:
        return "0" if any(found) else "b"
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
        question = page.locator(".prompt .words").last.inner_text()
        key = key_for(question, [body.inner_text() for body in page.locator(".answer .body").all()], rater, chance)
        page.locator("#status").evaluate("status => { status.textContent = ''; }")
        page.keyboard.press(key)
        expect(page.locator("#status")).to_contain_text("Saved", timeout=PATIENCE)
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
