"""Two ways to hold 24,000 vectors of 384 numbers: numpy with safetensors, and LanceDB (`pip install lancedb`)."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

COUNT, WIDTH, ASKED, BEST = 24_000, 384, 50, 100


def seconds(what: Callable[[], object]) -> float:
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


def measure() -> None:
    """Write, read, search one question at a time, replace a document's 12 chunks."""
    import lancedb

    vectors = np.random.default_rng(0).normal(size=(COUNT, WIDTH)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "vectors.safetensors"
        print(f"numpy: write {seconds(lambda: save_file({'v': vectors}, file)):.2f} s")
        print(f"numpy: read {seconds(lambda: load_file(file)):.2f} s")
        searched = seconds(lambda: [np.argpartition(-(one @ vectors.T), BEST)[:BEST] for one in vectors[:ASKED]])
        print(f"numpy: search {1000 * searched / ASKED:.1f} ms")
        base = lancedb.connect(Path(place) / "lance")
        rows = [{"id": i, "text": "x" * 300, "vector": vectors[i]} for i in range(COUNT)]
        began = time.perf_counter()
        table = base.create_table("chunks", data=rows)
        print(f"LanceDB {lancedb.__version__}: write {time.perf_counter() - began:.2f} s")
        searched = seconds(lambda: [table.search(one).limit(BEST).to_list() for one in vectors[:ASKED]])
        print(f"LanceDB: search {1000 * searched / ASKED:.1f} ms")
        print(f"LanceDB: replace 12 {seconds(lambda: (table.delete('id < 12'), table.add(rows[:12]))):.2f} s")
