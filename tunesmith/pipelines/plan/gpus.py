"""GPUs that a run is planned for: public figures of each kind, and checks of names and counts. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tunesmith.errors import OptionError, suggestion


@dataclass(frozen=True, slots=True)
class Gpu:
    """Rounded public figures of a GPU."""

    memory: float  # bytes
    products: float  # bfloat16 operations per second that large matrix products reach
    moved: float  # bytes per second of its memory
    link: float  # bytes per second to another GPU of the machine, in one direction
    net: float  # bytes per second to a GPU of another machine, in one direction


# Memory, bandwidth and links: data sheets of the SXM cards and of DGX A100, H100, H200 and B200. Products: measured by
# the finder of maximum achievable matmul FLOPS (github.com/stas00/ml-engineering, compute/accelerator): 271 of 312
# TFLOP/s on an A100, 795 of 989 on an H100 and H200, 1745 of 2250 on a B200.
GPUS: Mapping[str, Gpu] = {
    "a100": Gpu(memory=80e9, products=270e12, moved=2.0e12, link=300e9, net=25e9),
    "h100": Gpu(memory=80e9, products=800e12, moved=3.35e12, link=450e9, net=50e9),
    "h200": Gpu(memory=141e9, products=800e12, moved=4.8e12, link=450e9, net=50e9),
    "b200": Gpu(memory=180e9, products=1750e12, moved=8.0e12, link=900e9, net=50e9),
}
PER_MACHINE = 8  # GPUs, unless their number says otherwise
COUNTS = (1, 8, 64)  # GPUs that are planned for


def check_counts(gpus: Sequence[int], machines: int) -> None:
    """Raise OptionError for a number of GPUs or machines that cannot be."""
    for option, number in (*(("--gpus", number) for number in gpus), ("--machines", machines)):
        if number < 1:
            raise OptionError(f"{option}: expected an integer >= 1, got {number}; give 1 or more")


def gpu_of(name: str, gpus: Sequence[int], machines: int) -> str:
    """Return the key in `GPUS` of a GPU whose name may be in any case.

    Args:
        name: the GPU; empty for a plan on this machine.
        gpus: numbers of GPUs of each machine.
        machines: number of machines.

    Raises:
        OptionError: the GPU is unknown, a count is below 1, or there are counts without a GPU.
    """
    if not name and (gpus or machines != 1):
        option = "--gpus" if gpus else "--machines"
        raise OptionError(f"{option}: counts GPUs that are not here; add their name, for example --gpu h100")
    if name and (key := name.lower()) not in GPUS:
        raise OptionError(f"--gpu {name}: unknown, {suggestion(key, GPUS) or 'choose from ' + ', '.join(GPUS)}")
    check_counts(gpus, machines)
    return name.lower()
