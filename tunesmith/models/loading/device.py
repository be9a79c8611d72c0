"""Device, precision and threads, chosen by a measurement."""

from __future__ import annotations

import ctypes
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch

from tunesmith.data.cpu_count import cores, peak_resident
from tunesmith.errors import RecipeError
from tunesmith.models.kernels.float32_products import use_products

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
}
# Rows, inner and outer width of the matrix products to time: the MLP of SmolLM2-135M, up and down.
SHAPES = ((1024, 576, 1536), (1024, 1536, 576))
# On a GPU those last microseconds, and the launch of a kernel would be measured.
GPU_SHAPES = ((8192, 8192, 8192),)
# bfloat16 costs a little quality, so on a CPU it has to be at least this much faster.
MIN_SPEEDUP = 1.3
ROUNDS = 3
REPEATS = 3
SECONDS_EACH = 0.05
# Some processors emulate bfloat16 at about a fiftieth of float32's rate, and the full product would take seconds. A
# product of few rows predicts its time, if anything too long; above this many seconds the full one is not run.
FEW_ROWS, MAX_SECONDS = 64, 0.3
# Parameters of glibc's mallopt: how many large blocks may be mappings of their own, and how much free memory at the end
# of the heap goes back to the system (-1: none does).
MMAP_MAX, TRIM_THRESHOLD = -4, -1
DEFAULT_MMAP_MAX, DEFAULT_TRIM_THRESHOLD = 65_536, 128 * 1024
_keeping = False  # within `keep_freed_memory`
# Ends of the messages when memory ran out and smaller micro-batches do not help.
NOT_ONE_ROW = (
    "memory does not hold one row at a time; lower data.max_tokens, "
    "or use a technique that needs less (`tunesmith plan` lists them)"
)
NOT_ITS_MOMENTS = (
    "memory does not hold the optimizer's two values per trainable parameter; "
    "use a technique that trains fewer (`tunesmith plan` lists them)"
)


@dataclass(frozen=True, slots=True)
class ChosenMachine:
    """The device, dtype and threads to use, and the measurement they follow from."""

    device: str
    dtype: str
    threads: int
    gemm_gflops: Mapping[str, float]  # by dtype, billions of operations per second in matrix products
    why: str
    products: str = "default"  # library of float32 products on a CPU


def choose_machine(
    *,
    device: str = "auto",
    dtype: str = "auto",
    threads: int = 0,
    exact: bool = False,
    products: str = "auto",
    reason: str = "as set",
) -> ChosenMachine:
    """Choose device, dtype and thread count, and set torch's thread count. Takes a second or two.

    Args:
        device: auto, cpu, cuda, cuda:1 or mps.
        dtype: auto, float32 or bfloat16.
        threads: number of threads; 0 for one per core.
        exact: as in `configure_device`.
        products: as in `configure_device`.
        reason: why `dtype` is not auto.

    Raises:
        RecipeError: if one of them is unknown, or the device is not available.
    """
    if dtype not in ("auto", *DTYPES):
        raise RecipeError(f"dtype: {dtype!r} is not one of auto, {', '.join(DTYPES)}; use auto to measure and choose")
    if threads < 0:
        raise RecipeError(f"threads: expected an integer >= 0, got {threads}; use 0 for one per core")
    device = configure_device(device, threads=threads, exact=exact, products=products)
    count = torch.get_num_threads()
    # Alternate between the dtypes: another process may occupy the processor for as long as one of them is measured.
    timed = DTYPES if device != "mps" or _multiplies_bfloat16(device) else ("float32",)
    rounds = [{name: gemm_gflops(device, DTYPES[name]) for name in timed} for _ in range(ROUNDS)]
    measured = {name: max(speeds[name] for speeds in rounds) for name in rounds[0]}
    chosen, reason = (dtype, reason) if dtype != "auto" else choose_dtype(device, measured)
    speeds = ", ".join(f"{name} {speed:.0f}" for name, speed in measured.items())
    why = f"{device} with {count} thread{'s' * (count > 1)} measured {speeds} GFLOP/s: {chosen}, {reason}"
    return ChosenMachine(device, chosen, count, measured, why, use_products() if device == "cpu" else "default")


def configure_device(device: str = "auto", *, threads: int | None = 0, exact: bool = False, products: str = "") -> str:
    """Choose the device and set torch's thread count, its float32 products, and on a GPU its allocator and precision.

    Args:
        device: auto takes the first GPU, or the CPU; otherwise the name of an available device, or a `torch.device`.
        threads: number of threads; 0 for one per core, None to leave the count unchanged.
        exact: use only deterministic kernels on a GPU.
        products: library of float32 products on a CPU, see `use_products`.

    Returns:
        The device's name.

    Raises:
        RecipeError: if the device is unknown or not available.
    """
    gpu = torch.cuda.is_available()
    if device == "auto":
        device = "cuda" if gpu else "cpu"
    else:
        try:
            kind = torch.device(device)
        except RuntimeError as error:
            raise RecipeError(f"device: unknown device {device!r}; use auto, cpu, cuda, cuda:1 or mps") from error
        device = str(kind)
        if kind.type == "cuda" and (not gpu or (kind.index or 0) >= torch.cuda.device_count()):
            raise RecipeError(f"device: torch sees no {device} here; use auto, or install a torch with CUDA")
        if kind.type == "mps" and not torch.backends.mps.is_available():
            raise RecipeError("device: torch sees no mps here; use auto")
    if threads is not None:
        torch.set_num_threads(threads or cores())
    if device.startswith("cuda"):
        configure_gpu(exact=exact)
    elif device == "cpu" and not gpu:  # on a GPU, the same setting permits TF32
        use_products(products)
    return device


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Enter a context in which freed memory stays with the process for its next tensors, where the C library is glibc.

    By default glibc returns a block of more than 32 MB to the system when it is freed, and the end of the heap whenever
    more than 64 MB are free there. The next tensor is then made of pages that the system fills with zeros one by one: a
    tenth to a fifth of the time of a step that trains all weights, and up to 30 % of the time in which rows are scored
    (bench/NOTES.md). When the outermost of these contexts ends, free memory is returned.
    """
    global _keeping
    libc = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
    if libc is None or _keeping or not (libc.mallopt(MMAP_MAX, 0) and libc.mallopt(TRIM_THRESHOLD, -1)):
        yield
        return
    _keeping = True
    try:
        yield
    finally:
        _keeping = False
        libc.mallopt(MMAP_MAX, DEFAULT_MMAP_MAX)
        libc.mallopt(TRIM_THRESHOLD, DEFAULT_TRIM_THRESHOLD)
        libc.malloc_trim(0)


def configure_gpu(*, exact: bool) -> None:
    """Set how torch allocates and multiplies on GPUs, for the process; before the first tensor is on one."""
    # Rows of many lengths fragment segments of a fixed size until a large tensor fits into none of them.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    torch.set_float32_matmul_precision("high")  # TF32, where float32 is multiplied at all
    if exact:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic with these sizes
    torch.use_deterministic_algorithms(exact)


def frozen_dtype(device: str) -> str:
    """Return the dtype in which weights that are not trained are kept and answers are computed on a device."""
    return "float32" if device == "cpu" else choose_dtype(device, {})[0]


def choose_dtype(device: str, measured: Mapping[str, float]) -> tuple[str, str]:
    """Return the dtype for a device with these speeds in GFLOP/s, and the reason in a few words."""
    if device.startswith("cuda"):
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bfloat16", "which this GPU has in hardware"
        return "float32", "since this GPU has no bfloat16"
    if device != "cpu":
        if _multiplies_bfloat16(device):
            return "bfloat16", f"which {device} multiplies; not tested on such a device yet"
        return "float32", f"since {device} does not multiply bfloat16"
    ratio = measured["bfloat16"] / measured["float32"]
    if ratio >= MIN_SPEEDUP:
        return "bfloat16", f"since it is {ratio:.1f} times as fast as float32"
    return "float32", f"since bfloat16 is {ratio:.1f} times as fast and would have to be {MIN_SPEEDUP}"


def _multiplies_bfloat16(device: str) -> bool:
    """Return whether a device has matrix products in bfloat16: Apple's GPUs have them from macOS 14 on."""
    try:
        one = torch.ones(1, 1, dtype=torch.bfloat16, device=device)
        return torch.mm(one, one).item() == 1.0
    except (RuntimeError, TypeError):
        return False


def gemm_gflops(device: str, dtype: torch.dtype, *, clock: Callable[[], float] = time.perf_counter) -> float:
    """Measure matrix products of a model's shapes, in billions of operations per second, best of several."""
    work = seconds = 0.0
    for rows, inner, outer in GPU_SHAPES if device.startswith("cuda") else SHAPES:
        left = torch.ones(rows, inner, dtype=dtype, device=device)
        right = torch.ones(inner, outer, dtype=dtype, device=device)
        work += 2.0 * rows * inner * outer
        seconds += _best_time(left, right, clock=clock)
    return work / seconds / 1e9


def _best_time(left: torch.Tensor, right: torch.Tensor, *, clock: Callable[[], float]) -> float:
    """Return the seconds of the fastest product after one to warm up; predicted if it would take too long."""
    if left.device.type == "cpu" and left.dtype != torch.float32:
        few = min(_seconds(left[:FEW_ROWS], right, clock), _seconds(left[:FEW_ROWS], right, clock))
        predicted = few * len(left) / FEW_ROWS
        if predicted > MAX_SECONDS:
            return predicted
    _seconds(left, right, clock)
    times: list[float] = []
    while len(times) < REPEATS and sum(times) <= SECONDS_EACH:
        times.append(_seconds(left, right, clock))
    return min(times)


def _seconds(left: torch.Tensor, right: torch.Tensor, clock: Callable[[], float]) -> float:
    """Time one product."""
    start = clock()
    torch.mm(left, right)
    wait_for(left.device)
    return max(clock() - start, 1e-9)


def wait_for(device: torch.device) -> None:
    """Wait until a device has finished its queued kernels, which run asynchronously."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def keep_randomness(device: torch.device) -> AbstractContextManager[None]:
    """Restore the random generators of the CPU and of a device after a block."""
    if device.type == "cpu":
        return torch.random.fork_rng([])
    return torch.random.fork_rng([device], device_type=device.type)


def gpu_share(device: torch.device, more: int = 0) -> float | None:
    """Return the largest share of a GPU's memory used since the last call, with some bytes more; None without one."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return (peak + more) / torch.cuda.get_device_properties(device).total_memory


def peak_bytes(device: str | torch.device = "cpu") -> int:
    """Return the most memory that this process has used so far, in bytes: on a GPU of tensors, else resident."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_resident()
