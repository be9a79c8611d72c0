"""What a run is worth beside its headline: cheap ways, controls, retention, calibration and style."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
from numpy.typing import NDArray

from tunesmith.config.style_rules import columns
from tunesmith.data.examples.types import Chat, Example, LabelledText, Pair, UnpairedPreference
from tunesmith.data.files import read_page, write_whole
from tunesmith.data.text.domain_terms import general_text
from tunesmith.data.tokenization.tokenizer import frame
from tunesmith.evaluation.predict import AnswersByArm, AnswerSet, question, reference_answers
from tunesmith.evaluation.results import Calibration, Retention, Style
from tunesmith.evaluation.retention import WINDOW, GeneralAbility, by_field, flips, items, measure
from tunesmith.inference.local_model import LocalModel
from tunesmith.metrics import calibration, style
from tunesmith.metrics.baselines import linear_probe, majority, tfidf_classifier
from tunesmith.models.families import positions_of
from tunesmith.models.loading.bundled_models import cache_dir
from tunesmith.models.policy import Policy
from tunesmith.training.prepare import TrainingContext

# Accuracy that the "do not answer" threshold is set for, on validation.
TARGET_ACCURACY = 0.95
CURVE_POINTS = 21
HEAD_ONLY, SHUFFLED = "head only, frozen model", "shuffled labels"


def baselines(prepared: TrainingContext, test: Sequence[Example]) -> AnswersByArm:
    """What labels cost without a language model: the commonest label, and TF-IDF with logistic regression."""
    objective = prepared.recipe.objective
    if objective.label_mode != "single":
        return {}
    train = [(e.text, e.labels[0]) for e in prepared.loaded.split.train if isinstance(e, LabelledText)]
    texts = [question(example) for example in test]
    metric = objective.probe_metric
    return {
        "most frequent label": [majority([label for _, label in train])] * len(texts),
        "TF-IDF + logistic regression": tfidf_classifier(train, texts, metric=metric, seed=prepared.recipe.seed),
    }


def frozen_head_control(prepared: TrainingContext, model: LocalModel, test: Sequence[Example]) -> AnswersByArm:
    """A linear head on the frozen model's states: what no technique should fail to beat. Before tuning only.

    Nothing for an encoder, whose base is that very head.
    """
    objective = prepared.recipe.objective
    if objective.label_mode != "single" or prepared.base.family == "encoder":
        return {}
    train = prepared.loaded.split.train
    learn, ask = (model.embed([question(e) for e in part]).numpy() for part in (train, test))
    return {HEAD_ONLY: linear_probe(learn, reference_answers(train), ask, metric=objective.probe_metric)}


def shuffled_labels(prepared: TrainingContext) -> TrainingContext:
    """The same rows with the answers dealt out at random: a run on them must not win."""
    chance = random.Random(f"{prepared.recipe.seed}/control")
    split = prepared.loaded.split
    dealt = replace(split, train=_dealt(split.train, chance), validation=_dealt(split.validation, chance))
    # Not to learn is no fault of a control.
    recipe = prepared.recipe.model_copy(
        update={"schedule": prepared.recipe.schedule.model_copy(update={"probe": False})}
    )
    objective, limit = recipe.objective, recipe.data.max_tokens
    encode = [
        [objective.encode(example, prepared.template, limit=limit) for example in part]
        for part in (dealt.train, dealt.validation)
    ]
    loaded = replace(prepared.loaded, split=dealt)
    return replace(prepared, recipe=recipe, loaded=loaded, train=encode[0], validation=encode[1])


def _dealt(examples: Sequence[Example], chance: random.Random) -> list[Example]:
    """The questions in their order, each with the answer of another."""
    order = list(range(len(examples)))
    chance.shuffle(order)
    chats = [example for example in examples if isinstance(example, Chat)]
    if len(chats) == len(examples):
        return _dealt_turns(chats, order)
    mixed: list[Example] = []
    for example, other in zip(examples, (examples[i] for i in order), strict=True):
        if isinstance(example, LabelledText) and isinstance(other, LabelledText):
            mixed.append(replace(example, labels=other.labels))
        elif isinstance(example, UnpairedPreference) and isinstance(other, UnpairedPreference):
            mixed.append(replace(example, good=other.good))
        elif isinstance(example, Pair):
            turned = chance.random() < 0.5
            first, second = (example.rejected, example.chosen) if turned else (example.chosen, example.rejected)
            cut = (example.cut[turned], example.cut[not turned])
            mixed.append(replace(example, chosen=first, rejected=second, cut=cut))
    return mixed


def _dealt_turns(chats: Sequence[Chat], order: Sequence[int]) -> list[Example]:
    """The chats, each with what the assistant said and called in another, turn by turn.

    Calls stand where calls stood, so that results of tools follow a call.
    """
    turns = [list(chat.messages) for chat in chats]
    for calling in (True, False):
        places = [
            [at for at, m in enumerate(chat.messages) if m.role == "assistant" and bool(m.calls) == calling]
            for chat in chats
        ]
        givers = (i for i in order if places[i])
        for taker, giver in zip((i for i, own in enumerate(places) if own), givers, strict=True):
            for number, at in enumerate(places[taker]):
                told = chats[giver].messages[places[giver][number % len(places[giver])]]
                turns[taker][at] = replace(turns[taker][at], content=told.content, calls=told.calls)
    return [replace(chat, messages=tuple(own)) for chat, own in zip(chats, turns, strict=True)]


def general_window(prepared: TrainingContext) -> int:
    """Tokens of a window of general text: fewer than usual where the model has no room for them behind virtual ones."""
    positions = positions_of(prepared.base.network.config.to_dict())
    taken = prepared.recipe.technique.virtual_tokens() + len(frame(prepared.template.tokenizer)[0])
    return min(WINDOW, max(2, positions - taken)) if positions else WINDOW


def base_general_ability(prepared: TrainingContext, policy: Policy) -> GeneralAbility | None:
    """General ability of the base as it lies in memory, kept in the user's cache; None for encoders."""
    if policy.family != "decoder":
        return None
    window = general_window(prepared)
    said = [*general_text(), *map(repr, items()), *map(str, frame(prepared.template.tokenizer)[0])]
    said += [str(window)] if window != WINDOW else []
    asked = hashlib.sha256("\n".join(said).encode()).hexdigest()[:12]
    bits = prepared.recipe.technique.load_options().quantize or "whole"  # the fingerprint is the same in 4 bits
    kept = cache_dir() / "general" / f"{prepared.base.fingerprint}-{prepared.template.hash}-{bits}-{asked}.json"
    if kept.exists():
        return read_page(kept, GeneralAbility)
    found = measure(policy, prepared.template, window=window)
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_whole(kept, json.dumps(asdict(found)))
    return found


def retention(base: GeneralAbility, tuned: GeneralAbility) -> Retention:
    """Base against tuned on general text and probe."""
    lost, won, p_value = flips(base, tuned)
    before, after = by_field(items(), base.right), by_field(items(), tuned.right)
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
    """Fit on validation rows the model's temperature and the confidence from which on it answers, and set them.

    Nothing is set where nothing can be calibrated: no labels, several a row, no validation rows.
    """
    for name, task in prepared.subtasks.items():
        view = model.at(name)
        fit_calibration(task, view)
        model.temperatures = {**model.temperatures, name: view.temperature}
        if view.threshold is not None:
            model.thresholds = {**model.thresholds, name: view.threshold}
    validation = prepared.loaded.split.validation
    if not _calibrates(prepared):
        return
    truth = _places(prepared, validation)
    logits = model.label_logits([question(e) for e in validation]).numpy()
    model.temperature = calibration.fit_temperature(logits, truth)
    chosen = calibration.softmax(logits, temperature=model.temperature)
    right = chosen.argmax(axis=1) == truth
    model.threshold = calibration.threshold_for(chosen.max(axis=1), right, TARGET_ACCURACY)


def reliability(prepared: TrainingContext, model: LocalModel, tuned: AnswerSet) -> Calibration | None:
    """How far the probabilities of the test answers hold, before and after the temperature."""
    if not _calibrates(prepared):
        return None
    objective, truth = prepared.recipe.objective, _places(prepared, prepared.test)
    after = np.array([[row[label] for label in objective.known_labels] for row in tuned.probabilities])
    logits = model.temperature * np.log(np.maximum(after, 1e-300))  # up to a constant in each row
    before, right = calibration.softmax(logits), after.argmax(axis=1) == truth
    curve = calibration.coverage_curve(after.max(axis=1), right)
    sure = after.max(axis=1) >= (2.0 if model.threshold is None else model.threshold)
    return Calibration(
        temperature=model.temperature,
        ece_before=calibration.ece(before.max(axis=1), right),
        ece=calibration.ece(after.max(axis=1), right),
        brier=calibration.brier(after, truth),
        coverage=[curve[i] for i in np.linspace(0, len(curve) - 1, min(CURVE_POINTS, len(curve))).round().astype(int)],
        threshold=model.threshold,
        target_accuracy=TARGET_ACCURACY,
        answered=None if model.threshold is None else float(sure.mean()),
        answered_right=float(right[sure].mean()) if sure.any() else None,
    )


def _calibrates(prepared: TrainingContext) -> bool:
    return prepared.recipe.objective.label_mode == "single" and bool(prepared.loaded.split.validation)


def _places(prepared: TrainingContext, examples: Sequence[Example]) -> NDArray[np.int64]:
    """[N]: each row's label as its place in the objective's list."""
    labels = prepared.recipe.objective.known_labels
    return np.array([labels.index(label) for label in reference_answers(examples)])


def style_report(
    prepared: TrainingContext, test: Sequence[Example], *, base: AnswerSet, tuned: AnswerSet
) -> Style | None:
    """How near both models' answers are to the people's: discriminator, the recipe's rules, habits."""
    if prepared.recipe.objective.produces == "labels":
        return None
    wanted = reference_answers(test)
    rules, rows = style.rules_of(prepared.recipe.style), columns(prepared.recipe, test)
    texts = (base.given, tuned.given, wanted)
    rates = [style.rule_rates(part, rules, rows) for part in texts]
    finished = (base.finished, tuned.finished, [True] * len(wanted))
    found = [asdict(style.habits(part, finished=ends)) for part, ends in zip(texts, finished, strict=True)]
    enough = len(wanted) >= style.FEWEST_PAIRS
    return Style(
        auc_base=style.discriminator_auc(base.given, wanted) if enough else None,
        auc_tuned=style.discriminator_auc(tuned.given, wanted) if enough else None,
        rules={rule.name: _three([rate[rule.name] for rate in rates]) for rule in rules},
        habits={name: _three([float(side[name]) for side in found]) for name in found[0]},
    )


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    base, tuned, human = values
    return base, tuned, human
