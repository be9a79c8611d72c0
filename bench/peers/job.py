"""What every side of a race is given, and how every side is measured: one and the same code for ours and theirs.

A job is a folder: job.json (numbers), rows.jsonl and held.jsonl (`input_ids`, `learned`, `label`), texts.jsonl (the
text alone, as a classification head reads it) and adapter/ (the starting LoRA weights in PEFT's format).
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Job:
    """One race in one precision. Windows are row numbers of one optimizer step; the first warms up, untimed."""

    race: str
    model: str  # folder
    family: str
    technique: dict[str, Any]
    objective: dict[str, Any]
    labels: int  # of a head; 0 where words are learned
    dtype: str
    threads: int
    rate: float
    beta2: float
    weight_decay: float
    clip: float
    seed: int
    windows: list[list[int]]  # as Tunesmith's sampler makes them: rows alike in length, so that nobody pays for padding
    tokens_per_pass: int
    folder: str = ""

    @classmethod
    def read(cls, folder: Path) -> Job:
        known = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        return cls(**{**known, "folder": str(folder)})

    def write(self, folder: Path) -> None:
        (folder / "job.json").write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    def rows(self, name: str) -> list[dict[str, Any]]:
        with (Path(self.folder) / f"{name}.jsonl").open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    @property
    def half(self) -> bool:
        """Whether products are made in bfloat16."""
        return self.dtype == "bfloat16"


class Meter:
    """Seconds of every timed step, positions that went through the network, and memory above model and optimizer."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.ends: list[float] = []
        self.positions = 0
        self.base_kb = self.peak_kb = 0

    def watch(self, backbone: Any) -> None:
        """Count the positions, padding included, of every call of the network that takes ids."""
        backbone.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs["input_ids"] if kwargs.get("input_ids") is not None else args[0]
        self.positions += ids.numel()

    def begin(self, model: Any) -> None:
        """Right before the first step: all weights read in, what loading left over given back, the peak forgotten."""
        with torch.no_grad():
            for value in model.parameters():
                value.sum()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self.base_kb = _status("VmRSS")

    def step_ended(self) -> None:
        """After every step, the first one included."""
        self.ends.append(time.perf_counter())
        if len(self.ends) == 1:
            self.positions = 0
        self.peak_kb = _status("VmHWM")

    def finish(self, out: Path, optimizer: Any, rows: Sequence[dict[str, Any]], **more: Any) -> None:
        """Write result.json. `rows` are those of the timed steps, as this side reads them."""
        optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
        state = sum(t.nbytes for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor))
        found = {
            "seconds": [b - a for a, b in zip(self.ends, self.ends[1:], strict=False)],
            "rows": len(rows),
            "tokens": sum(len(row["input_ids"]) for row in rows),
            "positions": self.positions,
            "memory_mb": (self.peak_kb - self.base_kb) / 1024 - state / 2**20,
            "optimizer_mb": state / 2**20,
            **more,
        }
        (out / "result.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


def _status(key: str) -> int:
    """kB of this process by a key of /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(f"{key}:")).split()[1])


def timed(job: Job, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the steps that are timed."""
    return [rows[i] for window in job.windows[1:] for i in window]


def started() -> tuple[Job, str, Path]:
    """Job, side and result folder of a process from its command line, torch set up as the job says."""
    folder, side, out = sys.argv[1:]
    job = Job.read(Path(folder))
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    Path(out).mkdir(parents=True, exist_ok=True)
    return job, side, Path(out)


def numbers_of(model: Any, head: Any) -> dict[str, int]:
    """How many numbers multiply a position: linear layers of the network, updates beside them, the head."""
    head_ids = {id(p) for p in head.parameters()} if head is not None else set()
    counts = {"linear": 0, "adapter": 0, "head": sum(p.numel() for p in head.parameters()) if head is not None else 0}
    for name, value in model.named_parameters():
        once = any(
            word in name for word in ("embed", "wte", "pooler", "classifier", "score")
        )  # looked up, or once a row
        if value.ndim < 2 or id(value) in head_ids or once:
            continue
        two = 1 + (value.dtype == torch.uint8)  # 4-bit weights
        counts["adapter" if "lora_" in name else "linear"] += two * value.numel()
    return counts
