"""`make bench`: Tunesmith's step against a plain transformers + PEFT loop: same model, rows, order, adapter, dtype.

Prints and writes bench/RESULTS.md. Interleaved rounds in one process, median per side; measure on an idle machine.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from tunesmith.data.template import Encoded
from tunesmith.model.batch import collate
from tunesmith.model.device import choose_machine
from tunesmith.recipe import load_recipe
from tunesmith.techniques import Lora
from tunesmith.training.fit import step
from tunesmith.training.optim import Plan, make_optimizer
from tunesmith.workflows.prepare import Prepared, prepare

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ("reviews",)
ROUNDS, STEPS, ROWS = 3, 1, 16


@dataclass(frozen=True)
class Side:
    """One way to train: its name, and what does a step and tells the loss."""

    name: str
    step: Callable[[Sequence[Encoded]], float]


def sides(prepared: Prepared, shared: dict[str, bool]) -> list[Side]:
    """Tunesmith with and without the shared prefix, and the plain loop, each over a model of its own."""
    objective, pad = prepared.recipe.objective, prepared.template.tokenizer.pad_token_id or 0
    made = []
    for name, share in shared.items():
        torch.manual_seed(0)
        policy = Lora().adapt(copy.deepcopy(prepared.base.network), family="decoder", keep_reference=False)
        optimizer = make_optimizer(policy, Plan(steps=100, peak=1e-3))

        def ours(rows: Sequence[Encoded], policy=policy, optimizer=optimizer, share=share) -> float:  # type: ignore[no-untyped-def]
            batch = collate(rows, pad=pad, share=share)
            return step(policy, objective, [batch], optimizer=optimizer, clip=1.0)[0]

        made.append(Side(name, ours))
    return [*made, Side("transformers + PEFT, plain loop", plain(prepared, pad))]


def plain(prepared: Prepared, pad: int) -> Callable[[Sequence[Encoded]], float]:
    """What most scripts do: pad all rows, make logits for every position, cross-entropy with -100."""
    torch.manual_seed(0)
    policy = Lora().adapt(copy.deepcopy(prepared.base.network), family="decoder", keep_reference=False)
    optimizer = torch.optim.AdamW([p for _, p in policy.trainable()], lr=1e-3, betas=(0.9, 0.99), fused=True)

    def one(rows: Sequence[Encoded]) -> float:
        batch = collate(rows, pad=pad, share=False)
        policy.train()
        logits = policy.adapter(input_ids=batch.ids, attention_mask=batch.real.long(), use_cache=False).logits
        targets = batch.ids.masked_fill(~batch.learn, -100)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets[:, 1:].flatten(), ignore_index=-100)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in policy.trainable()], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return one


def race(name: str) -> list[str]:
    """Lines of the table for one example recipe."""
    recipe, _ = load_recipe(ROOT / "examples" / f"{name}.yaml", changes=["data.rows=256", "machine.dtype=float32"])
    prepared = prepare(recipe, listen=lambda event: None, offline=True)
    runners = sides(prepared, {"Tunesmith": True, "Tunesmith, nothing shared": False})
    speeds: dict[str, list[float]] = {side.name: [] for side in runners}
    first: dict[str, float] = {}
    for turn in range(ROUNDS):
        for side in runners:
            start = turn * STEPS * ROWS
            windows = [prepared.train[start + i * ROWS : start + (i + 1) * ROWS] for i in range(STEPS)]
            tokens = sum(row.length for window in windows for row in window)
            began = time.perf_counter()
            losses = [side.step(window) for window in windows]
            speeds[side.name].append(tokens / (time.perf_counter() - began))
            first.setdefault(side.name, losses[0])
    base = statistics.median(speeds["transformers + PEFT, plain loop"])
    return [
        f"| {name} | {side.name} | {statistics.median(speeds[side.name]):.0f} | "
        f"{statistics.median(speeds[side.name]) / base:.2f} | {first[side.name]:.5f} |"
        for side in runners
    ]


def main() -> None:
    """Run all races and write the page."""
    machine = choose_machine(dtype="float32")
    head = [
        "# Results",
        "",
        f"Made by `make bench`: {machine.why}; smollm2-135m, LoRA rank 16, fp32, {ROWS} rows a step,",
    ]
    head += [f"median of {ROUNDS} interleaved rounds of {STEPS} steps, rows in the same order, no length buckets.", ""]
    head += ["| rows | side | tokens/s | ratio | loss of step 1 |", "|---|---|---|---|---|"]
    page = "\n".join([*head, *(line for name in RECIPES for line in race(name))]) + "\n"
    (ROOT / "bench" / "RESULTS.md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
