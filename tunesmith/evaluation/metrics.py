"""Scores of given answers against gold ones: one number per row where the metric allows it.

Fractions (0-1): accuracy, F1, exact match, ROUGE. On 0-100, as sacrebleu prints them: BLEU and chrF.
N rows, K labels. The gold side always comes first.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import LCSseq

from tunesmith.data.calls import calls_in
from tunesmith.data.words import spaced, words_of
from tunesmith.errors import DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Item = TypeVar("Item", bound=Hashable)
RowStatistic = Callable[[NDArray[np.intp]], tuple[float, float]]

_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
# Marks that make a number another one, and those that do not.
_OF_NUMBERS = re.compile(r"(?<=\d)[.,/](?=\d)|(?<!\w)-(?=[$€£¥]?\d)")
_MILLIONS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:\.\d{3}){2,}(?!\d|\.\d)")
_PARTS = re.compile(r"(?<![\d.,])\d+(?:\.\d+){2,}")
_BETWEEN = re.compile(r"(?<=\d)[-/:\u2010-\u2015](?=\d)")
_THOUSANDS = re.compile(r"(?<=\d)(?<!\b0)[,'’\u066c](?=\d{3}(?!\d))")
_DECIMAL = re.compile(r"(?<=\d),(?=\d)")
_BARE_POINT = re.compile(r"(?<![\w.,])\.(?=\d)")
_ASCII_PUNCTUATION = frozenset(string.punctuation)


def accuracy(gold: Sequence[str], given: Sequence[str]) -> Floats:
    """[N]: 1 where the given label is the gold one, letter for letter."""
    _same_length(gold, given)
    return np.array([float(g == h) for g, h in zip(gold, given, strict=True)])


def macro_f1(gold: Sequence[str], given: Sequence[str]) -> float:
    """The plain mean of F1 over the labels that occur in gold.

    An answer outside the gold labels costs its row's recall, but makes no class of its own: else ten
    misspellings would count as ten classes. Equals scikit-learn's `macro` where there are no such answers.
    """
    before, _ = macro_f1_pair(gold, given, given)(np.arange(len(gold)))
    return before


def macro_f1_pair(gold: Sequence[str], base: Sequence[str], tuned: Sequence[str]) -> RowStatistic:
    """From row numbers (repeats allowed) to macro-F1 of base and of tuned on them; microseconds per call."""
    _same_length(gold, base)
    _same_length(gold, tuned)
    labels = sorted(set(gold))
    truth, first, second = (_codes(side, labels) for side in (gold, base, tuned))

    def statistic(rows: NDArray[np.intp]) -> tuple[float, float]:
        here = truth[rows]
        return _macro_f1_of(here, first[rows], len(labels)), _macro_f1_of(here, second[rows], len(labels))

    return statistic


def multilabel_f1(gold: Sequence[Sequence[str]], given: Sequence[Sequence[str]]) -> Floats:
    """[N]: F1 of each row's set of labels; 1 where both sets are empty."""
    _same_length(gold, given)
    return np.array([_set_f1(set(g), set(h)) for g, h in zip(gold, given, strict=True)])


def exact_match(gold: Sequence[str], given: Sequence[str]) -> Floats:
    """[N]: 1 where the answers agree after SQuAD's normalising (case, punctuation, English articles, spaces).

    Other than in SQuAD, 3.5 is not 35 and -5 is not 5. As there, "C++" equals "c"; compare labels with `accuracy`.
    """
    _same_length(gold, given)
    return np.array([float(_normal(g) == _normal(h)) for g, h in zip(gold, given, strict=True)])


def tool_calls(gold: Sequence[str], given: Sequence[str]) -> Floats:
    """[N]: 1 where the answer calls the same tools in the same order, names and all arguments equal as JSON values."""
    _same_length(gold, given)
    return np.array([float(_typed(calls_in(g)) == _typed(calls_in(h))) for g, h in zip(gold, given, strict=True)])


def _typed(value: Any) -> Any:
    """A JSON value that equals no value of another kind: Python takes True for 1, and JSON does not."""
    if isinstance(value, dict):
        return {key: _typed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_typed(inner) for inner in value]
    return ("bool", value) if isinstance(value, bool) else value


def contains(gold: Sequence[str], given: Sequence[str]) -> Floats:
    """[N]: 1 where the gold answer stands in the given one, word for word, normalised as in `exact_match`.

    Credits an answer that is right in a whole sentence; keep answers short, for a long one may hit by chance.
    """
    _same_length(gold, given)
    return np.array([float(f" {_normal(g)} " in f" {_normal(h)} ") for g, h in zip(gold, given, strict=True)])


def token_f1(gold: Sequence[str], given: Sequence[str]) -> Floats:
    """[N]: F1 of the bags of words, normalised as in `exact_match`."""
    _same_length(gold, given)
    return np.array([_bag_f1(_normal(g).split(), _normal(h).split()) for g, h in zip(gold, given, strict=True)])


def rouge_l(gold: Sequence[str], given: Sequence[str]) -> Floats:
    """[N]: F of the longest common subsequence of words (ROUGE-L, Lin 2004).

    Words are runs of letters and digits, lower-cased, not stemmed: on English text the values are those of
    `rouge_score` with `use_stemmer=False`. In scripts without spaces between words each letter is one.
    """
    _same_length(gold, given)
    return np.array([_rouge_l(words_of(g), words_of(h)) for g, h in zip(gold, given, strict=True)])


def chrf(gold: Sequence[str], given: Sequence[str]) -> Floats:
    """[N]: sentence chrF2, 0-100."""
    from sacrebleu.metrics import CHRF

    _same_length(gold, given)
    metric = CHRF()
    return np.array([metric.sentence_score(h, [g]).score for g, h in zip(gold, given, strict=True)])


def corpus_bleu(gold: Sequence[str], given: Sequence[str]) -> float:
    """BLEU over all rows together, 0-100, as sacrebleu prints it (13a tokens, exponential smoothing)."""
    from sacrebleu.metrics import BLEU

    _same_length(gold, given)
    return float(BLEU().corpus_score(list(given), [list(gold)]).score)


def corpus_bleu_pair(gold: Sequence[str], base: Sequence[str], tuned: Sequence[str]) -> RowStatistic:
    """From row numbers (repeats allowed) to BLEU of base and of tuned; n-grams are counted once only."""
    from sacrebleu.metrics import BLEU

    before, after = _bleu_counts(gold, base), _bleu_counts(gold, tuned)

    def score(counts: Ints) -> float:
        given_length, gold_length, *ngrams = counts.tolist()
        return float(BLEU.compute_bleu(ngrams[:4], ngrams[4:], given_length, gold_length, "exp").score)

    def statistic(rows: NDArray[np.intp]) -> tuple[float, float]:
        return score(before[rows].sum(axis=0)), score(after[rows].sum(axis=0))

    return statistic


def _same_length(gold: Sequence[object], given: Sequence[object]) -> None:
    if len(gold) != len(given):
        raise ValueError(f"{len(gold)} gold answers against {len(given)} given ones")
    if not len(gold):
        raise DataError("scores: there are no rows to score; give the test set at least one row")


def _codes(side: Sequence[str], labels: list[str]) -> Ints:
    """[N]: the number of each label; all answers outside of them have one number, the last."""
    number = {label: k for k, label in enumerate(labels)}
    return np.array([number.get(label, len(labels)) for label in side], dtype=np.int64)


def _macro_f1_of(gold: Ints, given: Ints, labels: int) -> float:
    support, used = np.bincount(gold, minlength=labels), np.bincount(given, minlength=labels)[:labels]
    hits = np.bincount(gold[gold == given], minlength=labels)
    f1 = 2 * hits / np.maximum(1, support + used)
    return float(f1[support > 0].mean())


def _set_f1(gold: set[str], given: set[str]) -> float:
    total = len(gold) + len(given)
    return 2 * len(gold & given) / total if total else 1.0


def _normal(text: str) -> str:
    folded = _plain_figures(spaced(text).casefold().strip())
    figures = {found.start() for found in _OF_NUMBERS.finditer(folded)}
    kept = "".join(mark for place, mark in enumerate(folded) if place in figures or not _is_punctuation(mark))
    # An answer such as "+" or "the" would vanish, and any two vanished answers would agree.
    return " ".join(_ARTICLE.sub(" ", kept).split()) or folded


def _plain_figures(text: str) -> str:
    """Figures without marks between thousands, with a point for the decimal comma and 0 before one.

    Between the parts of dates, versions and ranges stands a stroke, whatever stood there: 1.10.0 is not 11.0.0.
    """
    text = _MILLIONS.sub(lambda figure: figure[0].replace(".", ""), text.replace("\N{MINUS SIGN}", "-"))
    text = _PARTS.sub(lambda parts: parts[0].replace(".", "/"), _THOUSANDS.sub("", text))
    return _DECIMAL.sub(".", _BARE_POINT.sub("0.", _BETWEEN.sub("/", text)))


def _is_punctuation(mark: str) -> bool:
    return mark in _ASCII_PUNCTUATION or unicodedata.category(mark).startswith("P")


def _bag_f1(gold: list[str], given: list[str]) -> float:
    return _shared_f1(Counter(gold), Counter(given)) if gold or given else 1.0


def _shared_f1(gold: Counter[Item], given: Counter[Item]) -> float:
    total = gold.total() + given.total()
    return 2 * (gold & given).total() / total if total else 0.0


def _rouge_l(gold: list[str], given: list[str]) -> float:
    total = len(gold) + len(given)
    return 2 * LCSseq.similarity(gold, given) / total if total else 0.0


def _bleu_counts(gold: Sequence[str], given: Sequence[str]) -> Ints:
    """[N, 10]: length given, length gold, n-grams found (4), n-grams there are (4)."""
    from sacrebleu.metrics import BLEU

    _same_length(gold, given)
    metric = BLEU(effective_order=True)
    scores = [metric.sentence_score(h, [g]) for g, h in zip(gold, given, strict=True)]
    return np.array([[s.sys_len, s.ref_len, *s.counts, *s.totals] for s in scores], dtype=np.int64)
