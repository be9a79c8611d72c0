"""Confusion matrix of `tunesmith verify` on real runs of one base: who is taken for whom, in how many of the trials.

    python -m bench.verify RUN RUN... --out FILE [--trials 200]

Each run is asked its own challenge as it is, as its base, as each other run, with its adapter scaled by half, with its
prompts in another template, and rounded to 8, 4 and 2 bits. A trial resamples the prompts of
a challenge.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from torch import nn

from tunesmith.data.tokenization.messages import Message
from tunesmith.inference.local_model import LocalModel
from tunesmith.inference.saved_model import load
from tunesmith.models.generation.generate import generate
from tunesmith.models.generation.sampling import Sampling
from tunesmith.pipelines.verify.challenge import Challenge, Prompt
from tunesmith.pipelines.verify.make import Candidate, challenge_of
from tunesmith.pipelines.verify.verdict import judge

GROUP = 32  # weights that share a scale


@contextmanager
def half(model: LocalModel) -> Iterator[None]:
    """Scale the adapter by half."""
    with changed(model, lambda name, value: value * 0.5 if "lora_B" in name else value):
        yield


def rounded(bits: int) -> Callable[[LocalModel], AbstractContextManager[None]]:
    """Round the layers of the base to some bits, with a scale and an offset for each group of weights."""

    def of(name: str, value: torch.Tensor) -> torch.Tensor:
        if value.dim() != 2 or "lora" in name or "embed" in name or value.shape[1] % GROUP:
            return value
        groups = value.view(-1, GROUP)
        low, high = groups.amin(dim=1, keepdim=True), groups.amax(dim=1, keepdim=True)
        step = (high - low).clamp(min=1e-9) / (2**bits - 1)
        return (((groups - low) / step).round() * step + low).view_as(value)

    return lambda model: changed(model, of)


@contextmanager
def changed(model: LocalModel, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Change the parameters of a model in a context."""
    network: nn.Module = model.policy.network
    before = {}
    with torch.no_grad():
        for name, value in network.named_parameters():
            new = change(name, value)
            if new is not value:
                before[name] = value.clone()
                value.copy_(new)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in network.named_parameters():
                if name in before:
                    value.copy_(before[name])


def answers(model: LocalModel, prompts: Sequence[Prompt], *, template: bool = True) -> list[str]:
    """Answer greedily, in the chat template or in plain words."""
    form = model.template
    ids = [
        form.prompt(prompt.chat)
        if template
        else form.tokenizer(f"### Instruction:\n{prompt.messages[-1].content}\n\n### Response:\n")["input_ids"]
        for prompt in prompts
    ]
    given = generate(model.policy, ids, sampling=Sampling(max_new_tokens=12), template=form)
    return [form.decode(answer.ids).strip() for answer in given]


def rows_of(run: Path) -> list[Candidate]:
    """Return the test prompts of a run."""
    lines = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    return [Candidate(line["where"], [Message("user", line["question"])]) for line in lines]


def main() -> None:
    """Measure and write the answers and the matrix."""
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--challenges", type=int, default=99, help="runs that are challenged; the others only answer")
    parser.add_argument("--trials", type=int, default=200)
    args = parser.parse_args()
    torch.set_num_threads(1)
    models = {run.name: load(run, offline=True, threads=None) for run in args.runs}
    challenges: dict[str, Challenge] = {}
    for run in args.runs[: args.challenges]:
        challenges[run.name] = challenge_of(run, rows=rows_of(run), offline=True)
        (args.out / run.name).mkdir(parents=True, exist_ok=True)
        (args.out / run.name / "challenge.json").write_text(challenges[run.name].model_dump_json(indent=1))
        print(run.name, len(challenges[run.name].prompts), "prompts", challenges[run.name].seconds, "s", flush=True)
    ways: dict[str, Callable[[LocalModel], AbstractContextManager[object]]] = {
        "tuned": lambda model: nullcontext(),
        "tuned, bfloat16": lambda model: torch.autocast("cpu", dtype=torch.bfloat16),
        "tuned, 8 bits": rounded(8),
        "tuned, 4 bits": rounded(4),
        "base": lambda model: model.policy.reference(),
        "half the adapter": half,
        "other template": lambda model: nullcontext(),
        "2 bits": rounded(2),
    }
    found: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for name, challenge in challenges.items():
        for way, context in ways.items():
            began = time.perf_counter()
            with context(models[name]):
                found[name][way] = answers(models[name], challenge.prompts, template=way != "other template")
            judged = judge(challenge.prompts, found[name][way])
            print(name, way, judged, f"{time.perf_counter() - began:.1f} s", flush=True)
        for other in models.keys() - {name}:
            found[name][f"another run: {other}"] = answers(models[other], challenge.prompts)
            print(name, other, judge(challenge.prompts, found[name][f"another run: {other}"]), flush=True)
        (args.out / "answers.json").write_text(json.dumps(found, indent=1))
        report(challenges, found, args.trials)


def report(challenges: dict[str, Challenge], found: dict[str, dict[str, list[str]]], trials: int) -> None:
    """Print the matrix."""
    for kind, counts in matrix(challenges, found, trials).items():
        print(kind, dict(counts), flush=True)


def matrix(
    challenges: dict[str, Challenge], found: dict[str, dict[str, list[str]]], trials: int
) -> dict[str, Counter[str]]:
    """Count the verdicts on resampled challenges, for each kind of model that answered."""
    chance = random.Random(0)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for kind in sorted({way.partition(":")[0] for ways in found.values() for way in ways}):
        for _ in range(trials):
            name = chance.choice(sorted(found))
            way = chance.choice([way for way in found[name] if way.partition(":")[0] == kind])
            prompts = challenges[name].prompts
            part = chance.choices(range(len(prompts)), k=len(prompts))
            verdict = judge([prompts[i] for i in part], [found[name][way][i] for i in part]).verdict
            counts[kind][verdict] += 1
    return counts


if __name__ == "__main__":
    main()
