"""Models that can do a job, with their score, time and memory before any is tuned, and the cheapest that holds."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import numpy as np

from tunesmith.config.model_choice import DECODER, ENCODER, pick_by_rule
from tunesmith.config.recipe import AnyObjective
from tunesmith.config.resolve import BYTES_A_TOKEN, default_epochs, size_of
from tunesmith.data.examples.types import Example, LabelledText
from tunesmith.data.tokenization.tokenizer import fragment_share
from tunesmith.data.user_cache import models_dir
from tunesmith.errors import TunesmithError
from tunesmith.events import EventHandler, Note, StageStarted
from tunesmith.metrics.cross_validation import LabelledRows, MeasuredScore, majority_score, probe_score, tfidf_score
from tunesmith.pipelines.plan.forecast import rough_forecast
from tunesmith.pipelines.plan.gains import FOREIGN, GAINS, Gain, expected_score, reachable
from tunesmith.pipelines.plan.report import Bounds, ModelCandidate, ModelChoice
from tunesmith.pipelines.plan.rough_costs import ROUGH_SIZES, RoughRun
from tunesmith.report.formatting import duration, figure

# A candidate holds if it may reach the best expected score less this much; the same margin as `compare.margin`.
MARGIN = 0.02
TFIDF, PROBE = "tf-idf", "probe"
# Cheapest first.
ABOUT = {
    TFIDF: "TF-IDF with logistic regression",
    PROBE: f"linear probe on {ENCODER}",
    ENCODER: "tuned encoder",
    DECODER: "tuned decoder",
}
GAIN_OF: Mapping[str, Gain] = {ENCODER: GAINS["encoder"], DECODER: GAINS["decoder"]}
# What is measured stays within about 15 s on two cores: rows, characters of each row, and characters of all rows.
MOST_ROWS, ROW_CHARACTERS, CHARACTERS = 2_000, 600, 350_000
# The same for the probe: 15,000 tokens take an encoder of 22 million parameters about 4 s.
PROBE_TOKENS, PROBE_CHARACTERS = 64, 60_000
# Bytes of a process that has loaded the libraries, and its bounds as factors (`bench/PLAN.md`: 12 runs).
PROCESS, MEMORY_BOUNDS = 1.2e9, (0.6, 1.6)
TFIDF_BYTES, BYTES_PER_CHARACTER = 100e6, 200.0
VALUE, ADAM = 4, 12  # bytes of a weight, and of its gradient and the two moments
LORA_SHARE = 0.036  # trainable parameters of the default rank
PASS_OVER_KEPT = 1.3
# Tokens of a row and of a micro-batch at most, as `init` and `tune` limit them.
LONGEST = {"encoder": 256, "decoder": 2_048}
PASS_TOKENS = 4_096
MEASURED_BOUNDS = (0.5, 2.0)


@dataclass(frozen=True, slots=True)
class Job:
    """The objective and the rows that the candidates are compared for."""

    objective: AnyObjective  # bound to the rows
    examples: Sequence[Example]
    test_rows: int  # rows that the score of a run is measured on
    validation_rows: int
    train_rows: int
    # Model -> seconds of a whole run, and its peak memory in bytes, if better known than by a rough forecast.
    costs: Mapping[str, tuple[Bounds, Bounds]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Measured:
    """A measured score and the seconds of the measurement."""

    score: MeasuredScore | None = None
    seconds: float = 0.0


def choose_model(job: Job, *, on_event: EventHandler, probe: bool = True, model: str = "") -> ModelChoice:
    """Compare what can do a job, and choose the cheapest that is expected to score as high as the best.

    Labels: TF-IDF is measured by cross-validation, and the probe too if the encoder is in the cache; the tuned models
    are forecast from them by the gains of earlier runs. Other objectives: no score is known, and a rule decides.

    Args:
        job: objective and rows.
        on_event: observes the progress.
        probe: measure the probe, which loads the encoder.
        model: the model that the user named; it is not chosen again.
    """
    if job.objective.produces != "labels":
        return _by_objective(job, model)
    rows = _sampled(job, CHARACTERS, ROW_CHARACTERS)
    on_event(StageStarted(f"scoring {ABOUT[TFIDF]} by cross-validation on {len(rows.texts)} rows"))
    for module in ("feature_extraction.text", "linear_model", "model_selection"):
        import_module(f"sklearn.{module}")  # takes longer than the fits, which are timed
    started = time.perf_counter()
    tfidf = _Measured(tfidf_score(rows), time.perf_counter() - started)
    probed = _measure_probe(job, on_event) if probe else _Measured()
    chance = majority_score(rows)
    best = max(
        (measured.score for measured in (tfidf, probed) if measured.score),
        key=lambda score: score.score,
        default=None,
    )
    networks = [_network(job, name, best, chance) for name in (ENCODER, DECODER)]
    cheap = [_cheap(TFIDF, tfidf, job), *([_cheap(PROBE, probed, job)] if probe else [])]
    candidates = _judged([*cheap, *networks], best)
    sufficient = next((part.name for part in candidates if part.holds), ENCODER)
    chosen = model or next((part.name for part in candidates if part.holds and part.name in GAIN_OF), ENCODER)
    return ModelChoice(
        metric=rows.metric,
        margin=MARGIN,
        candidates=candidates,
        sufficient=sufficient,
        model=chosen,
        reasons=_reasons(candidates, sufficient, chosen, chance=chance if best and best.low <= chance else None),
    )


def _by_objective(job: Job, model: str) -> ModelChoice:
    """Return the models that can learn an objective without labels."""
    pick = pick_by_rule(job.objective, frozenset())
    names = [name for name in (ENCODER, DECODER) if ROUGH_SIZES[name].family in job.objective.families]
    candidates = [
        ModelCandidate(
            name=name,
            about=ABOUT[name],
            basis="",
            seconds=_seconds(job, name),
            memory=_memory(job, name),
            holds=True,
            fragments=_fragments(name, _texts(job)),
        )
        for name in names
    ]
    chosen = model or pick.model
    return ModelChoice(
        candidates=candidates, sufficient=chosen, model=chosen, reasons=[job.objective.unsuited or pick.reason]
    )


def _texts(job: Job) -> list[str]:
    """Return a sample of the texts."""
    from tunesmith.data.examples.preferences import written

    chosen = random.Random(0).sample(range(len(job.examples)), min(200, len(job.examples)))
    return [written(job.examples[index]) for index in chosen]


def _sampled(job: Job, characters: int, of_each: int) -> LabelledRows:
    """Return a random sample of whole groups, at most `characters` in all and `of_each` per row."""
    labelled = [example for example in job.examples if isinstance(example, LabelledText)]
    groups: dict[str, list[LabelledText]] = {}
    for example in labelled:
        groups.setdefault(example.group or f"\n{example.where}", []).append(example)
    names = list(groups)
    random.Random(0).shuffle(names)
    chosen: list[LabelledText] = []
    total = 0
    for name in names:
        total += sum(min(of_each, len(example.text)) for example in groups[name])
        if chosen and (total > characters or len(chosen) + len(groups[name]) > MOST_ROWS):
            break
        chosen += groups[name]
    metric = getattr(job.objective, "metric", "accuracy")
    return LabelledRows(
        texts=[example.text[:of_each] for example in chosen],
        labels=[example.labels for example in chosen],
        groups=[example.group or f"\n{example.where}" for example in chosen]
        if any(example.group for example in chosen)
        else None,
        metric=metric if job.objective.label_mode == "single" else "sample_f1",
    )


def _measure_probe(job: Job, on_event: EventHandler) -> _Measured:
    """Score a linear probe on the frozen encoder, if that is in the cache."""
    if _tokenizer(ENCODER) is None:
        on_event(Note(f"{ENCODER} is not in the cache, so its probe is not measured"))
        return _Measured()
    rows = _sampled(job, PROBE_CHARACTERS, 4 * PROBE_TOKENS)
    on_event(StageStarted(f"scoring a {ABOUT[PROBE]} on {len(rows.texts)} rows (--quick skips this)"))
    from tunesmith.models.loading.load import load_base
    from tunesmith.models.sentence_embeddings import sentence_vectors

    try:
        base = load_base(ENCODER, offline=True)
        started = time.perf_counter()
        vectors = sentence_vectors(base, rows.texts, PROBE_TOKENS)
    except TunesmithError as error:
        on_event(Note(f"the probe is not measured: {error}"))
        return _Measured()
    return _Measured(probe_score(rows, vectors), time.perf_counter() - started)


def _cheap(name: str, measured: _Measured, job: Job) -> ModelCandidate:
    """Return the candidate of a classifier that was measured."""
    if measured.score is None:
        return ModelCandidate(name=name, about=ABOUT[name], basis="", note="not measured")
    score = measured.score
    times = len(job.examples) / score.rows
    if name == TFIDF:
        characters = sum(len(example.text) for example in job.examples if isinstance(example, LabelledText))
        memory = Bounds.around(TFIDF_BYTES + BYTES_PER_CHARACTER * characters, *MEMORY_BOUNDS)
    else:
        memory = Bounds.around(PROCESS + VALUE * ROUGH_SIZES[ENCODER].parameters, *MEMORY_BOUNDS)
    return ModelCandidate(
        name=name,
        about=ABOUT[name],
        basis="measured",
        score=Bounds(low=round(score.low, 6), expected=round(score.score, 6), high=round(score.high, 6)),
        rows=score.rows,
        seconds=Bounds.around(measured.seconds * max(1.0, times), *MEASURED_BOUNDS),
        memory=memory,
    )


def _network(job: Job, name: str, best: MeasuredScore | None, chance: float) -> ModelCandidate:
    """Return the candidate of a tuned model."""
    gain = GAIN_OF[name]
    fragments = _fragments(name, _texts(job))
    note = ""
    if fragments is not None and fragments >= FOREIGN:
        note = f"{fragments:.0%} of the tokens are bytes or unknown: it was not trained on this language"
    score = None
    if best:
        score = expected_score(best, gain, chance=chance, fragments=fragments or 0.0, test_rows=job.test_rows)
    return ModelCandidate(
        name=name,
        about=ABOUT[name],
        basis="expected" if score else "",
        score=score,
        seconds=_seconds(job, name),
        memory=_memory(job, name),
        fragments=fragments,
        note=note,
    )


def _judged(candidates: Sequence[ModelCandidate], best: MeasuredScore | None) -> list[ModelCandidate]:
    """Mark the candidates that may reach the best expected score less the margin.

    What is measured must have that score: its chance is the same for all candidates, which are forecast from the same
    rows. What is forecast must be able to reach it, so that only a clear lead justifies the more expensive model.
    """
    target = max((part.score.expected for part in candidates if part.score), default=math.inf) - MARGIN
    judged = []
    for part in candidates:
        reach = -math.inf
        if part.score and part.basis == "measured":
            reach = part.score.expected
        elif part.score and best:
            reach = reachable(best, GAIN_OF[part.name], part.fragments or 0.0)
        judged.append(part.model_copy(update={"holds": reach >= target}))
    return judged


def _reasons(candidates: Sequence[ModelCandidate], sufficient: str, chosen: str, *, chance: float | None) -> list[str]:
    """Return the reasons of a choice, the most important first."""
    named = {part.name: part for part in candidates}
    networks = [named[ENCODER], named[DECODER]]
    first = named.get(sufficient, networks[0])
    reasons = []
    if chance is not None:
        reasons.append(
            f"nothing that was measured is better than the most frequent label ({figure(chance)}): whether tuning is, "
            "is unknown; check the labels"
        )
    elif first.basis == "measured" and first.score and first.seconds:
        added = sorted(max(0.0, part.score.expected - first.score.expected) for part in networks if part.score)
        reasons.append(
            f"{first.about} scores {figure(first.score.expected)} in {duration(first.seconds.expected)}; fine-tuning "
            f"is expected to add {added[0]:.2f} to {added[-1]:.2f}"
        )
    if all(part.score is None for part in networks):
        reasons.append(f"no score could be measured on these rows; {ENCODER} is the cheapest network")
    elif chosen in named:
        cheapest = first.basis == "measured" or chance is not None
        rest = "the cheapest network" if cheapest else "the cheapest that may score as high as the best"
        reasons.append(f"{chosen} is {rest}: expected {_expected(named[chosen])}")
    for other in networks:
        if other.name != chosen:
            reasons.append(f"{other.name}: expected {_expected(other)}; to tune it instead: --model {other.name}")
    reasons += [f"{part.name}: {part.note}" for part in networks if part.note]
    if all(part.note for part in networks):
        reasons.append("a multilingual model, named with --model, may learn these rows better")
    return reasons


def _expected(part: ModelCandidate) -> str:
    """Return score and time of a network."""
    seconds = "" if part.seconds is None else f"in about {duration(part.seconds.expected)}"
    if part.score is None:
        return seconds
    return f"{figure(part.score.expected)} ({figure(part.score.low)} to {figure(part.score.high)}) {seconds}"


def _run(job: Job, name: str) -> RoughRun:
    """Return the statistics of a run with a bundled model."""
    sizes = [size_of(example) for example in job.examples]
    size = ROUGH_SIZES[name]
    return RoughRun(
        size=size,
        objective=job.objective.kind,
        technique="full" if size.family == "encoder" else "lora",
        train=job.train_rows,
        validation=job.validation_rows,
        test=job.test_rows,
        characters=float(np.mean(np.minimum(sizes, BYTES_A_TOKEN * LONGEST[size.family]))),
        answer_tokens=float(getattr(job.objective, "max_new_tokens", 0)) if job.objective.produces == "text" else 0.0,
        epochs=float(default_epochs(job.objective, job.train_rows + job.validation_rows + job.test_rows)[0]),
    )


def _seconds(job: Job, name: str) -> Bounds:
    """Return the seconds of a whole run with a bundled model."""
    if name in job.costs:
        return job.costs[name][0]
    forecast = rough_forecast(_run(job, name))
    return Bounds(low=forecast.low, expected=forecast.seconds, high=forecast.high)


def _memory(job: Job, name: str) -> Bounds:
    """Return the peak memory of tuning a bundled model: weights, optimizer, and the activations of 16 long rows."""
    if name in job.costs:
        return job.costs[name][1]
    run = _run(job, name)
    size = run.size
    trainable = size.parameters * (1 if run.technique == "full" else LORA_SHARE)
    longest = float(np.percentile([size_of(example) for example in job.examples], 95)) / BYTES_A_TOKEN
    tokens = min(PASS_TOKENS, run.batch_rows * min(longest, LONGEST[size.family]))
    activations = PASS_OVER_KEPT * size.trained_bytes * tokens
    return Bounds.around(PROCESS + VALUE * size.parameters + ADAM * trainable + activations, *MEMORY_BOUNDS)


def _fragments(name: str, texts: Sequence[str]) -> float | None:
    """Return the fragment share of a bundled model; None if its tokenizer is not in the cache."""
    file = _tokenizer(name)
    return None if file is None else fragment_share(file, texts)


def _tokenizer(name: str) -> Path | None:
    """Return the tokenizer of a bundled model in the cache, found without importing torch."""
    return next(iter(sorted(models_dir().glob(f"{name}-*/tokenizer.json"))), None)
