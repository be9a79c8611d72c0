"""Style of answers without a judge model: similarity to the references, style rules, habits."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tunesmith.data.text.words import spaced, words_of
from tunesmith.errors import DataError, RecipeError
from tunesmith.progress import track

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

FEWEST_PAIRS = 20  # below this, `discriminator_auc` is too noisy to report
FOLDS = 5
NO_ROW: Mapping[str, object] = {}
LOOP_SHARE = 0.2  # a larger share of repeated word 4-grams is a loop; texts written by people are below 0.05

# Function words: they show style and not the subject (Mosteller & Wallace 1964 used such a list).
_GRAMMAR = """
    a about after all also although am an and any are as at be because been before being but by can
    could did do does down each either even every few for from had has have he her here his how however
    i if in into is it its just may me might more most much must my no nor not now of on once one only
    or other our out over own per rather shall she should since so some such than that the their them
    then there these they this those though through to too under until up upon us very was we were what
    when where whether which while who whom whose why will with within without would yet you your
"""
FUNCTION_WORDS = tuple(words_of(_GRAMMAR))

VAGUE = re.compile(
    r"\bas an? (?:ai|language model)\b"
    r"|\bi (?:do not|don[’']t|cannot|can[’']t) (?:know|say|tell|help|provide|answer)\b"
    r"|\bi(?: a|[’'])m (?:not sure|unable|sorry)\b"
    r"|\bit (?:really )?depends\b|\bhard to say\b|\bvar(?:y|ies) (?:widely|depending)\b"
    r"|\bthere (?:are|is) (?:many|several|various) (?:ways|factors|reasons|possibilities)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class StyleRule:
    """A rule that every answer must satisfy."""

    name: str
    kind: str  # a key of RULE_KINDS
    pattern: str = ""  # regular expression, for match and not_match
    limit: int = 0  # characters or words, for max_chars and max_words
    column: str = ""  # for not_column

    def holds(self, text: str, row: Mapping[str, object] = NO_ROW) -> bool:
        """Return whether this answer to the prompt of this row satisfies the rule."""
        return RULE_KINDS[self.kind](self, text, row)


def _names(column: str, text: str, row: Mapping[str, object]) -> bool:
    """Return whether the text contains the value of this column as whole words, ignoring case."""
    value, answer = (" ".join(spaced(raw).split()) for raw in (str(row.get(column) or ""), text))
    return bool(value) and re.search(rf"(?<!\w){re.escape(value)}(?!\w)", answer, re.IGNORECASE) is not None


# Patterns match anywhere and respect case; a leading "(?i)" ignores it.
RULE_KINDS: dict[str, Callable[[StyleRule, str, Mapping[str, object]], bool]] = {
    "match": lambda rule, text, row: re.search(rule.pattern, text) is not None,
    "not_match": lambda rule, text, row: re.search(rule.pattern, text) is None,
    "max_chars": lambda rule, text, row: len(text) <= rule.limit,
    "max_words": lambda rule, text, row: len(spaced(text).split()) <= rule.limit,
    "not_column": lambda rule, text, row: not _names(rule.column, text, row),
}


@dataclass(frozen=True, slots=True)
class Habits:
    """Length, repetition and evasion in a set of answers; shares are fractions of the texts."""

    mean_words: float
    # Texts in which over a fifth of the word 4-grams are repetitions (rep-4, Welleck et al. 2020, arXiv 1908.04319).
    repeated_share: float
    never_ending_share: float | None  # texts cut off by the token limit; None if unknown
    # Distinct word bigrams / all word bigrams of the set (Li et al. 2016, arXiv 1510.03055). It falls with the number
    # of texts, so compare sets of equal size.
    distinct_2: float
    vague_share: float  # texts with an English stock phrase of not answering


def rules_of(recipe: Mapping[str, Mapping[str, object]]) -> tuple[StyleRule, ...]:
    """Parse the style rules of a recipe, such as `{"short": {"max_chars": 80}}`.

    Raises:
        RecipeError: a rule has an unknown kind or an invalid value.
    """
    return tuple(_rule(name, entry) for name, entry in recipe.items())


def rule_rates(
    texts: Sequence[str], rules: Sequence[StyleRule], rows: Sequence[Mapping[str, object]] = ()
) -> dict[str, float]:
    """Return for each rule the share of texts that satisfy it.

    Args:
        texts: the answers.
        rules: style rules with distinct names.
        rows: the row of each answer, needed by rules of the kind not_column.

    Raises:
        DataError: there are no texts.
    """
    _check_not_empty(texts)
    pairs = list(zip(texts, rows or [NO_ROW] * len(texts), strict=True))
    return {rule.name: sum(rule.holds(text, row) for text, row in pairs) / len(texts) for rule in rules}


def discriminator_auc(answers: Sequence[str], references: Sequence[str], *, seed: int = 0) -> float:
    """Return the cross-validated AUC of a classifier that separates answers from references.

    Logistic regression on function words and character 2-4-grams. The two texts of a prompt share a fold, so the
    subject does not help the classifier. Values below 0.5 are chance and are kept: max(auc, 1 - auc) would make
    indistinguishable texts look different.

    Args:
        answers: answers of a model.
        references: reference answers to the same prompts.
        seed: of the folds.

    Returns:
        Mean AUC over FOLDS folds: 0.5 means indistinguishable, 1 always distinguishable.

    Raises:
        ValueError: the lists differ in length.
        DataError: there are fewer than FEWEST_PAIRS pairs.
    """
    if len(answers) != len(references):
        raise ValueError(f"{len(answers)} answers for {len(references)} references")
    if len(answers) < FEWEST_PAIRS:
        raise DataError(f"style: expected at least {FEWEST_PAIRS} answers, got {len(answers)}; add rows")
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    rows = len(answers)
    folds = np.tile(np.random.default_rng(seed).permutation(rows) % FOLDS, 2)  # [2N]: a pair stays together
    written = np.repeat([1, 0], rows)
    texts, scores = [*answers, *references], []
    for fold in track(range(FOLDS), "telling answers from references", unit="folds"):
        train = np.flatnonzero(folds != fold)
        test = np.flatnonzero(folds == fold)
        train_features, test_features = _style_features([texts[i] for i in train], [texts[i] for i in test])
        fitted = LogisticRegression(C=1.0, max_iter=1000).fit(train_features, written[train])
        scores.append(roc_auc_score(written[test], fitted.decision_function(test_features)))
    return float(np.mean(scores))


def habits(texts: Sequence[str], *, finished: Sequence[bool] | None = None) -> Habits:
    """Measure length, loops and evasion of answers, and whether they `finished` before the token limit, if known."""
    _check_not_empty(texts)
    if finished is not None and len(finished) != len(texts):
        raise ValueError(f"{len(finished)} finished flags for {len(texts)} texts")
    tokens = [words_of(text) for text in texts]
    pairs = [pair for row in tokens for pair in zip(row, row[1:], strict=False)]
    return Habits(
        mean_words=sum(map(len, tokens)) / len(texts),
        repeated_share=sum(_repetition(row) > LOOP_SHARE for row in tokens) / len(texts),
        never_ending_share=None if finished is None else 1 - sum(map(bool, finished)) / len(texts),
        distinct_2=len(set(pairs)) / len(pairs) if pairs else 1.0,
        vague_share=sum(VAGUE.search(text) is not None for text in texts) / len(texts),
    )


def _rule(name: str, entry: Mapping[str, object]) -> StyleRule:
    key = f"style.{name}"
    if not isinstance(entry, Mapping) or len(entry) != 1:
        raise RecipeError(
            f"{key}: expected one rule, got {entry!r}; give one of {', '.join(RULE_KINDS)} with its value"
        )
    [(kind, value)] = entry.items()
    if kind not in RULE_KINDS:
        raise RecipeError(f"{key}: unknown rule {kind!r}; use one of {', '.join(RULE_KINDS)}")
    if kind.startswith("max_"):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise RecipeError(f"{key}.{kind}: expected an integer >= 1, got {value!r}; change it")
        return StyleRule(name=name, kind=kind, limit=value)
    if not isinstance(value, str):
        expected = "the name of a column" if kind == "not_column" else "a regular expression in quotes"
        raise RecipeError(f"{key}.{kind}: got {value!r}; give {expected}")
    if kind == "not_column":
        return StyleRule(name=name, kind=kind, column=value)
    try:
        re.compile(value)
    except re.error as error:
        raise RecipeError(f"{key}.{kind}: invalid regular expression {value!r} ({error}); fix it") from error
    return StyleRule(name=name, kind=kind, pattern=value)


def _style_features(train: Sequence[str], test: Sequence[str]) -> tuple[csr_matrix, csr_matrix]:
    """Return sparse features of both sets, fitted on `train` alone."""
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer

    # Case and punctuation are part of the style, so the character n-grams keep them.
    letters = TfidfVectorizer(
        analyzer="char", ngram_range=(2, 4), lowercase=False, sublinear_tf=True, min_df=2, max_features=50_000
    )
    grammar = TfidfVectorizer(vocabulary=FUNCTION_WORDS, token_pattern=r"(?u)\b\w+\b", use_idf=False)
    parts = [grammar.fit(train)]
    with suppress(ValueError):  # raised where no two texts share a bigram, such as one-letter answers
        parts.insert(0, letters.fit(train))
    train_parts, test_parts = ([part.transform(texts) for part in parts] for texts in (train, test))
    return hstack(train_parts, format="csr"), hstack(test_parts, format="csr")


def _repetition(tokens: list[str]) -> float:
    """Return the share of word 4-grams that repeat an earlier one (rep-4)."""
    grams = [tuple(tokens[i : i + 4]) for i in range(len(tokens) - 3)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _check_not_empty(texts: Sequence[str]) -> None:
    if not texts:
        raise DataError("style: no answers; give at least one row")
