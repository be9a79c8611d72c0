"""Memory and time of a file larger than memory: generate it, read, split, check and encode it, and map it again.

    python -m bench.big_data FOLDER --rows 20000000 --words 2
    python -m bench.big_data FOLDER --rows 200000 --suffix .csv

Both starts are processes of their own, which report the growth of anonymous memory (`peak_mb`) and of all resident
memory (`resident_mb`) in each step. Only the first cannot shrink: the second has the pages of mapped files, which the
system takes back whenever it needs them. The cache is in FOLDER.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tunesmith.data.tokenization.token_store import EncodedStore, sizes_of

SYLLABLES = ("ka", "lo", "mi", "ren", "tu", "sa", "vel", "or", "ni", "qua", "zi", "pe", "dan", "hu", "bri", "ost")
WORDS = ["".join(parts) for parts in itertools.product(SYLLABLES, repeat=4)]
LABELS = ("first", "second", "third")
HELD_OUT = 2000
AT_ONCE = 10_000  # rows


def rows(count: int, kind: str, words: int) -> Iterator[list[dict[str, str]]]:
    """Yield rows of some random words, AT_ONCE at a time."""
    random.seed(0)
    for start in range(0, count, AT_ONCE):
        texts = zip(*[iter(random.choices(WORDS, k=words * min(AT_ONCE, count - start)))] * words, strict=True)
        if kind == "domain":
            yield [{"text": " ".join(text)} for text in texts]
        elif kind == "classify":
            yield [{"text": " ".join(text), "label": LABELS[len(text[0]) % 3]} for text in texts]
        else:
            yield [{"prompt": " ".join(text), "answer": text[0]} for text in texts]


def generate(file: Path, count: int, kind: str, words: int) -> None:
    """Write a file of rows unless it exists."""
    if file.exists():
        return
    blocks = rows(count, kind, words)
    if file.suffix == ".parquet":
        import pyarrow as arrow
        from pyarrow import parquet

        tables = map(arrow.Table.from_pylist, blocks)
        first = next(tables)
        with parquet.ParquetWriter(file, first.schema) as writer:
            for table in itertools.chain([first], tables):
                writer.write_table(table)
        return
    with file.open("w", newline="") as out:
        for number, block in enumerate(blocks):
            if file.suffix == ".csv":
                writer = csv.DictWriter(out, block[0])
                if not number:
                    writer.writeheader()
                writer.writerows(block)
            else:
                out.writelines(f"{json.dumps(row)}\n" for row in block)


def used() -> tuple[int, int]:
    """Return the anonymous and the whole resident memory of this process, in bytes."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status["RssAnon"].split()[0]), 1024 * int(status["VmRSS"].split()[0])


def measured(step: Callable[[], Any], before: tuple[int, int]) -> tuple[Any, dict[str, float]]:
    """Run a step; return its result, its seconds and the growth of both kinds of memory in MB."""
    done, seen = threading.Event(), [used()]

    def watch() -> None:
        while not done.wait(0.05):
            seen.append(used())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        result = step()
    finally:
        done.set()
        watcher.join()
        seen.append(used())
    seconds = round(time.perf_counter() - start, 1)
    anonymous, resident = (max(each) - first for each, first in zip(zip(*seen, strict=True), before, strict=True))
    return result, {"seconds": seconds, "peak_mb": anonymous // 2**20, "resident_mb": resident // 2**20}


def prepare_rows(file: Path, kind: str, *, memory: bool) -> None:
    """Read, check and encode a file, or map what an earlier process has made; print each step when it is done."""
    from tunesmith.config import Recipe
    from tunesmith.data import stored
    from tunesmith.data.readers import read
    from tunesmith.models.loading.device import choose_machine
    from tunesmith.models.loading.load import load_base
    from tunesmith.models.loading.locate import LoadOptions
    from tunesmith.training.batches import batches_of
    from tunesmith.training.prepare import _encode_task
    from tunesmith.training.read import audited, read_data

    read.LARGE_BYTES = 2**60 if memory else 1
    stored.cache_dir = lambda: file.parent / "cache"
    data = {"train": str(file), "validation": HELD_OUT, "test": HELD_OUT, "max_tokens": 64 if kind == "domain" else 128}
    recipe = Recipe.model_validate({"model": "smollm2-135m", "objective": {"kind": kind}, "data": data})
    base = load_base(recipe.model, options=LoadOptions("float32", "cpu", ""), offline=True)
    machine = choose_machine(device="cpu", dtype="float32", threads=1)
    before = used()

    def report(name: str, step: Callable[[], Any]) -> Any:
        result, figures = measured(step, before)
        print(json.dumps({"step": name, **figures}), flush=True)
        return result

    loaded = report("read", lambda: read_data(recipe, offline=True))
    loaded = report("audit", lambda: audited(recipe, loaded))
    task = report("encode", lambda: _encode_task(recipe, loaded, base, machine))
    tokens = report("lengths", lambda: sum(sizes_of(task.train)))
    report("first epoch", lambda: batches_of(task).sampler.step_rows(0))
    print(json.dumps({"rows": len(task.train), "tokens": tokens, "stored": isinstance(task.train, EncodedStore)}))


def main() -> None:
    """Run all steps and print one line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--kind", choices=("domain", "classify", "instruct"), default="domain")
    parser.add_argument("--words", type=int, default=7, help="words of a row")
    parser.add_argument("--suffix", choices=(".jsonl", ".csv", ".parquet"), default=".jsonl")
    parser.add_argument("--memory", action="store_true", help="hold everything in memory, as small files are")
    parser.add_argument("--step", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    file = args.folder / f"{args.kind}-{args.rows}-{args.words}{args.suffix}"
    if args.step:
        prepare_rows(file, args.kind, memory=args.memory)
        return
    start = time.perf_counter()
    generate(file, args.rows, args.kind, args.words)
    size = file.stat().st_size // 2**20
    print(json.dumps({"generated_mb": size, "seconds": round(time.perf_counter() - start, 1)}), flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name in ("first start", "second start")[: 1 if args.memory else 2]:
        command = [sys.executable, "-m", "bench.big_data", *sys.argv[1:], "--step"]
        print(name, flush=True)
        subprocess.run(command, env=environment, stderr=subprocess.DEVNULL, check=True)


if __name__ == "__main__":
    main()
