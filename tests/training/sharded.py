"""What `test_sharded.py` runs in each of two processes whose network is divided among them."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from tests.golden import runs
from tests.tiny import tiny_decoder
from tests.training.processes import OBJECTIVES, answers, recipe_of, resumable, three_steps
from tunesmith.data.tokenization.chat_template import Template
from tunesmith.models.loading import checkpoint, load
from tunesmith.models.world import among, current_world, join
from tunesmith.objectives import Instruct
from tunesmith.pipelines.tune.tune import tune_recipe
from tunesmith.training.callbacks import Callbacks

TASKS = {**runs.TASKS, "liked": {"objective": {"kind": "preference"}, "data": {"train": "liked.jsonl"}}}
OBJECTIVES["multitask with dpo"] = ("answers", {"kind": "multitask", "tasks": TASKS})
OBJECTIVES["grpo with short answers"] = (
    "answers",
    {**runs.RL, "group": 2, "max_new_tokens": 2, "mask_truncated": True, "beta": 0.1},
)
# Objective, technique, model and rows per step, as in `processes`.
CASES = {
    "full": ("instruct", "full", "llama", 7),
    "lora": ("instruct", "lora", "llama", 7),
    "a plain head over shards": ("classify", "full", "llama", 7),
    "rewards": ("reward", "lora", "llama", 7),
    "references": ("dpo", "lora", "llama", 7),
    "texts": ("domain", "full", "qwen3", 7),
    "an untied head": ("instruct", "full", "untied", 7),
    "layers with other names": ("instruct", "full", "gpt2", 7),
    "more micro-batches than the other": ("instruct", "full", "llama", 9),
    "a process without rows": ("instruct", "full", "llama", 1),
    "divided after reading": ("instruct", "lora", "untied", 7),
    "two machines": ("instruct", "full", "untied", 7),
    "scales": ("instruct", "ia3", "llama", 7),
    "an encoder": ("classify", "full", "bert", 7),
    "an encoder below adapters": ("classify", "lora", "bert", 7),
    "references of each step": ("kto", "lora", "llama", 7),
    "no rows with references": ("kto", "lora", "llama", 1),
    "several tasks": ("multitask with dpo", "lora", "llama", 7),
    "rollouts": ("grpo", "lora", "llama", 7),
    "no rows with rollouts": ("grpo", "lora", "llama", 1),
    "rollouts that end early": ("grpo with short answers", "lora", "llama", 2),
    "experts": ("instruct", "full", "mixtral", 1),  # their balance is that of a micro-batch
    "experts below adapters": ("instruct", "lora", "mixtral", 7),
}
# Ids that end a completion, instead of the one of the chat template.
ENDS = frozenset(range(0, 100_000, 3))
# Two rows per step, each a micro-batch; and four rows, in as few micro-batches as possible.
SMALL = {"way": "full", "model": "untied", "shard": "full", "save_steps": 2, "exact": True}
LARGE = {**SMALL, "batch_tokens": 4096, "batch_rows": 4}
# transformers' loader gathers a tied matrix twice, so the gradients of its two uses are added up over processes before
# they are added to each other; and without `exact`, norms of parts add up to other last bits than those of the whole.
TIED = {**SMALL, "model": "llama", "exact": False}


def write_models(folder: Path) -> None:
    """Write the tiny models that `processes.write_rows` does not write."""
    for kind in ("gpt2", "qwen3", "mixtral"):
        tiny_decoder(folder / kind, kind)
    config = transformers.AutoConfig.from_pretrained(tiny_decoder(folder / "untied", "llama"))
    config.tie_word_embeddings = False
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "untied")


@contextmanager
def as_in(name: str) -> Iterator[None]:
    """Enter what is special about a case."""
    read = load._from_folder
    with pytest.MonkeyPatch.context() as patch:
        if name.startswith("divided after"):
            patch.setattr(load, "_from_folder", lambda *args: read(*args[:2], replace(args[2], sharding=None)))
        if name.endswith("end early"):  # after about two tokens, so that processes sample unequally many, or learn none
            patch.setattr(Template, "stop_ids", property(lambda _: ENDS, lambda *_: None), raising=False)
        world = replace(current_world(), local_size=1) if name == "two machines" else current_world()
        with among(world):
            yield


def all_cases(folder: Path) -> None:
    """Run every case and keep what the first process found."""
    resumable(folder / "memory", **LARGE)  # which an earlier start could not finish
    facts: dict[str, Any] = {}
    for name, case in CASES.items():
        with as_in(name):
            facts[name], tensors = three_steps(name, folder / name, case=case, shard="full")
        if current_world().leads:
            save_file(tensors, folder / f"{name}.safetensors")
    facts["answers"] = answers(folder, shard="full")
    resumable(folder / "whole", **SMALL)
    resumable(folder / "2 to 2", stop=2, **SMALL)
    resumable(folder / "2 to 2", **SMALL)
    resumable(folder / "2 to 1", stop=2, **SMALL)
    resumable(folder / "1 to 2", **SMALL)
    resumable(folder / "tied whole", **TIED)
    resumable(folder / "tied 2 to 2", stop=2, **TIED)
    resumable(folder / "tied 2 to 2", **TIED)
    for way in ("full", "lora"):
        recipe = recipe_of("instruct", way, "untied", 8, shard="full", epochs=1, probe=False)
        tune_recipe(recipe, out=folder / "tuned" / way, callbacks=Callbacks(), offline=True)
    if current_world().leads:
        (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
    killed_while_saving(folder / "killed")


def killed_while_saving(folder: Path) -> None:
    """Train; the second process dies in the middle of the second checkpoint."""
    save = checkpoint.save_shards
    saved = 0

    def dying(shards: Mapping[str, Tensor], half: Path) -> None:
        nonlocal saved
        saved += "last" in str(half)
        if saved == 2 and not current_world().leads:
            save_file({"half": torch.zeros(3)}, half / checkpoint.SHARDS.format(2))
            os.kill(os.getpid(), signal.SIGKILL)
        save(shards, half)

    checkpoint.save_shards = dying
    resumable(folder, **SMALL)


def out_of_memory(folder: Path) -> None:
    """Train; in the third step the second process has no memory for as much as it did so far."""
    loss, steps = Instruct.loss, 0

    def greedy(self: Instruct, batch: Any, policy: Any) -> Any:
        nonlocal steps
        steps += policy.network.training
        if steps == 3 and not current_world().leads and batch.rows > 1:
            raise MemoryError
        return loss(self, batch, policy)

    Instruct.loss = greedy  # type: ignore[method-assign]
    resumable(folder, **LARGE)


if __name__ == "__main__":
    torch.set_num_threads(1)
    join()
    {"cases": all_cases, "memory": lambda place: out_of_memory(place / "memory")}[sys.argv[1]](Path.cwd())
