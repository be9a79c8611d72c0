"""How well a model knows texts: nats, bits per byte and terms, document by document, and base against tuned.

D documents. A score is a rate over all of them, such as nats over tokens; chance enters by document or by group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from tunesmith.data.masking import Masking
from tunesmith.data.template import Encoded, Template, Tokens
from tunesmith.data.terms import word_places
from tunesmith.data.windows import Window, windows
from tunesmith.errors import DataError
from tunesmith.evaluation.resampling import FEWEST, Clusters, difference_bounds, percentiles, sign_flip, wilson
from tunesmith.evaluation.significance import PairedComparison, judged, lower_is_better
from tunesmith.model.batch import TOKENS_PER_PASS, collate, cut
from tunesmith.model.head import judge
from tunesmith.model.masked_head import MaskedHead
from tunesmith.model.policy import Policy

Floats = NDArray[np.float64]

# An encoder is asked this many times, other words hidden each time: half of them once or more at 15 %.
TURNS = 4
RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Told:
    """What a model says to one document: summed over the ids it had to tell, and over the field's terms."""

    nats: float
    tokens: int
    first: int  # ids that were its first choice
    size: int  # bytes of text that the ids stand for
    terms: int
    found: int  # terms of which every id was its first choice


@dataclass(frozen=True, slots=True)
class Rate:
    """A metric as a sum over a sum; with `power` e to the quotient."""

    over: Callable[[Told], float]
    under: Callable[[Told], float]
    power: bool = False  # shown as e to the quotient

    def shown(self, quotient: Floats) -> Floats:
        """Quotients as people know them."""
        return np.exp(quotient) if self.power else quotient


RATES: dict[str, Rate] = {
    "perplexity": Rate(lambda told: told.nats, lambda told: told.tokens, power=True),
    "nats_per_token": Rate(lambda told: told.nats, lambda told: told.tokens),
    "bits_per_byte": Rate(lambda told: told.nats / math.log(2), lambda told: told.size),
    "masked_loss": Rate(lambda told: told.nats, lambda told: told.tokens),
    "masked_accuracy": Rate(lambda told: told.first, lambda told: told.tokens),
    "term_accuracy": Rate(lambda told: told.found, lambda told: told.terms),
}
# What is reported for a headline: itself first.
REPORTED = {
    "perplexity": ("perplexity", "nats_per_token", "bits_per_byte", "term_accuracy"),
    "masked_loss": ("masked_loss", "masked_accuracy", "term_accuracy"),
}


@dataclass(frozen=True, slots=True)
class ReadingOptions:
    """How texts are read: the longest window, the field's terms, and for an encoder what is hidden."""

    limit: int
    terms: Sequence[str] = ()
    masking: Masking | None = None


@dataclass(frozen=True, slots=True)
class _Question:
    """A window that a model is to tell: its document, its row, and the targets of each whole term, by number."""

    document: int
    row: Encoded
    size: int
    terms: list[list[int]]


@torch.inference_mode()
def read(policy: Policy, template: Template, texts: Sequence[str], asked: ReadingOptions) -> list[Told]:
    """What a model says to each text; windows and hidden words are the same for every model of one tokenizer."""
    questions = [
        question for number, text in enumerate(texts) for question in _questions(number, text, template, asked)
    ]
    questions.sort(key=lambda question: -question.row.length)
    lengths = [question.row.length for question in questions]
    found = [Told(0.0, 0, 0, 0, 0, 0)] * len(texts)
    for numbers in cut(range(len(questions)), lengths, TOKENS_PER_PASS):
        batch = [questions[i] for i in numbers]
        packed = collate([question.row for question in batch], share=False).to(policy.device)
        logits = policy.head if isinstance(policy.head, MaskedHead) else policy.words.logits
        nats, first = (each.cpu() for each in judge(logits, policy.learned(packed), packed.targets))
        for number, question in enumerate(batch):
            mine = packed.owners.cpu() == number
            found[question.document] = _with(found[question.document], question, nats[mine], first[mine])
    return found


def _with(told: Told, question: _Question, nats: torch.Tensor, first: torch.Tensor) -> Told:
    """A document's sums with those of one more window."""
    right = first.tolist()
    return Told(
        nats=told.nats + float(nats.double().sum()),
        tokens=told.tokens + len(right),
        first=told.first + sum(right),
        size=told.size + question.size,
        terms=told.terms + len(question.terms),
        found=told.found + sum(all(right[i] for i in term) for term in question.terms),
    )


def _questions(number: int, text: str, template: Template, asked: ReadingOptions) -> Iterator[_Question]:
    """The windows of a text with what is to be told in them; an encoder's several times."""
    terms = set(asked.terms)
    pieces = windows(text, template, limit=asked.limit)
    spans = [(a, b) for word, a, b in word_places(pieces[0].text) if word in terms] if pieces else []
    for place, window in enumerate(pieces):
        inside = _whole(window, spans)
        if asked.masking is None:
            learn = set(window.told())
            tokens = Tokens(window.ids, [i in learn for i in range(len(window.ids))])
            rows, sizes = [(Encoded((tokens,), ""), sorted(learn))], window.size
        else:
            row = window.row(f"text {number} window {place}", next_token=False)
            hidden = [asked.masking.hide(row, f"held out {turn}") for turn in range(TURNS)]
            rows, sizes = [(one, [at for at, _ in one.hidden]) for one in hidden], 0
        for one, targets in rows:
            order = {at: i for i, at in enumerate(targets)}
            told = [[order[at] for at in term] for term in inside if all(at in order for at in term)]
            if targets:
                yield _Question(number, one, sizes, told)


def _whole(window: Window, spans: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The places of each term that stands whole in a window."""
    first, last = _reach(window)
    places: dict[int, list[int]] = {}
    near = [(number, span) for number, span in enumerate(spans) if first <= span[0] and span[1] <= last]
    at = 0
    for place, (a, b) in enumerate(window.spans):
        while at < len(near) and near[at][1][1] <= a:
            at += 1
        if at < len(near) and a < b and a < near[at][1][1] and b > near[at][1][0]:
            places.setdefault(near[at][0], []).append(place)
    return list(places.values())


def _reach(window: Window) -> tuple[int, int]:
    """The characters between which a window's ids lie."""
    real = [span for span in window.spans if span[0] < span[1]]
    return (real[0][0], real[-1][1]) if real else (0, 0)


def rate(metric: str, told: Sequence[Told]) -> float:
    """A metric over all documents; nothing to divide by is 0."""
    how = RATES[metric]
    under = sum(how.under(one) for one in told)
    return float(how.shown(np.array(sum(how.over(one) for one in told) / under))) if under else 0.0


def can_tell(metric: str, told: Sequence[Told]) -> bool:
    """Whether there is anything to divide by: a text without terms says nothing of terms."""
    return any(RATES[metric].under(one) for one in told)


def row_score(metric: str, told: Told) -> float:
    """What a document is worth, higher being better."""
    value = rate(metric, [told])
    return -value if lower_is_better(metric) else value


def rate_interval(metric: str, told: Sequence[Told], *, groups: Sequence[str] | None) -> tuple[float, float] | None:
    """The 95 % interval of a rate alone, by a bootstrap over documents or groups; None where there is but one."""
    asked = [i for i, one in enumerate(told) if RATES[metric].under(one)]  # a draw of the others alone has no rate
    told, groups = [told[i] for i in asked], None if groups is None else [groups[i] for i in asked]
    clusters = Clusters.of(len(told), groups)
    if clusters.count < 2:
        return None
    drawn = _drawn(metric, [told], clusters)[:, 0]
    if not lower_is_better(metric) and not np.ptp(drawn):  # a share of which what was drawn would claim certainty
        return wilson(rate(metric, told), clusters.count)
    low, high = percentiles(drawn, clusters.count)
    return max(1.0 if RATES[metric].power else 0.0, low), high if lower_is_better(metric) else min(1.0, high)


def compare(
    metric: str, base: Sequence[Told], tuned: Sequence[Told], *, groups: Sequence[str] | None = None
) -> PairedComparison:
    """A rate of tuned against base on the same documents.

    p: sign-flip permutation of the summed differences of documents or groups, which without an effect may swap names.
    The interval is a bootstrap over them, stretched to 0 where the test does not reject. The scale is the base's
    rate, for a share it is 1. Raises ValueError where the two were asked different things.
    """
    how = RATES[metric]
    under = [how.under(one) for one in base]
    if under != [how.under(one) for one in tuned]:
        raise ValueError(f"{metric}: base and tuned were not asked the same")
    for side, told in (("base", base), ("tuned", tuned)):
        if not all(math.isfinite(how.over(one)) for one in told):
            raise DataError(f"{metric} of the {side} model is no number: the run broke; tune with a lower rate")
    clusters, sign = Clusters.of(len(base), groups), -1.0 if lower_is_better(metric) else 1.0
    before, after = (np.array([how.over(one) for one in side], dtype=np.float64) for side in (base, tuned))
    change = clusters.sums(sign * (after - before))
    pairs = _drawn(metric, [base, tuned], clusters)
    drawn = sign * (pairs[:, 1] - pairs[:, 0])
    low, high = rate(metric, base), rate(metric, tuned)
    scale = low if lower_is_better(metric) else 1.0
    found = PairedComparison(
        base=sign * low,
        tuned=sign * high,
        delta=sign * (high - low),
        ci95=difference_bounds(drawn, clusters.count, scale, most=math.inf if sign < 0 else 1.0),
        p_value=sign_flip(change, np.random.default_rng(0), RESAMPLES),
        n=len(base),
        clusters=clusters.count,
        test="sign-flip permutation by " + ("group" if clusters.grouped else "document"),
        smallest_detectable=scale,
        verdict="no effect",
    )
    few = FEWEST if sign > 0 or not change.any() else 0
    return _as_shown(judged(found, float(drawn.std()), scale=scale, fewest_rows=few), sign)


def _as_shown(found: PairedComparison, sign: float) -> PairedComparison:
    """The comparison in the metric's own sign: a better loss is a smaller one."""
    if sign > 0:
        return found
    low, high = found.ci95
    return replace(found, base=-found.base, tuned=-found.tuned, delta=-found.delta, ci95=(0.0 - high, 0.0 - low))


def _drawn(metric: str, sides: Sequence[Sequence[Told]], clusters: Clusters) -> Floats:
    """[R, sides]: the rate over clusters drawn with repeats, the same ones for each side."""
    how = RATES[metric]
    under = np.array([how.under(one) for one in sides[0]], dtype=np.float64)
    over = [np.array([how.over(one) for one in side], dtype=np.float64) for side in sides]
    return how.shown(clusters.drawn_rates(over, under, np.random.default_rng(0), RESAMPLES))
