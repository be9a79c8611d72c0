"""Does it sound like the references, keep the house rules, ramble on: told without a judge model."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tunesmith.data.words import spaced, words_of
from tunesmith.errors import DataError, RecipeError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

FEWEST_PAIRS = 20
FOLDS = 5
NO_ROW: Mapping[str, object] = {}
LOOP_SHARE = 0.2  # more repeated 4-grams than this is a loop; people's texts stay below 0.05

# Words that carry grammar and habit rather than a subject (Mosteller & Wallace 1964 used such a list).
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
    """One thing each answer must do: a kind of RULE_KINDS, with the pattern, limit or column that it needs."""

    name: str
    kind: str
    pattern: str = ""
    limit: int = 0
    column: str = ""

    def holds(self, text: str, row: Mapping[str, object] = NO_ROW) -> bool:
        """Whether this answer to the prompt of this row keeps the rule."""
        return RULE_KINDS[self.kind](self, text, row)


def _names(column: str, text: str, row: Mapping[str, object]) -> bool:
    """Whether the text has what the row says in this column, as words of their own; case does not matter."""
    said, told = (" ".join(spaced(one).split()) for one in (str(row.get(column) or ""), text))
    return bool(said) and re.search(rf"(?<!\w){re.escape(said)}(?!\w)", told, re.IGNORECASE) is not None


# Patterns are searched for anywhere and mind case, as Python's do; "(?i)" in front makes them blind to it.
RULE_KINDS: dict[str, Callable[[StyleRule, str, Mapping[str, object]], bool]] = {
    "match": lambda rule, text, row: re.search(rule.pattern, text) is not None,
    "not_match": lambda rule, text, row: re.search(rule.pattern, text) is None,
    "max_chars": lambda rule, text, row: len(text) <= rule.limit,
    "max_words": lambda rule, text, row: len(spaced(text).split()) <= rule.limit,
    "not_column": lambda rule, text, row: not _names(rule.column, text, row),
}


@dataclass(frozen=True, slots=True)
class Habits:
    """What a set of answers tends to do.

    `repeated_share`: texts in which over a fifth of the word 4-grams repeat one (rep-4, Welleck et al. 2020,
    arXiv 1908.04319). `never_ending_share`: texts cut off by the token limit; None if nobody told.
    `distinct_2`: different word pairs / all word pairs over the whole set; it falls with the number of texts,
    so compare equal sets. `vague_share`: texts with a stock phrase of not answering, in English.
    """

    mean_words: float
    repeated_share: float
    never_ending_share: float | None
    distinct_2: float
    vague_share: float


def rules_of(recipe: Mapping[str, Mapping[str, object]]) -> tuple[StyleRule, ...]:
    """The rules of a recipe such as `{"short": {"max_chars": 80}}`; refuses what cannot be checked."""
    return tuple(_rule(name, entry) for name, entry in recipe.items())


def rule_rates(
    texts: Sequence[str], rules: Sequence[StyleRule], rows: Sequence[Mapping[str, object]] = ()
) -> dict[str, float]:
    """For each rule the share of texts that keep it; `rows` are what rules about a column look into."""
    _some(texts)
    pairs = list(zip(texts, rows or [NO_ROW] * len(texts), strict=True))
    return {rule.name: sum(rule.holds(text, row) for text, row in pairs) / len(texts) for rule in rules}


def discriminator_auc(answers: Sequence[str], references: Sequence[str], *, seed: int = 0) -> float:
    """How well answers can be told from the references to the same prompts: 0.5 not at all, 1 every time.

    Logistic regression on function words and runs of 2-4 characters; the mean AUC over 5 folds it has not
    seen. The two texts of a prompt share a fold, so a common subject gives nothing away. Values below 0.5 are
    chance and stay as they are: max(auc, 1 - auc) would make texts that cannot be told apart look different.
    """
    if len(answers) != len(references):
        raise ValueError(f"{len(answers)} answers for {len(references)} references")
    if len(answers) < FEWEST_PAIRS:
        raise DataError(f"style: {len(answers)} answers are too few to learn a style from; give {FEWEST_PAIRS} or more")
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    rows = len(answers)
    folds = np.tile(np.random.default_rng(seed).permutation(rows) % FOLDS, 2)  # [2N]: a pair stays together
    written = np.repeat([1, 0], rows)
    texts, scores = [*answers, *references], []
    for fold in range(FOLDS):
        learn, judge = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        seen, unseen = _style_features([texts[i] for i in learn], [texts[i] for i in judge])
        fitted = LogisticRegression(C=1.0, max_iter=1000).fit(seen, written[learn])
        scores.append(roc_auc_score(written[judge], fitted.decision_function(unseen)))
    return float(np.mean(scores))


def habits(texts: Sequence[str], *, finished: Sequence[bool] | None = None) -> Habits:
    """Length, loops, unfinished and evasive answers of one set of texts."""
    _some(texts)
    if finished is not None and len(finished) != len(texts):
        raise ValueError(f"{len(finished)} finished marks for {len(texts)} texts")
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
    place = f"style.{name}"
    if not isinstance(entry, Mapping) or len(entry) != 1:
        raise RecipeError(f"{place}: found {entry!r}; give one of {', '.join(RULE_KINDS)} with its value")
    [(kind, value)] = entry.items()
    if kind not in RULE_KINDS:
        raise RecipeError(f"{place}: unknown rule {kind!r}; use one of {', '.join(RULE_KINDS)}")
    if kind.startswith("max_"):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise RecipeError(f"{place}.{kind}: found {value!r}; give a whole number from 1 up")
        return StyleRule(name=name, kind=kind, limit=value)
    if not isinstance(value, str):
        wanted = "the name of a column" if kind == "not_column" else "a regular expression in quotes"
        raise RecipeError(f"{place}.{kind}: found {value!r}; give {wanted}")
    if kind == "not_column":
        return StyleRule(name=name, kind=kind, column=value)
    try:
        re.compile(value)
    except re.error as fault:
        raise RecipeError(f"{place}.{kind}: {value!r} is no regular expression ({fault}); mend it") from fault
    return StyleRule(name=name, kind=kind, pattern=value)


def _style_features(seen: Sequence[str], unseen: Sequence[str]) -> tuple[csr_matrix, csr_matrix]:
    """Sparse features of both sets, learned from `seen` alone."""
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer

    # Upper-case letters and marks are style as well, so the characters keep them.
    letters = TfidfVectorizer(
        analyzer="char", ngram_range=(2, 4), lowercase=False, sublinear_tf=True, min_df=2, max_features=50_000
    )
    grammar = TfidfVectorizer(vocabulary=FUNCTION_WORDS, token_pattern=r"(?u)\b\w+\b", use_idf=False)
    parts = [grammar.fit(seen)]
    with suppress(ValueError):  # no two texts share a pair of letters: answers of one letter, or of one digit
        parts.insert(0, letters.fit(seen))
    read_seen, read_unseen = ([part.transform(texts) for part in parts] for texts in (seen, unseen))
    return hstack(read_seen, format="csr"), hstack(read_unseen, format="csr")


def _repetition(tokens: list[str]) -> float:
    """The share of word 4-grams that repeat an earlier one; 0 where there are fewer than two."""
    grams = [tuple(tokens[i : i + 4]) for i in range(len(tokens) - 3)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _some(texts: Sequence[str]) -> None:
    if not texts:
        raise DataError("style: there are no answers to look at; give at least one row")
