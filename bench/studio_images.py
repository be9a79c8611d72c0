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
from pathlib import Path
from urllib.parse import quote

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
FOLDER = ROOT / "bench" / ".studio"
SIZE = {"width": 1280, "height": 900}
ROWS = 700
# What a person would have done: (folder that shows that it is done, command).
COMMANDS = (
    ("runs/reviews-full", "tune reviews.yaml --out runs/reviews-full"),
    ("runs/reviews-lora", "tune reviews.yaml --set technique=lora --out runs/reviews-lora"),
    (
        "comparisons/factbook",
        "compare factbook.yaml --set arms=[prompt,rag,tuned] --set data.validation=12 --out comparisons/factbook",
    ),
)


def prepare(folder: Path) -> None:
    """Fill a working folder with rows, recipes, runs and a comparison; what exists is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = (ROOT / "tunesmith" / "shipped_data" / "reviews.jsonl").read_text("utf-8").splitlines(keepends=True)
    folder.joinpath("reviews.jsonl").write_text("".join(rows[:ROWS]), "utf-8")
    for name, most in (("factbook.jsonl", 100), ("factbook.test.jsonl", 40), ("factbook.documents.jsonl", None)):
        lines = (ROOT / "examples" / name).read_text("utf-8").splitlines(keepends=True)
        folder.joinpath(name).write_text("".join(lines[:most]), "utf-8")
    shutil.copy(ROOT / "examples" / "factbook.yaml", folder)
    if not (folder / "reviews.yaml").exists():
        tunesmith(folder, "init reviews.jsonl --out reviews.yaml")
    for made, command in COMMANDS:
        if not (folder / made / "report.html").exists():
            tunesmith(folder, command)


def tunesmith(folder: Path, line: str) -> None:
    """Run a command in the working folder."""
    subprocess.run([sys.executable, "-m", "tunesmith", *line.split(), "--offline"], cwd=folder, check=True)


def pages(folder: Path) -> dict[str, str]:
    """Return name -> address of each screen, with the newest recipe, data file and run of the folder."""
    recipe = quote(next(folder.glob("*.yaml")).name)
    rows = quote(next(folder.glob("*.jsonl")).name)
    runs = sorted(
        (path for path in (folder / "runs").iterdir() if (path / "report.json").exists()),
        key=lambda p: p.stat().st_mtime,
    )
    run = quote(runs[-1].name)
    found = {
        "data": "data",
        "rows": f"data/file?path={rows}",
        "decide": f"decide?recipe={recipe}",
        "tune": f"tune?recipe={recipe}",
        "runs": "runs",
        "run": f"runs/{run}",
        "playground": "playground",
        "people": "people",
        "ship": f"ship?run={run}",
        "jobs": "jobs",
    }
    if len(runs) > 1:
        found["diff"] = f"diff?a={quote(runs[-2].name)}&b={run}"
    return found


def main() -> None:
    """Serve the folder and write the screenshots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    parser.add_argument("--out", type=Path, default=IMAGES)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.folder == FOLDER:
        prepare(FOLDER)
    command = [sys.executable, "-m", "tunesmith", "studio", str(args.folder), "--port", "0", "--json", "--offline"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as driver:
        assert server.stdout is not None
        text = ""
        while not text.endswith("}\n"):
            text += server.stdout.readline()
        url = json.loads(text)["url"]
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            context = browser.new_context(viewport=SIZE, color_scheme=scheme)
            for name, address in pages(args.folder).items():
                page = context.new_page()
                page.goto(url + address)
                page.wait_for_timeout(1500)
                path = args.out / f"studio-{name}-{scheme}.png"
                page.screenshot(path=path)
                print(path)
                page.close()
        browser.close()
        server.terminate()


if __name__ == "__main__":
    main()
