"""A picture of the top of every page in docs/reports, for its gallery: `python -m bench.report_images`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

REPORTS = Path(__file__).parents[1] / "docs" / "reports"
SIZE = {"width": 760, "height": 520}


def main() -> None:
    """Write docs/reports/images/NAME.png for each page."""
    (REPORTS / "images").mkdir(exist_ok=True)
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        context = browser.new_context(viewport=SIZE, device_scale_factor=0.75, color_scheme="light", offline=True)
        page = context.new_page()
        for path in sorted([*REPORTS.glob("*.html"), *REPORTS.glob("*/*.html")]):
            page.goto(path.as_uri())
            page.screenshot(path=REPORTS / "images" / f"{path.stem}.png")
        browser.close()


if __name__ == "__main__":
    main()
