"""Two runs on the same test rows: what changed between them, and whether it matters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict

from tunesmith.errors import CheckpointError
from tunesmith.metrics.preference_metrics import auc_pair
from tunesmith.metrics.resampling import groups_of
from tunesmith.metrics.significance import PairedComparison, compare_macro_f1, compare_paired, corpus_compare
from tunesmith.metrics.task_scores import Difference
from tunesmith.report.formatting import bounds, clean, figure, metric_name, p_value, signed
from tunesmith.report.predictions import FILE, STATED, Prediction, read_predictions, row_scores, rows_of_task
from tunesmith.report.schema import Report, read_report

ROWS_SHOWN = 5
MAX_LINE_CHARS = 90
# The name of a score that the run stated row by row and whose mean is not its own metric: a document's, thumbs', whose
# metric is of them all, or any other's.
ROW_SCORES = {"perplexity": "log_probability", "thumbs_auc": "thumbs_auc"}
ROW_SCORE = "row_score"
VERDICTS = {"better": "b is better", "worse": "b is worse", "no effect": "no difference"}
# Settings that say where a run was made rather than what it is.
ELSEWHERE = ("machine.",)


class Changed(BaseModel):
    """A test row to which the two tuned models answer differently; `better` is a, b or neither."""

    model_config = ConfigDict(frozen=True)

    where: str
    question: str
    gold: str
    a: str
    b: str
    better: str


class RunDiff(Difference):
    """Run b against run a on the headline metric of a: `delta` = b - a, `settings` = (key, in a, in b)."""

    a: str
    b: str
    metric: str
    score_a: float
    score_b: float
    sentence: str
    changed: tuple[Changed, ...]
    settings: tuple[tuple[str, str, str], ...]


def diff_runs(a: Path, b: Path, task: str = "") -> RunDiff:
    """How the tuned model of run b differs from that of run a, row by row.

    Of a run of several tasks by the one that is named, else by its first; the other may be that task's own model.
    Raises CheckpointError for folders that are no finished runs, that were scored on other test rows or that have no
    such task.
    """
    rows, scores, metric = paired(a, b, task)
    found = compared(rows, scores, metric)
    changed = tuple(
        Changed(where=row.where, question=row.question, gold=row.gold, a=a, b=b, better=_better(change))
        for row, change in zip(rows, scores[1] - scores[0], strict=True)
        for a, b in [_said(row)]
        if a != b
    )
    return RunDiff(
        **asdict(found),
        a=str(a),
        b=str(b),
        metric=metric,
        score_a=found.base,
        score_b=found.tuned,
        sentence=_sentence(found, changed, metric),
        changed=changed,
        settings=_settings(a, b),
    )


def paired(a: Path, b: Path, task: str = "") -> tuple[list[Prediction], tuple[Any, Any], str]:
    """The test rows with the answer of a in the base's place and that of b in the tuned one's, what each is worth ([N]
    and [N]), and by which metric. Raises CheckpointError as `diff_runs` does."""
    reports = read_report(a), read_report(b)
    if task:  # the files of several tasks have one hash together: the rows themselves are compared below
        _refuse_unknown_task((a, b), reports, task)
    else:
        _refuse_other_rows(a, b, *reports)
    first, second = _matched(a, b, task)
    if why := _measured_otherwise(a, b, (first, second), [_metric(report, task) for report in reports]):
        raise CheckpointError(f"{b}: {why} than of {a}, so the two do not compare; tune both with one objective")
    rows = [_side_by_side(one, two) for one, two in zip(first, second, strict=True)]
    return _scored(rows, _metric(reports[0], task), a)


def over_base(run: Path) -> tuple[list[Prediction], tuple[Any, Any], str]:
    """The same of a run of one task and the base that it began with. Raises CheckpointError."""
    return _scored(_answers(run, ""), read_report(run).task.metric, run)


def _scored(rows: list[Prediction], metric: str, run: Path) -> tuple[list[Prediction], tuple[Any, Any], str]:
    """The rows with what both answers to each are worth, by the metric or what stands for it row by row."""
    both = all(None not in (row.score_base, row.score_tuned) for row in rows)  # one run may have stated, the other not
    if both and metric not in STATED:
        metric = ROW_SCORES.get(metric, ROW_SCORE)
    scores = row_scores(rows, metric)
    if scores is None:
        raise CheckpointError(
            f"{run / FILE}: {metric} cannot be told row by row from it; compare the two reports instead"
        )
    return rows, scores, metric


def lines(diff: RunDiff) -> list[str]:
    """The difference for people: the sentence, the settings that differ, some rows that changed."""
    told = [f"a: {diff.a}", f"b: {diff.b}", diff.sentence]
    if diff.settings:
        told += ["settings that differ (a → b):", *(f"  {key}: {one} → {two}" for key, one, two in diff.settings)]
    for side, title in (("b", "right or better only in b"), ("a", "right or better only in a"), ("neither", "neither")):
        rows = [row for row in diff.changed if row.better == side]
        if rows:
            told.append(f"{title}: {len(rows)} rows")
            told += [_line(row) for row in rows[:ROWS_SHOWN]]
    return [clean(line) for line in told]


def _refuse_other_rows(a: Path, b: Path, one: Report, two: Report) -> None:
    """Nothing where both runs were scored on the same rows; else CheckpointError."""
    # Without test rows of its own a run is scored on its validation rows.
    parts = ["test" if report.data.test else "validation" for report in (one, two)]
    hashes = [report.data.sha256.get(part, "") for report, part in zip((one, two), parts, strict=True)]
    one_hash, two_hash = hashes
    if not one_hash or one_hash != two_hash:
        finding = f"sha256 {two_hash[:8] or 'unknown'}, not {one_hash[:8] or 'unknown'}"
        cure = "tune both on the same data, group and seed"
        raise CheckpointError(f"{b}: scored on other test rows than {a} ({finding}); {cure}")


def _measured_otherwise(a: Path, b: Path, sides: Sequence[Sequence[Prediction]], metrics: Sequence[str]) -> str:
    """In what the scores that both runs state row by row are others; nothing where they are told by the answers."""
    if any(row.score_tuned is None for side in sides for row in side):
        return ""
    if metrics[0] != metrics[1]:
        return f"rows state another score ({metric_name(metrics[1])}, not {metric_name(metrics[0])})"
    one, two = (_recipe(run) for run in (a, b))
    # Of one model an encoder's hidden words are others where virtual tokens leave rows less room; they compare.
    first, second = ([row.tokens for row in side] for side in sides)
    if one.get("model") != two.get("model") and first != second:
        return "texts are cut into other tokens"
    if _rewards(one) != _rewards(two):
        return "answers earn another reward"
    return ""


def _rewards(recipe: Mapping[str, Any]) -> Mapping[str, float]:
    """What a recipe's answers are rewarded by, and its weights; nothing where they are not."""
    found = (recipe.get("objective") or {}).get("reward") or {}
    return {found: 1.0} if isinstance(found, str) else found


def _parts(report: Report) -> dict[str, str]:
    """Task -> its metric, of a run of several."""
    return {part.name: part.task.metric for part in report.multitask.tasks} if report.multitask else {}


def _metric(report: Report, task: str) -> str:
    return _parts(report).get(task, report.task.metric)


def _refuse_unknown_task(runs: Sequence[Path], reports: Sequence[Report], task: str) -> None:
    """Nothing where one of the runs has the task, and the other has it too or is of one task; else CheckpointError."""
    known = [_parts(report) for report in reports]
    if not any(known):
        raise CheckpointError(f"--task {task}: both runs are of one task; leave it out")
    for run, parts in zip(runs, known, strict=True):
        if parts and task not in parts:
            raise CheckpointError(f"{run}: it has no task {task!r}; name one of: {', '.join(parts)}")


def _answers(run: Path, task: str) -> list[Prediction]:
    """The rows of a run, or of one of its tasks, with its answers."""
    rows = rows_of_task(read_predictions(run), task)
    if not rows:
        raise CheckpointError(f"{run}: no {FILE} in it, so its answers are gone; tune it again with --force")
    return rows


def _matched(a: Path, b: Path, task: str) -> tuple[list[Prediction], list[Prediction]]:
    """The rows of both runs in the order of a, told by their place or, where files differ, by question and answer."""
    first, second = _answers(a, task), _answers(b, task)
    keys = [_keys(rows) for rows in (first, second)]
    at = dict(zip(keys[1], second, strict=True))
    if set(keys[0]) != set(at) or len(first) != len(second):
        raise CheckpointError(f"{b / FILE}: its rows are not those of {a / FILE}; tune one of them again with --force")
    return first, [at[key] for key in keys[0]]


def _keys(rows: Sequence[Prediction]) -> list[tuple[str, str, int]]:
    """What tells a row from all others of its file: question, right answer, and which of several equal ones."""
    seen: dict[tuple[str, str], int] = {}
    found = []
    for row in rows:
        pair = (row.question, row.gold)
        seen[pair] = seen.get(pair, 0) + 1
        found.append((*pair, seen[pair]))
    return found


def _side_by_side(one: Prediction, two: Prediction) -> Prediction:
    """The row with the answer of run a in the base's place."""
    sides = {"base": one.tuned, "score_base": one.score_tuned, "tuned": two.tuned, "score_tuned": two.score_tuned}
    return one.model_copy(update=sides)


def compared(rows: Sequence[Prediction], scores: tuple[Any, Any], metric: str) -> PairedComparison:
    """What `paired` found, as a comparison; rows of several pairs of runs may stand one after another."""
    groups = groups_of(rows)
    if metric == "macro_f1":
        sides = ([row.gold for row in rows], [row.base for row in rows], [row.tuned for row in rows])
        return compare_macro_f1(*sides, groups=groups)
    if metric == "thumbs_auc":
        good = [row.gold == "good" for row in rows]
        a, b = (np.where(good, side, -side) for side in scores)  # a bad answer's is stated with its sign turned
        return corpus_compare(auc_pair(a, b, good), list(a != b), groups=groups)
    return compare_paired(*scores, groups=groups)


def _said(row: Prediction) -> tuple[str, str]:
    """What each run says to a row and what that was found worth, where the text alone does not show it."""
    return _worth(row.base, row.score_base), _worth(row.tuned, row.score_tuned)


def _worth(text: str, score: float | None) -> str:
    if score is None:
        return text
    return f"{text} ({figure(score)})" if text else figure(score)


def _better(change: float) -> str:
    return "b" if change > 0 else "a" if change < 0 else "neither"


def _sentence(found: PairedComparison, changed: Sequence[Changed], metric: str) -> str:
    """The whole difference as one line."""
    ups, downs = (sum(row.better == side for row in changed) for side in "ba")
    verdict = VERDICTS.get(found.verdict, found.verdict)
    groups = f" in {found.clusters} groups" if found.clusters < found.n else ""
    return (
        f"{verdict}: {metric_name(metric)} {figure(found.base)} of a, {figure(found.tuned)} of b, "
        f"difference {signed(found.delta)} "
        f"(95 % {bounds(found.ci95, sign=True)}, {p_value(found.p_value)}, {found.n} rows{groups}); "
        f"{len(changed)} answers differ, {ups} for the better, {downs} for the worse"
    )


def _settings(a: Path, b: Path) -> tuple[tuple[str, str, str], ...]:
    """The recipe's keys whose values differ."""
    one, two = ({k: str(v) for k, v in _flat(_recipe(run)).items()} for run in (a, b))
    keys = [key for key in [*one, *(key for key in two if key not in one)] if not key.startswith(ELSEWHERE)]
    return tuple((key, one.get(key, "-"), two.get(key, "-")) for key in keys if one.get(key) != two.get(key))


def _recipe(run: Path) -> Mapping[str, Any]:
    path = run / "recipe.yaml"
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        found = None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: not a readable recipe; restore it or tune the run again with --force")
    return found


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{prefix}{key}.") if isinstance(inner, Mapping) and inner else {f"{prefix}{key}": inner}
    return found


def _line(row: Changed) -> str:
    parts = (_short(row.question), f"gold {_short(row.gold)}", f"a {_short(row.a)}", f"b {_short(row.b)}")
    return f"  {row.where}: " + " | ".join(parts)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_LINE_CHARS else f"{line[: MAX_LINE_CHARS - 1]}…"
