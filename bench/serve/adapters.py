"""Resident memory of eight LoRA over one base, for `python -m bench.serve adapters`; the child that is measured too."""

from __future__ import annotations

import ctypes
import gc
import json
import queue
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ADAPTERS = 8
MIB = 2**20
ALLOWED = 1.1
TITLE = "## Eight adapters over one base"


def adapters(keep: Path, first: Path) -> dict[str, Any]:
    """What a process of its own took, which reads the base and eight adapters and answers with each at once."""
    folders = [str(other_run(first, keep / f"adapter{number}", seed=number)) for number in range(ADAPTERS)]
    done = subprocess.run([sys.executable, "-m", "bench.serve.adapters", *folders], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def other_run(first: Path, out: Path, *, seed: int) -> Path:
    """The same run with other numbers in its adapter."""
    import torch
    from safetensors.torch import load_file, save_file

    from tunesmith.models.loading.checkpoint import MANIFEST, write_folder

    def write(half: Path) -> None:
        half.mkdir(parents=True, exist_ok=True)
        for path in (first / "model").iterdir():
            if path.name != MANIFEST:
                shutil.copy(path, half / path.name)
        chance = torch.Generator().manual_seed(seed)
        file = half / "adapter_model.safetensors"
        held = {
            name: value + 1e-3 * torch.randn(value.shape, generator=chance) for name, value in load_file(file).items()
        }
        save_file(held, file, metadata={"format": "pt"})

    if not (out / "model").exists():
        write_folder(out / "model", write)
    return out


def resident() -> int:
    """Bytes of this process in memory, after what is not used went back."""
    import psutil

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(psutil.Process().memory_info().rss)


def measured(folders: list[Path]) -> dict[str, Any]:
    """Bytes once a run was read, asked and let go, then with each adapter more, and after an answer by each at once.

    What stays of that first run is libraries, threads and room for products: no part of a model.
    """
    from safetensors.torch import load_file

    from tunesmith.inference.serving.engine import Engine
    from tunesmith.inference.serving.protocol import Limits
    from tunesmith.inference.serving.registry import ModelRegistry

    def opened() -> tuple[ModelRegistry, Engine]:
        shelf = ModelRegistry({folder.name: [folder] for folder in folders}, offline=True)
        return shelf, Engine(shelf, limits=Limits(kept_bytes=0), failed=print)

    names = [folder.name for folder in folders]
    shelf, engine = opened()
    shelf.load(names[0])
    answer_all(engine, names[:1])
    engine.close(10)
    shelf, engine = opened()
    before, steps = resident(), list[int]()
    for name in names:
        shelf.load(name)
        steps.append(resident() - before)
    network = shelf.shared_bases()[0].base.network
    own = {value.data_ptr(): value.numel() * value.element_size() for value in network.parameters()}
    held = [load_file(folder / "model" / "adapter_model.safetensors") for folder in folders]
    one = sum(value.numel() * value.element_size() for value in held[0].values())
    del held
    answer_all(engine, names)
    answered = resident() - before
    engine.close(10)
    return {"base": sum(own.values()), "adapter": one, "steps": steps, "answered": answered}


def answer_all(engine: Any, names: list[str]) -> None:
    """One short answer by each model, all in one batch."""
    from tunesmith.data.tokenization.messages import Message
    from tunesmith.inference.serving.request import GenerationRequest
    from tunesmith.models.generation.sampling import Sampling

    told: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for name in names:
        engine.ask(GenerationRequest(name, (Message("user", "hi"),), sampling=Sampling(max_new_tokens=4)), told.put)
    for _ in names:
        assert told.get(timeout=600).end in ("stop", "length")


def section(found: dict[str, Any]) -> list[str]:
    """What stands of it in bench/SERVE.md."""
    base, one, steps = found["base"], found["adapter"], found["steps"]
    bound = base + ADAPTERS * one
    ratio = steps[-1] / bound
    held = "held" if ratio <= ALLOWED else "missed"
    more = (steps[-1] - steps[0]) / (ADAPTERS - 1)
    return [
        TITLE,
        "",
        "`python -m bench.serve adapters page`. smollm2-135m in float32, LoRA of rank 16 each. Resident memory of",
        "a separate process, minus its memory after a run was loaded, used and unloaded.",
        "",
        "| loaded | MiB in memory | MiB of weights |",
        "|---|---|---|",
        f"| base and 1 adapter | {steps[0] / MIB:.0f} | {(base + one) / MIB:.0f} |",
        f"| each further adapter | {more / MIB:.1f} | {one / MIB:.1f} |",
        f"| base and {ADAPTERS} adapters | {steps[-1] / MIB:.0f} | {bound / MIB:.0f} |",
        f"| the same after one answer by each in one batch | {found['answered'] / MIB:.0f} | {bound / MIB:.0f} |",
        "",
        f"Bound of base + {ADAPTERS} adapters + 10 %: {ratio:.3f} of base + {ADAPTERS} adapters, {held}.",
    ]


if __name__ == "__main__":
    print(json.dumps(measured([Path(folder) for folder in sys.argv[1:]])))
