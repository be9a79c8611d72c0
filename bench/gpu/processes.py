"""`tunesmith tune --processes N` on the same recipe: rows per second, and the share of N times those of one process."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.gpu.job import Job

WORDS = ("fox", "battery", "review", "capital", "answer", "phone", "France", "word")


def measure(job: Job, cards: list[int] | tuple[int, ...]) -> list[dict[str, Any]]:
    """One run per number of processes; seconds are those of the training steps in the journal."""
    found = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
            for i in range(max(40, job.rows * job.steps * 5 // 4)):  # a fifth is held out
                text = [WORDS[(i * 7 + k) % len(WORDS)] for k in range((job.prompt + job.answer) // 2)]
                row = {"prompt": f"{i} {' '.join(text[:-4])}", "completion": " ".join(text[-4:])}
                file.write(json.dumps(row) + "\n")
        for count in cards:
            out = folder / f"run-{count}"
            settings = {
                "model": job.model,
                "objective.kind": "instruct",
                "technique.kind": "lora",
                "schedule.batch_rows": job.rows,
            }
            sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
            words = ["tune", str(folder / "rows.jsonl"), "--out", str(out), "--processes", str(count), *sets]
            subprocess.run([sys.executable, "-m", "tunesmith", *words], check=True, capture_output=True)
            lines = (out / "journal.jsonl").read_text(encoding="utf-8").splitlines()
            steps = [line for line in map(json.loads, lines) if "loss" in line]
            seconds = (steps[-1]["seconds"] - steps[0]["seconds"]) / max(1, len(steps) - 1)
            rows = job.rows / seconds
            base = found[0]["rows_per_second"] * count / found[0]["processes"] if found else rows
            found.append({"processes": count, "rows_per_second": rows, "efficiency": rows / base})
    return found
