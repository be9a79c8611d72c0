"""What a good synopsis is, as rewards and judges: `reward: synopsis_rules:score`, `judge: synopsis_rules:about`.

Each function gets an answer as `attempt`: `attempt.text`, `attempt.finished` (it ended by itself), `attempt.row` (the
row of the file) and `attempt.prompt.reference` (what the maintainer wrote).
"""

import re
from functools import cache

# Words that say nothing of what a package is.
EMPTY = {
    *re.findall(r"\w+", "a an and are as at be by can for from has have in is it its of on or that the this to which"),
    *("with", "you"),
}
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


def about(attempt):
    """How much of an answer is what the first sentence of the description says: 0 to 1."""
    return alike(attempt.text, attempt.row["document"])


def alike(answer, description):
    """F1 of the words of an answer and of a description's first sentence, those left out that say nothing."""
    first = re.split(r"(?<=[.!?])\s", description.strip())[0]
    return shared(words(answer) - EMPTY, words(first) - EMPTY)


def nearness(attempt):
    """How much an answer has in common with what the maintainer wrote: F1 of their words."""
    return shared(words(attempt.text), words(attempt.row["summary"]))


def meaning(attempt):
    """How near an answer is in meaning to the whole description: the cosine of their vectors by the shipped encoder."""
    from tunesmith.model.sentence import sentence_vectors

    answer, description = sentence_vectors(encoder(), [attempt.text, attempt.row["document"]], limit=256)
    return float(answer @ description)


@cache
def encoder():
    """The encoder that is always there, read once."""
    from tunesmith.model.load import load_base

    return load_base("minilm-l6", offline=True)


def words(text):
    """The words of a text, each once."""
    return set(re.findall(r"\w+", text.lower()))


def shared(said, wanted):
    """F1 of two sets."""
    both = len(said & wanted)
    return 2 * both / (len(said) + len(wanted)) if both else 0.0
