"""What `test_processes.py` runs, here in one process and, started as a module, in each of several."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.golden import runs
from tests.tiny import tiny_decoder, tiny_encoder
from tunesmith.config import Recipe, make_recipe
from tunesmith.data.examples.types import Example
from tunesmith.errors import RewardError
from tunesmith.events import Event, StepFinished, ignore, journal_record
from tunesmith.inference.local_model import LocalModel
from tunesmith.inference.scoring import row_scores
from tunesmith.models.batch import Batch
from tunesmith.models.generation.sampling import Sampling
from tunesmith.models.loading import device
from tunesmith.models.policy import Policy
from tunesmith.models.sharded import is_shard
from tunesmith.models.world import current_world, join
from tunesmith.objectives.base import Learner, Loss
from tunesmith.objectives.online_rl import OnlineRLLearner
from tunesmith.training import fit, train_state
from tunesmith.training.batches import Batches, batches_of
from tunesmith.training.callbacks import Callbacks, Interrupted
from tunesmith.training.optim import make_plan
from tunesmith.training.prepare import TrainingContext, prepare
from tunesmith.training.reference_logprobs import precompute_reference_logprobs
from tunesmith.training.train import adapted_policy, base_policy, learner_of, train, validation_losses

CHATS = {"kind": "instruct", "max_new_tokens": 8}
OBJECTIVES: dict[str, tuple[str, Any]] = {
    "classify": ("reviews", {"kind": "classify", "output": "linear"}),
    "instruct": ("answers", CHATS),
    "domain": ("pages", "domain"),
    "dpo": ("pairs", {"kind": "preference", "loss": "dpo"}),
    "kto": ("thumbs", {"kind": "preference", "loss": "kto"}),
    "reward": ("pairs", "reward"),
    "grpo": ("answers", runs.RL),
    "multitask": ("answers", {"kind": "multitask", "tasks": runs.TASKS}),
}
TECHNIQUES: dict[str, Any] = {
    "full": "full",
    "lora": {"kind": "lora", "rank": 4},
    "qlora": {"kind": "qlora", "rank": 4},
    "prompt": {"kind": "prompt", "tokens": 4},
    "prefix": {"kind": "prefix", "tokens": 4},
}
# Objective, technique, model and rows per step. 7 of 28 rows: LPT deals three and four. 1: one process has none.
CASES = {f"{goal} {way}": (goal, way, "llama", 7) for goal in OBJECTIVES for way in TECHNIQUES}
CASES |= {
    "encoder head": ("classify", "full", "bert", 7),
    "hidden words": ("domain", "lora", "bert", 7),
    "uneven last step": ("instruct", "lora", "llama", 9),
    "memory runs out in one": ("instruct", "lora", "llama", 7),
    "a process without rows": ("instruct", "lora", "llama", 1),
    "a process without rows, kto": ("kto", "lora", "llama", 1),
    "a process without pairs": ("dpo", "lora", "llama", 1),
    "a process without prompts": ("grpo", "full", "llama", 1),
}
STEPS = 3
TIMEOUT = 600
# AdamW's first steps are little but the sign of a gradient, also of one that is only rounding. With this term in its
# denominator, an error of the gradient moves a parameter by at most RATE / EPSILON times it, for each of both moments.
EPSILON = 0.1
RATE = 0.01


def write_rows(folder: Path) -> None:
    """Write the tiny models and all files of rows that the cases read from the working folder."""
    tiny_decoder(folder / "llama", "llama")
    tiny_encoder(folder / "bert", "bert")
    for name in ("reviews", "answers", "pages", "pairs", "thumbs"):
        runs.write_jsonl(folder / f"{name}.jsonl", getattr(runs, name)(40))
    for task, rows in {"mood": runs.reviews, "count": runs.answers, "liked": runs.pairs}.items():
        runs.write_jsonl(folder / f"{task}.jsonl", rows())
    (folder / "rules.py").write_text(runs.REWARD, encoding="utf-8")


def recipe_of(goal: str, way: str, model: str, rows: int, *, shard: str = "none", **schedule: Any) -> Recipe:
    """Return a recipe of rows in the working folder."""
    file, objective = OBJECTIVES[goal]
    raw: dict[str, Any] = {"model": model, "objective": objective, "technique": TECHNIQUES.get(way, way)}
    raw["schedule"] = {
        "learning_rate": RATE,
        "batch_rows": max(rows, 3 if goal.startswith("multitask") else 1),
        **schedule,
    }
    raw["machine"] = {
        "device": "cpu",
        "dtype": "float32",
        "threads": 1,
        "shard": shard,
        "products": "default",  # not chosen by their speed, which differs between runs
    }
    raw["data"] = {"max_tokens": 48 if goal == "domain" else 256}
    if not goal.startswith("multitask"):
        raw["data"]["train"] = f"{file}.jsonl"
    raw["retention"] = False
    recipe, _ = make_recipe(raw, place="test")
    return recipe


def prepared(goal: str, way: str, model: str, rows: int, **settings: Any) -> TrainingContext:
    """Prepare a recipe of rows in the working folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "gemm_gflops", lambda *_: 1.0)  # half of the time of a case, and no matter here
        return prepare(recipe_of(goal, way, model, rows, **settings), on_event=ignore, offline=True)


class Cramped(Learner):
    """A learner for which memory holds one row at a time in the second process, or in the only one."""

    def __init__(self, inner: Learner) -> None:
        self.inner = inner

    def units(self, batch: Batch) -> float:
        return self.inner.units(batch)

    def loss(self, batch: Batch, policy: Policy) -> Loss:
        world = current_world()
        if batch.rows > 1 and world.rank == world.size - 1:
            raise MemoryError
        return self.inner.loss(batch, policy)


def reward_fails(folder: Path) -> list[str]:
    """Train where the reward fails in the last process only, and return the error of every process."""
    context = prepared("grpo", "lora", "llama", 4)
    policy, world = adapted_policy(context), current_world()
    learner = learner_of(context)
    assert isinstance(learner, OnlineRLLearner)

    def score(completions: Any) -> list[float]:
        if world.rank == world.size - 1:
            raise RewardError("rules.py: failed; repair it")
        return [0.5] * len(completions)

    plan = replace(make_plan(context.recipe, policy, rows=len(context.train)), steps=1, eval_steps=0)
    try:
        fit.Trainer(
            policy,
            replace(learner, score=score),
            batches_of(context),
            plan=plan,
            folder=folder,
            callbacks=Callbacks(),
        ).run()
    except RewardError as error:
        return world.gather(str(error))
    return []


def three_steps(
    name: str, folder: Path, *, case: tuple[str, str, str, int] | None = None, shard: str = "none"
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Take three steps of a case; return the records, and the gradients of each step and the last parameters."""
    context = prepared(*(case or CASES[name]), shard=shard)
    context = context.map_tasks(
        lambda task, own: precompute_reference_logprobs(
            own, folder / "references" / task, policy=base_policy(own), on_event=ignore
        )
    )
    policy = adapted_policy(context)
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():  # away from the start, so that no gradient and no divergence is zero
        for _, value in policy.trainable():
            value.add_(divided(torch.randn(value.shape, generator=chance), value), alpha=0.05)
    records: list[Mapping[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    make, take = fit.make_optimizer, fit.optimizer_step

    def smooth(*args: Any) -> torch.optim.Optimizer:
        optimizer = make(*args)
        for group in optimizer.param_groups:
            group["eps"] = EPSILON
        return optimizer

    def recorded(own: Any, optimizer: torch.optim.Optimizer, *, clip: float) -> float:
        found = {name: value.grad for name, value in own.trainable() if value.grad is not None}
        tensors.update({f"gradient {len(records)} {name}": whole(grad).clone() for name, grad in found.items()})
        return take(own, optimizer, clip=clip)

    def on_event(event: Event) -> None:
        if isinstance(event, StepFinished):
            records.append(journal_record(event))

    plan = replace(make_plan(context.recipe, policy, rows=len(context.train)), steps=STEPS, eval_steps=0, save_steps=0)
    batches = batches_of(context)
    learner = learner_of(context)
    if name == "memory runs out in one":
        learner = Cramped(learner)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "make_optimizer", smooth)
        patch.setattr(fit, "optimizer_step", recorded)
        fit.Trainer(policy, learner, batches, plan=plan, folder=folder / "run", callbacks=Callbacks(on_event)).run()
    learners = {task: learner_of(own) for task, own in context.tasks.items()}
    facts = {
        "records": records,
        "validation": validation_losses(context, policy, learners),
        "batches": current_world().gather([len(batches.window(step)) for step in range(4)]),
        "limits": current_world().gather(batches.sampler.tokens if isinstance(batches, Batches) else 0),
    }
    return facts, tensors | {name: whole(value.detach()).contiguous() for name, value in policy.trainable()}


def whole(value: Tensor) -> Tensor:
    """Return a tensor that may be divided among the processes, which all have to call this."""
    found: Tensor = value.full_tensor() if is_shard(value) else value  # type: ignore[attr-defined]
    return found


def divided(value: Tensor, like: Tensor) -> Tensor:
    """Divide a tensor among the processes as another one is, if it is."""
    if not is_shard(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    parts: Any = like
    return distribute_tensor(value, parts.device_mesh, parts.placements)


def answers(folder: Path, *, shard: str = "none") -> dict[str, Any]:
    """Generate, score and embed with a tiny model."""
    context = prepared("instruct", "lora", "llama", 7, shard=shard)
    model = LocalModel(base_policy(context), context.template, context.recipe.objective, 96)
    model.policy.train(False)
    examples: list[Example] = context.test
    chats = [example.messages[:-1] for example in examples]  # type: ignore[attr-defined]
    found: dict[str, Any] = {}
    for name, sampling in {"greedy": Sampling(12), "sampled": Sampling(12, temperature=1.0, seed=3)}.items():
        found[name] = [reply.text for reply in model.replies(chats, sampling=sampling)]
    found["options"] = model.options(chats, ["it is 1", "it is 2", "no"]).tolist()
    found["scores"] = row_scores(model.policy, model.objective, context.train)
    found["states"] = model.embed([chat[-1].content for chat in chats]).tolist()
    return found


def resumable(
    folder: Path, *, stop: int = 0, way: str = "lora", model: str = "llama", exact: bool = False, **settings: Any
) -> None:
    """Train a run whose two rows per step are a micro-batch each; with `stop`, only so many steps."""
    taken = 0

    def stops() -> bool:
        nonlocal taken
        taken += 1
        return taken == stop

    folder.mkdir(parents=True, exist_ok=True)
    settings = {"batch_tokens": 1, "epochs": 0.5, "probe": False, **settings}
    context = prepared("instruct", way, model, 2, **settings)
    torch.use_deterministic_algorithms(exact)  # as `machine.exact` does on a GPU
    try:
        policy = train(context, folder, callbacks=Callbacks(should_stop=stops)).policy
    except Interrupted:
        return
    finally:
        torch.use_deterministic_algorithms(False)
    state = {name: whole(value) for name, value in train_state.trainable_state(policy).items()}
    if current_world().leads:
        save_file(state, folder / "end.safetensors")


def killed_while_saving(folder: Path) -> None:
    """Train, and die in the middle of the second checkpoint."""
    save = train_state.save_tensors
    saved = 0

    def dying(tensors: Mapping[str, Tensor], path: Path) -> None:
        nonlocal saved
        save(tensors, path)
        saved += "last" in str(path)
        if saved == 3:  # parameters, optimizer; parameters
            os.kill(os.getpid(), signal.SIGKILL)

    train_state.save_tensors = dying  # type: ignore[assignment]
    folder.mkdir(parents=True, exist_ok=True)
    context = prepared("instruct", "lora", "llama", 2, batch_tokens=1, epochs=0.5, probe=False, save_steps=2)
    train(context, folder, callbacks=Callbacks())


def run(
    folder: Path, *words: str, count: int = 2, module: str = "tests.training.processes"
) -> tuple[list[int], list[str]]:
    """Start processes as `tune --processes` does; return how each of them ended, and what it wrote to stderr."""
    children = []
    meeting = folder / f"meeting-{'-'.join(words)}"
    for rank in range(count):
        env = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank)}
        env |= {"LOCAL_WORLD_SIZE": str(count), "TUNESMITH_RENDEZVOUS": f"file://{meeting}"}
        env |= {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        env |= {"PYTHONPATH": str(Path(__file__).parents[2]), "TUNESMITH_CACHE": str(folder / "cache")}
        command = [sys.executable, "-W", "ignore", "-m", module, *words]
        children.append(
            subprocess.Popen(command, env=env, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        )
    said = [child.communicate(timeout=TIMEOUT)[1] for child in children]
    return [child.returncode for child in children], said


def all_cases(folder: Path) -> None:
    """Run every case and keep what the first process found."""
    facts: dict[str, Any] = {}
    for name in CASES:
        facts[name], tensors = three_steps(name, folder / name)
        if current_world().leads:
            save_file(tensors, folder / f"{name}.safetensors")
    facts["answers"] = answers(folder)
    facts["reward fails"] = reward_fails(folder / "reward")
    resumable(folder / "whole")
    resumable(folder / "2 to 2", stop=2)
    resumable(folder / "2 to 2")
    resumable(folder / "2 to 1", stop=2)
    resumable(folder / "1 to 2")
    if current_world().leads:
        (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
    killed_while_saving(folder / "killed")


if __name__ == "__main__":
    torch.set_num_threads(1)
    join()
    all_cases(Path.cwd())
