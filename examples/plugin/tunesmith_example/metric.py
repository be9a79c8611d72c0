"""A metric: the share of the reference's words that an answer contains."""

from collections.abc import Sequence


def word_recall(references: Sequence[str], answers: Sequence[str]) -> list[float]:
    """Return a score in [0, 1] for each row; higher is better."""
    pairs = zip(map(_words, references), map(_words, answers), strict=True)
    return [len(words & given) / len(words) if words else 1.0 for words, given in pairs]


def _words(text: str) -> set[str]:
    return set(text.lower().split())
