"""Scores of answers against references, per row where the metric allows it.

Fractions (0-1): accuracy, F1, exact match, ROUGE. On 0-100, as sacrebleu prints them: BLEU and chrF.
N rows, K labels. References always come first. Every metric raises ValueError for lists of unequal length and
DataError for empty ones.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import LCSseq

from tunesmith.data.examples.types import Reference
from tunesmith.data.text.words import spaced, words_of
from tunesmith.data.tokenization.tool_calls import attempts_call, calls_in
from tunesmith.errors import DataError

FloatArray = NDArray[np.float64]
Ints = NDArray[np.int64]
RowStatistic = Callable[[NDArray[np.intp]], tuple[float, float]]

_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
# Punctuation that changes the value of a number, and punctuation that does not.
_OF_NUMBERS = re.compile(r"(?<=\d)[.,/](?=\d)|(?<!\w)-(?=[$€£¥]?\d)")
_MILLIONS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:\.\d{3}){2,}(?!\d|\.\d)")
_PARTS = re.compile(r"(?<![\d.,])\d+(?:\.\d+){2,}")
_BETWEEN = re.compile(r"(?<=\d)[-/:\u2010-\u2015](?=\d)")
_THOUSANDS = re.compile(r"(?<=\d)(?<!\b0)[,'’\u066c](?=\d{3}(?!\d))")
_DECIMAL = re.compile(r"(?<=\d),(?=\d)")
_BARE_POINT = re.compile(r"(?<![\w.,])\.(?=\d)")
_ASCII_PUNCTUATION = frozenset(string.punctuation)


def accuracy(references: Sequence[str], answers: Sequence[str]) -> FloatArray:
    """Return 1 for each label equal to its reference, case included, else 0; [N]."""
    _same_length(references, answers)
    return np.array([float(r == a) for r, a in zip(references, answers, strict=True)])


def macro_f1(references: Sequence[str], answers: Sequence[str]) -> float:
    """Return the unweighted mean of F1 over the labels that occur in the references.

    An answer that is not one of these labels reduces recall but does not add a class: otherwise ten misspellings
    would count as ten classes. Equal to scikit-learn's `f1_score(average="macro")` where there are no such answers.
    """
    score, _ = macro_f1_pair(references, answers, answers)(np.arange(len(references)))
    return score


def macro_f1_pair(references: Sequence[str], base: Sequence[str], tuned: Sequence[str]) -> RowStatistic:
    """Return a function from row indices (repeats allowed) to macro-F1 of base and tuned; microseconds per call."""
    _same_length(references, base)
    _same_length(references, tuned)
    labels = sorted(set(references))
    index = {label: k for k, label in enumerate(labels)}
    # Answers that are not a label get index K.
    truth, first, second = (
        np.array([index.get(label, len(labels)) for label in side], dtype=np.int64)
        for side in (references, base, tuned)
    )

    def statistic(rows: NDArray[np.intp]) -> tuple[float, float]:
        selected = truth[rows]
        return _macro_f1_of(selected, first[rows], len(labels)), _macro_f1_of(selected, second[rows], len(labels))

    return statistic


def multilabel_f1(references: Sequence[Sequence[str]], answers: Sequence[Sequence[str]]) -> FloatArray:
    """Return F1 of the label set of each row, 1 where both sets are empty; [N]."""
    _same_length(references, answers)
    return np.array([_overlap_f1(Counter(set(r)), Counter(set(a))) for r, a in zip(references, answers, strict=True)])


def exact_match(references: Sequence[str], answers: Sequence[str]) -> FloatArray:
    """Return 1 for each answer equal to its reference after SQuAD normalization, else 0; [N].

    Normalization ignores case, punctuation, English articles and spaces. Unlike SQuAD, 3.5 differs from 35 and -5
    from 5. As in SQuAD, "C++" equals "c"; compare labels with `accuracy`.

    Source: Rajpurkar et al. 2016, arXiv 1606.05250.
    """
    _same_length(references, answers)
    return np.array([float(_normal(r) == _normal(a)) for r, a in zip(references, answers, strict=True)])


def tool_calls(references: Sequence[str], answers: Sequence[str]) -> FloatArray:
    """Return 1 for each answer with the same tool calls in the same order, arguments equal as JSON values; [N].

    Without a call in the reference, an answer is right if it neither calls a tool nor tries to.
    """
    _same_length(references, answers)
    return np.array([float(call_outcome(r, a) == "exact") for r, a in zip(references, answers, strict=True)])


# Outcomes of the calls of an answer. Each answer has the first that applies.
CallOutcome = Literal["exact", "unparsed", "missing", "not due", "number", "name", "arguments"]


def call_outcome(reference: str, answer: str) -> CallOutcome:
    """Compare the tool calls of an answer with those of its reference.

    Args:
        reference: text of the reference answer, with its calls.
        answer: text of the completion.

    Returns:
        `exact`: the same calls, or rightly none. `unparsed`: a call was started that cannot be parsed. `missing`: no
        call where one was due. `not due`: a call where none was. `number`: more or fewer calls. `name`: another
        function, or another order. `arguments`: the right functions with other arguments.
    """
    due, given = calls_in(reference), calls_in(answer)
    attempted = attempts_call(answer)
    if _typed(due) == _typed(given) and not (attempted and answer != reference):
        return "exact"
    if attempted:
        return "unparsed"
    if not given:
        return "missing"
    if not due:
        return "not due"
    if len(due) != len(given):
        return "number"
    return "name" if [call["name"] for call in due] != [call["name"] for call in given] else "arguments"


def _typed(value: Any) -> Any:
    """Return a JSON value that differs from values of other types: in Python True equals 1, in JSON it does not."""
    if isinstance(value, dict):
        return {key: _typed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_typed(inner) for inner in value]
    return ("bool", value) if isinstance(value, bool) else value


def contains(references: Sequence[str], answers: Sequence[str]) -> FloatArray:
    """Return 1 for each answer that contains its reference as whole words, normalized as in `exact_match`; [N].

    Accepts a right answer inside a sentence. Keep answers short: a long one may contain the reference by chance.
    """
    _same_length(references, answers)
    return np.array([float(f" {_normal(r)} " in f" {_normal(a)} ") for r, a in zip(references, answers, strict=True)])


def token_f1(references: Sequence[str], answers: Sequence[str]) -> FloatArray:
    """Return F1 of the bags of words, normalized as in `exact_match`; [N]. Source: Rajpurkar et al. 2016."""
    _same_length(references, answers)
    bags = (
        (Counter(_normal(r).split()), Counter(_normal(a).split())) for r, a in zip(references, answers, strict=True)
    )
    return np.array([_overlap_f1(r, a) for r, a in bags])


def rouge_l(references: Sequence[str], answers: Sequence[str]) -> FloatArray:
    """Return the F-measure of the longest common subsequence of words (ROUGE-L); [N].

    Words are runs of letters and digits, lower-cased, not stemmed: on English text the values equal those of
    `rouge_score` with `use_stemmer=False`. In scripts without spaces between words, each letter is a word.

    Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries".
    """
    _same_length(references, answers)
    return np.array([_rouge_l(words_of(r), words_of(a)) for r, a in zip(references, answers, strict=True)])


def chrf(references: Sequence[str], answers: Sequence[str]) -> FloatArray:
    """Return sentence chrF2 on 0-100; [N]. Source: Popovic 2015, by sacrebleu."""
    from sacrebleu.metrics import CHRF

    _same_length(references, answers)
    metric = CHRF()
    return np.array([metric.sentence_score(a, [r]).score for r, a in zip(references, answers, strict=True)])


def corpus_bleu(references: Sequence[Reference], answers: Sequence[str]) -> float:
    """Return corpus BLEU on 0-100 as sacrebleu prints it (13a tokens, exponential smoothing).

    A row may have several accepted references, which sacrebleu matches together.
    """
    from sacrebleu.metrics import BLEU

    _same_length(references, answers)
    accepted = [[one] if isinstance(one, str) else list(one) for one in references]
    # One list per reference of a row; rows with fewer references have None there.
    streams = [list(stream) for stream in zip_longest(*accepted)]
    return float(BLEU().corpus_score(list(answers), streams).score)


def corpus_bleu_pair(references: Sequence[Reference], base: Sequence[str], tuned: Sequence[str]) -> RowStatistic:
    """Return a function from row indices (repeats allowed) to BLEU of base and tuned; n-grams are counted once."""
    from sacrebleu.metrics import BLEU

    base_counts = _bleu_counts(references, base)
    tuned_counts = _bleu_counts(references, tuned)

    def score(counts: Ints) -> float:
        answer_length, reference_length, *ngrams = counts.tolist()
        return float(BLEU.compute_bleu(ngrams[:4], ngrams[4:], answer_length, reference_length, "exp").score)

    def statistic(rows: NDArray[np.intp]) -> tuple[float, float]:
        return score(base_counts[rows].sum(axis=0)), score(tuned_counts[rows].sum(axis=0))

    return statistic


def _same_length(references: Sequence[object], answers: Sequence[object]) -> None:
    if len(references) != len(answers):
        raise ValueError(f"{len(references)} references for {len(answers)} answers")
    if not len(references):
        raise DataError("scores: no rows to score; give the test set at least one row")


def _macro_f1_of(references: Ints, answers: Ints, labels: int) -> float:
    support = np.bincount(references, minlength=labels)
    predicted = np.bincount(answers, minlength=labels)[:labels]
    hits = np.bincount(references[references == answers], minlength=labels)
    f1 = 2 * hits / np.maximum(1, support + predicted)
    return float(f1[support > 0].mean())


def _normal(text: str) -> str:
    folded = _plain_digits(spaced(text).casefold().strip())
    in_numbers = {match.start() for match in _OF_NUMBERS.finditer(folded)}
    stripped = "".join(
        char
        for index, char in enumerate(folded)
        if index in in_numbers or not (char in _ASCII_PUNCTUATION or unicodedata.category(char).startswith("P"))
    )
    # Answers such as "+" or "the" would become empty, and all empty answers would be equal.
    return " ".join(_ARTICLE.sub(" ", stripped).split()) or folded


def _plain_digits(text: str) -> str:
    """Remove thousands separators and write decimals as 0.5.

    The parts of dates, versions and ranges are separated by a slash, so that 1.10.0 differs from 11.0.0.
    """
    text = _MILLIONS.sub(lambda match: match[0].replace(".", ""), text.replace("\N{MINUS SIGN}", "-"))
    text = _PARTS.sub(lambda match: match[0].replace(".", "/"), _THOUSANDS.sub("", text))
    return _DECIMAL.sub(".", _BARE_POINT.sub("0.", _BETWEEN.sub("/", text)))


def _overlap_f1(references: Counter[str], answers: Counter[str]) -> float:
    total = references.total() + answers.total()
    return 2 * (references & answers).total() / total if total else 1.0


def _rouge_l(references: list[str], answers: list[str]) -> float:
    total = len(references) + len(answers)
    return 2 * LCSseq.similarity(references, answers) / total if total else 0.0


def _bleu_counts(references: Sequence[Reference], answers: Sequence[str]) -> Ints:
    """Return [N, 10]: answer length, reference length, matching n-grams (4), n-grams of the answer (4)."""
    from sacrebleu.metrics import BLEU

    _same_length(references, answers)
    metric = BLEU(effective_order=True)
    accepted = [[one] if isinstance(one, str) else list(one) for one in references]
    scores = [metric.sentence_score(a, r) for r, a in zip(accepted, answers, strict=True)]
    return np.array([[s.sys_len, s.ref_len, *s.counts, *s.totals] for s in scores], dtype=np.int64)
