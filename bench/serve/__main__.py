"""`python -m bench.serve WAY... --keep FOLDER`: answers a second and waiting time at 1, 8 and 32 clients.

WAY is ours, half, mixed, plain, transformers, batching, llamacpp, gguf, labels or adapters (memory); `page` writes
bench/SERVE.md from what lies in the folder.
The model is smollm2-135m under a LoRA of rank 16 whose numbers are random and small: speed does not depend on what was
learned. The questions are descriptions of examples/synopsis.jsonl under the instruction of its recipe, each once.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.serve.adapters import adapters
from bench.serve.made import make_run
from bench.serve.page import write_page
from bench.serve.ways import gguf, half, labels, llamacpp, ours, plain, transformers

WAYS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "plain": plain,
    "ours": ours,
    "half": half,
    "mixed": lambda keep: ours(keep, runs=8),
    "transformers": transformers,
    "batching": lambda keep: transformers(keep, "--continuous-batching"),
    "llamacpp": llamacpp,
    "gguf": gguf,
    "labels": labels,
    "adapters": lambda keep: adapters(keep, make_run(keep / "run0", seed=0)),
}


def main() -> None:
    """Race what is named, and write the page when it is asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench.serve", description=__doc__)
    parser.add_argument("ways", nargs="+", choices=[*WAYS, "page"])
    parser.add_argument("--keep", type=Path, default=Path("serve-bench"))
    args = parser.parse_args()
    args.keep.mkdir(parents=True, exist_ok=True)
    for way in args.ways:
        if way == "page":
            found = {
                one: json.loads((args.keep / f"{one}.json").read_text())
                for one in WAYS
                if (args.keep / f"{one}.json").exists()
            }
            write_page(found)
            continue
        told = WAYS[way](args.keep)
        print(way, json.dumps(told), flush=True)
        (args.keep / f"{way}.json").write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main()
