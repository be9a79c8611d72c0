"""Comparison of two runs on the same test rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict

from tunesmith.data.bounded_yaml import parse_yaml
from tunesmith.data.files import report_edit
from tunesmith.display import Display
from tunesmith.errors import CheckpointError
from tunesmith.metrics.preference_metrics import auc_pair
from tunesmith.metrics.resampling import groups_of
from tunesmith.metrics.significance import PairedComparison, compare_macro_f1, compare_paired, corpus_compare
from tunesmith.metrics.task_scores import Difference
from tunesmith.report.formatting import bounds, clean, figure, metric_name, p_value, signed
from tunesmith.report.predictions import (
    FILE,
    STATED,
    FloatArray,
    Prediction,
    read_predictions,
    row_scores,
    rows_of_task,
)
from tunesmith.report.schema import Report, read_report

ROWS_SHOWN = 5
MAX_LINE_CHARS = 90
# Headline metric -> name of the stored row scores where their mean is not the metric itself; ROW_SCORE for all others.
ROW_SCORES = {"perplexity": "log_probability", "thumbs_auc": "thumbs_auc"}
ROW_SCORE = "row_score"
VERDICTS = {"better": "b is better", "worse": "b is worse", "no effect": "no difference"}
# Settings that describe the machine of a run, not the run.
MACHINE_KEYS = ("machine.",)
TITLES = {"b": "right or better only in b", "a": "right or better only in a", "neither": "neither"}


class Changed(BaseModel):
    """A test row that the two tuned models answer differently."""

    model_config = ConfigDict(frozen=True)

    where: str  # file:line
    question: str
    gold: str  # reference answer
    a: str  # answer of run a, with its score if it is stored
    b: str
    better: str  # a, b or neither


class RunDiff(Difference):
    """Run b against run a on the headline metric of a; `delta` is b - a."""

    a: str  # run folder
    b: str
    metric: str
    score_a: float
    score_b: float
    sentence: str
    bias: str = ""  # which run stopped scoring early, and whom that favors; empty if none did
    changed: tuple[Changed, ...]
    settings: tuple[tuple[str, str, str], ...]  # (recipe key, value in a, value in b) of settings that differ

    def display(self) -> Display:
        """Show the verdict, and the settings that differ."""
        differ = [f"{key}: {first} → {second}" for key, first, second in self.settings]
        return Display(f"{self.b} against {self.a}: {self.sentence}", differ)


@dataclass(frozen=True, slots=True)
class PairedRows:
    """Test rows with two answers each: of the base and the tuned model, or of the tuned models of two runs."""

    rows: list[Prediction]
    base: FloatArray  # score of each row, [N]; with two runs that of run a
    tuned: FloatArray  # [N]; with two runs that of run b
    metric: str  # name of these scores

    def compare(self) -> PairedComparison:
        """Compare both sides with the test of the metric, by groups of rows if they have any."""
        groups = groups_of(self.rows)
        if self.metric == "macro_f1":
            gold = [row.gold for row in self.rows]
            base = [row.base for row in self.rows]
            return compare_macro_f1(gold, base, [row.tuned for row in self.rows], groups=groups)
        if self.metric == "thumbs_auc":
            good = [row.gold == "good" for row in self.rows]
            # The stored scores of answers rated bad are negated.
            a = np.where(good, self.base, -self.base)
            b = np.where(good, self.tuned, -self.tuned)
            return corpus_compare(auc_pair(a, b, good), list(a != b), groups=groups)
        return compare_paired(self.base, self.tuned, groups=groups)


def diff_runs(a: Path, b: Path, task: str = "") -> RunDiff:
    """Compare the tuned models of two runs row by row.

    Args:
        a: folder of a finished run.
        b: folder of another.
        task: name of a task of a multitask run; empty is its first. The other run may be a single-task run of it.

    Raises:
        CheckpointError: a folder is not a finished run or lacks the task, or the runs have different test rows.
    """
    pairs = pair_runs(a, b, task)
    comparison, bias = pairs.compare(), _bias(a, b)
    changed = []
    for row, change in zip(pairs.rows, pairs.tuned - pairs.base, strict=True):
        first = _with_score(row.base, row.score_base)
        second = _with_score(row.tuned, row.score_tuned)
        if first != second:
            better = "b" if change > 0 else "a" if change < 0 else "neither"
            changed.append(
                Changed(where=row.where, question=row.question, gold=row.gold, a=first, b=second, better=better)
            )
    return RunDiff(
        **asdict(comparison),
        a=str(a),
        b=str(b),
        metric=pairs.metric,
        score_a=comparison.base,
        score_b=comparison.tuned,
        sentence=_sentence(comparison, changed, pairs.metric) + f"; {bias}" * bool(bias),
        bias=bias,
        changed=tuple(changed),
        settings=tuple((key, first, second) for key, (first, second) in differing_settings((a, b))),
    )


def differing_settings(runs: Sequence[Path]) -> list[tuple[str, tuple[str, ...]]]:
    """Return the recipe keys in which runs differ, with the value in each run, `-` where it is missing.

    Args:
        runs: run folders.

    Raises:
        CheckpointError: a recipe is missing or invalid.
    """
    recipes = [{key: str(value) for key, value in _flat(_recipe(run)).items()} for run in runs]
    keys = [key for key in dict.fromkeys(chain(*recipes)) if not key.startswith(MACHINE_KEYS)]
    values = {key: tuple(recipe.get(key, "-") for recipe in recipes) for key in keys}
    return [(key, found) for key, found in values.items() if len(set(found)) > 1]


def pair_runs(a: Path, b: Path, task: str = "") -> PairedRows:
    """Pair the answers of two tuned models, as `base` and `tuned`, to the same test rows; raises as `diff_runs`."""
    first, second, metric = comparable_rows(a, b, task)
    # With one model, an encoder's masked tokens differ if virtual tokens shorten the rows; these are comparable.
    if _recipe(a).get("model") != _recipe(b).get("model") and [r.tokens for r in first] != [r.tokens for r in second]:
        raise CheckpointError(f"{b}: texts are tokenized differently than in {a}; tune both runs with one base")
    return scored(crossed(first, second, "tuned"), metric, a)


def comparable_rows(a: Path, b: Path, task: str = "") -> tuple[list[Prediction], list[Prediction], str]:
    """Return the test rows of a task that both runs have scored by one metric, in one order, and the metric.

    Losses of texts are of the tokens of each run.

    Args:
        a: folder of a finished run.
        b: folder of another.
        task: name of a task of a multitask run; empty is its first.

    Raises:
        CheckpointError: as in `diff_runs`.
    """
    first, second = _common_rows(a, b, task)
    metrics = [_metric(read_report(run), task) for run in (a, b)]
    if difference := _score_difference(a, b, (first, second), metrics):
        raise CheckpointError(f"{b}: {difference} than in {a}; tune both runs with one objective")
    return first, second, metrics[0]


def crossed(
    first: Sequence[Prediction], second: Sequence[Prediction], side: Literal["base", "tuned"]
) -> list[Prediction]:
    """Return the `first` rows with their tuned model as `base`, and a `side` of the `second` ones as `tuned`."""
    return [
        one.model_copy(
            update={
                "base": one.tuned,
                "score_base": one.score_tuned,
                "tuned": getattr(two, side),
                "score_tuned": getattr(two, f"score_{side}"),
                "counts": {"base": one.counts["tuned"], "tuned": two.counts[side]} if one.counts else {},
            }
        )
        for one, two in zip(first, second, strict=True)
    ]


def _common_rows(a: Path, b: Path, task: str = "") -> tuple[list[Prediction], list[Prediction]]:
    """Return the test rows of a `task` that the runs `a` and `b` have scored, in one order; raises as `diff_runs`."""
    reports = read_report(a), read_report(b)
    if task:  # all tasks share one hash, so the rows themselves are compared below
        _check_task((a, b), reports, task)
    else:
        _check_same_rows(a, b, *reports)
    # Rows are matched by prompt and reference answer, because their locations differ between files.
    first = _predictions(a, task)
    second = _predictions(b, task)
    keys = _keys(first)
    by_key = dict(zip(_keys(second), second, strict=True))
    common = [key for key in keys if key in by_key]
    whole = not any(report.scored_rows for report in reports)  # otherwise each has scored some of the same rows
    if not common or (whole and not len(common) == len(first) == len(second)):
        raise CheckpointError(f"{b / FILE}: its rows differ from those of {a / FILE}; compare runs of the same rows")
    by_first = dict(zip(keys, first, strict=True))
    return [by_first[key] for key in common], [by_key[key] for key in common]


def pair_with_base(run: Path) -> PairedRows:
    """Pair the answers of base and tuned model of a run with a single task.

    Raises CheckpointError if it is not finished, or its predictions are missing.
    """
    return scored(_predictions(run, ""), read_report(run).task.metric, run)


def lines(diff: RunDiff) -> list[str]:
    """Return a comparison as lines of text: verdict, settings that differ, and some rows of each kind."""
    output = [f"a: {diff.a}", f"b: {diff.b}", diff.sentence]
    if diff.settings:
        output.append("settings that differ (a → b):")
        output += [f"  {key}: {first} → {second}" for key, first, second in diff.settings]
    for side, title in TITLES.items():
        rows = [row for row in diff.changed if row.better == side]
        if rows:
            output.append(f"{title}: {len(rows)} rows")
            for row in rows[:ROWS_SHOWN]:
                parts = (_short(row.question), f"gold {_short(row.gold)}", f"a {_short(row.a)}", f"b {_short(row.b)}")
                output.append(f"  {row.where}: " + " | ".join(parts))
    return [clean(line) for line in output]


def scored(rows: list[Prediction], metric: str, run: Path) -> PairedRows:
    """Score both sides of `rows` with the `metric`, or with the stored scores if both sides have them.

    Raises CheckpointError, naming the `run`, for a metric without a score per row.
    """
    stored = all(None not in (row.score_base, row.score_tuned) for row in rows)
    if stored and metric not in STATED:
        metric = ROW_SCORES.get(metric, ROW_SCORE)
    scores = row_scores(rows, metric)
    if scores is None:
        raise CheckpointError(f"{run / FILE}: {metric} has no score per row; compare the two reports instead")
    return PairedRows(rows, *scores, metric)


def _check_same_rows(a: Path, b: Path, report_a: Report, report_b: Report) -> None:
    """Raise CheckpointError unless both runs were scored on the same rows."""
    # A run without test rows is scored on its validation rows.
    hash_a, hash_b = (
        report.data.sha256.get("test" if report.data.test else "validation", "") for report in (report_a, report_b)
    )
    if not hash_a or hash_a != hash_b:
        problem = f"sha256 {hash_b[:8] or 'unknown'}, not {hash_a[:8] or 'unknown'}"
        fix = "tune both runs with the same data, group and seed"
        raise CheckpointError(f"{b}: scored on other test rows than {a} ({problem}); {fix}")


def _check_task(runs: Sequence[Path], reports: Sequence[Report], task: str) -> None:
    """Raise CheckpointError unless a run has the task and the other has it too, or has a single task."""
    metrics = [_task_metrics(report) for report in reports]
    if not any(metrics):
        raise CheckpointError(f"--task {task}: both runs have a single task; omit the option")
    for run, names in zip(runs, metrics, strict=True):
        if names and task not in names:
            raise CheckpointError(f"{run}: no task {task!r}; use one of: {', '.join(names)}")


def _score_difference(a: Path, b: Path, sides: Sequence[Sequence[Prediction]], metrics: Sequence[str]) -> str:
    """Return why the stored scores of two runs are not comparable; empty if they are, or if there are none."""
    if any(row.score_tuned is None for side in sides for row in side):
        return ""
    if metrics[0] != metrics[1]:
        return f"the stored row scores are another metric ({metric_name(metrics[1])}, not {metric_name(metrics[0])})"
    if _rewards(_recipe(a)) != _rewards(_recipe(b)):
        return "completions have another reward"
    return ""


def _rewards(recipe: Mapping[str, Any]) -> Mapping[str, float]:
    """Return the rewards of a recipe with their weights; empty without rewards."""
    reward = (recipe.get("objective") or {}).get("reward") or {}
    return {reward: 1.0} if isinstance(reward, str) else reward


def _task_metrics(report: Report) -> dict[str, str]:
    """Return the headline metric of each task of a multitask run; empty for a single task."""
    return {part.name: part.task.metric for part in report.multitask.tasks} if report.multitask else {}


def _metric(report: Report, task: str) -> str:
    return _task_metrics(report).get(task, report.task.metric)


def _predictions(run: Path, task: str) -> list[Prediction]:
    rows = rows_of_task(read_predictions(run), task)
    if not rows:
        raise CheckpointError(f"{run}: {FILE} is missing or empty; tune the run again with --force")
    return rows


def _keys(rows: Sequence[Prediction]) -> list[tuple[str, str, int]]:
    """Return a unique key of each row: prompt, reference answer, and the index among equal rows."""
    counts: dict[tuple[str, str], int] = {}
    keys = []
    for row in rows:
        pair = (row.question, row.gold)
        counts[pair] = counts.get(pair, 0) + 1
        keys.append((*pair, counts[pair]))
    return keys


def _with_score(text: str, score: float | None) -> str:
    """Return an answer with its score if that is stored, because the text alone does not determine it."""
    if score is None:
        return text
    return f"{text} ({figure(score)})" if text else figure(score)


def _sentence(comparison: PairedComparison, changed: Sequence[Changed], metric: str) -> str:
    ups, downs = (sum(row.better == side for row in changed) for side in "ba")
    verdict = VERDICTS.get(comparison.verdict, comparison.verdict)
    groups = f" in {comparison.clusters} groups" if comparison.clusters < comparison.n else ""
    return (
        f"{verdict}: {metric_name(metric)} {figure(comparison.base)} of a, {figure(comparison.tuned)} of b, "
        f"difference {signed(comparison.delta)} (95 % {bounds(comparison.ci95, sign=True)}, "
        f"{p_value(comparison.p_value)}, {comparison.n} rows{groups}); "
        f"{len(changed)} answers differ, {ups} for the better, {downs} for the worse"
    )


def _bias(a: Path, b: Path) -> str:
    """Return which runs stopped scoring where their result so far was clear, which favors that result."""
    found = []
    for name, report in (("a", read_report(a)), ("b", read_report(b))):
        if report.scored_rows and report.scored_rows.stopped_early:
            side = "against it" if report.task.verdict == "worse" else "in its favor"
            found.append(f"{name} stopped scoring early, so the difference is biased {side}")
    return "; ".join(found)


def _recipe(run: Path) -> Mapping[str, Any]:
    path = run / "recipe.yaml"
    try:
        report_edit(path)
        recipe = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        recipe = None
    if not isinstance(recipe, dict):
        raise CheckpointError(f"{path}: missing or invalid recipe; restore it, or tune the run again with --force")
    return recipe


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings: {"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}{key}.") if isinstance(inner, Mapping) and inner else {f"{prefix}{key}": inner}
    return flat


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_LINE_CHARS else f"{line[: MAX_LINE_CHARS - 1]}…"
