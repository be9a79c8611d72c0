"""`python -m bench.audit_million [ROWS]`: the command on a million rows; prints throughput and peak memory.

Rows are those of four sets, repeated with edits (bench/plant.py) until there are enough. Memory is the sum of the
resident sizes of all processes, looked at every half second.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from bench import plant

SETS = {
    "a1_vader_amazon": "text",
    "a2_vader_movie": "text",
    "b2_support_mail_routing": "text",
    "b7_debian_section": "text",
}


def rows(count: int) -> Iterator[dict[str, object]]:
    """Real rows, then the same again with edits, each time with others."""
    chance = random.Random(0)
    real = [{"text": row["text"], "label": row["label"]} for name in SETS for row in plant.rows_of(name)]
    words = [word for row in real for word in str(row["text"]).split()]
    for i in range(count):
        row = real[i % len(real)]
        yield row if i < len(real) else {**row, "text": plant.edited(str(row["text"]), words, chance)}


def resident(process: psutil.Process) -> int:
    """Bytes in memory of a process and its children."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def main(count: int) -> None:
    """Write the rows, run the command over them, print what it took."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "rows.jsonl"
        with source.open("w", encoding="utf-8") as file:
            for row in rows(count):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        size = source.stat().st_size
        command = [str(Path(sys.executable).with_name("tunesmith")), "audit", str(source), "--json", "--offline"]
        began, peak = time.perf_counter(), 0
        with (Path(folder) / "out.json").open("w") as out:
            running = psutil.Popen(command, stdout=out)
            while running.poll() is None:
                peak = max(peak, resident(running))
                time.sleep(0.5)
        seconds, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = used.ru_utime + used.ru_stime
        found = json.loads((Path(folder) / "out.json").read_text(encoding="utf-8"))
        speed = f"{seconds:.0f} s, {count / seconds:.0f} rows/s, {cpu:.0f} s of processor time"
        print(f"{count} rows, {size / 1e6:.0f} MB: {speed}, peak {peak / 1e9:.2f} GB")
        print(", ".join(f"{finding['kind']} {finding['count']}" for finding in found["findings"]))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
