"""Number of CPU cores available to this process."""

from __future__ import annotations

import os
import sys

import psutil


def cores() -> int:
    """Return the number of physical cores available to this process; two threads of one core share its arithmetic."""
    physical = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else physical
    return max(1, min(physical, allowed))
