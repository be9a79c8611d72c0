"""Time until rows of a long file are on the screen of the studio, and memory of its server.

python -m bench.studio_rows FOLDER --rows 1000000    # writes long.jsonl, long.csv and long.parquet there if missing
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import time
from pathlib import Path

import psutil
from playwright.sync_api import Page

from bench.studio_images import opened

WORDS = ("refund", "parcel", "late", "invoice", "account", "password", "please", "order", "number", "arrived", "broken")
LABELS = ("refund", "delivery", "account")
WAIT = "performance.getEntriesByName('{}').length > 0"


def write(folder: Path, rows: int) -> None:
    """Write the same rows as jsonl, csv with line breaks in every fifth cell, and parquet."""
    import pyarrow as arrow
    from pyarrow import parquet

    chosen = random.Random(0)
    jsonl, table = folder / "long.jsonl", folder / "long.csv"
    with jsonl.open("w") as lines, table.open("w", newline="") as cells:
        writer = csv.writer(cells)
        writer.writerow(("text", "label", "customer"))
        for n in range(rows):
            text = f"message {n}: {' '.join(chosen.choices(WORDS, k=22))}"
            row = {"text": text, "label": chosen.choice(LABELS), "customer": f"customer-{n // 7}"}
            lines.write(json.dumps(row) + "\n")
            writer.writerow([text + '\nsecond, "line"' * (n % 5 == 0), row["label"], row["customer"]])
    with jsonl.open() as lines:
        parquet.write_table(arrow.Table.from_pylist([json.loads(line) for line in lines]), folder / "long.parquet")


def measure(page: Page, address: str, rows: int, server: psutil.Process) -> dict[str, float]:
    """Return seconds from the navigation and for a jump, and the memory of the server in bytes."""
    page.goto(address, wait_until="commit")
    times = {}
    for mark in ("rows-shown", "rows-counted"):
        page.wait_for_function(WAIT.format(mark), timeout=120_000)
        times[mark] = page.evaluate(f"performance.getEntriesByName('{mark}')[0].startTime / 1000")
    wanted = rows * 3 // 4
    field = page.get_by_label("Go to row")
    field.fill(str(wanted + 1))
    start = time.perf_counter()
    field.press("Enter")
    page.wait_for_function(
        "n => document.querySelector('[aria-selected=true]')?.textContent.includes(n)", arg=f"message {wanted}:"
    )
    times["jump"] = time.perf_counter() - start
    return {**times, "memory": server.memory_info().rss}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if not (args.folder / "long.parquet").exists():
        write(args.folder, args.rows)
    for name in ("long.jsonl", "long.csv", "long.parquet"):
        with opened(args.folder) as (url, browser, server):
            page = browser.new_context(bypass_csp=True).new_page()  # which forbids what waits for the marks
            page.goto(url)  # the code of the page is in the cache, as for someone who has dropped the file
            found = measure(page, f"{url}data/file?path={name}", args.rows, psutil.Process(server))
            size = (args.folder / name).stat().st_size / 1e6
            print(f"{name} ({size:.0f} MB)", {key: round(value, 2) for key, value in found.items()}, flush=True)


if __name__ == "__main__":
    main()
