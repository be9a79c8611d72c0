"""`python -m bench.rl SIDE`: answer tokens a second of GRPO, drawing, scoring and update together.

SIDE is `tunesmith` or `trl` (GRPOTrainer at its best: no gradient checkpointing, no logging, no checkpoints). Both:
SmolLM2-135M, LoRA rank 16, prompts of examples/synopsis.jsonl, `--prompts` of them a step, 8 answers of at most 48
tokens to each, temperature 1, one update, the KL weighted by `--beta`, bf16 where `--half`. TRL draws a step's answers
together and may learn from them in `--micro` parts, where all at once ask for more memory than there is. Answers are as
long as the model makes them: tokens are counted, not supposed. The first step warms up. `cpu_seconds` is what all
threads used: on a busy machine the rate per such a second says more than the rate per second.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

GROUP, NEW, RANK, RATE = 8, 48, 16, 1e-4
TRL_AT_ITS_BEST: dict[str, Any] = {
    "use_cpu": True,
    "gradient_checkpointing": False,
    "logging_strategy": "no",
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}
ROWS = Path(__file__).parents[1] / "examples" / "synopsis.jsonl"
ASK = "Summarise this package description in one short line:"


def rows(count: int) -> list[dict[str, Any]]:
    """The first rows of the file."""
    lines = ROWS.read_text(encoding="utf-8").splitlines()[:count]
    return [json.loads(line) for line in lines]


def reward(text: str) -> float:
    """Something cheap that tells answers apart."""
    return min(len(text), 80) / 80


def ours(asked: argparse.Namespace) -> dict[str, float]:
    """Seconds and answer tokens of the timed steps, and where the seconds went."""
    from tunesmith.data.examples.prompts import rl_prompts
    from tunesmith.data.readers.row import Row
    from tunesmith.data.tokenization.chat_template import Template
    from tunesmith.models.batch import collate, split_by_tokens
    from tunesmith.models.loading.load import load_base
    from tunesmith.objectives import Rl
    from tunesmith.objectives.online_rl import OnlineRLLearner
    from tunesmith.techniques import Lora
    from tunesmith.training.fit import accumulate_gradients, prepare_batches
    from tunesmith.training.optim import TrainingPlan, make_optimizer

    found = rows(asked.prompts * asked.steps)
    made = rl_prompts(
        [Row(f"{ROWS.name}:{i}", row) for i, row in enumerate(found)],
        columns={"prompt": "document", "answer": "summary"},
        instruction=ASK,
    )
    base = load_base("smollm2-135m", offline=True)
    policy = Lora(rank=RANK).adapt(base.network, family="decoder", keep_reference=True)
    policy.autocast_dtype = torch.bfloat16 if asked.half else None
    template = Template(base.tokenizer)
    objective = Rl(reward="bench:reward", group=GROUP, max_new_tokens=NEW, beta=asked.beta, missing_end_penalty=0.0)
    places = {one.where: one for one in made}
    learner = OnlineRLLearner(objective, template, places, lambda attempts: [reward(a.text) for a in attempts], seed=0)
    optimizer = make_optimizer(policy, TrainingPlan(steps=asked.steps, learning_rate=RATE))
    encoded = [objective.encode(one, template, limit=512) for one in made]
    drawn, moved, tokens, used = 0.0, 0.0, 0, 0.0
    for step in range(asked.steps):
        window = encoded[step * asked.prompts : (step + 1) * asked.prompts]
        began, busy = time.perf_counter(), time.process_time()
        lengths = [row.length + GROUP * NEW for row in window]
        order = sorted(range(len(window)), key=lambda i: -lengths[i])
        batches = prepare_batches(
            policy, learner, [collate([window[i] for i in part]) for part in split_by_tokens(order, lengths, 4096)]
        )
        between = time.perf_counter()
        accumulate_gradients(policy, learner, batches)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step:
            drawn, moved = drawn + between - began, moved + time.perf_counter() - between
            used += time.process_time() - busy
            tokens += sum(len(batch.targets) for batch in batches)
    return {"seconds": drawn + moved, "tokens": tokens, "drawing": drawn, "moving": moved, "cpu_seconds": used}


def theirs(asked: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Seconds and answer tokens of TRL's timed steps."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from tunesmith.models.loading.bundled_models import fetch

    ends: list[tuple[float, float]] = []
    counted: list[int] = []

    class Clock(TrainerCallback):
        """When each step ended."""

        def on_step_end(self, *known: Any, **more: Any) -> None:
            ends.append((time.perf_counter(), time.process_time()))

    def score(completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], **more: Any) -> list[float]:
        counted.append(sum(map(len, completion_ids)))
        return [reward(one[0]["content"]) for one in completions]

    data = [
        {"prompt": [{"role": "user", "content": f"{ASK}\n\n{row['document']}"}]}
        for row in rows(asked.prompts * asked.steps)
    ]
    settings = GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=asked.micro or asked.prompts * GROUP,
        gradient_accumulation_steps=asked.prompts * GROUP // (asked.micro or asked.prompts * GROUP),
        num_generations=GROUP,
        max_completion_length=NEW,
        max_steps=asked.steps,
        learning_rate=RATE,
        beta=asked.beta,
        temperature=1.0,
        bf16=asked.half,
        **TRL_AT_ITS_BEST,
    )
    trainer = GRPOTrainer(
        model=str(fetch("smollm2-135m", offline=True)),
        reward_funcs=score,
        args=settings,
        train_dataset=Dataset.from_list(data),
        peft_config=LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear"),
        callbacks=[Clock()],
    )
    trainer.train()
    seconds, used = (last - first for first, last in zip(ends[0], ends[-1], strict=True))
    return {"seconds": seconds, "tokens": sum(counted[1:]), "cpu_seconds": used}


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=("tunesmith", "trl"))
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--beta", type=float, default=0.04)
    parser.add_argument("--half", action="store_true")
    parser.add_argument("--micro", type=int, help="answers that TRL learns from at once; all of a step's if not given")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-rl"))
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    found = ours(asked) if asked.side == "tunesmith" else theirs(asked, asked.out)
    told = {"side": asked.side, **{k: str(v) for k, v in vars(asked).items() if k not in ("side", "out")}, **found}
    print(json.dumps(told | {"tokens_per_second": found["tokens"] / found["seconds"]}))


if __name__ == "__main__":
    main()
