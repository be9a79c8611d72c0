"""`tunesmith rebase`: the rows and the recipe of a run on a new base model, and which of the two to use."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from tunesmith.config import ModelName, Recipe, load_recipe
from tunesmith.config.resolve import as_changes
from tunesmith.data.files import write_whole
from tunesmith.display import Display, Displayed
from tunesmith.errors import CheckpointError, ModelError, RecipeError
from tunesmith.events import StageStarted
from tunesmith.inference.identify import find_model, read_manifest
from tunesmith.metrics.resampling import ALPHA, at_level, groups_of
from tunesmith.metrics.significance import PairedComparison, compare_paired
from tunesmith.metrics.task_scores import Difference
from tunesmith.models.loading.locate import local_family, locate
from tunesmith.objectives import Classify, Instruct
from tunesmith.report.formatting import bounds, figure, p_value, several, signed
from tunesmith.report.html import environment
from tunesmith.report.predictions import Prediction
from tunesmith.report.run_diff import common_rows, crossed, differing_settings, scored
from tunesmith.report.schema import Report, read_report
from tunesmith.training.callbacks import Callbacks
from tunesmith.training.read import check_rows, check_settings

PAGE, HTML = "rebase.json", "rebase.html"
OLD, BASE, NEW = "old tuned", "new base", "new tuned"
# Compared pairs: the first against the second.
PAIRS = ((NEW, OLD), (BASE, OLD), (NEW, BASE))
Answer = Literal["base is enough", "better", "worse", "no difference", "inconclusive"]


class ModelPair(Difference):
    """One model against another on the same test rows, at a level for three pairs."""

    name: str
    against: str
    score: float
    score_against: float

    @property
    def sentence(self) -> str:
        """Return the comparison as one line."""
        more = f"; about {self.rows_needed:,} test rows would decide" if self.rows_needed else ""
        return (
            f"{self.name} against {self.against}: {self.verdict}, {figure(self.score_against)} → {figure(self.score)} "
            f"({signed(self.delta)}, {bounds(self.ci95, sign=True)}, adjusted {p_value(self.p_value)}){more}"
        )


class RebasedTask(BaseModel):
    """The three comparisons of a task, and the answer."""

    model_config = ConfigDict(frozen=True)

    name: str  # empty for a single task
    metric: str
    rows: int
    pairs: list[ModelPair]
    answer: Answer
    sentence: str


class Rebase(Displayed, BaseModel):
    """The result of `tunesmith rebase`: an earlier run, its rows on a new base, and the comparison."""

    model_config = ConfigDict(frozen=True)

    run: str
    folder: str  # the new run
    old_base: ModelName
    new_base: ModelName
    tasks: list[RebasedTask]
    settings: list[tuple[str, str, str]]  # recipe keys that differ: key, old, new
    broken_gates: list[str] = []

    def display(self) -> Display:
        """Show the answer, and the three pairs in a table."""
        lines = [pair.sentence for task in self.tasks for pair in task.pairs]
        rows = [
            (task.name, pair.name, pair.against, figure(pair.score), signed(pair.delta), p_value(pair.p_value))
            for task in self.tasks
            for pair in task.pairs
        ]
        title = f"Rebase({self.run} → {self.folder}): {'; '.join(task.sentence for task in self.tasks)}"
        return Display(title, lines, ("task", "model", "against", "score", "difference", "p-value"), rows)


def rebased_recipe(run: Path, model: str, changes: Sequence[str] = ()) -> tuple[Recipe, list[str]]:
    """Return the recipe of a finished run for a new base, and notes on what was left to the new base.

    Args:
        run: the run folder.
        model: the new base.
        changes: `key=value` changes of the recipe.

    Raises:
        CheckpointError: the run is not finished.
        ModelError: the new base is the present one.
        RecipeError: the recipe does not suit the new base.
    """
    read_report(run)
    manifest = read_manifest(find_model(run))
    old = load_recipe(run / "recipe.yaml")[0]
    recipe, notes = load_recipe(run / "recipe.yaml", changes=[*as_changes({"model": model}), *changes])
    if model in (old.model, manifest.base):
        raise ModelError(f"--model {model}: is the base of {run} already; name another")
    named = {change.partition("=")[0] for change in changes}
    tasks = {name: _unbound(task.objective, manifest.family, named) for name, task in recipe.tasks.items()}
    objective = recipe.objective.with_task_objectives(tasks) if recipe.parts else next(iter(tasks.values()))
    if objective != recipe.objective:
        notes.append("objective: what was chosen for the old base is chosen again")
    recipe = recipe.model_copy(update={"objective": objective})
    families = {manifest.family, local_family(recipe.model) or manifest.family}
    if objective.produces == "likelihood" and "encoder" in families:
        raise RecipeError(
            f"rebase {run}: losses of masked words do not compare between encoders; tune both and read both"
        )
    return recipe, notes


def _unbound(objective: Any, family: str, named: set[str]) -> Any:
    """Return an objective with what a run has chosen by its base model left to the new one; labels and metric stay."""
    if isinstance(objective, Classify) and "objective.output" not in named:
        chosen = "linear" if objective.multi or family == "encoder" else "words"
        return objective.model_copy(update={"output": "auto"} if objective.output == chosen else {})
    if isinstance(objective, Instruct) and objective.think_by_default is False:
        return objective.model_copy(update={"think_by_default": "auto"})
    return objective


def check_rebase(run: Path, recipe: Recipe, *, out: Path | None, callbacks: Callbacks, offline: bool) -> None:
    """Check everything that needs no weights: the recipe, the new folder, and that rows and split are those of the run.

    Args:
        run: the earlier run.
        recipe: its recipe for the new base.
        out: folder of the new run.
        callbacks: receive the stages.
        offline: do not access the network.

    Raises:
        TunesmithError: the message names the fix.
    """
    check_settings(recipe, out=out, folder=True)
    loaded = check_rows(recipe, on_event=callbacks.on_event, out=out, folder=True, offline=offline)
    known = read_report(run).data.sha256
    for name, task in loaded.items():
        for part, digest in task.sha256.items():
            if digest != known.get(f"{name} {part}", known.get(part)):
                raise CheckpointError(
                    f"{run}: its {part} rows have changed since it was tuned; restore {recipe.data.train}"
                )


def rebase(
    run: Path,
    recipe: Recipe,
    *,
    out: Path | None = None,
    callbacks: Callbacks,
    offline: bool = False,
) -> Rebase:
    """Tune the new base on the rows of a run, or resume that, and compare both runs and the new base alone.

    Args:
        run: the earlier run, which is not changed.
        recipe: its recipe for the new base, see `rebased_recipe`.
        out: folder of the new run; by default a new one in `runs`.
        callbacks: observe and stop the run.
        offline: do not access the network.

    Returns:
        The comparison, which is also in the folder of the new run.

    Raises:
        CheckpointError: the rows of the run have changed.
        TunesmithError: the new base cannot be tuned with this recipe.
        Interrupted: stopped; the last finished step is saved.
    """
    from tunesmith.models.loading.load import fingerprint_of  # torch, after all checks that need none
    from tunesmith.pipelines.tune.tune import tune_recipe

    check_rebase(run, recipe, out=out, callbacks=callbacks, offline=offline)
    fingerprint = ""
    with suppress(ModelError, CheckpointError):  # of a GGUF file or a run; `tune` reports what cannot be read
        fingerprint = fingerprint_of(locate(recipe.model, offline=offline), where=recipe.model)
    if fingerprint == read_manifest(find_model(run)).fingerprint:
        raise ModelError(f"--model {recipe.model}: has the weights of the base of {run}; name another")
    done = tune_recipe(recipe, out=out, callbacks=callbacks, offline=offline)
    callbacks.on_event(StageStarted("testing the differences between the models"))
    old = read_report(run)
    names = [part.name for part in old.multitask.tasks] if old.multitask else [""]
    found = Rebase(
        run=str(run),
        folder=str(done.folder),
        old_base=old.model,
        new_base=done.report.model,
        tasks=[_compared(run, done.folder, name, old) for name in names],
        settings=[(key, first, second) for key, (first, second) in differing_settings((run, done.folder))],
        broken_gates=done.report.broken_gates,
    )
    write_whole(done.folder / PAGE, found.model_dump_json(indent=1))
    write_whole(done.folder / HTML, environment().get_template("rebase.html.jinja").render(r=found))
    return found


def _compared(old: Path, new: Path, task: str, report: Report) -> RebasedTask:
    """Compare the three models on a task, at a level for three pairs (Bonferroni), so that intervals hold together."""
    first, second = common_rows(old, new, task)
    rows = {
        (NEW, OLD): crossed(first, second, "tuned"),
        (BASE, OLD): crossed(first, second, "base"),
        (NEW, BASE): second,
    }
    metrics = {part.name: part.task.metric for part in report.multitask.tasks} if report.multitask else {}
    metric = metrics.get(task, report.task.metric)
    pairs = []
    with at_level(ALPHA / len(PAIRS)):
        for name, against in PAIRS:
            if first[0].counts:
                metric, found = "bits_per_byte", _bits_per_byte(rows[name, against])
            else:
                paired = scored(rows[name, against], metric, new)
                metric, found = paired.metric, paired.compare()
            values = {key: value for key, value in asdict(found).items() if key in ModelPair.model_fields}
            pairs.append(ModelPair(**values, name=name, against=against, score=found.tuned, score_against=found.base))
    answer, sentence = _answer(*pairs)
    return RebasedTask(
        name=task,
        metric=metric,
        rows=len(first),
        pairs=pairs,
        answer=answer,
        sentence=f"{task}: " * bool(task) + sentence,
    )


def _bits_per_byte(rows: Sequence[Prediction]) -> PairedComparison:
    """Compare losses per byte of each document, which do not depend on the tokenizer; lower is better."""

    def losses(side: str) -> list[float]:
        counts = [row.counts[side] for row in rows]
        return [count["nats"] / math.log(2) / max(1, count["size"]) for count in counts]

    base, tuned = losses("base"), losses("tuned")
    found = compare_paired(-np.array(base), -np.array(tuned), groups=groups_of(rows))
    low, high = found.ci95
    return replace(found, base=-found.base, tuned=-found.tuned, delta=-found.delta, ci95=(-high, -low))


def _answer(tuned: ModelPair, base: ModelPair, gain: ModelPair) -> tuple[Answer, str]:
    """Return the answer of three pairs: new tuned and new base against old tuned, and new tuned against new base."""
    if base.verdict in ("better", "no effect") and gain.verdict != "better":
        return "base is enough", "the new base without tuning is already as good as the old tuned model"
    sentences: Mapping[str, tuple[Answer, str]] = {
        "better": ("better", "use the new tuned model: it is better than the old one"),
        "worse": ("worse", "keep the old tuned model: the new one is worse"),
        "no effect": ("no difference", "old and new tuned model do not differ; either can be used"),
    }
    rows = tuned.rows_needed or 0
    undecided = (
        f"inconclusive: {several(tuned.n, 'test row')} do not distinguish old and new tuned model; about {rows:,} would"
    )
    return sentences.get(tuned.verdict, ("inconclusive", undecided))
