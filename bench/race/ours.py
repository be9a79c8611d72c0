"""`python -m bench.race.ours JOB SIDE OUT`: Tunesmith's own step on a job, as it ships (`tunesmith`), with every row
run whole (`apart`) or with frozen products in 8-bit integers (`int8`), and the rate of scoring the same rows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft import set_peft_model_state_dict
from safetensors.torch import load_file

from bench.peers.job import Job, Meter, numbers_of, started, timed
from tunesmith.data.tokenization.chat_template import Encoded, Tokens
from tunesmith.inference.scoring import text_outputs
from tunesmith.models.batch import Batch, collate, split_by_tokens
from tunesmith.models.loading.checkpoint import save_tensors
from tunesmith.models.loading.device import DTYPES, configure_device, keep_freed_memory
from tunesmith.models.loading.load import load_base
from tunesmith.models.policy import Policy
from tunesmith.objectives import Classify, Domain, Instruct
from tunesmith.techniques import Full, Lora
from tunesmith.training.fit import step
from tunesmith.training.optim import TrainingPlan, make_optimizer, set_rate
from tunesmith.training.overfit_check import check_int8
from tunesmith.training.train_state import trainable_state

Kind = Classify | Domain | Instruct
OBJECTIVES: dict[str, type[Kind]] = {"classify": Classify, "domain": Domain, "instruct": Instruct}
TECHNIQUES: dict[str, type[Lora] | type[Full]] = {"lora": Lora, "full": Full}


def as_encoded(row: dict[str, Any], labels: int) -> Encoded:
    """A row of a job as ours."""
    tokens = Tokens(row["input_ids"], [bool(learn) for learn in row["learned"]])
    return Encoded((tokens,), "", label=tuple(float(i == row["label"]) for i in range(labels)) if labels else ())


def start(job: Job) -> Policy:
    """The policy that the job starts from, on the device as `tune` sets it up."""
    configure_device("cpu", threads=None)
    technique = technique_of(job)
    base = load_base(job.model, options=technique.load_options(), offline=True)
    policy = technique.adapt(base.network, family=base.family, keep_reference=False)
    if policy.adapter is not None:
        set_peft_model_state_dict(policy.adapter, load_file(Path(job.folder) / "adapter" / "adapter_model.safetensors"))
    policy.head = objective_of(job).head(policy)
    policy.autocast_dtype = DTYPES[job.dtype] if job.half else None
    return policy


def objective_of(job: Job) -> Kind:
    """What is learned."""
    return OBJECTIVES[job.objective["kind"]].model_validate(job.objective)


def labels_of(job: Job) -> int:
    """How many labels a head of our own tells apart; 0 where words are learned."""
    objective = objective_of(job)
    return job.labels if isinstance(objective, Classify) and objective.output == "linear" else 0


def technique_of(job: Job) -> Lora | Full:
    """Which numbers move."""
    return TECHNIQUES[job.technique["kind"]].model_validate(job.technique)


def batches_of(job: Job, rows: Sequence[dict[str, Any]], *, share: bool) -> list[Batch]:
    """Micro-batches of one window, cut as the sampler cuts it."""
    labels = labels_of(job)
    encoded = [as_encoded(row, labels) for row in rows]
    lengths = [row.length for row in encoded]
    longest_first = sorted(range(len(rows)), key=lambda i: -lengths[i])
    return [
        collate([encoded[i] for i in part], share=share)
        for part in split_by_tokens(longest_first, lengths, job.tokens_per_pass)
    ]


def start_head(job: Job, policy: Policy, rows: Sequence[dict[str, Any]]) -> None:
    """Start the head from a linear probe of the base on the rows of the steps, as `tune` does with its rows."""
    began = time.perf_counter()
    policy.train(False)
    encoded = [as_encoded(row, job.labels) for row in rows]
    states = text_outputs(policy, [one.sequences[0] for one in encoded], policy.pooled)
    labels = torch.tensor([one.label for one in encoded])
    weight, bias = objective_of(job).probe_head(states.numpy(), labels.numpy())
    assert policy.head is not None
    policy.head.load_state_dict({"weight": torch.from_numpy(weight).float(), "bias": torch.from_numpy(bias).float()})
    print(f"the head's probe took {time.perf_counter() - began:.1f} s", flush=True)


@torch.no_grad()
def scoring_rate(job: Job, policy: Policy, windows: Sequence[list[dict[str, Any]]], *, share: bool) -> float:
    """Row tokens a second when the rows of the timed steps are only scored, as many in a pass as ever are.

    The first window warms up.
    """
    policy.train(False)
    learner = objective_of(job).make_learner()
    began = tokens = 0.0
    for timed_rows in (windows[0], [row for window in windows[1:] for row in window]):
        began, tokens = time.perf_counter(), 0.0
        for batch in batches_of(job, timed_rows, share=share):
            learner.loss(learner.prepare(batch, policy), policy)
            tokens += batch.tokens
    return tokens / (time.perf_counter() - began)


def main() -> None:
    job, side, out = started()
    share = side != "apart" and job.family == "decoder"
    policy, objective = start(job), objective_of(job)
    plan = TrainingPlan(steps=len(job.windows), learning_rate=job.rate, weight_decay=job.weight_decay, clip=job.clip)
    optimizer = make_optimizer(policy, plan)
    set_rate(optimizer, plan.learning_rate)  # the head has its own rate
    rows = job.rows("rows")
    if labels_of(job):
        start_head(job, policy, rows)
    windows = [[rows[i] for i in window] for window in job.windows]
    if side == "int8":
        print(check_int8(policy, objective.make_learner(), batches_of(job, windows[0], share=share)[0]), flush=True)
    meter, learned = Meter(job), 0
    meter.watch(policy.network.base_model)
    meter.begin(policy.network)
    with keep_freed_memory():
        for number, window in enumerate(windows):
            batches = batches_of(job, window, share=share)
            step(policy, objective, batches, optimizer=optimizer, clip=plan.clip)
            learned += sum(len(batch.targets) for batch in batches) * (number > 0)
            meter.step_ended()
    positions = meter.positions
    if policy.head is None:
        technique_of(job).save(policy, out / "tuned")
    else:
        (out / "tuned").mkdir(exist_ok=True)
        save_tensors(trainable_state(policy), out / "tuned" / "numbers.safetensors")
    words = policy.language_head
    scoring = scoring_rate(job, policy, windows, share=share)
    meter.positions = positions
    meter.finish(
        out,
        optimizer,
        timed(job, rows),
        numbers=numbers_of(policy.network, None if words is None else words.layer),
        head_positions=learned,
        recomputed=False,
        scoring=scoring,
        versions={module.__name__: module.__version__ for module in (torch, transformers, peft)},
    )


if __name__ == "__main__":
    main()
