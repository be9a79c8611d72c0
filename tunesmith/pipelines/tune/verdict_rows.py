"""The test rows of a verdict in a run: pinned in its folder, and scored in stages until the result is decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.data.files import read_page, write_whole
from tunesmith.evaluation.evaluators import EvalSet, Evaluator, evaluator_for, rowwise
from tunesmith.evaluation.evaluators.answers import AnswerEvaluator
from tunesmith.evaluation.results import ScoredRows
from tunesmith.events import EventHandler, Note
from tunesmith.inference.local_model import LocalModel
from tunesmith.metrics.resampling import STAGES, Clusters, at_level, groups_of
from tunesmith.models.world import current_world
from tunesmith.objectives.base import SINGLE_TASK
from tunesmith.pipelines.plan.verdict_rows import ChosenRows, rows_of_verdict, with_test_rows
from tunesmith.training.prepare import TrainingContext

FILE = "verdict.json"


def pinned(out: Path) -> ChosenRows:
    """Return the rows that were chosen for the run in a folder."""
    return read_page(out / FILE, ChosenRows) if (out / FILE).exists() else ChosenRows()


def choose_rows(prepared: TrainingContext, out: Path, on_event: EventHandler, *, timed: bool) -> TrainingContext:
    """Return the run with the test rows of its verdict, pinned in the run folder `out`, and what they can detect noted.

    `timed` is whether this process can forecast seconds.
    """
    # A run of an earlier version has scored all rows with its base.
    if (out / FILE).exists() or (out / "before.json").exists():
        return pinned(out).of(prepared)
    minutes, chosen = prepared.recipe.verdict.minutes, ChosenRows()
    if minutes in ("auto", "all") or (timed and not prepared.recipe.objective.samples_completions):
        chosen = rows_of_verdict(prepared)
    else:
        on_event(Note("verdict.minutes: the time of this run cannot be forecast, so every test row is scored"))
    if chosen.note:
        on_event(Note(chosen.note))
    if current_world().leads and (chosen.rows or minutes not in ("auto", "all")):
        write_whole(out / FILE, chosen.model_dump_json())
    return chosen.of(prepared)


@dataclass(frozen=True, slots=True)
class Scored:
    """The test rows of a run, and what base, tuned model and controls predicted for them."""

    prepared: TrainingContext
    base: Any
    tuned: Any
    controls: Mapping[str, Any]
    extent: ScoredRows | None

    @property
    def evaluator(self) -> Evaluator[Any]:
        """Return the evaluator of these rows."""
        return evaluator_for(EvalSet.of(self.prepared))


def score_tuned(
    prepared: TrainingContext, model: LocalModel, *, base: Any, controls: Mapping[str, Any], out: Path
) -> Scored:
    """Score the tuned model of a run; chosen rows with answers to one task in stages, until the result is decided.

    `base` has the predictions of the base model as `before.json` in the run folder `out` keeps them.
    """
    evaluator, extent, rows = evaluator_for(EvalSet.of(prepared)), pinned(out).extent, len(prepared.test)
    base = evaluator.from_json(base)
    if extent is None or not isinstance(evaluator, AnswerEvaluator) or prepared.template.thinks:
        return Scored(prepared, base, evaluator.predict(model), controls, extent)
    ends = np.cumsum(Clusters.of(rows, groups_of(prepared.test)).sizes).astype(np.intp).tolist()
    levels = {next(end for end in ends if end >= share * rows): level for share, level in STAGES.items()}
    parts: list[Any] = []
    start = 0
    for end, level in levels.items():
        parts.append(evaluator_for(EvalSet.of(_between(prepared, start, end))).predict(model))
        sentence = f"{extent.sentence}; {end} were scored, and tested at {level:.2g} as one of {len(levels)} stages"
        scored = Scored(
            prepared=_between(prepared, 0, end),
            base=_until(end, base, rows),
            tuned=rowwise(lambda lists: list(chain.from_iterable(lists)), *parts),
            controls=_until(end, controls, rows),
            extent=extent.model_copy(update={"scored": end, "level": level, "sentence": sentence}),
        )
        start = end
        judge = type(evaluator)(EvalSet.of(scored.prepared))
        decided = partial(judge.decided, base=scored.base, tuned=scored.tuned, controls=scored.controls)
        with at_level(level):
            if end == rows or current_world().lead(decided):
                break
    return scored


def _between(prepared: TrainingContext, start: int, end: int) -> TrainingContext:
    return with_test_rows(prepared, {SINGLE_TASK: range(start, end)})


def _until(end: int, predictions: Any, rows: int) -> Any:
    return rowwise(lambda lists: lists[0][:end], predictions, share=end / rows)
