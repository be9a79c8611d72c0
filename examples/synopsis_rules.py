"""Properties of a good synopsis, as rewards and judges: `reward: synopsis_rules:score`, `judge: synopsis_rules:about`.

Each function receives a completion: `completion.text`, `completion.finished` (it ended by itself), `completion.row`
(the row of the file) and `completion.prompt.reference` (the line written by the maintainer).
"""

import re
from functools import cache

# Words that do not describe a package.
EMPTY = {
    *re.findall(r"\w+", "a an and are as at be by can for from has have in is it its of on or that the this to which"),
    *("with", "you"),
}
ARTICLE = re.compile(r"(an?|the)\b", re.IGNORECASE)


def kept(completion):
    """Return the share of four rules that hold: short, no leading article, no package name, ended by itself."""
    text = completion.text
    if not text:
        return 0.0
    name = rf"(?<!\w){re.escape(completion.row['id'])}(?!\w)"
    rules = [
        len(text) < 80,
        not ARTICLE.match(text),
        not re.search(name, text, re.IGNORECASE),
        completion.finished,
    ]
    return sum(rules) / len(rules)


def score(completion):
    """Return 1.0 if all four rules hold, else 0.0."""
    return float(kept(completion) == 1)


def about(completion):
    """Return the overlap of an answer with the first sentence of the description, 0 to 1."""
    return alike(completion.text, completion.row["document"])


def alike(answer, description):
    """Return the F1 of the words of an answer and of a description's first sentence, without stop words."""
    first = re.split(r"(?<=[.!?])\s", description.strip())[0]
    return shared(words(answer) - EMPTY, words(first) - EMPTY)


def nearness(completion):
    """Return the F1 of the words of an answer and of the maintainer's line."""
    return shared(words(completion.text), words(completion.row["summary"]))


def meaning(completion):
    """Return the cosine of the vectors of an answer and of the whole description, by the bundled encoder."""
    from tunesmith.models.sentence_embeddings import sentence_vectors

    answer, description = sentence_vectors(encoder(), [completion.text, completion.row["document"]], limit=256)
    return float(answer @ description)


@cache
def encoder():
    """Return the bundled encoder, loaded once."""
    from tunesmith.models.loading.load import load_base

    return load_base("minilm-l6", offline=True)


def words(text):
    """Return the set of words of a text."""
    return set(re.findall(r"\w+", text.lower()))


def shared(answer, reference):
    """Return the F1 of two sets."""
    both = len(answer & reference)
    return 2 * both / (len(answer) + len(reference)) if both else 0.0
