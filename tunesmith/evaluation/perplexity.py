"""Likelihood of texts under a model: perplexity, bits per byte and term accuracy, and base against tuned.

D documents, R resamples, S models. A metric is a ratio of sums over documents, such as nats per token; tests and
intervals resample documents or groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from tunesmith.data.text.domain_terms import word_places
from tunesmith.data.tokenization.chat_template import Encoded, Template, Tokens
from tunesmith.data.tokenization.masking import Masking
from tunesmith.data.tokenization.windows import Window, windows
from tunesmith.errors import DataError
from tunesmith.metrics.resampling import ALPHA, MIN_GROUPS, Clusters, difference_bounds, percentiles, sign_flip, wilson
from tunesmith.metrics.significance import NEGLIGIBLE_NATS, PairedComparison, judged, lower_is_better
from tunesmith.models.batch import collate, scored_tokens, split_by_tokens
from tunesmith.models.lm_head import judge
from tunesmith.models.mlm_head import MaskedHead
from tunesmith.models.policy import Policy
from tunesmith.models.world import current_world
from tunesmith.progress import track

FloatArray = NDArray[np.float64]

# Forward passes of an encoder per window, each with other masked words: at 15 %, four passes cover half of the words.
TURNS = 4
RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class TokenLikelihood:
    """Likelihood of one document, summed over the predicted tokens and over the domain terms."""

    nats: float  # negative log-likelihood
    tokens: int  # predicted tokens
    first: int  # tokens predicted correctly by argmax
    size: int  # UTF-8 bytes of the predicted text
    terms: int  # occurrences of domain terms
    found: int  # occurrences with every token predicted correctly by argmax


@dataclass(frozen=True, slots=True)
class Rate:
    """A metric as a ratio of two sums over documents."""

    over: Callable[[TokenLikelihood], float]  # numerator
    under: Callable[[TokenLikelihood], float]  # denominator
    power: bool = False  # the metric is exp(ratio)

    def shown(self, quotient: FloatArray) -> FloatArray:
        """Convert ratios of sums to the metric."""
        return np.exp(quotient) if self.power else quotient


RATES: dict[str, Rate] = {
    "perplexity": Rate(lambda doc: doc.nats, lambda doc: doc.tokens, power=True),
    "nats_per_token": Rate(lambda doc: doc.nats, lambda doc: doc.tokens),
    "bits_per_byte": Rate(lambda doc: doc.nats / math.log(2), lambda doc: doc.size),
    "masked_loss": Rate(lambda doc: doc.nats, lambda doc: doc.tokens),
    "masked_accuracy": Rate(lambda doc: doc.first, lambda doc: doc.tokens),
    "term_accuracy": Rate(lambda doc: doc.found, lambda doc: doc.terms),
}
# Metrics reported for each headline metric, itself first.
REPORTED = {
    "perplexity": ("perplexity", "nats_per_token", "bits_per_byte", "term_accuracy"),
    "masked_loss": ("masked_loss", "masked_accuracy", "term_accuracy"),
}


@dataclass(frozen=True, slots=True)
class ReadingOptions:
    """Options for scoring texts."""

    limit: int  # maximum window length in tokens
    terms: Sequence[str] = ()  # domain terms to count
    masking: Masking | None = None  # masking of an encoder; None for next-token prediction


@dataclass(frozen=True, slots=True)
class _WindowJob:
    """A window to score: index of its document, encoded row, bytes, and target indices of each complete term."""

    document: int
    row: Encoded
    size: int
    terms: list[list[int]]


@torch.inference_mode()
def read(policy: Policy, template: Template, texts: Sequence[str], options: ReadingOptions) -> list[TokenLikelihood]:
    """Score D texts with a decoder, or an encoder with a masked-LM head.

    Texts may have any length: long ones are scored in windows. Windows and masked words are equal for all models with
    the same tokenizer.
    """
    jobs = [list(_window_jobs(index, text, template, options)) for index, text in enumerate(texts)]
    given = [
        [(job.row.sequences[0].ids, job.row.sequences[0].learn, job.row.hidden, job.size, job.terms) for job in own]
        for own in jobs
    ]
    found = policy.recall(["likelihoods"], given, lambda chosen: map(list, map(astuple, _read(policy, jobs, chosen))))
    return [TokenLikelihood(*values) for values in found]


def _read(policy: Policy, documents: Sequence[Sequence[_WindowJob]], chosen: Sequence[int]) -> list[TokenLikelihood]:
    """Score the windows of some of the documents, by index."""
    jobs = [replace(job, document=place) for place, index in enumerate(chosen) for job in documents[index]]
    jobs.sort(key=lambda job: -job.row.length)
    lengths = [job.row.length for job in jobs]
    likelihoods = [TokenLikelihood(0.0, 0, 0, 0, 0, 0)] * len(chosen)
    world = current_world()
    divided = split_by_tokens(world.share(lengths), lengths, scored_tokens(policy.device))
    for indices in track(divided, "scoring", unit="windows", size=len):
        batch = [jobs[i] for i in indices]
        packed = collate([job.row for job in batch], share=False).to(policy.device)
        logits = policy.head if isinstance(policy.head, MaskedHead) else policy.words.logits
        nats, first = (each.cpu() for each in judge(logits, policy.learned(packed), packed.targets))
        for row, job in enumerate(batch):
            mine = packed.row_ids.cpu() == row
            correct = first[mine].tolist()
            before = likelihoods[job.document]
            likelihoods[job.document] = TokenLikelihood(
                nats=before.nats + float(nats[mine].double().sum()),
                tokens=before.tokens + len(correct),
                first=before.first + sum(correct),
                size=before.size + job.size,
                terms=before.terms + len(job.terms),
                found=before.found + sum(all(correct[i] for i in term) for term in job.terms),
            )
    if world.size == 1:
        return likelihoods
    parts = world.collect(lambda: [astuple(likelihood) for likelihood in likelihoods])
    return [TokenLikelihood(*map(sum, zip(*document, strict=True))) for document in zip(*parts, strict=True)]


def _window_jobs(document: int, text: str, template: Template, options: ReadingOptions) -> Iterator[_WindowJob]:
    """Yield the windows of a text with their targets, for an encoder TURNS times with other words masked."""
    terms = set(options.terms)
    pieces = windows(text, template, limit=options.limit)
    spans = [(a, b) for word, a, b in word_places(pieces[0].text) if word in terms] if pieces else []
    for index, window in enumerate(pieces):
        term_positions = _complete_terms(window, spans)
        if options.masking is None:
            learned = set(window.told())
            tokens = Tokens(window.ids, [i in learned for i in range(len(window.ids))])
            rows = [(Encoded((tokens,), ""), sorted(learned))]
            size = window.size
        else:
            # The names seed the masking, so they must stay as they are.
            row = window.row(f"text {document} window {index}", next_token=False)
            masked = [options.masking.hide(row, f"held out {turn}") for turn in range(TURNS)]
            rows = [(encoded, [position for position, _ in encoded.hidden]) for encoded in masked]
            size = 0
        for encoded, targets in rows:
            order = {position: i for i, position in enumerate(targets)}
            in_targets = [term for term in term_positions if all(position in order for position in term)]
            if targets:
                term_targets = [[order[position] for position in term] for term in in_targets]
                yield _WindowJob(document, encoded, size, term_targets)


def _complete_terms(window: Window, spans: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Return the token positions of each term (a character span) that is completely inside the window."""
    real = [span for span in window.spans if span[0] < span[1]]
    first, last = (real[0][0], real[-1][1]) if real else (0, 0)
    positions: dict[int, list[int]] = {}
    inside = [(index, span) for index, span in enumerate(spans) if first <= span[0] and span[1] <= last]
    at = 0
    for position, (a, b) in enumerate(window.spans):
        while at < len(inside) and inside[at][1][1] <= a:
            at += 1
        if at < len(inside) and a < b and a < inside[at][1][1] and b > inside[at][1][0]:
            positions.setdefault(inside[at][0], []).append(position)
    return list(positions.values())


def rate(metric: str, likelihoods: Sequence[TokenLikelihood]) -> float:
    """Return a metric of RATES over all documents; 0 where its denominator is 0."""
    ratio = RATES[metric]
    under = sum(ratio.under(likelihood) for likelihood in likelihoods)
    return float(ratio.shown(np.array(sum(map(ratio.over, likelihoods)) / under))) if under else 0.0


def can_tell(metric: str, likelihoods: Sequence[TokenLikelihood]) -> bool:
    """Return whether the metric is defined: term accuracy is not for texts without terms."""
    return any(RATES[metric].under(likelihood) for likelihood in likelihoods)


def row_score(metric: str, likelihood: TokenLikelihood) -> float:
    """Return the metric of one document, negated where lower is better."""
    value = rate(metric, [likelihood])
    return -value if lower_is_better(metric) else value


def rate_interval(
    metric: str, likelihoods: Sequence[TokenLikelihood], *, groups: Sequence[str] | None
) -> tuple[float, float] | None:
    """Return the 95 % interval of one model's metric by a bootstrap over documents or groups; None for a single one."""
    # Resamples of documents with denominator 0 alone would have no value.
    defined = [i for i, likelihood in enumerate(likelihoods) if RATES[metric].under(likelihood)]
    likelihoods = [likelihoods[i] for i in defined]
    groups = None if groups is None else [groups[i] for i in defined]
    clusters = Clusters.of(len(likelihoods), groups)
    if clusters.count < 2:
        return None
    resampled = _resampled(metric, [likelihoods], clusters)[:, 0]
    if not lower_is_better(metric) and not np.ptp(resampled):  # an interval of width 0 would claim certainty
        return wilson(rate(metric, likelihoods), clusters.count)
    low, high = percentiles(resampled, clusters.count)
    return max(1.0 if RATES[metric].power else 0.0, low), high if lower_is_better(metric) else min(1.0, high)


def compare(
    metric: str,
    base: Sequence[TokenLikelihood],
    tuned: Sequence[TokenLikelihood],
    *,
    groups: Sequence[str] | None = None,
) -> PairedComparison:
    """Compare tuned with base on the same documents.

    The p-value is a sign-flip permutation of the differences summed per document or group: without an effect, base
    and tuned are exchangeable. The interval is a bootstrap over documents or groups, extended to 0 where the test
    does not reject.

    Args:
        metric: a key of RATES.
        base: likelihoods of the base model, D.
        tuned: likelihoods of the tuned model, D.
        groups: group of each document, or None.

    Returns:
        The comparison in the sign of the metric. Its scale is the base's value where lower is better, else 1. A
        significant difference of less than NEGLIGIBLE_NATS is "no effect".

    Raises:
        ValueError: base and tuned predicted different tokens.
        DataError: a loss is not finite.
    """
    ratio = RATES[metric]
    under = [ratio.under(likelihood) for likelihood in base]
    if under != [ratio.under(likelihood) for likelihood in tuned]:
        raise ValueError(f"{metric}: base and tuned were scored on different tokens")
    for side, likelihoods in (("base", base), ("tuned", tuned)):
        if not all(math.isfinite(ratio.over(likelihood)) for likelihood in likelihoods):
            raise DataError(
                f"{metric} of the {side} model: not finite, the run diverged; tune with a lower learning rate"
            )
    clusters = Clusters.of(len(base), groups)
    sign = -1.0 if lower_is_better(metric) else 1.0
    base_sums, tuned_sums = (
        np.array([ratio.over(likelihood) for likelihood in side], dtype=np.float64) for side in (base, tuned)
    )
    change = clusters.sums(sign * (tuned_sums - base_sums))
    pairs = _resampled(metric, [base, tuned], clusters)
    resampled = sign * (pairs[:, 1] - pairs[:, 0])
    base_value = rate(metric, base)
    tuned_value = rate(metric, tuned)
    scale = base_value if lower_is_better(metric) else 1.0
    comparison = PairedComparison(
        base=sign * base_value,
        tuned=sign * tuned_value,
        delta=sign * (tuned_value - base_value),
        ci95=difference_bounds(resampled, clusters.count, scale, most=math.inf if sign < 0 else 1.0),
        p_value=sign_flip(change, np.random.default_rng(0), RESAMPLES),
        n=len(base),
        clusters=clusters.count,
        test="sign-flip permutation by " + ("group" if clusters.grouped else "document"),
        smallest_detectable=scale,
        verdict="no effect",
    )
    fewest = MIN_GROUPS if sign > 0 or not change.any() else 0
    result = judged(comparison, float(resampled.std()), scale=scale, fewest_rows=fewest)
    if sign > 0:
        return result
    if result.p_value < ALPHA and abs(rate("nats_per_token", tuned) - rate("nats_per_token", base)) < NEGLIGIBLE_NATS:
        result = replace(result, verdict="no effect")
    low, high = result.ci95
    # 0.0 - x instead of -x: no negative zero in reports.
    return replace(result, base=-result.base, tuned=-result.tuned, delta=-result.delta, ci95=(0.0 - high, 0.0 - low))


def _resampled(metric: str, sides: Sequence[Sequence[TokenLikelihood]], clusters: Clusters) -> FloatArray:
    """Return the metric of S models in R bootstrap resamples of clusters, [R, S]; all models share the resamples."""
    ratio = RATES[metric]
    under = np.array([ratio.under(likelihood) for likelihood in sides[0]], dtype=np.float64)
    over = [np.array([ratio.over(likelihood) for likelihood in side], dtype=np.float64) for side in sides]
    return ratio.shown(clusters.drawn_rates(over, under, np.random.default_rng(0), RESAMPLES))
