"""Simulated answers of two models to the same held-out rows, judged by the evaluators of the reports.

Every kind of answer follows from one latent quality per row and model: normal noise, what all rows of a group share,
and `tilt`, by how much a group suits one model or the other. Without an `effect` both models are equally good over all
groups there could be, so that every "better" is false.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import beta

from tunesmith.data.examples.prompts import RLPrompt
from tunesmith.data.examples.types import (
    Chat,
    Example,
    LabelledText,
    Pair,
    Query,
    RatedText,
    Span,
    TaggedText,
    Text,
    UnpairedPreference,
)
from tunesmith.data.tokenization.messages import Message
from tunesmith.evaluation import perplexity
from tunesmith.evaluation.evaluators import EvalSet, evaluator_for
from tunesmith.evaluation.evaluators.answers import AnswerPredictions
from tunesmith.evaluation.evaluators.numbers import NumberPredictions
from tunesmith.evaluation.evaluators.perplexity import PerplexityPredictions
from tunesmith.evaluation.evaluators.preferences import PairScores
from tunesmith.evaluation.evaluators.retrieval import RankedPassages
from tunesmith.evaluation.evaluators.rewards import RewardedCompletions
from tunesmith.evaluation.evaluators.spans import SpanPredictions
from tunesmith.evaluation.perplexity import TokenLikelihood
from tunesmith.evaluation.predict import AnswerSet
from tunesmith.inference.scoring import AnswerScore
from tunesmith.metrics import significance
from tunesmith.metrics.task_scores import LABEL_BREAK, TaskScore
from tunesmith.objectives import Classify, Domain, Embed, Instruct, Preference, Regress, Reward, Rl, Tag

FloatArray = NDArray[np.float64]
Drawn = tuple[Any, list[Example], list[Any]]  # objective, held-out rows, predictions of base and tuned model

LABELS = ("a", "b", "c")
TOPICS = ("screen", "battery", "price", "camera")
WORDS = [f"word{i}" for i in range(200)]
PROMPT = (Message("user", "?"),)


@dataclass(frozen=True, slots=True)
class Design:
    """A set of held-out rows: their number, or the sizes of their groups."""

    sizes: tuple[int, ...]
    tilt: float = 0.0  # in standard deviations of the noise
    shared: float = 0.5  # of the quality, by all rows of a group and both models

    @property
    def groups(self) -> list[str]:
        """The group of each row; empty where every row is its own."""
        return [f"g{i}" if max(self.sizes) > 1 else "" for i, size in enumerate(self.sizes) for _ in range(size)]


def rows(count: int) -> Design:
    """Rows without groups."""
    return Design((1,) * count)


DESIGNS = {
    "12 rows": rows(12),
    "40 rows": rows(40),
    "150 rows": rows(150),
    "7 groups of 5": Design((5,) * 7, tilt=0.7),
    "15 groups of 8": Design((8,) * 15, tilt=0.7),
    "12 groups of 1 to 40": Design((40, 20, 20, 10, 10, 5, 5, 2, 2, 1, 1, 1), tilt=0.7),
}


@dataclass(frozen=True, slots=True)
class Latent:
    """The quality of each model in each row, [N] each, and what answers are drawn with."""

    rng: np.random.Generator
    sides: tuple[FloatArray, FloatArray]
    groups: list[str]

    @classmethod
    def draw(cls, design: Design, *, effect: float, seed: Sequence[int]) -> Latent:
        """Draw qualities; `effect` is the gain of the tuned model in standard deviations."""
        rng = np.random.default_rng(seed)
        count, groups = sum(design.sizes), len(design.sizes)
        shared = design.shared * np.repeat(rng.normal(size=groups), design.sizes)
        sides = []
        for gain in (0.0, effect):
            tilt = design.tilt * np.repeat(rng.normal(size=groups), design.sizes)
            sides.append(gain + shared + tilt + rng.normal(size=count))
        return cls(rng, (sides[0], sides[1]), design.groups)

    def places(self) -> list[tuple[str, str]]:
        """The location and the group of each row."""
        return [(f"rows:{i}", group) for i, group in enumerate(self.groups)]

    def either(self, right: list[str], wrong: list[str]) -> list[list[str]]:
        """The answers of both models: right where their quality is above 0."""
        return [[r if z > 0 else w for r, w, z in zip(right, wrong, side, strict=True)] for side in self.sides]


def _answers(given: list[list[str]]) -> list[Any]:
    return [AnswerPredictions(AnswerSet(side, "", 1.0)) for side in given]


def _chats(latent: Latent, references: list[str]) -> list[Example]:
    turns = [(*PROMPT, Message("assistant", text)) for text in references]
    return [Chat(where, said, group) for (where, group), said in zip(latent.places(), turns, strict=True)]


def labels(latent: Latent, metric: str) -> Drawn:
    """One label of three."""
    gold = latent.rng.choice(LABELS, len(latent.groups), p=(0.5, 0.3, 0.2)).tolist()
    wrong = [str(latent.rng.choice([label for label in LABELS if label != right])) for right in gold]
    found = [LabelledText(where, "", (g,), group) for (where, group), g in zip(latent.places(), gold, strict=True)]
    return Classify(labels=LABELS, metric=metric), list(found), _answers(latent.either(gold, wrong))


def topics(latent: Latent) -> Drawn:
    """Any of four labels; each is guessed by itself."""
    gold = latent.rng.random((len(latent.groups), 4)) < 0.4
    given = [gold ^ (latent.rng.random(gold.shape) < ndtr(-side / 2 - 0.5)[:, None]) for side in latent.sides]
    names = [[[t for t, has in zip(TOPICS, row, strict=True) if has] for row in side] for side in (gold, *given)]
    found = [
        LabelledText(where, "", tuple(own), group, multi=True)
        for (where, group), own in zip(latent.places(), names[0], strict=True)
    ]
    texts = [[LABEL_BREAK.join(sorted(row)) for row in side] for side in names[1:]]
    return Classify(labels=TOPICS, multi=True, metric="sample_f1"), list(found), _answers(texts)


def texts(latent: Latent, metric: str) -> Drawn:
    """Eight words; the better the model, the more of them are those of the reference."""
    words = latent.rng.choice(WORDS, (len(latent.groups), 8))
    other = latent.rng.choice(WORDS, words.shape)
    given = [np.where(latent.rng.random(words.shape) < ndtr(side)[:, None], words, other) for side in latent.sides]
    answers = [[" ".join(row) for row in side] for side in given]
    return Instruct(metric=metric), _chats(latent, [" ".join(row) for row in words]), _answers(answers)


def exact(latent: Latent) -> Drawn:
    """A short answer that is right or wrong."""
    gold, wrong = latent.rng.choice(WORDS, (2, len(latent.groups))).tolist()
    return Instruct(metric="exact_match"), _chats(latent, gold), _answers(latent.either(gold, wrong))


def calls(latent: Latent) -> Drawn:
    """A tool call with one argument, or none in one row of four."""
    gold, wrong = (
        [
            ("no call" if i % 4 == 3 else "<tool_call>\n%s\n</tool_call>")
            % (() if i % 4 == 3 else json.dumps({"name": "find", "arguments": {"number": start + i}}))
            for i in range(len(latent.groups))
        ]
        for start in (0, 1)
    )
    wrong = [gold[0] if text == "no call" else text for text in wrong]
    return Instruct(metric="tool_calls"), _chats(latent, gold), _answers(latent.either(gold, wrong))


def documents(latent: Latent) -> Drawn:
    """Documents of uneven length, some of them hard for both models."""
    tokens = latent.rng.integers(20, 200, len(latent.groups))
    hard = latent.rng.gamma(2.0, 0.5, len(latent.groups))
    told = [
        [
            TokenLikelihood(float(n * (2 + h - 0.1 * z)), int(n), int(n * 0.3), int(4 * n), 0, 0)
            for n, h, z in zip(tokens, hard, side, strict=True)
        ]
        for side in latent.sides
    ]
    found = [Text(where, "", group) for where, group in latent.places()]
    return Domain(metric="perplexity"), list(found), [PerplexityPredictions(side, 1.0) for side in told]


def pairs(latent: Latent, objective: Any) -> Drawn:
    """Pairs of answers; their scores differ by the quality."""
    found = [Pair(where, PROMPT, "yes", "no", group) for where, group in latent.places()]
    values = [[(AnswerScore(float(z), 1), AnswerScore(0.0, 1)) for z in side] for side in latent.sides]
    return objective, list(found), [PairScores(side, 1.0) for side in values]


def thumbs(latent: Latent) -> Drawn:
    """Answers rated good or bad."""
    good = latent.rng.random(len(latent.groups)) < 0.6
    good[:2] = True, False
    found = [
        UnpairedPreference(where, PROMPT, "yes", bool(g), group)
        for (where, group), g in zip(latent.places(), good, strict=True)
    ]
    signs = np.where(good, 1.0, -1.0)
    values = [[(AnswerScore(float(s * z), 1),) for s, z in zip(signs, side, strict=True)] for side in latent.sides]
    return Preference(loss="kto", metric="thumbs_auc"), list(found), [PairScores(side, 1.0) for side in values]


def numbers(latent: Latent) -> Drawn:
    """Numbers; the better the model, the nearer its own are."""
    gold = latent.rng.normal(size=len(latent.groups))
    given = [gold * 0.5 + latent.rng.normal(size=len(gold)) * np.exp(-side / 2) for side in latent.sides]
    found = [RatedText(where, "", float(g), group) for (where, group), g in zip(latent.places(), gold, strict=True)]
    return Regress(), list(found), [NumberPredictions(side.tolist(), 1.0) for side in given]


def zero(completion: Any) -> float:
    """Reward nothing; the rewards of `rewarded` are drawn."""
    return 0.0


def rewarded(latent: Latent) -> Drawn:
    """Completions with skewed rewards."""
    found = [RLPrompt(where, PROMPT, group) for where, group in latent.places()]
    none = AnswerSet([""] * len(found), "", 1.0)
    sides = [RewardedCompletions(none, np.exp(side).tolist()) for side in latent.sides]
    return Rl(reward="bench.noise.paired:zero"), list(found), sides


def ranked(latent: Latent) -> Drawn:
    """Searches; the better the model, the nearer to the top is the right one of as many passages as there are rows."""
    count = len(latent.groups)
    found = [Query(where, f"query {i}", f"passage {i}", group) for i, (where, group) in enumerate(latent.places())]
    sides = []
    for side in latent.sides:
        above = np.minimum(latent.rng.geometric(0.05 + 0.9 * ndtr(side)) - 1, count - 1)
        given = [[(i + 1 + j) % count for j in range(n)] + [i] for i, n in enumerate(above.tolist())]
        sides.append(RankedPassages(given, 1.0))
    return Embed(), list(found), sides


def marked(latent: Latent) -> Drawn:
    """Up to three words to mark in each text and one to leave alone; a model errs in each by itself."""
    text, words = "word " * 4, [(5 * i, 5 * i + 4) for i in range(4)]
    gold = latent.rng.random((len(latent.groups), 4)) < (0.6, 0.6, 0.6, 0.0)
    given = [gold ^ (latent.rng.random(gold.shape) < ndtr(-side)[:, None]) for side in latent.sides]
    spans = [
        [[Span(*word, "thing") for word, has in zip(words, row, strict=True) if has] for row in side]
        for side in (gold, *given)
    ]
    found = [
        TaggedText(where, text, tuple(own), group)
        for (where, group), own in zip(latent.places(), spans[0], strict=True)
    ]
    return Tag(labels=("thing",)), list(found), [SpanPredictions(side, 1.0) for side in spans[1:]]


KINDS: Mapping[str, Callable[[Latent], Drawn]] = {
    "classify, accuracy": lambda latent: labels(latent, "accuracy"),
    "classify, macro-F1": lambda latent: labels(latent, "macro_f1"),
    "multilabel, sample F1": topics,
    "instruct, ROUGE-L": lambda latent: texts(latent, "rouge_l"),
    "instruct, exact match": exact,
    "instruct, chrF": lambda latent: texts(latent, "chrf"),
    "instruct, tool calls": calls,
    "domain, perplexity": documents,
    "preference, pairs": lambda latent: pairs(latent, Preference(metric="preference_accuracy")),
    "preference, thumbs AUC": thumbs,
    "reward, pairs": lambda latent: pairs(latent, Reward()),
    "rl, reward": rewarded,
    "regress, Spearman": numbers,
    "embed, nDCG@10": ranked,
    "tag, entity F1": marked,
}


def judged(kind: str, design: Design, *, effect: float = 0.0, seed: int) -> list[TaskScore]:
    """Judge two drawn models by the evaluator of their objective; the headline first."""
    objective, examples, (base, tuned) = KINDS[kind](
        Latent.draw(design, effect=effect, seed=(seed, list(KINDS).index(kind), sum(design.sizes)))
    )
    return evaluator_for(EvalSet(objective, examples, 512)).compare(base, tuned, name=kind)


@contextmanager
def resampling(count: int) -> Iterator[None]:
    """Resample so often instead of 10,000 times, which changes a p-value by little and takes a tenth of the time."""
    with ExitStack() as stack:
        for test in (significance.compare_paired, significance.corpus_compare):
            stack.enter_context(patch.dict(test.__kwdefaults__, resamples=count))
        stack.enter_context(patch.object(perplexity, "RESAMPLES", count))
        yield


def clopper_pearson(hits: int, n: int) -> tuple[float, float]:
    """The exact 95 % interval of a share. Source: Clopper and Pearson 1934."""
    low = float(beta.ppf(0.025, hits, n - hits + 1)) if hits else 0.0
    return low, float(beta.ppf(0.975, hits + 1, n - hits)) if hits < n else 1.0
