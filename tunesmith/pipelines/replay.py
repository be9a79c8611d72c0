"""`tunesmith replay`: repeat the first steps of a run in the present environment and compare them with its recording.

Not to be confused with `replay:` in a recipe, which mixes general rows into training.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from pydantic import BaseModel, ConfigDict

from tunesmith.config import Recipe, load_recipe
from tunesmith.display import Display, Displayed
from tunesmith.errors import CheckpointError, OptionError
from tunesmith.evaluation.hard_negatives import FILE as NEGATIVES
from tunesmith.evaluation.hard_negatives import with_rows_of_base
from tunesmith.evaluation.privacy import with_canaries
from tunesmith.evaluation.teacher import with_teacher
from tunesmith.events import EventHandler, StageStarted
from tunesmith.inference.identify import find_model, read_manifest
from tunesmith.inference.saved_model import load_over_base
from tunesmith.models.loading.load import load_base
from tunesmith.pipelines.tune.golden import (
    GoldenMinute,
    environment_of,
    read_golden,
    repeat,
    scores_of,
)
from tunesmith.pipelines.tune.tune import prepare_texts
from tunesmith.report.formatting import several
from tunesmith.report.schema import read_report
from tunesmith.training.callbacks import Callbacks
from tunesmith.training.prepare import prepare, training_options
from tunesmith.training.run_folder import RunFolder, source_digests, task_dir

# What a run keeps that its first steps start from, so that it is not computed again.
KEPT = ("reference", "thoughts.jsonl", NEGATIVES, "replay.jsonl", "teacher.jsonl", "base_head", "base_head.txt")
MACHINE_KEYS = ("device", "dtype", "threads", "products")
Outcome = Literal["same", "rounding", "changed"]
# Largest relative difference that is rounding, by dtype, quantity, and whether a step was taken before: some 30 times
# the largest of ten tiny runs with other threads and instruction sets (bench/NOTES.md). In bfloat16 the steps after the
# first amplify rounding without a bound, so that only the first and the scores decide.
BOUNDS: dict[str, dict[tuple[str, bool], float]] = {
    "float32": {
        ("loss", False): 1e-5,
        ("gradient norm", False): 3e-5,
        ("loss", True): 3e-4,
        ("gradient norm", True): 3e-3,
    },
    "bfloat16": {
        ("loss", False): 5e-3,
        ("gradient norm", False): 7e-2,
        ("loss", True): 100.0,
        ("gradient norm", True): 100.0,
    },
}
# Smaller values are compared as if they were this large. A loss is a mean of terms of about 1, whose rounding does not
# shrink with their sum: the loss of a first policy-gradient step is 0.
FLOORS = {"loss": 1.0, "gradient norm": 0.01}


class Quantity(BaseModel):
    """A number of the recording, and what it is now."""

    model_config = ConfigDict(frozen=True)

    name: str  # such as `loss of step 1`
    then: float
    now: float
    bound: float  # largest relative difference that is rounding
    floor: float  # smallest value that differences are relative to

    @property
    def difference(self) -> float:
        """Return the difference relative to the recorded value; infinite where only one of the two is a number."""
        if self.now == self.then or (math.isnan(self.now) and math.isnan(self.then)):
            return 0.0
        found = abs(self.now - self.then) / max(abs(self.then), self.floor)
        return found if math.isfinite(found) else math.inf


class Replay(Displayed, BaseModel):
    """The first steps of a run, repeated: the result of `replay --json`."""

    model_config = ConfigDict(frozen=True)

    run: str
    outcome: Outcome
    first: str  # the first quantity that differs by more than rounding, or at all; empty if none does
    sentence: str
    environment: dict[str, tuple[str, str]]  # what differs from that of the run: then and now
    quantities: list[Quantity]
    seconds: float

    def display(self) -> Display:
        """Show the outcome, and what differs in the environment; every quantity in a table."""
        differ = [f"{name}: {then} → {now}" for name, (then, now) in self.environment.items()]
        rows = [(q.name, f"{q.then:.9g}", f"{q.now:.9g}", f"{q.difference:.2g}") for q in self.quantities]
        columns = ("quantity", "then", "now", "relative difference")
        return Display(
            f"Replay({self.run}): {self.sentence}", differ or ("the environment is that of the run",), columns, rows
        )


def replay(run: Path, *, changes: Sequence[str] = (), on_event: EventHandler, offline: bool = False) -> Replay:
    """Repeat the first steps of a finished run and score its model, and compare both with what the run has recorded.

    Args:
        run: the run folder, which is not changed.
        changes: `machine.KEY=VALUE`, over the machine of the run.
        on_event: receives the stages and steps.
        offline: do not access the network.

    Raises:
        CheckpointError: the run is not finished or has no recording, or its recipe, rows or base model have changed.
        OptionError: a change is not one of the machine.
    """
    start = time.perf_counter()
    recipe = _recipe(run, changes)
    then = read_golden(run)
    if (files := source_digests(recipe)) != then.sources:
        problem = "changed since it was tuned" if len(files) == len(then.sources) else "missing"
        raise CheckpointError(f"{run}: a file of its rows, {recipe.data.train} or another, is {problem}; restore it")
    on_event(StageStarted(f"repeating the first {len(then.steps)} steps of {run}"))
    with TemporaryDirectory() as place:
        copy = Path(place)
        prepared = prepare(recipe, on_event=on_event, offline=offline, pinned=True)
        RunFolder(run, "").check_base(recipe.model, prepared.base.fingerprint)
        for task in ("", *prepared.subtasks):
            _copy(task_dir(run, task), task_dir(copy, task))
        prepared = with_canaries(prepared).map_tasks(
            lambda name, task: with_rows_of_base(task, task_dir(copy, name), on_event=on_event)
        )
        prepared, _ = with_teacher(prepared, copy, on_event=on_event, offline=offline)
        prepared = prepare_texts(prepared, copy, Callbacks(on_event), offline=offline)
        now, setup = repeat(prepared, copy, journal=run / "journal.jsonl", on_event=on_event)
    if then.scores and not _first_of_rows(then, now):
        on_event(StageStarted("scoring with the tuned model"))
        model = find_model(run)
        manifest = read_manifest(model)
        base = load_base(recipe.model, options=training_options(prepared.recipe, prepared.machine), offline=True)
        policy = load_over_base(base, model, manifest).policy
        now = now.model_copy(update={"scores": scores_of(setup, policy, count=len(then.scores))})
    now = now.model_copy(update={"environment": environment_of(prepared.machine)})
    return _compared(run, then, now, seconds=time.perf_counter() - start)


def _recipe(run: Path, changes: Sequence[str]) -> Recipe:
    """Return the recipe of a finished run on its machine, with changes of the machine."""
    for change in changes:
        key = change.partition("=")[0]
        if key.removeprefix("machine.") not in MACHINE_KEYS or not key.startswith("machine."):
            known = ", ".join(f"machine.{name}" for name in MACHINE_KEYS)
            raise OptionError(f"--set {change}: replay repeats a run as it was; set only {known}")
    read_report(run)
    recipe, changed = (load_recipe(run / "recipe.yaml", changes=some)[0] for some in ((), changes))
    names = [change.partition("=")[0].removeprefix("machine.") for change in changes]
    recipe = RunFolder(run, "").pinned(recipe)
    machine = recipe.machine.model_copy(update={name: getattr(changed.machine, name) for name in names})
    return recipe.model_copy(update={"machine": machine})


def _copy(source: Path, target: Path) -> None:
    """Copy what a run has kept for its first steps."""
    target.mkdir(parents=True, exist_ok=True)
    for path in (source / name for name in KEPT):
        if path.is_dir():
            shutil.copytree(path, target / path.name)
        elif path.exists():
            shutil.copy(path, target)


def _compared(run: Path, then: GoldenMinute, now: GoldenMinute, *, seconds: float) -> Replay:
    """Return the outcome. In an environment that is the same and repeats itself, nothing may differ by a single bit."""
    before, after = then.environment, now.environment
    pairs = {name: (before.get(name, "-"), after.get(name, "-")) for name in {**before, **after}}
    environment = {name: (one, other) for name, (one, other) in pairs.items() if one != other}
    exact = not environment and after["repeats"] == "yes"
    quantities = _quantities(then, now, exact=exact)
    outcome, first, sentence = _outcome(then, now, quantities, exact=exact)
    return Replay(
        run=str(run),
        outcome=outcome,
        first=first,
        sentence=sentence,
        environment=environment,
        quantities=quantities,
        seconds=seconds,
    )


def _outcome(
    then: GoldenMinute, now: GoldenMinute, quantities: Sequence[Quantity], *, exact: bool
) -> tuple[Outcome, str, str]:
    """Return the outcome, the first quantity that differs, and both in a sentence."""
    beyond = next((one for one in quantities if one.difference > one.bound), None)
    first = _first_of_rows(then, now)
    if not first and beyond is not None:
        limit = (
            "the environment is the same, so rounding does not explain it"
            if exact
            else f"rounding is at most {beyond.bound:.1g}"
        )
        sentence = f"changed: {beyond.name} was {beyond.then:.9g} and is {beyond.now:.9g}"
        if math.isfinite(beyond.difference):
            sentence += f", a relative difference of {beyond.difference:.2g}; {limit}"
        return "changed", beyond.name, sentence
    if not first and len(then.scores) != len(now.scores):
        first = "the number of scores"
    if first:
        return "changed", first, f"changed: {first}"
    largest = max(quantities, key=lambda one: one.difference)
    if not largest.difference:
        counts = f"{several(len(then.steps), 'step')} and {several(len(then.scores), 'score')}"
        return "same", "", f"same: {counts} are equal to the last bit"
    sentence = (
        f"within rounding: the largest relative difference is {largest.difference:.2g}, of the {largest.name}; "
        f"rounding is at most {largest.bound:.1g} there"
    )
    return "rounding", largest.name, sentence


def _first_of_rows(then: GoldenMinute, now: GoldenMinute) -> str:
    """Return what differs first in what the network reads; empty if it reads the same."""
    if [row.where for row in then.rows] != [row.where for row in now.rows]:
        return "the training rows"
    for one, other in zip(then.rows, now.rows, strict=True):
        if one.ids != other.ids:
            return f"the token ids of {one.where}"
        if one.learned != other.learned:
            return f"the learned tokens of {one.where}"
    for number, (first, second) in enumerate(zip(then.steps, now.steps, strict=False), 1):
        if first.rows != second.rows:
            return f"the order of the rows in step {number}"
        if first.tokens != second.tokens:
            return f"the tokens of step {number}"
    return "" if len(then.steps) == len(now.steps) else "the number of steps"


def _quantities(then: GoldenMinute, now: GoldenMinute, *, exact: bool) -> list[Quantity]:
    """Return the quantities in the order in which a run computes them; if `exact`, no difference is rounding."""
    half = "bfloat16" in (then.environment["dtype"], now.environment["dtype"])
    bounds = BOUNDS["bfloat16" if half else "float32"]

    found = []
    for number, (one, other) in enumerate(zip(then.steps, now.steps, strict=False), 1):
        found.append((f"loss of step {number}", "loss", one.loss, other.loss, number > 1))
        found.append((f"gradient norm of step {number}", "gradient norm", one.grad_norm, other.grad_norm, number > 1))
    for number, (score, again) in enumerate(zip(then.scores, now.scores, strict=False), 1):
        found.append((f"score {number} of the tuned model", "loss", score, again, False))
    return [
        Quantity(name=name, then=a, now=b, bound=0.0 if exact else bounds[kind, later], floor=FLOORS[kind])
        for name, kind, a, b, later in found
    ]
