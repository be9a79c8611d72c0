"""Screenshots of every screen of the studio, light and dark, into docs/images/.

python -m bench.studio_images            # makes a working folder first, in some 15 minutes; later calls use it
python -m bench.studio_images FOLDER     # of another working folder
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
FOLDER = ROOT / "bench" / ".studio"
SIZE = {"width": 1280, "height": 900}
ROWS = 700
QUESTION = "the hinge broke after two days, but support sent a new one within a week"
MINUTES = 600_000.0  # milliseconds for a command of the page
SETTLING = 1500.0  # milliseconds in which charts are drawn
# What a person would have done: (folder that shows that it is done, command).
COMMANDS = (
    ("runs/reviews-full", "tune reviews.yaml --out runs/reviews-full"),
    ("runs/reviews-lora", "tune reviews.yaml --set technique=lora --out runs/reviews-lora"),
    ("comparisons/reviews", "compare reviews.yaml --out comparisons/reviews"),
)


def prepare(folder: Path) -> None:
    """Fill a working folder with rows, recipes, runs and a comparison; what exists is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = (ROOT / "tunesmith" / "shipped_data" / "reviews.jsonl").read_text("utf-8").splitlines(keepends=True)
    folder.joinpath("reviews.jsonl").write_text("".join(rows[:ROWS]), "utf-8")
    if not (folder / "reviews.yaml").exists():
        tunesmith(folder, "init reviews.jsonl --out reviews.yaml")
    for made, command in COMMANDS:
        if not (folder / made / "report.html").exists():
            tunesmith(folder, command)


def tunesmith(folder: Path, line: str) -> None:
    """Run a command in the working folder."""
    subprocess.run([sys.executable, "-m", "tunesmith", *line.split(), "--offline"], cwd=folder, check=True)


def press(page: Page, name: str, found: str) -> None:
    """Press a button unless what it leads to is there, and wait for that."""
    if not page.locator(found).count():
        page.get_by_role("button", name=name, exact=True).first.click()
    page.locator(found).first.wait_for(timeout=MINUTES)


def show_checks(page: Page) -> None:
    """Check the rows and scroll to the findings."""
    press(page, "Check the data", "#audit .finding, #audit .result")
    page.locator("#audit-name").scroll_into_view_if_needed()


def show_tokens(page: Page) -> None:
    """Show the rows as the model sees them."""
    press(page, "Show the rows as the model sees them", "#seen mark")
    page.locator("#seen-name").evaluate("heading => heading.scrollIntoView()")


def show_plan(page: Page) -> None:
    """Plan the recipe."""
    press(page, "Plan", "#found-plan table")


def ask_both(page: Page) -> None:
    """Load all runs and ask them."""
    if page.get_by_role("button", name="Load", exact=True).is_visible():
        for run in ("reviews-full", "reviews-lora"):
            page.locator(f"input[name='{run}']").check()
        page.get_by_role("button", name="Load", exact=True).click()
    page.get_by_label("Your text").fill(QUESTION, timeout=MINUTES)
    page.get_by_role("button", name="Ask", exact=True).click()
    page.locator(".turns table, .thumbs").last.wait_for(timeout=MINUTES)


def nothing(page: Page) -> None:
    """Do nothing."""


# Name of the image, address, and what is done before it is taken.
SHOTS: tuple[tuple[str, str, Callable[[Page], None]], ...] = (
    ("data", "data", nothing),
    ("rows", "data/file?path=reviews.jsonl", nothing),
    ("checks", "data/file?path=reviews.jsonl", show_checks),
    ("tokens", "data/file?path=reviews.jsonl", show_tokens),
    ("plan", "decide?recipe=reviews.yaml", show_plan),
    ("compare", "decide/answer?folder=comparisons/reviews", nothing),
    ("tune", "tune?recipe=reviews.yaml", nothing),
    ("runs", "runs", nothing),
    ("run", "runs/reviews-full", nothing),
    ("diff", "diff?run=reviews-full&run=reviews-lora", nothing),
    ("playground", "playground", ask_both),
    ("people", "people", nothing),
    ("ship", "ship?run=reviews-full", nothing),
    ("jobs", "jobs", nothing),
)


@contextmanager
def opened(folder: Path) -> Iterator[tuple[str, Browser, int]]:
    """Serve a working folder; yield its address, a browser, and the process id of the server."""
    command = [sys.executable, "-m", "tunesmith", "studio", str(folder), "--port", "0", "--json", "--offline"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as driver:
        assert server.stdout is not None
        text = ""
        while not text.endswith("}\n"):
            text += server.stdout.readline()
        try:
            browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            yield json.loads(text)["url"], browser, server.pid
            browser.close()
        finally:
            server.terminate()


def main() -> None:
    """Serve the folder and write the screenshots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="IMAGE", help="only these")
    parser.add_argument("--out", type=Path, default=IMAGES)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    prepare(FOLDER)
    with opened(FOLDER) as (url, browser, _):
        for scheme in ("light", "dark"):
            context = browser.new_context(viewport=SIZE, color_scheme=scheme, reduced_motion="reduce")
            for name, address, act in SHOTS:
                if args.names and name not in args.names:
                    continue
                page = context.new_page()
                page.goto(url + address)
                act(page)
                page.wait_for_timeout(SETTLING)
                path = args.out / f"studio-{name}-{scheme}.png"
                page.screenshot(path=path)
                print(path, flush=True)
                page.close()


if __name__ == "__main__":
    main()
