"""`tunesmith rebase`: the rows and the recipe of a run on a new base model, and which of the two to use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from tunesmith.config import ModelName, Recipe, load_recipe
from tunesmith.config.resolve import as_changes
from tunesmith.data.files import write_whole
from tunesmith.display import Display, Displayed
from tunesmith.errors import CheckpointError, ModelError, RecipeError
from tunesmith.events import StageStarted
from tunesmith.inference.identify import find_model, read_manifest
from tunesmith.metrics.resampling import ALPHA, Clusters, at_level, groups_of, level
from tunesmith.metrics.significance import SMALL_SHARE, PairedComparison, lower_is_better
from tunesmith.metrics.task_scores import SCALES, Difference
from tunesmith.models.loading.locate import local_family, locate
from tunesmith.report.formatting import bounds, figure, p_value, several, signed
from tunesmith.report.html import environment
from tunesmith.report.predictions import Prediction
from tunesmith.report.run_diff import comparable_rows, crossed, differing_settings, scored
from tunesmith.report.schema import read_report
from tunesmith.training.callbacks import Callbacks
from tunesmith.training.read import check_rows, check_settings

PAGE, HTML = "rebase.json", "rebase.html"
OLD, BASE, NEW = "old tuned", "new base", "new tuned"
# Compared pairs: the first against the second.
PAIRS = ((NEW, OLD), (BASE, OLD), (NEW, BASE))
Answer = Literal["base is enough", "better", "worse", "no difference", "not worse", "inconclusive"]
NOT_WORSE = ("better", "equivalent", "not worse")  # verdicts that exclude a loss of more than the margin
# Keys of `data` that may differ between the runs: they change no test row.
FREE = ("max_tokens", "audit")


class ModelPair(Difference):
    """One model against another on the same test rows, at a level for three pairs.

    The verdict is `equivalent` if the whole interval is within the margin, otherwise `better` or `worse` by the test of
    a difference, `not worse` if the lower bound is within the margin, or `inconclusive`.
    """

    name: str
    against: str
    score: float
    score_against: float
    margin: float  # smaller differences do not matter: 2 % of the scale

    @property
    def sentence(self) -> str:
        """Return the comparison as one line."""
        more = f"; about {self.rows_needed:,} test rows would decide" if self.rows_needed else ""
        return (
            f"{self.name} against {self.against}: {self.verdict}, {figure(self.score_against)} → {figure(self.score)} "
            f"({signed(self.delta)}, {bounds(self.ci95, sign=True)}, margin {figure(self.margin)}, "
            f"adjusted {p_value(self.p_value)}){more}"
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
    tasks = {name: task.objective.for_other_base(manifest.family, named) for name, task in recipe.tasks.items()}
    objective = recipe.objective.with_task_objectives(tasks) if recipe.parts else next(iter(tasks.values()))
    if objective != recipe.objective:
        notes.append("objective: what was chosen for the old base is chosen again")
    recipe = recipe.model_copy(update={"objective": objective})
    _check_same_scores(old, recipe)
    families = {manifest.family, local_family(recipe.model) or manifest.family}
    if objective.produces == "likelihood" and "encoder" in families:
        raise RecipeError(
            f"rebase {run}: losses of masked words do not compare between encoders; tune both and read both"
        )
    return recipe, notes


def _check_same_scores(old: Recipe, new: Recipe) -> None:
    """Raise RecipeError if a change would give the new run other rows or another score than the old one."""
    for name, task in new.tasks.items():
        former = old.tasks.get(name)
        keys = [("data", key) for key in type(task.data).model_fields if key not in FREE]
        for section, key in (*keys, ("objective", "kind"), ("objective", "metric"), ("objective", "reward")):
            before, after = (getattr(getattr(one, section, None), key, None) for one in (former, task))
            if before != after:
                raise RecipeError(f"--set {section}.{key}: the runs need the same rows and scores; leave it as it was")


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
        tasks=[_compared(run, done.folder, name) for name in names],
        settings=[(key, first, second) for key, (first, second) in differing_settings((run, done.folder))],
        broken_gates=done.report.broken_gates,
    )
    write_whole(done.folder / PAGE, found.model_dump_json(indent=1))
    write_whole(done.folder / HTML, environment().get_template("rebase.html.jinja").render(r=found))
    return found


def _compared(old: Path, new: Path, task: str) -> RebasedTask:
    """Compare the three models on a task, at a level for three pairs (Bonferroni), so that intervals hold together."""
    first, second, metric = comparable_rows(old, new, task)
    rows = {
        (NEW, OLD): crossed(first, second, "tuned"),
        (BASE, OLD): crossed(first, second, "base"),
        (NEW, BASE): second,
    }
    texts = metric == "perplexity"
    compare = _bits_per_byte if texts else partial(_scores, metric=metric, run=new)
    metric = "bits_per_byte" if texts else metric
    with at_level(ALPHA / len(PAIRS)):
        pairs = [_pair(*names, *compare(rows[names]), metric=metric) for names in PAIRS]
    answer, sentence = _answer(*pairs)
    return RebasedTask(
        name=task,
        metric=metric,
        rows=len(first),
        pairs=pairs,
        answer=answer,
        sentence=f"{task}: {sentence}" if task else sentence,
    )


def _scores(rows: list[Prediction], *, metric: str, run: Path) -> tuple[PairedComparison, float]:
    """Compare scores, higher is better; return the comparison and the margin."""
    paired = scored(rows, metric, run)
    found, both = paired.compare(), np.concatenate([paired.base, paired.tuned])
    share = paired.metric == "thumbs_auc" or (both.min() >= 0 and both.max() <= 1)
    scale = SCALES.get(paired.metric) or (1.0 if share else float(np.ptp(both)))
    # Also what the rows do not show may happen: few rows without a loss prove nothing.
    clusters, rng = Clusters.of(len(rows), groups_of(rows)), np.random.default_rng(0)
    lower, upper = clusters.bounded_means(paired.tuned - paired.base, scale, rng, 10_000)
    low, high = float(np.quantile(lower, level() / 2)), float(np.quantile(upper, 1 - level() / 2))
    found = replace(found, ci95=(min(low, found.ci95[0]), max(high, found.ci95[1])))
    return found, SMALL_SHARE * scale


def _bits_per_byte(rows: Sequence[Prediction]) -> tuple[PairedComparison, float]:
    """Compare losses of documents per byte, which do not depend on the tokenizer; return the comparison and the margin.

    Not every tokenizer lets the first token be predicted. Bytes of a document are the larger number of the two.
    """
    from tunesmith.evaluation.perplexity import TokenLikelihood, compare

    sides: dict[str, list[TokenLikelihood]] = {"base": [], "tuned": []}
    for row in rows:
        size = max(int(row.counts[side]["size"]) for side in sides)
        for side, documents in sides.items():
            nats = row.counts[side]["nats"] * size / max(1, row.counts[side]["size"])
            documents.append(TokenLikelihood(nats, tokens=size, first=0, size=size, terms=0, found=0))
    found = compare("bits_per_byte", sides["base"], sides["tuned"], groups=groups_of(rows))
    return found, SMALL_SHARE * found.base


def _pair(name: str, against: str, found: PairedComparison, margin: float, *, metric: str) -> ModelPair:
    """Return a pair with its verdict, see `ModelPair`."""
    low, high = sorted(-bound for bound in found.ci95) if lower_is_better(metric) else found.ci95
    verdict, rows = found.verdict, None
    if -margin < low and high < margin:
        verdict = "equivalent"
    elif verdict not in ("better", "worse"):
        verdict = "not worse" if low > -margin else "inconclusive"
    if verdict == "inconclusive" and margin:  # the width of an interval shrinks with the root of the rows
        rows = math.ceil(found.n * (max(-low, high) / margin) ** 2)
    values = asdict(found) | {"verdict": verdict, "rows_needed": rows, "margin": margin}
    scores = {"score": values.pop("tuned"), "score_against": values.pop("base")}
    return ModelPair(**values, **scores, name=name, against=against)


def _answer(tuned: ModelPair, base: ModelPair, gain: ModelPair) -> tuple[Answer, str]:
    """Return the answer of three pairs: new tuned and new base against old tuned, and new tuned against new base."""
    if base.verdict in NOT_WORSE and gain.verdict != "better":
        open_question = "; whether tuning improves it is not decided"
        return "base is enough", (
            "the new base without tuning is already as good as the old tuned model, with a margin of "
            f"{figure(base.margin)}{open_question if gain.verdict in ('not worse', 'inconclusive') else ''}"
        )
    margin, rows = figure(tuned.margin), tuned.rows_needed or 0
    undecided = f"{several(tuned.n, 'test row')} do not distinguish old and new tuned model; about {rows:,} would"
    answers: dict[str, tuple[Answer, str]] = {
        "better": ("better", "use the new tuned model: it is better than the old one"),
        "worse": ("worse", "keep the old tuned model: the new one is worse"),
        "equivalent": ("no difference", f"old and new tuned model differ by less than {margin}; either can be used"),
        "not worse": ("not worse", f"the new tuned model may be better than the old one; a loss is less than {margin}"),
        "inconclusive": ("inconclusive", f"inconclusive: {undecided}"),
    }
    return answers[tuned.verdict]
