"""Measurements besides the headline: baselines, controls, general ability, calibration and style.

In all functions, `prepared` is the run, and `test` are the rows to answer.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from tunesmith.config.style_rules import columns
from tunesmith.data.examples.types import Chat, Example, LabelledText, Pair, TextExample, UnpairedPreference
from tunesmith.data.text.domain_terms import general_text
from tunesmith.data.tokenization.tokenizer import frame
from tunesmith.data.tokenization.tool_calls import calls_in
from tunesmith.evaluation.predict import BASELINES, AnswersByArm, AnswerSet, question, reference_answers
from tunesmith.evaluation.results import Calibration, Retention, Style, ToolCallCounts
from tunesmith.evaluation.retention import WINDOW, GeneralAbility, by_field, flips, items, measure, spread
from tunesmith.inference.local_model import LocalModel
from tunesmith.metrics import calibration, style
from tunesmith.metrics.baselines import best_label_set, linear_probe, majority, tfidf_classifier
from tunesmith.metrics.scores import CallOutcome, call_outcome
from tunesmith.metrics.task_scores import LABEL_BREAK
from tunesmith.models.families import positions_of
from tunesmith.models.kept_answers import once
from tunesmith.models.policy import Policy
from tunesmith.training.prepare import TrainingContext, encode_all

# Accuracy that the confidence threshold is set for, on validation rows.
TARGET_ACCURACY = 0.95
# Points of the coverage curve in the report.
CURVE_POINTS = 21
HEAD_ONLY, SHUFFLED = "head only, frozen model", "shuffled labels"


def baselines(prepared: TrainingContext, test: Sequence[Example]) -> AnswersByArm:
    """Return the answers of the baselines of classification, by name; empty for other objectives."""
    objective = prepared.recipe.objective
    rows = [e for e in prepared.baseline_rows if isinstance(e, LabelledText)]
    if objective.label_mode == "multi":
        common = best_label_set([e.labels for e in rows], metric=objective.metric)
        return {"same labels for every row": [LABEL_BREAK.join(common)] * len(test)}
    if objective.label_mode != "single":
        return {}
    train = [(e.text, e.labels[0]) for e in rows]
    texts = [question(example) for example in test]
    metric = objective.probe_metric
    return {
        "most frequent label": [majority([label for _, label in train])] * len(texts),
        "TF-IDF + logistic regression": once(
            BASELINES, tfidf_classifier, train, texts, metric=metric, seed=prepared.recipe.seed
        ),
    }


def frozen_head_control(prepared: TrainingContext, model: LocalModel, test: Sequence[Example]) -> AnswersByArm:
    """Return the answers of a linear probe on the frozen decoder `model`, which every technique should beat.

    There are none for an encoder, whose base score is that of the same probe.
    """
    objective = prepared.recipe.objective
    if objective.label_mode != "single" or prepared.base.family == "encoder":
        return {}
    train = prepared.baseline_rows
    train_states, test_states = (model.embed([question(e) for e in rows]).numpy() for rows in (train, test))
    labels = reference_answers(train)
    return {HEAD_ONLY: once("probes", linear_probe, train_states, labels, test_states, metric=objective.probe_metric)}


def shuffled_labels(prepared: TrainingContext) -> TrainingContext:
    """Return a control run on the same rows with shuffled answers; it must not beat the base model.

    Labels, ratings and assistant turns are shuffled over rows; the two answers of a pair are swapped at random.
    """
    rng = random.Random(f"{prepared.recipe.seed}/control")
    split = prepared.loaded.split
    rows = [*split.train, *prepared.answered] if prepared.answered else split.train
    split = replace(split, train=_shuffled(rows, rng), validation=_shuffled(split.validation, rng))
    # A control may fail to learn, so it has no overfit check.
    recipe = prepared.recipe
    recipe = recipe.model_copy(update={"schedule": recipe.schedule.model_copy(update={"probe": False})})
    train, validation = (
        encode_all(recipe.objective, rows, prepared.template, limit=recipe.data.max_tokens)
        for rows in (split.train, split.validation)
    )
    loaded = replace(prepared.loaded, split=split)
    return replace(prepared, recipe=recipe, loaded=loaded, train=train, validation=validation)


def _shuffled(examples: Sequence[Example], rng: random.Random) -> list[Example]:
    """Return the prompts in their order, each with the answer of another row."""
    order = list(range(len(examples)))
    rng.shuffle(order)
    chats = [example for example in examples if isinstance(example, Chat)]
    if len(chats) == len(examples):
        return _shuffled_turns(chats, order)
    shuffled: list[Example] = []
    for example, other in zip(examples, (examples[i] for i in order), strict=True):
        if isinstance(example, TextExample) and isinstance(other, TextExample):
            shuffled.append(example.with_target_of(other))
        elif isinstance(example, UnpairedPreference) and isinstance(other, UnpairedPreference):
            shuffled.append(replace(example, good=other.good))
        elif isinstance(example, Pair):
            swap = rng.random() < 0.5
            chosen, rejected = (example.rejected, example.chosen) if swap else (example.chosen, example.rejected)
            cut = (example.cut[swap], example.cut[not swap])
            shuffled.append(replace(example, chosen=chosen, rejected=rejected, cut=cut))
    return shuffled


def _shuffled_turns(chats: Sequence[Chat], order: Sequence[int]) -> list[Example]:
    """Return the chats, each with the assistant turns of another, turn by turn.

    Turns with tool calls replace only such turns, so that tool results still follow a call.
    """
    messages = [list(chat.messages) for chat in chats]
    for calling in (True, False):
        positions = [
            [at for at, m in enumerate(chat.messages) if m.role == "assistant" and bool(m.calls) == calling]
            for chat in chats
        ]
        sources = (i for i in order if positions[i])
        for target, source in zip((i for i, own in enumerate(positions) if own), sources, strict=True):
            for number, at in enumerate(positions[target]):
                turn = chats[source].messages[positions[source][number % len(positions[source])]]
                # Thoughts move with their answer: in their own row they would give the right one away.
                messages[target][at] = replace(
                    messages[target][at], content=turn.content, calls=turn.calls, thoughts=turn.thoughts
                )
    return [replace(chat, messages=tuple(own)) for chat, own in zip(chats, messages, strict=True)]


def general_window(prepared: TrainingContext) -> int:
    """Return the tokens per window of general text: fewer than usual if the context with virtual tokens is shorter."""
    positions = positions_of(prepared.base.network.config.to_dict())
    used = prepared.recipe.technique.virtual_tokens() + len(frame(prepared.template.tokenizer)[0])
    return min(WINDOW, max(2, positions - used)) if positions else WINDOW


def not_measured(prepared: TrainingContext) -> str:
    """Return why the general ability of this run is not measured; empty if it is."""
    if prepared.base.family != "decoder":
        return f"{prepared.recipe.model} is an encoder, which predicts no next token"
    extent = prepared.recipe.retention
    return "" if extent.texts or extent.questions else "retention: false"


def base_general_ability(prepared: TrainingContext, policy: Policy) -> GeneralAbility | None:
    """Measure the general ability of the base model; None if `not_measured` has a reason."""
    if not_measured(prepared):
        return None
    template, window, extent = prepared.template, general_window(prepared), prepared.recipe.retention
    questions = [asdict(item) for item in spread(items(), extent.questions)]
    texts = [*general_text(), *(text for item in questions for text in (item["question"], *item["options"]))]
    ids = template.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]

    def compute(_: list[int]) -> list[dict[str, Any]]:
        return [asdict(measure(policy, template, window=window, extent=extent))]

    key = ["general ability", str(policy.scoring_dtype), frame(template.tokenizer)[0], window, extent.texts, questions]
    return GeneralAbility(**policy.recall(key, [ids], compute)[0])


def retention(base: GeneralAbility, tuned: GeneralAbility) -> Retention:
    """Compare the general ability of base and tuned model."""
    if not base.right:
        return Retention(general_nll_base=base.nll, general_nll_tuned=tuned.nll)
    lost, won, p_value = flips(base, tuned)
    questions = spread(items(), len(base.right))
    before, after = by_field(questions, base.right), by_field(questions, tuned.right)
    return Retention(
        general_nll_base=base.nll,
        general_nll_tuned=tuned.nll,
        probe_base=sum(base.right) / len(base.right),
        probe_tuned=sum(tuned.right) / len(tuned.right),
        probe_n=len(base.right),
        lost=lost,
        won=won,
        p_value=p_value,
        fields={field: (before[field], after[field]) for field in before},
    )


def fit_calibration(prepared: TrainingContext, model: LocalModel) -> None:
    """Fit temperature and confidence threshold of each single-label task on its validation rows, in the tuned model.

    A run in half precision fits them to logits of half precision, as it scores most test rows.
    """
    for name, task in prepared.tasks.items():
        view = model.at(name)  # the model itself if it has a single task
        if _can_be_calibrated(task):
            validation = task.loaded.split.validation
            labels = _label_indices(task, validation)
            with view.policy.scoring():
                logits = view.label_logits([question(e) for e in validation]).numpy()
            view.temperature = calibration.fit_temperature(logits, labels)
            probabilities = calibration.softmax(logits, temperature=view.temperature)
            right = probabilities.argmax(axis=1) == labels
            view.threshold = calibration.threshold_for(probabilities.max(axis=1), right, TARGET_ACCURACY)
        if view is not model:
            model.temperatures = {**model.temperatures, name: view.temperature}
            if view.threshold is not None:
                model.thresholds = {**model.thresholds, name: view.threshold}


def reliability(prepared: TrainingContext, model: LocalModel, tuned: AnswerSet) -> Calibration | None:
    """Measure the calibration of the tuned model's probabilities, with and without temperature scaling.

    Returns:
        The calibration on the test rows; None without validation rows or for other objectives than single labels.
    """
    if not _can_be_calibrated(prepared):
        return None
    labels = _label_indices(prepared, prepared.test)
    names = prepared.recipe.objective.known_labels
    after = np.array([[row[label] for label in names] for row in tuned.probabilities])
    logits = model.temperature * np.log(np.maximum(after, 1e-300))  # up to a constant in each row
    before = calibration.softmax(logits)
    right = after.argmax(axis=1) == labels
    confidence = after.max(axis=1)
    accepted = confidence >= (2.0 if model.threshold is None else model.threshold)
    return Calibration(
        temperature=model.temperature,
        ece_before=calibration.ece(before.max(axis=1), right),
        ece=calibration.ece(confidence, right),
        brier=calibration.brier(after, labels),
        coverage=calibration.coverage_curve(confidence, right, points=CURVE_POINTS),
        threshold=model.threshold,
        target_accuracy=TARGET_ACCURACY,
        answered=None if model.threshold is None else float(accepted.mean()),
        answered_right=float(right[accepted].mean()) if accepted.any() else None,
    )


def _can_be_calibrated(prepared: TrainingContext) -> bool:
    return prepared.recipe.objective.label_mode == "single" and bool(prepared.loaded.split.validation)


def _label_indices(prepared: TrainingContext, examples: Sequence[Example]) -> NDArray[np.int64]:
    """Return the index of each row's label, [N]."""
    names = prepared.recipe.objective.known_labels
    return np.array([names.index(label) for label in reference_answers(examples)])


def style_report(
    prepared: TrainingContext, test: Sequence[Example], *, base: AnswerSet, tuned: AnswerSet
) -> Style | None:
    """Compare the style of both models' answers with that of the references; None for labels."""
    if prepared.recipe.objective.produces == "labels":
        return None
    references = reference_answers(test)
    rules, rows = style.rules_of(prepared.recipe.style), columns(prepared.recipe, test)
    texts = (base.given, tuned.given, references)
    finished = (base.finished, tuned.finished, [True] * len(references))
    rates = [style.rule_rates(part, rules, rows) for part in texts]
    habits = [asdict(style.habits(part, finished=ends)) for part, ends in zip(texts, finished, strict=True)]
    enough = len(references) >= style.FEWEST_PAIRS

    def triple(values: Sequence[float]) -> tuple[float, float, float]:
        return values[0], values[1], values[2]

    return Style(
        auc_base=style.discriminator_auc(base.given, references) if enough else None,
        auc_tuned=style.discriminator_auc(tuned.given, references) if enough else None,
        rules={rule.name: triple([rate[rule.name] for rate in rates]) for rule in rules},
        habits={name: triple([float(side[name]) for side in habits]) for name in habits[0]},
    )


def tool_call_counts(references: Sequence[str], *, base: Sequence[str], tuned: Sequence[str]) -> ToolCallCounts:
    """Count what became of the tool calls in the reference answers, in those of the base and of the tuned model."""
    sides = [[call_outcome(r, a) for r, a in zip(references, given, strict=True)] for given in (base, tuned)]
    due = [bool(calls_in(text)) for text in references]

    def pair(outcome: str, rows: Sequence[bool]) -> tuple[int, int]:
        before, after = (sum(seen == outcome and row for seen, row in zip(side, rows, strict=True)) for side in sides)
        return before, after

    every = [True] * len(references)
    outcomes = {outcome: pair(outcome, every) for outcome in get_args(CallOutcome)}
    return ToolCallCounts(due=sum(due), exact=pair("exact", due), outcomes=outcomes)
