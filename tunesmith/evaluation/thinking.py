"""The thinking ledger: base and tuned model on the same held-out rows, with and without thoughts before the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tunesmith.data.examples.types import Chat, Example, LabelledText, Pair, Reference, UnpairedPreference
from tunesmith.data.tokenization.messages import Message
from tunesmith.evaluation.predict import accepted_answers, subsample
from tunesmith.evaluation.results import ThinkingLedger
from tunesmith.evaluation.retention import items, spread
from tunesmith.inference.defaults import sampling_of
from tunesmith.inference.local_model import LocalModel
from tunesmith.metrics.paired_measures import PairedMeasure, paired_gain, paired_mean, paired_statistic
from tunesmith.metrics.resampling import Clusters, groups_of
from tunesmith.metrics.task_scores import PER_ROW, SCALES
from tunesmith.models.generation.sampling import Reply, Sampling
from tunesmith.objectives.instruct import asked
from tunesmith.training.prepare import TrainingContext

OWN_ROWS, GENERAL_QUESTIONS = "held-out rows", "general questions"


@dataclass(frozen=True, slots=True)
class LedgerRows:
    """The rows of a ledger: prompts, and what an answer is scored against."""

    prompts: list[list[Message]]
    references: list[Reference]  # empty if the rows have none
    metric: str  # of single answers; empty without references
    groups: list[str] | None
    source: str  # OWN_ROWS or GENERAL_QUESTIONS


@dataclass(frozen=True, slots=True)
class ModeAnswers:
    """The answers of one model in one position of the switch, and the thoughts before them."""

    given: list[str] = field(default_factory=list)
    thought: list[bool] = field(default_factory=list)  # there are thoughts
    ended: list[bool] = field(default_factory=list)  # the thoughts ended within the token limit
    tokens: list[int] = field(default_factory=list)  # tokens of the thoughts


@dataclass(frozen=True, slots=True)
class ThinkingAnswers:
    """The answers of one model in both positions of the switch."""

    on: ModeAnswers
    off: ModeAnswers


def ledger_task(prepared: TrainingContext) -> TrainingContext:
    """Return the task whose rows the ledger uses: of several the first, as for the headline."""
    return next(iter(prepared.tasks.values()))


def no_ledger(prepared: TrainingContext) -> str:
    """Return why a run has no thinking ledger; empty if it has one."""
    if not prepared.template.thinks:
        return "the model has no thinking mode"
    produced = ledger_task(prepared).recipe.objective.produces
    if produced in ("score", "number"):
        return f"the model gives a {produced}, not an answer"
    return "" if prepared.recipe.ledger.rows else "ledger: false"


def ledger_limit(prepared: TrainingContext, *, thinking: bool) -> int:
    """Return the most new tokens of one answer of the ledger, thoughts included."""
    limit = prepared.recipe.ledger.max_new_tokens
    usual = sampling_of(ledger_task(prepared).recipe.objective, thinking=thinking).max_new_tokens
    return limit if limit and thinking else usual


def ledger_rows(prepared: TrainingContext) -> LedgerRows:
    """Return the rows of the ledger of a run for which `no_ledger` is empty.

    They are held-out rows of the first task. Documents ask nothing, so that a run on documents gets the general
    questions instead, each with its options.
    """
    task = ledger_task(prepared)
    count, objective = prepared.recipe.ledger.rows, task.recipe.objective
    if objective.produces == "likelihood":
        questions = spread(items(), count)
        texts = ["\n".join([item.question, *(f"- {option}" for option in item.options)]) for item in questions]
        right: list[Reference] = [item.options[item.answer] for item in questions]
        prompts = [[Message("user", text)] for text in texts]
        return LedgerRows(prompts, right, "contains", None, GENERAL_QUESTIONS)
    examples = subsample(task.test, count, prepared.recipe.seed)
    metric = objective.metric if objective.metric in PER_ROW and objective.produces == "text" else ""
    if objective.label_mode == "single":
        metric = "exact_match"  # of the label as a word, which a model that thinks has to write
    scored = objective.has_reference_answers and metric
    references = accepted_answers(examples) if scored else []
    prompts = [_prompt(task, example) for example in examples]
    return LedgerRows(prompts, references, metric if scored else "", groups_of(examples), OWN_ROWS)


def _prompt(task: TrainingContext, example: Example) -> list[Message]:
    """Return the messages that ask for an answer to a row."""
    if isinstance(example, Pair | UnpairedPreference):
        return list(example.prompt)
    if isinstance(example, LabelledText):
        return task.recipe.objective.prompt_messages(example)
    assert isinstance(example, Chat)
    return asked(example)


def answer_both_ways(prepared: TrainingContext, model: LocalModel) -> ThinkingAnswers:
    """Answer the rows of the ledger greedily with the base or the tuned model, with and without thinking."""
    rows = ledger_rows(prepared)
    modes = {}
    for thinking in (True, False):
        sampling = Sampling(max_new_tokens=ledger_limit(prepared, thinking=thinking))
        modes[thinking] = _collected(model.replies(rows.prompts, sampling=sampling, thinking=thinking))
    return ThinkingAnswers(modes[True], modes[False])


def _collected(replies: Sequence[Reply]) -> ModeAnswers:
    return ModeAnswers(
        [reply.text for reply in replies],
        [bool(reply.thoughts) for reply in replies],
        [reply.thoughts_ended for reply in replies],
        [reply.thought_tokens for reply in replies],
    )


def thinking_ledger(prepared: TrainingContext, *, base: ThinkingAnswers, tuned: ThinkingAnswers) -> ThinkingLedger:
    """Compare base and tuned model in both positions of the switch.

    Args:
        prepared: the run.
        base: answers of the base model.
        tuned: answers of the tuned model.
    """
    rows, objective = ledger_rows(prepared), ledger_task(prepared).recipe.objective
    groups, most = rows.groups, float(ledger_limit(prepared, thinking=True))
    scores: dict[str, PairedMeasure] = {}
    if rows.references:
        scale, score = SCALES.get(rows.metric, 1.0), PER_ROW[rows.metric]
        on = [score(rows.references, side.on.given) for side in (base, tuned)]
        off = [score(rows.references, side.off.given) for side in (base, tuned)]
        scores = {
            "score_on": paired_mean(on[0], on[1], groups=groups, scale=scale),
            "score_off": paired_mean(off[0], off[1], groups=groups, scale=scale),
            "gain": paired_gain(off, on, groups=groups),
        }
    ended = [_of_thoughts(side.on, side.on.ended) for side in (base, tuned)]
    tokens = [_of_thoughts(side.on, side.on.tokens) for side in (base, tuned)]
    obeyed_on = [np.array(side.on.thought, dtype=np.float64) for side in (base, tuned)]
    obeyed_off = [1 - np.array(side.off.thought, dtype=np.float64) for side in (base, tuned)]
    return ThinkingLedger(
        rows=len(rows.prompts),
        clusters=Clusters.of(len(rows.prompts), groups).count,
        source=rows.source,
        metric=rows.metric,
        max_new_tokens=int(most),
        switch=prepared.template.switch,
        thinks_by_default=objective.thinks,
        **scores,
        finished=paired_statistic(ended[0], ended[1], np.mean, groups=groups, most=1.0),
        median_tokens=paired_statistic(tokens[0], tokens[1], np.median, groups=groups, most=most),
        p95_tokens=paired_statistic(
            tokens[0], tokens[1], lambda values: float(np.quantile(values, 0.95)), groups=groups, most=most
        ),
        obeyed_on=paired_mean(obeyed_on[0], obeyed_on[1], groups=groups),
        obeyed_off=paired_mean(obeyed_off[0], obeyed_off[1], groups=groups),
    )


def _of_thoughts(answers: ModeAnswers, values: Sequence[float]) -> list[float]:
    """Return the value of each row that has thoughts, NaN for the others."""
    return [float(value) if thought else np.nan for value, thought in zip(values, answers.thought, strict=True)]
