"""float32 matrix products on a CPU: by oneDNN where it is faster than MKL, torch's default, and as exact.

On AMD processors, MKL uses its kernels for AVX2 alone (bench/NOTES.md: 107 against 235 GFLOP/s a core). torch asks
oneDNN for float32 products only at the precision "medium", which permits bfloat16 inside of them. oneDNN makes use of
that permission on processors with AMX, where the measured error refuses it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from threading import Lock
from typing import Any

import torch

# oneDNN has to be at least this much faster, and its largest error, relative to the largest value, below this bound:
# float32 has 1e-6, bfloat16 4e-3.
MIN_SPEEDUP, MAX_ERROR = 1.3, 1e-5
# Rows, inner and outer width of the product to time, and how often it is timed.
SHAPE = (256, 576, 1536)
ROUNDS = 5
# Up to this many rows MKL is faster: oneDNN takes some 20 us to start a product.
FEW_ROWS = 8
# torch's precisions at which its default library and oneDNN multiply.
PRECISIONS = {"default": "highest", "onednn": "medium"}


@dataclass(slots=True)
class _State:
    """The library of this process. The precision is one for all threads, so that short passes are counted."""

    onednn: bool = False
    chosen: bool = False  # at least once
    short_passes: int = 0
    lock: Lock = field(default_factory=Lock)


_STATE = _State()


def use_products(library: str = "") -> str:
    """Multiply float32 matrices of this process by a library, unless the user has set torch's precision.

    Args:
        library: default, onednn, or auto for the faster one; empty for the one in use, at first the faster one.

    Returns:
        The library in use, default or onednn.
    """
    free = precision() == PRECISIONS["onednn" if _STATE.onednn else "default"] and not _STATE.short_passes
    if free and (library or not _STATE.chosen):
        library = _faster() if library in ("auto", "") else library
        _STATE.onednn, _STATE.chosen = library == "onednn", True
        torch.set_float32_matmul_precision(PRECISIONS[library])
    return "onednn" if _STATE.onednn else "default"


def precision() -> str:
    """Return torch's precision of float32 products; of each backend, if the user has set them one by one."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # torch has one word only for backends that agree
        backends: Any = torch.backends
        return f"{backends.mkldnn.matmul.fp32_precision}, {backends.cuda.matmul.fp32_precision}"


def by_onednn() -> bool:
    """Return whether oneDNN multiplies float32 matrices now."""
    return _STATE.onednn and not _STATE.short_passes


@contextmanager
def short_pass(rows: int) -> Iterator[None]:
    """Enter a context for products of this many rows: torch's default library multiplies few, in all threads."""
    if rows > FEW_ROWS or not _STATE.onednn:
        yield
        return
    _count(1)
    try:
        yield
    finally:
        _count(-1)


def _count(change: int) -> None:
    with _STATE.lock:
        _STATE.short_passes += change
        torch.set_float32_matmul_precision(PRECISIONS["onednn" if by_onednn() else "default"])


@cache
def _faster() -> str:
    """Return the faster library of those that are exact; a clock that is too coarse keeps the default one.

    It is measured on one thread in CPU time, so that other processes do not decide.
    """
    threads, before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(1)
    left, right = (torch.ones(size, dtype=torch.float32, device="cpu") for size in (SHAPE[:2], SHAPE[1:]))
    left, right = (value.cumsum(0).sin_() for value in (left, right))
    seconds: dict[str, list[float]] = {library: [] for library in PRECISIONS}
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            exact = left.double() @ right.double()
            for library in list(PRECISIONS) * ROUNDS:
                torch.set_float32_matmul_precision(PRECISIONS[library])
                start = time.thread_time()
                found = left @ right
                seconds[library].append(time.thread_time() - start)
                if (found - exact).abs().max() > MAX_ERROR * exact.abs().max():
                    return "default"
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(before)
    return "onednn" if min(seconds["default"]) > MIN_SPEEDUP * min(seconds["onednn"]) > 0 else "default"
