"""Scores of rows: by the head of a network, or by the likelihood of their answers.

Rows run in batches of similar length, the longest first, split over the processes of a run; results are in the order
of the rows. Letters: N rows, K labels, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tunesmith.data.tokenization.chat_template import Encoded, Template, Tokens
from tunesmith.data.tokenization.messages import Message
from tunesmith.models.batch import Batch, collate, pack, scored_tokens, split_by_tokens
from tunesmith.models.policy import Policy
from tunesmith.models.world import current_world
from tunesmith.objectives.base import Objective
from tunesmith.progress import track

# Rows whose labels are closer than this in half precision (nats or logits) are scored in full precision, too, at least
# this number of rows, and all that are closer than this multiple of the largest error found in them. Measured for
# smollm2-135m in bfloat16, five prompts: errors up to 0.2, labels flip by up to 0.05 (bench/NOTES.md).
CLOSE, FEWEST_EXACT, SAFETY = 0.1, 32, 2.0


@dataclass(frozen=True, slots=True)
class Classified:
    """The labels of one text and the probability of each label."""

    labels: tuple[str, ...]
    probabilities: dict[str, float]
    threshold: float | None = None  # confidence from which labels of validation rows were reliable; None: not known

    @property
    def label(self) -> str:
        """The label, or all labels joined by commas."""
        return ", ".join(self.labels)

    @property
    def confidence(self) -> float:
        """The probability of the likeliest label."""
        return max(self.probabilities.values())

    @property
    def reliable(self) -> bool | None:
        """True if the confidence reaches the threshold; None if there is none."""
        return None if self.threshold is None else self.confidence >= self.threshold

    def __repr__(self) -> str:
        below = f", below the threshold of {self.threshold:.3f}" if self.reliable is False else ""
        return f"Classified({self.label!r}, {self.confidence:.3f}{below})"


@dataclass(frozen=True, slots=True)
class AnswerScore:
    """The score of an answer."""

    value: float  # reward, or summed log-probability in nats
    ids: int  # tokens of the answer

    @property
    def per_id(self) -> float:
        """The score per token."""
        return self.value / max(1, self.ids)


def score_answers(policy: Policy, objective: Objective, rows: Sequence[Encoded]) -> list[tuple[AnswerScore, ...]]:
    """Score the answers of each row.

    Args:
        policy: the network of a reward or preference model.
        objective: its objective.
        rows: encoded examples with one or two answers.

    Returns:
        One or two scores per row.
    """
    counts = [[max(1, tokens.learned) for tokens in row.sequences] for row in rows]
    given = [[(tokens.ids, tokens.learn) for tokens in row.sequences] for row in rows]
    found = policy.recall(["scores"], given, lambda chosen: row_scores(policy, objective, [rows[i] for i in chosen]))
    return [
        tuple(AnswerScore(value, ids) for value, ids in zip(values, known, strict=True))
        for values, known in zip(found, counts, strict=True)
    ]


@torch.inference_mode()
def pair_states(policy: Policy, pairs: Sequence[Encoded]) -> Tensor:
    """Compute the states [N, 2, D] of N pairs, chosen first: the input of the reward head."""

    def compute(chosen: list[int]) -> Tensor:
        states = torch.empty(len(chosen), 2 * policy.hidden)
        for indices, batch in _batches(policy, [pairs[i] for i in chosen], "scoring"):
            states[indices] = policy.pooled(batch).float().cpu().view(len(indices), -1)
        return states

    given = [[tokens.ids for tokens in pair.sequences] for pair in pairs]
    return policy.recall_tensor(["pairs of states"], given, compute).view(len(pairs), 2, -1)


@torch.inference_mode()
def row_scores(policy: Policy, objective: Objective, rows: Sequence[Encoded]) -> list[list[float]]:
    """Return what `policy` scores by `objective` for each sequence of `rows`: log-probabilities in nats, or rewards."""
    world = current_world()
    if world.size > 1:
        return world.map(rows, lambda part: row_scores(policy, objective, part), costs=[row.size for row in rows])
    scores: list[list[float]] = [[] for _ in rows]
    for indices, batch in _batches(policy, rows, "scoring"):
        values = objective.scores(batch, policy)
        for index, found in zip(indices, values.float().cpu().view(len(indices), -1).tolist(), strict=True):
            scores[index] = found
    return scores


@torch.no_grad()
def text_outputs(policy: Policy, texts: Sequence[Tokens], compute: Callable[[Batch], Tensor]) -> Tensor:
    """Compute an output of each of N texts.

    Args:
        policy: the network and its head.
        texts: N encoded texts.
        compute: the output of a batch, such as pooled states [B, D] or logits [B, K].

    Returns:
        [N, ...] in float32, on the CPU.
    """
    world = current_world()
    if world.size > 1:
        costs = [len(tokens.ids) for tokens in texts]
        return torch.tensor(world.map(texts, lambda part: text_outputs(policy, part, compute).tolist(), costs=costs))
    order: list[int] = []
    parts = []
    for indices, batch in _batches(policy, [Encoded((tokens,), "") for tokens in texts], "reading"):
        order += indices
        parts.append(compute(batch).float())
    joined = torch.cat(parts).cpu()
    outputs = torch.empty_like(joined)
    outputs[order] = joined
    return outputs


@torch.inference_mode()
def masked_words(policy: Policy, template: Template, ids: list[int], *, options: int) -> list[tuple[str, float]]:
    """Return the likeliest words at the first mask token of a text with their probabilities, the likeliest first."""
    assert policy.head is not None
    index = ids.index(template.tokenizer.mask_token_id)
    batch = pack([Tokens.of(ids)]).to(policy.device)
    logits = policy.head(policy.states(batch)[batch.row_index[0, index]]).float()
    logits[template.tokenizer.all_special_ids] = -torch.inf  # these are not words
    best = logits.softmax(dim=0).topk(options)
    words = [template.decode([i]).strip() for i in best.indices.tolist()]
    return list(zip(words, best.values.tolist(), strict=True))


def classified(
    logits: Tensor, labels: Sequence[str], *, multi: bool, temperature: float, threshold: float | None = None
) -> list[Classified]:
    """Return the labels of each row of logits or log-probabilities [N, K] and the probabilities of all K labels.

    With `multi`, a row has every label of probability 0.5 or more, not the likeliest one; the temperature calibrates
    the probabilities of a single label, and the threshold is for it.
    """
    logits = logits.double()  # at a small temperature, small probabilities underflow in float32
    probabilities = logits.sigmoid() if multi else (logits / temperature).softmax(dim=1)
    rows = [dict(zip(labels, row, strict=True)) for row in probabilities.tolist()]
    if multi:
        return [Classified(tuple(label for label, p in row.items() if p >= 0.5), row) for row in rows]
    return [Classified((max(row, key=row.__getitem__),), row, threshold) for row in rows]


def settled(rounded: Tensor, exact: Callable[[list[int]], Tensor], *, multi: bool) -> Tensor:
    """Return logits [N, K] with the labels of full precision, computing only close rows in it.

    Args:
        rounded: the logits in half precision, which are kept where no label is close to another one.
        exact: computes the logits of rows, by index, in full precision; a row with NaN is one of them.
        multi: as in `classified`.
    """
    best = rounded.topk(min(2, rounded.shape[1])).values
    gaps = rounded.abs().amin(dim=1) if multi else best[:, 0] - best[:, -1]
    bound = max(CLOSE, float(gaps.nan_to_num(torch.inf).kthvalue(min(FEWEST_EXACT, len(gaps))).values))
    settled, known = rounded.clone(), torch.zeros(len(gaps), dtype=torch.bool)
    while rows := (~(gaps > bound) & ~known).nonzero()[:, 0].tolist():
        settled[rows], known[rows] = exact(rows), True
        change = settled[rows] - rounded[rows]
        errors = change.abs() if multi else change.amax(dim=1) - change.amin(dim=1)
        bound = max(bound, SAFETY * float(errors.nan_to_num(0.0).max()))
    return settled


def option_ids(template: Template, chat: Sequence[Message], answers: Sequence[str]) -> list[list[int]]:
    """Return the token ids by which each of several answers to a chat is scored."""
    ids = [template.answer(chat, text) for text in answers]
    # If one option is a prefix of another, only the end token distinguishes them.
    prefixed = any(a is not b and b[: len(a)] == a for a in ids for b in ids)
    ends = template.end_ids if prefixed else []
    return [[*option, *ends] for option in ids]


def _batches(policy: Policy, rows: Sequence[Encoded], title: str) -> Iterator[tuple[list[int], Batch]]:
    """Yield indices of rows and their batch, longest first; show the progress under a title."""
    sizes = [row.size for row in rows]
    order = sorted(range(len(rows)), key=lambda row: -sizes[row])
    for indices in track(split_by_tokens(order, sizes, scored_tokens(policy.device)), title, unit="rows", size=len):
        batch = collate([rows[i] for i in indices], share=policy.family == "decoder")
        yield indices, batch.to(policy.device)
