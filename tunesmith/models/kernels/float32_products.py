"""float32 matrix products on a CPU: by oneDNN where it is faster than MKL, torch's default, and as exact.

On AMD processors, MKL uses its kernels for AVX2 alone (bench/NOTES.md: 107 against 235 GFLOP/s a core). torch asks
oneDNN for float32 products only at the precision "medium", which permits bfloat16 inside of them. oneDNN makes use of
that permission on processors with AMX, where the measured error refuses it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch

# oneDNN has to be at least this much faster, and its largest error, relative to the largest value, below this bound:
# float32 has 1e-6, bfloat16 4e-3.
MIN_SPEEDUP, MAX_ERROR = 1.3, 1e-5
# Rows, inner and outer width of the product to time, and how often it is timed.
SHAPE = (256, 576, 1536)
ROUNDS = 5
# Up to this many rows MKL is faster: oneDNN takes some 20 us to start a product.
FEW_ROWS = 8
# torch's names of the precisions at which MKL and oneDNN multiply.
MKL, ONEDNN = "highest", "medium"


@cache
def choose_products() -> bool:
    """Let oneDNN multiply float32 matrices where it is faster and as exact, and return whether it does.

    It is measured on one thread in CPU time, so that other processes do not decide.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, generator=generator) for size in (SHAPE[:2], SHAPE[1:]))
    try:
        times: dict[str, list[float]] = {MKL: [], ONEDNN: []}
        for library in (MKL, ONEDNN) * ROUNDS:
            with _by(library):
                times[library].append(_seconds(lambda: left @ right))
        exact = left.double() @ right.double()
        with _by(ONEDNN):
            error = (left @ right - exact).abs().max() / exact.abs().max()
    finally:
        torch.set_num_threads(threads)
    chosen = bool(error < MAX_ERROR) and min(times[MKL]) >= MIN_SPEEDUP * min(times[ONEDNN])
    if chosen:
        torch.set_float32_matmul_precision(ONEDNN)
    return chosen


def by_onednn() -> bool:
    """Return whether oneDNN multiplies float32 matrices now."""
    return torch.get_float32_matmul_precision() == ONEDNN


@contextmanager
def products_of(rows: int) -> Iterator[None]:
    """Enter a context for products of this many rows: few are left to MKL."""
    if rows > FEW_ROWS or not by_onednn():
        yield
        return
    with _by(MKL):
        yield


@contextmanager
def _by(library: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(library)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _seconds(product: Callable[[], object]) -> float:
    """Return the CPU time of a product on this thread."""
    start = time.thread_time()
    product()
    return time.thread_time() - start
