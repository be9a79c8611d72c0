"""Forecast and actual time of small runs, first without a history of the machine, then with one.

    python -m bench.forecast OUT [NAME...]   # every case, or those named; continues where it was stopped
    python -m bench.forecast OUT --table     # print the table of finished runs again

The first round of each case has an empty history of its own. The second has the timings of all first runs, as on a
machine that was used before. Bundled models are taken from the user's cache.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tunesmith.data.user_cache import cache_dir

EXAMPLES = Path(__file__).parent.parent / "examples"
HISTORY = "timings.jsonl"
ENCODER = ("--model", "minilm-l6")
# Name -> recipe of `examples/`, and changes.
CASES: Mapping[str, tuple[str, ...]] = {
    "reviews, encoder, full": ("reviews.yaml", *ENCODER, "--technique", "full", "--set", "data.rows=600"),
    "reviews, encoder, LoRA": ("reviews.yaml", *ENCODER, "--set", "data.rows=200"),
    "mail, encoder, full": ("mail.yaml", *ENCODER, "--technique", "full", "--set", "data.rows=300"),
    "pages, encoder, full": (
        "domain.yaml", *ENCODER, "--technique", "full", "--set", "data.rows=8", "--set", "replay.share=0",
    ),
    "reviews, decoder, LoRA": ("reviews.yaml", "--set", "data.rows=100", "--set", "data.test=0.05"),
    "synopses, decoder, LoRA": (
        "synopsis.yaml", "--set", "data.rows=60", "--set", "data.test=0.01", "--set", "data.validation=0.01",
        "--set", "objective.max_new_tokens=24", "--set", "schedule.epochs=1",
    ),
}  # fmt: skip


def run(out: Path, names: list[str]) -> None:
    """Run both rounds of each case that has no report yet."""
    for number in (1, 2):
        for name in names or CASES:
            folder = out / f"{_slug(name)}-{number}"
            if (folder / "report.json").exists():
                continue
            cache = out / f"cache-{_slug(name)}-{number}"
            _make_cache(cache, earlier=sorted(out.glob("cache-*-1")) if number == 2 else [])
            recipe, *changes = CASES[name]
            command = ["tune", str(EXAMPLES / recipe), *changes, "--set", f"seed={number}", "--out", str(folder)]
            print(f"round {number}: {name}", flush=True)
            with folder.with_suffix(".log").open("w", encoding="utf-8") as log:
                environment = {**os.environ, "TUNESMITH_CACHE": str(cache)}
                arguments = [sys.executable, "-m", "tunesmith", *command, "--offline"]
                subprocess.run(arguments, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False)


def _make_cache(cache: Path, *, earlier: list[Path]) -> None:
    """Make a cache with the user's models and the timings of other caches."""
    cache.mkdir(parents=True, exist_ok=True)
    models = cache / "models"
    if not models.exists():
        models.symlink_to(cache_dir() / "models", target_is_directory=True)
    lines = [(one / HISTORY).read_text(encoding="utf-8") for one in earlier if (one / HISTORY).exists()]
    (cache / HISTORY).write_text("".join(lines), encoding="utf-8")


def _slug(name: str) -> str:
    return name.replace(",", "").replace(" ", "-").lower()


def table(out: Path) -> str:
    """Return forecast and actual seconds of each finished run."""
    lines = [
        "| run | history | forecast, s | bounds, s | actual, s | within | actual / forecast |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in CASES:
        for number in (1, 2):
            file = out / f"{_slug(name)}-{number}" / "report.json"
            if not file.exists():
                continue
            found = json.loads(file.read_text(encoding="utf-8"))["forecast"]
            within = {True: "yes", False: "no", None: "resumed"}[found["within"]]
            lines.append(
                f"| {name} | {found['basis']} | {found['seconds']:.0f} | {found['low']:.0f} to {found['high']:.0f} | "
                f"{found['actual_seconds']:.0f} | {within} | {found['actual_seconds'] / found['seconds']:.2f} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Run the cases, or print the table of those that have run."""
    out, *names = sys.argv[1:]
    if names != ["--table"]:
        run(Path(out), names)
    print(table(Path(out)))


if __name__ == "__main__":
    main()
