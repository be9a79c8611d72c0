"""Memory and time of a file larger than memory: generate it, read, split, check and encode it, and map it again.

    python -m bench.big_data FOLDER --rows 20000000

Every step runs in a process of its own, which reports its peak of anonymous memory: the pages of mapped files are not
counted, because the system takes them back whenever it needs them. The cache of the step is in FOLDER.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunesmith.data.tokenization.token_store import EncodedStore, sizes_of

SYLLABLES = ("ka", "lo", "mi", "ren", "tu", "sa", "vel", "or", "ni", "qua", "zi", "pe", "dan", "hu", "bri", "ost")
HELD_OUT = 2000


def rows(count: int, kind: str) -> str:
    """Return `count` lines of short rows, different in each block."""
    made = []
    for _ in range(count):
        words = ["".join(random.choices(SYLLABLES, k=2)) for _ in range(random.randint(4, 10))]
        row = {"text": " ".join(words)}
        if kind == "classify":
            row["label"] = ("first", "second", "third")[len(words) % 3]
        if kind == "instruct":
            row = {"prompt": row["text"], "answer": words[0]}
        made.append(json.dumps(row))
    return "\n".join(made) + "\n"


def generate(file: Path, count: int, kind: str) -> None:
    """Write a file of rows unless it exists."""
    if file.exists():
        return
    random.seed(0)
    with file.open("w") as out:
        for start in range(0, count, 10_000):
            out.write(rows(min(10_000, count - start), kind))


def anonymous() -> int:
    """Return the anonymous memory of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def measured(step: Callable[[], Any], before: int) -> tuple[Any, float, int]:
    """Run a step; return its result, seconds and the growth of anonymous memory in MB."""
    done, peak = threading.Event(), [0]

    def watch() -> None:
        while not done.wait(0.05):
            peak[0] = max(peak[0], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        result = step()
    finally:
        done.set()
        watcher.join()
    megabytes = (max(peak[0], anonymous()) - before) // 2**20
    return result, round(time.perf_counter() - start, 1), megabytes


def prepare_rows(file: Path, kind: str, *, memory: bool) -> None:
    """Read, check and encode a file, or map what an earlier process has made; print each step when it is done."""
    from tunesmith.config import Recipe
    from tunesmith.data import stored
    from tunesmith.data.readers import read
    from tunesmith.models.loading.device import choose_machine
    from tunesmith.models.loading.load import load_base
    from tunesmith.models.loading.locate import LoadOptions
    from tunesmith.training.prepare import _encode_task
    from tunesmith.training.read import audited, read_data

    read.LARGE_BYTES = 2**60 if memory else 1
    stored.cache_dir = lambda: file.parent / "cache"
    data = {"train": str(file), "validation": HELD_OUT, "test": HELD_OUT, "max_tokens": 64 if kind == "domain" else 128}
    recipe = Recipe.model_validate({"model": "smollm2-135m", "objective": {"kind": kind}, "data": data})
    base = load_base(recipe.model, options=LoadOptions("float32", "cpu", ""), offline=True)
    machine = choose_machine(device="cpu", dtype="float32", threads=1)
    before = anonymous()

    def report(name: str, step: Callable[[], Any]) -> Any:
        result, seconds, megabytes = measured(step, before)
        print(json.dumps({"step": name, "seconds": seconds, "peak_mb": megabytes}), flush=True)
        return result

    loaded = report("read", lambda: read_data(recipe, offline=True))
    loaded = report("audit", lambda: audited(recipe, loaded))
    task = report("encode", lambda: _encode_task(recipe, loaded, base, machine))
    tokens = report("lengths", lambda: sum(sizes_of(task.train)))
    print(json.dumps({"rows": len(task.train), "tokens": tokens, "stored": isinstance(task.train, EncodedStore)}))


def main() -> None:
    """Run all steps and print one line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--kind", choices=("domain", "classify", "instruct"), default="domain")
    parser.add_argument("--memory", action="store_true", help="hold everything in memory, as small files are")
    parser.add_argument("--step", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    file = args.folder / f"{args.kind}-{args.rows}.jsonl"
    if args.step:
        prepare_rows(file, args.kind, memory=args.memory)
        return
    start = time.perf_counter()
    generate(file, args.rows, args.kind)
    size = file.stat().st_size // 2**20
    print(json.dumps({"generated_mb": size, "seconds": round(time.perf_counter() - start, 1)}), flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name in ("first start", "second start")[: 1 if args.memory else 2]:
        command = [sys.executable, "-m", "bench.big_data", *sys.argv[1:], "--step"]
        print(name, flush=True)
        subprocess.run(command, env=environment, stderr=subprocess.DEVNULL, check=True)


if __name__ == "__main__":
    main()
