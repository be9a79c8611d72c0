"""Debian's rules for a synopsis as a reward: `reward: synopsis_rules:score` in rl-synopsis.yaml."""

import re

ARTICLE = re.compile(r"(an?|the)\b", re.IGNORECASE)


def score(attempt):
    """1.0 for an answer that keeps all four rules, else 0.0.

    They are: short, no leading article, no package name, an end of its own.
    `attempt.text` is the answer, `attempt.finished` whether it ended by itself, `attempt.row` the row of the file.
    """
    text = attempt.text
    if not text:
        return 0.0
    name = rf"(?<!\w){re.escape(attempt.row['id'])}(?!\w)"
    kept = [
        len(text) < 80,
        not ARTICLE.match(text),
        not re.search(name, text, re.IGNORECASE),
        attempt.finished,
    ]
    return float(all(kept))
