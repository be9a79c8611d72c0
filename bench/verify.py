"""Confusion matrix of `tunesmith verify` on real runs of one base: who is taken for whom.

    python -m bench.verify RUN RUN... --out FOLDER

Each challenge of a run is answered by the run as it is, by its base, by each other run, with its adapter scaled by
half, with its prompts in another template, and with the base rounded to 8, 4, 3 and 2 bits. A run has
several challenges of different rows, which are the trials; those of one run are not independent of each other.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from torch import nn

from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import RecipeError
from tunesmith.inference.local_model import LocalModel
from tunesmith.inference.saved_model import load
from tunesmith.models.generation.generate import generate
from tunesmith.models.generation.sampling import Sampling
from tunesmith.models.generation.thoughts import ThoughtSplitter
from tunesmith.pipelines.verify.challenge import Challenge, compared
from tunesmith.pipelines.verify.make import Candidate, challenge_of, prompts_in
from tunesmith.pipelines.verify.verdict import judge

GROUP = 64  # weights that share a scale, if a layer is that wide


@contextmanager
def half(model: LocalModel) -> Iterator[None]:
    """Scale the adapter by half."""
    with changed(model, lambda name, value: value * 0.5 if "lora_B" in name else value):
        yield


def rounded(bits: int) -> Callable[[LocalModel], AbstractContextManager[None]]:
    """Round the layers of the base to some bits, with a scale for each group of weights.

    Groups of 32 with an offset would change nothing in 8 and 4 bits: the bundled decoder comes from such a file of 4.
    """

    def of(name: str, value: torch.Tensor) -> torch.Tensor:
        if value.dim() != 2 or "lora" in name or "embed" in name:
            return value
        groups = value.view(-1, GROUP if value.shape[1] % GROUP == 0 else value.shape[1])
        step = groups.abs().amax(dim=1, keepdim=True).clamp(min=1e-9) / (2 ** (bits - 1) - 0.5)
        return torch.mul((groups / step - 0.5).round() + 0.5, step).view_as(value)

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


WAYS: dict[str, Callable[[LocalModel], AbstractContextManager[object]]] = {
    "tuned": lambda model: nullcontext(),
    "tuned, bfloat16": lambda model: torch.autocast("cpu", dtype=torch.bfloat16),
    "tuned, 8 bits": rounded(8),
    "tuned, 4 bits": rounded(4),
    "3 bits": rounded(3),
    "2 bits": rounded(2),
    "base": lambda model: model.policy.reference(),
    "half the adapter": half,
    "other template": lambda model: nullcontext(),
}


def answers(model: LocalModel, challenge: Challenge, way: str) -> list[str]:
    """Answer the prompts greedily, in the chat template or in plain words."""
    form, thinking = model.template, challenge.thinking
    ids = [
        form.tokenizer(f"### Instruction:\n{prompt.messages[-1].content}\n\n### Response:\n")["input_ids"]
        if way == "other template"
        else form.prompt(prompt.chat, thinking=thinking)
        for prompt in challenge.prompts
    ]
    given = generate(model.policy, ids, sampling=Sampling(max_new_tokens=challenge.tokens), template=form)
    splitter = ThoughtSplitter.of(form, thinking=thinking)
    return [compared(*splitter.split(splitter.decode(answer.ids))) for answer in given]


def rows_of(run: Path, prompts: Path | None) -> list[Candidate]:
    """Return the prompts in the file of a run in a folder, or its test prompts."""
    if prompts:
        return prompts_in(str(prompts / f"{run.name}.jsonl"))
    lines = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    return [Candidate(line["where"], [Message("user", line["question"])]) for line in lines]


def main() -> None:
    """Measure and write the answers and the matrix."""
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--challenges", type=int, default=1, help="challenges of each run, of different rows")
    parser.add_argument("--of", nargs="*", type=Path, help="runs that are challenged, of those named; default: all")
    parser.add_argument("--prompts", type=Path, help="folder with a file of prompts for each run, NAME.jsonl")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    models = {run.name: load(run, offline=True, threads=None) for run in args.runs}
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    asked: list[Path] = args.of or args.runs
    matrix = args.out / f"matrix-{'-'.join(run.name for run in asked)}.json"
    for run in asked:
        rows = rows_of(run, args.prompts)
        for i in range(args.challenges):
            try:
                challenge = challenge_of(run, rows=rows[i :: args.challenges], offline=True)
            except RecipeError as error:
                print(error, flush=True)
                continue
            (args.out / f"{run.name}-{i}.json").write_text(challenge.model_dump_json(indent=1))
            print(run.name, len(challenge.prompts), "prompts", challenge.seconds, "s", flush=True)
            others = {f"another run: {name}": model for name, model in models.items() if name != run.name}
            for way in [*WAYS, *others]:
                model, began = others.get(way, models[run.name]), time.perf_counter()
                with WAYS.get(way, WAYS["tuned"])(model):
                    judged = judge(challenge.prompts, answers(model, challenge, way))
                counts[way.partition(":")[0]][judged.verdict] += 1
                print(f"{run.name}, {way}: {judged.sentence()} ({time.perf_counter() - began:.1f} s)", flush=True)
            matrix.write_text(json.dumps(counts, indent=1))
    for kind, verdicts in counts.items():
        print(kind, dict(verdicts), flush=True)


if __name__ == "__main__":
    main()
