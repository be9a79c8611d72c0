"""What every side of a benchmark is given: a folder with job.json and rows of token ids, the same for ours and theirs.

This file imports neither Tunesmith nor a trainer, so it works in the environment of every side.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

TOKENS_PER_PASS = 8192


@dataclass(frozen=True)
class Job:
    """One benchmark. Lengths are in tokens; a row is `shared` ids that all rows have, `prompt` of its own, `answer`."""

    name: str
    kind: str  # sft, dpo, grpo, score or serve
    model: str  # Hub id or folder
    technique: str = "lora"  # lora, full or qlora
    rank: int = 16
    learning_rate: float = 2e-4
    rows: int = 4  # per optimizer step
    steps: int = 20
    warmup: int = 3  # steps that are not timed: kernels are compiled
    shared: int = 0
    prompt: int = 0
    answer: int = 0
    samples: int = 8  # completions per prompt, in grpo
    recompute: bool = False
    vocabulary: int = 32_000  # ids are below this number

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return self.shared + self.prompt + self.answer

    @property
    def rows_per_pass(self) -> int:
        """Rows of a micro-batch on every side: as many as have 8,192 tokens, in equal parts of a step."""
        most = max(1, TOKENS_PER_PASS // (self.length * (2 if self.kind == "dpo" else 1)))
        return max(count for count in range(1, self.rows + 1) if self.rows % count == 0 and count <= most)

    def tiny(self, model: str) -> Job:
        """The same for a tiny random model on a CPU."""
        small = {key: min(getattr(self, key), most) for key, most in (("shared", 16), ("prompt", 24), ("answer", 8))}
        return replace(self, model=model, rank=4, rows=2, steps=3, warmup=1, samples=2, vocabulary=300, **small)

    def windows(self) -> list[list[dict[str, list[int]]]]:
        """The rows of every step, and of one more that is held out: `ids`, `learn` and, in dpo, `rejected`."""
        chance = random.Random(0)

        def ids(count: int) -> list[int]:
            return [chance.randrange(6, self.vocabulary) for _ in range(count)]

        def row() -> dict[str, list[int]]:
            prompt = [*shared, *ids(self.prompt)]
            made = {"prompt": prompt, "answer": ids(self.answer)}
            return {**made, "rejected": ids(self.answer)} if self.kind == "dpo" else made

        shared = ids(self.shared)
        return [[row() for _ in range(self.rows)] for _ in range(self.steps + 1)]

    def write(self, folder: Path) -> Path:
        """Write the job for a side in another environment."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "job.json").write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")
        (folder / "windows.json").write_text(json.dumps(self.windows()), encoding="utf-8")
        return folder

    @classmethod
    def read(cls, folder: Path) -> tuple[Job, list[list[dict[str, list[int]]]]]:
        """The job of a folder, and its rows."""
        job = cls(**json.loads((folder / "job.json").read_text(encoding="utf-8")))
        return job, json.loads((folder / "windows.json").read_text(encoding="utf-8"))


SMALL, LARGE = "Qwen/Qwen3-1.7B", "meta-llama/Llama-3.1-8B"
# By benchmark: the jobs of scale.md, section 6.
BENCHMARKS: dict[str, Sequence[Job]] = {
    "lora": [Job("lora", "sft", model, rows=8, prompt=3072, answer=1024) for model in (SMALL, LARGE)],
    "short": [Job("short", "sft", SMALL, rows=256, shared=40, prompt=36, answer=1)],
    "full": [Job("full", "sft", SMALL, technique="full", learning_rate=1e-5, rows=8, prompt=3072, answer=1024)],
    "dpo": [Job("dpo", "dpo", model, rows=8, prompt=2000, answer=300) for model in (SMALL, LARGE)],
    "grpo": [Job("grpo", "grpo", SMALL, rows=8, prompt=200, answer=256, steps=10)],
    "qlora": [
        Job("qlora", "sft", model, technique="qlora", rows=4, prompt=1536, answer=512)
        for model in (LARGE, "Qwen/Qwen3-32B", "meta-llama/Llama-3.1-70B")
    ],
    "context": [
        Job("context", "sft", LARGE, rows=1, steps=5, prompt=1024 * k - 1024, answer=1024, recompute=True)
        for k in (8, 32, 64, 128)
    ],
    "score": [Job("score", "score", LARGE, rows=64, steps=160, prompt=120, answer=8)],
    "serve": [Job("serve", "serve", LARGE, prompt=100, answer=64)],
    "scale": [Job("scale", "sft", SMALL, rows=64, prompt=768, answer=256)],
}
