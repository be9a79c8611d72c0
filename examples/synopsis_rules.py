"""Debian's rules for a synopsis, as rewards and judges: `reward: synopsis_rules:score`, `judge: synopsis_rules:kept`.

Each function gets an answer as `attempt`: `attempt.text`, `attempt.finished` (it ended by itself), `attempt.row` (the
row of the file) and `attempt.exercise.reference` (what the maintainer wrote).
"""

import re

ARTICLE = re.compile(r"(an?|the)\b", re.IGNORECASE)


def kept(attempt):
    """The share of four rules that an answer keeps: short, no leading article, no package name, an end of its own."""
    text = attempt.text
    if not text:
        return 0.0
    name = rf"(?<!\w){re.escape(attempt.row['id'])}(?!\w)"
    rules = [
        len(text) < 80,
        not ARTICLE.match(text),
        not re.search(name, text, re.IGNORECASE),
        attempt.finished,
    ]
    return sum(rules) / len(rules)


def score(attempt):
    """1.0 for an answer that keeps all four rules, else 0.0."""
    return float(kept(attempt) == 1)


def nearness(attempt):
    """How much an answer has in common with what the maintainer wrote: F1 of their words."""
    said, wanted = (set(re.findall(r"\w+", text.lower())) for text in (attempt.text, attempt.exercise.reference))
    both = len(said & wanted)
    return 2 * both / (len(said) + len(wanted)) if both else 0.0
