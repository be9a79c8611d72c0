"""Replay and rebase on the bundled models: an encoder tuned on reviews, the decoder on its rows, both replayed.

    python -m bench.upgrade --rows 300 --out /tmp/upgrade

Prints the verdict of the rebase, and for both runs the outcome of `replay` with seconds of this process, for the
environment as it is, another number of threads, and the other dtype.
"""

from __future__ import annotations

import argparse
import time
from itertools import islice
from pathlib import Path

import tunesmith as ts

ROWS = Path(ts.__file__).with_name("shipped_data") / "reviews.jsonl"
SETTINGS = {
    "data.test": 0.3,
    "data.validation": 0.1,
    "data.group": "group",
    "objective.instruction": "Is this review positive or negative?",
    "schedule.epochs": 2,
    "schedule.probe": False,
    "retention": False,
}


def main() -> None:
    """Run both models and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = args.out / "rows.jsonl"
    with ROWS.open(encoding="utf-8") as lines:
        rows.write_text("".join(islice(lines, args.rows)), encoding="utf-8")
    old = args.out / "encoder"
    ts.tune(rows, model="minilm-l6", technique="lora", objective="classify", settings=SETTINGS, out=old, offline=True)
    began = time.process_time()
    new = ts.rebase(old, "smollm2-135m", settings={"schedule.epochs": 1}, out=args.out / "decoder", offline=True)
    print(f"rebase: {time.process_time() - began:.0f} s of this process", new, sep="\n", flush=True)
    for run in (args.out / "decoder", old):
        for settings in ({}, {"machine.threads": 1}, {"machine.dtype": "bfloat16"}):
            began = time.process_time()
            found = ts.replay(run, settings=settings, offline=True, progress=False)
            spent = time.process_time() - began
            print(f"{run.name} {settings or 'unchanged'}: {found.sentence}; {spent:.1f} s of this process", flush=True)


if __name__ == "__main__":
    main()
