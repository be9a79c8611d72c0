"""Timings of earlier runs on this machine, kept in the user's cache to correct the forecasts of later ones.

One JSON line per run in `timings.jsonl`: the machine, the kind of run, and for each phase the seconds by formula and
the seconds that it took. No text of any row is stored.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from tunesmith.data.cpu_count import cores
from tunesmith.data.files import write_whole
from tunesmith.data.user_cache import cache_dir
from tunesmith.errors import TunesmithError

FILE = "timings.jsonl"
# Lines that are kept; a line has about 1,000 bytes.
KEPT = 500
# Seconds that one process waits while another writes; after that the timings of a run are dropped.
PATIENCE = 5.0


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True)


class RunKind(_Line):
    """Everything but the rows that the speed of a run depends on."""

    model: str  # fingerprint of the base model; empty if it is not known yet
    family: str
    objective: str
    technique: str


class PhaseTiming(_Line):
    """The work that a phase really did, by formula, and how long it took."""

    formula: float  # seconds, for the steps or rows that were really computed
    actual: float  # seconds


class RunTimings(_Line):
    """One line of the history."""

    machine: dict[str, str]
    kind: RunKind
    source: Literal["run", "timed steps"] = "run"
    phases: dict[str, PhaseTiming]
    pace: dict[str, float] = {}  # measured speed of the machine: fields of `MachinePace`
    seconds: float | None = None  # whole run
    forecast: tuple[float, float, float] | None = None  # low, expected, high; None if the run was resumed


def machine_of(*, device: str = "cpu", dtype: str = "", threads: int = 0) -> dict[str, str]:
    """Describe the machine by everything that its speed depends on."""
    used = str(threads or cores())
    return {"processor": processor(), "cores": used, "device": device, "dtype": dtype, "torch": version("torch")}


def digest_of(machine: Mapping[str, str]) -> str:
    """Return a short digest of a machine, for display."""
    return hashlib.sha256(json.dumps(sorted(machine.items())).encode()).hexdigest()[:12]


@cache
def processor() -> str:
    """Return the model name of the processor: platform.processor() only returns the architecture on Linux."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def read_history(machine: Mapping[str, str]) -> list[RunTimings]:
    """Return the timings of earlier runs on a machine, oldest first; an empty value of it matches every value."""
    wanted = {key: value for key, value in machine.items() if value}
    return [line for line in _lines() if all(line.machine.get(key) == value for key, value in wanted.items())]


def append(timings: RunTimings) -> bool:
    """Append the timings of a run to the history, and return whether the cache could be written."""
    file = cache_dir() / FILE
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_name(f".{FILE}.lock"), timeout=PATIENCE):
            lines = [line.model_dump_json() for line in (*_lines(), timings)][-KEPT:]
            write_whole(file, "\n".join(lines) + "\n")
    except (OSError, Timeout, TunesmithError):
        return False
    return True


def _lines() -> Sequence[RunTimings]:
    """Read all undamaged lines."""
    try:
        text = (cache_dir() / FILE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    lines = []
    for line in text.splitlines():
        with suppress(ValidationError):
            lines.append(RunTimings.model_validate_json(line))
    return lines
