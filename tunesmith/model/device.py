"""What to compute on: device, precision and threads, from a measurement rather than a guess."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from tunesmith.data.cores import cores
from tunesmith.errors import RecipeError

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
}
# Rows, inner and outer width of a small model's widest layers, up and down.
SHAPES = ((1024, 576, 1536), (1024, 1536, 576))
# Half precision costs a little quality, so on a CPU it has to be this much faster to be worth it.
WORTH = 1.3
ROUNDS = 3
REPEATS = 3
SECONDS_EACH = 0.05
# Some processors imitate bfloat16 at about a fiftieth of float32's rate. So a product of few rows foretells the whole
# one: if that would take more seconds than this, it is not made. Foretold is if anything too long, yet tells.
FEW_ROWS, TOO_LONG = 64, 0.3
# What is said where no cut helps any more.
NOT_ONE_ROW = (
    "memory does not hold one row at a time; lower data.max_tokens, "
    "or take a technique that needs less (`tunesmith plan` says which)"
)
NOT_ITS_MOMENTS = (
    "memory does not hold the optimizer's two numbers for each that moves; "
    "take a technique that moves fewer (`tunesmith plan` says which)"
)


@dataclass(frozen=True, slots=True)
class ChosenMachine:
    """Where and how to compute, and why so."""

    device: str
    dtype: str
    threads: int
    gemm_gflops: Mapping[str, float]
    why: str


def choose_machine(*, device: str = "auto", dtype: str = "auto", threads: int = 0) -> ChosenMachine:
    """The device, dtype and thread count to use; sets torch's thread count. Takes a second or two."""
    if dtype not in ("auto", *DTYPES):
        raise RecipeError(f"dtype: {dtype!r} is not one of auto, {', '.join(DTYPES)}; auto measures and chooses")
    if threads < 0:
        raise RecipeError(f"threads: {threads} is below zero; use 0 for one per core")
    place, count = settle(device, threads=threads), torch.get_num_threads()
    # By turns: whoever else works here may take the processor for as long as one of the two is measured.
    rounds = [{name: gemm_gflops(place, DTYPES[name]) for name in ("float32", "bfloat16")} for _ in range(ROUNDS)]
    measured = {name: max(found[name] for found in rounds) for name in rounds[0]}
    chosen, reason = (dtype, "as set") if dtype != "auto" else choose_dtype(place, measured)
    speeds = ", ".join(f"{name} {speed:.0f}" for name, speed in measured.items())
    why = f"{place} with {count} thread{'s' * (count > 1)} measured {speeds} GFLOP/s: {chosen}, {reason}"
    return ChosenMachine(place, chosen, count, measured, why)


def settle(device: str = "auto", *, threads: int | None = 0) -> str:
    """The device to use; sets torch's thread count, 0 for one per core, and leaves it as it is for None."""
    place = _place(device)
    if threads is not None:
        torch.set_num_threads(threads or cores())
    return place


def choose_dtype(device: str, measured: Mapping[str, float]) -> tuple[str, str]:
    """The dtype for a device with these speeds, and the reason in a few words."""
    if device.startswith("cuda"):
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bfloat16", "which this GPU has in hardware"
        return "float32", "since this GPU has no bfloat16"
    if device != "cpu":
        return "float32", f"since half precision is not tried on {device}"
    ratio = measured["bfloat16"] / measured["float32"]
    if ratio >= WORTH:
        return "bfloat16", f"since it is {ratio:.1f} times as fast as float32"
    return "float32", f"since bfloat16 is {ratio:.1f} times as fast and would have to be {WORTH}"


def gemm_gflops(device: str, dtype: torch.dtype, *, clock: Callable[[], float] = time.perf_counter) -> float:
    """Billions of operations per second in matrix products of a small model's shapes, best of several."""
    work = seconds = 0.0
    for rows, inner, outer in SHAPES:
        left = torch.ones(rows, inner, dtype=dtype, device=device)
        right = torch.ones(inner, outer, dtype=dtype, device=device)
        work += 2.0 * rows * inner * outer
        seconds += _best_time(left, right, clock=clock)
    return work / seconds / 1e9


def _best_time(left: torch.Tensor, right: torch.Tensor, *, clock: Callable[[], float]) -> float:
    """Seconds of the fastest product after one to warm up, within a small budget of time; foretold where too long."""
    if left.device.type == "cpu" and left.dtype != torch.float32:
        few = min(_seconds(left[:FEW_ROWS], right, clock), _seconds(left[:FEW_ROWS], right, clock))
        foretold = few * len(left) / FEW_ROWS
        if foretold > TOO_LONG:
            return foretold
    _seconds(left, right, clock)
    times: list[float] = []
    while len(times) < REPEATS and sum(times) <= SECONDS_EACH:
        times.append(_seconds(left, right, clock))
    return min(times)


def _seconds(left: torch.Tensor, right: torch.Tensor, clock: Callable[[], float]) -> float:
    """How long one product takes."""
    start = clock()
    torch.mm(left, right)
    if left.is_cuda:
        torch.cuda.synchronize(left.device)
    return max(clock() - start, 1e-9)


def _place(device: str) -> str:
    """A device that is there; `auto` takes the first GPU, or the CPU."""
    gpu = torch.cuda.is_available()
    if device == "auto":
        return "cuda" if gpu else "cpu"
    try:
        kind = torch.device(device)
    except RuntimeError as error:
        raise RecipeError(f"device: {device!r} is no device; use auto, cpu, cuda, cuda:1 or mps") from error
    if kind.type == "cuda" and (not gpu or (kind.index or 0) >= torch.cuda.device_count()):
        raise RecipeError(f"device: torch sees no {device} here; use auto, or install a torch with CUDA")
    if kind.type == "mps" and not torch.backends.mps.is_available():
        raise RecipeError("device: torch sees no mps here; use auto")
    return device


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch has an error of its own for a GPU, and only words for a CPU."""
    words = ("can't allocate memory", "not enough memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in words)


def peak_bytes() -> int:
    """Largest resident size of this process so far; Linux counts in KiB, macOS in bytes."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
