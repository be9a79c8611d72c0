"""Cores that this process may use, and memory that it has used."""

from __future__ import annotations

import os
import sys


def cores() -> int:
    """Return the number of physical cores available to this process; two threads of one core share its arithmetic."""
    import psutil  # `--help` need not wait for it

    physical = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    if sys.platform == "linux":
        physical = min(physical, len(os.sched_getaffinity(0)))
    return max(1, physical)


def peak_resident() -> int:
    """Return the most memory that this process has had in RAM so far, in bytes."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource  # not on Windows

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024  # Linux counts in KiB
