"""The golden minute of a run, `golden.json`: what its first steps computed, to be repeated in a later environment.

Losses and gradient norms are those of the run itself, so that a recording costs one forward pass over one step's rows.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from tunesmith.data.files import quoted, read_page, write_whole
from tunesmith.errors import CheckpointError
from tunesmith.events import Event, EventHandler, StepFinished
from tunesmith.inference.engine_server import rollout_sampler
from tunesmith.models.batch import Batch
from tunesmith.models.kernels.float32_products import precision
from tunesmith.models.loading.device import ChosenMachine
from tunesmith.models.policy import Policy
from tunesmith.models.recompute import recompute_layers
from tunesmith.pipelines.plan.history import processor
from tunesmith.training.batches import batches_of
from tunesmith.training.callbacks import Callbacks
from tunesmith.training.fit import Trainer
from tunesmith.training.head_init import init_heads_from_probe
from tunesmith.training.journal import Journal
from tunesmith.training.prepare import TrainingContext
from tunesmith.training.run_folder import source_digests
from tunesmith.training.train import TOKENS_AT_ONCE_KEY, Recompute, RunLog, TrainingSetup, TrainResult, set_up

FILE = "golden.json"
ROWS, STEPS = 16, 8
# Rows of step 1 that the tuned model scores, one by one; more if there are more tasks.
SCORES = 4
# Steps of an objective that samples completions, which takes most of its time.
SAMPLED_STEPS = 2
LIBRARIES = ("tunesmith", "torch", "transformers", "peft", "tokenizers", "safetensors", "numpy")
# A diverged model has a score of NaN, which JSON has as a string only.
VALUES = ConfigDict(frozen=True, ser_json_inf_nan="strings")


class GoldenRow(BaseModel):
    """A training row as the network reads it."""

    model_config = ConfigDict(frozen=True)

    where: str  # file:line
    ids: list[list[int]]  # token ids of each sequence
    learned: list[list[int]]  # indices of the learned ones


class GoldenStep(BaseModel):
    """An optimizer step of the run."""

    model_config = VALUES

    rows: str  # digest of the locations of its rows, in order
    tokens: str  # digest of their token ids and targets
    loss: float
    grad_norm: float


class GoldenMinute(BaseModel):
    """The values that are compared with those of a later environment."""

    model_config = VALUES

    environment: dict[str, str]
    sources: list[str]  # digests of the files of rows
    rows: list[GoldenRow]
    steps: list[GoldenStep]
    scores: list[float]  # summed loss of the tuned model on each of SCORES rows of step 1; empty if it needs rollouts


def environment_of(machine: ChosenMachine) -> dict[str, str]:
    """Return the versions of libraries, and what the last bits of a result depend on.

    Args:
        machine: device, dtype and threads in use.

    Returns:
        Name -> value, both for display. `repeats` is `no` where the same steps may differ in the same environment.
    """
    gpu = machine.device.startswith("cuda")
    repeats = machine.device == "cpu" or torch.are_deterministic_algorithms_enabled()
    libraries = {name: version(name) for name in LIBRARIES}
    return (
        libraries
        | {
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            "processor": processor(),  # oneDNN and MKL choose kernels by it
            "torch build": hashlib.sha256(torch.__config__.show().encode()).hexdigest()[:8],  # MKL, oneDNN, cuDNN
            "device": torch.cuda.get_device_name(machine.device) if gpu else machine.device,
            "instructions": f"CUDA {torch.version.cuda}" if gpu else torch.backends.cpu.get_cpu_capability(),
            "dtype": machine.dtype,
            "threads": str(machine.threads),
            "products": precision(),
            "repeats": "yes" if repeats else "no",
        }
    )


def read_golden(run: Path) -> GoldenMinute:
    """Return the recording of a finished run. Raises CheckpointError if it has none."""
    again = f"run `tunesmith tune {quoted(run / 'recipe.yaml')} --out {quoted(f'{run}-again')}`"
    try:
        found = read_page(run / FILE, GoldenMinute)
    except FileNotFoundError:
        raise CheckpointError(
            f"{run}: no {FILE}: a run of an earlier version or of several processes; {again}"
        ) from None
    if not found.steps:
        raise CheckpointError(f"{run / FILE}: has no steps; {again}")
    return found


def record(trained: TrainResult, run: Path, environment: dict[str, str]) -> None:
    """Write the recording of a run that has just been trained.

    Args:
        trained: its result.
        run: its folder, with the journal.
        environment: `environment_of` when training started.
    """
    steps = [record for record in Journal(run / "journal.jsonl").read() if "grad_norm" in record]
    count = _steps(trained.setup.prepared)
    found = _minute(trained.setup.prepared, [(step["loss"], step["grad_norm"]) for step in steps[:count]])
    facts = {"environment": environment, "scores": scores_of(trained.setup, trained.policy)}
    write_whole(run / FILE, found.model_copy(update=facts).model_dump_json(indent=1))


def repeat(
    prepared: TrainingContext, out: Path, *, journal: Path, on_event: EventHandler
) -> tuple[GoldenMinute, TrainingSetup]:
    """Repeat the first steps of a run, without overfit check, validations and checkpoints.

    Args:
        prepared: the run, prepared again.
        out: folder with a copy of what the run kept, such as reference log-probabilities.
        journal: its journal; micro-batches are as small as an out-of-memory error made them.
        on_event: receives the steps.
    """
    taken: list[tuple[float, float]] = []

    def listen(event: Event) -> None:
        if isinstance(event, StepFinished):
            taken.append((event.loss, event.grad_norm))
            event = replace(event, steps=_steps(prepared))
        on_event(event)

    with rollout_sampler(prepared.recipe) as sampler:
        setup = set_up(prepared, out, sampler, on_event=on_event)
        for line in Journal(journal).read():
            if TOKENS_AT_ONCE_KEY in line and line["step"] < STEPS:
                setup.batches.at_once(line[TOKENS_AT_ONCE_KEY])
        policy, wish, own = setup.policy, prepared.recipe.schedule.recompute, Journal(out / "journal.jsonl")
        recompute_layers(policy.network, on=wish is True)
        init_heads_from_probe(prepared, policy, on_event)
        log = RunLog(own, (), setup.batches, Recompute(policy, own, on_event, auto=wish == "auto"), listen, None)
        Trainer(policy, setup.learner, log, plan=setup.plan, folder=out, callbacks=Callbacks(log)).take(
            _steps(prepared)
        )
    return _minute(setup.prepared, taken), setup


def _minute(prepared: TrainingContext, taken: Sequence[tuple[float, float]]) -> GoldenMinute:
    """Return a recording of steps with these losses and gradient norms, without environment and scores."""
    tasks, batches = prepared.tasks.values(), batches_of(prepared)
    rows = chain.from_iterable(islice(_rows(task), -(-ROWS // len(tasks))) for task in tasks)
    steps = [
        GoldenStep(**_digests(batches.window(number)), loss=loss, grad_norm=norm)
        for number, (loss, norm) in enumerate(taken)
    ]
    sources = source_digests(prepared.recipe)
    return GoldenMinute(environment={}, sources=sources, rows=list(rows), steps=steps, scores=[])


def _rows(task: TrainingContext) -> Iterator[GoldenRow]:
    """Encode the training rows of a task, past anything that was kept of an earlier encoding."""
    objective, limit = task.recipe.objective, task.recipe.data.max_tokens
    for example in task.loaded.split.train:
        for row in objective.encode_all(example, task.template, limit=limit):
            ids = [tokens.ids for tokens in row.sequences]
            learned = [[i for i, learn in enumerate(tokens.learn) if learn] for tokens in row.sequences]
            yield GoldenRow(where=Path(row.where).name, ids=ids, learned=learned)


def _digests(batches: Sequence[Batch]) -> dict[str, str]:
    rows = [Path(where).name for batch in batches for where in batch.locations]
    tokens = [part.tolist() for batch in batches for part in (batch.ids, batch.positions, batch.targets)]
    return {
        name: hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
        for name, value in (("rows", rows), ("tokens", tokens))
    }


def _steps(prepared: TrainingContext) -> int:
    return SAMPLED_STEPS if prepared.recipe.objective.samples_completions else STEPS


@torch.no_grad()
def scores_of(setup: TrainingSetup, policy: Policy, *, count: int = 0) -> list[float]:
    """Return the summed loss of a tuned model on each of some rows of the first step, of every task in turn.

    Rows are scored alone: memory that held smaller micro-batches in training may not hold those of the first step.

    Args:
        setup: the training of the run.
        policy: the tuned model.
        count: how many rows; 0 for SCORES, or one for each task if there are more.

    Returns:
        One value per row; none for an objective that scores completions of the model in training.
    """
    objectives = [task.recipe.objective for task in setup.prepared.tasks.values()]
    if any(objective.samples_completions or objective.reference == "per_step" for objective in objectives):
        return []
    learner = setup.learner
    policy.train(False)
    rows = batches_of(setup.prepared)
    rows.at_once(1)
    window = rows.window(0)
    chosen = _in_turn([batch.task for batch in window], count or max(SCORES, len(objectives)))
    batches = [learner.prepare(window[i].to(policy.device), policy) for i in chosen]
    batches = learner.with_sums(batches, learner.step_sums(batches, policy))
    return [float(learner.loss(batch, policy).total) for batch in batches]


def _in_turn(tasks: Sequence[str], count: int) -> list[int]:
    """Return the indices, in order, of the first row of each task, the second of each, and so on, up to `count`."""
    seen = Counter[str]()
    turns = list[tuple[int, int]]()
    for i, task in enumerate(tasks):
        turns.append((seen[task], i))
        seen[task] += 1
    return sorted(i for _, i in sorted(turns)[:count])
