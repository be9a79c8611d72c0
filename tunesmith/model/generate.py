"""Answers from a decoder. Letters: B rows still open, S tokens seen so far, D hidden, V words, O options.

Prompts are grouped by length, what they share is computed once, and a finished row leaves the batch.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from tunesmith.data.template import Template, Tokens
from tunesmith.model.attention import NO_MASK
from tunesmith.model.batch import TOKENS_PER_PASS, cut, pack
from tunesmith.model.families import counts_places, slides
from tunesmith.model.fork import Fork
from tunesmith.model.policy import Policy
from tunesmith.model.sampling import Sampling

# Rows answered side by side, and the tokens of their prompts, which are remembered until all have ended.
ROWS, REMEMBERED = 64, 16_384
# Questions whose options are scored in one pass.
SCORED = 32
# Answers drawn side by side when each prompt gets several: the weights are read once for all of them.
SAMPLED = 64


@dataclass(slots=True)
class _Open:
    """Rows that are being answered: their cache, what of it is real, and the last state of each."""

    cache: DynamicCache
    mask: Tensor  # [B, S] int64
    last: Tensor  # [B, D]
    fork: Fork | None = None  # where what lies in the cache comes after prompts that several rows share

    def spread(self, copies: int, policy: Policy) -> None:
        """Each row so many times, next to each other; the prompts are not copied where attention can be told so."""
        if policy.packs and not slides(policy.network.config):
            layers: list[Any] = self.cache.layers
            self.fork = Fork.of([(one.keys, one.values) for one in layers], self.mask, copies=copies)
            self.cache = DynamicCache(config=policy.network.config)
        else:
            self.cache.batch_repeat_interleave(copies)
        self.mask = self.mask.repeat_interleave(copies, dim=0)
        self.last = self.last.repeat_interleave(copies, dim=0)

    def keep(self, rows: list[int]) -> None:
        """Drop all other rows."""
        chosen = torch.tensor(rows, device=self.mask.device)
        if self.cache.get_seq_length():  # a fork's is empty at first
            self.cache.batch_select_indices(chosen)
        if self.fork is not None:
            self.fork = self.fork.keep(chosen)
        self.mask, self.last = self.mask[chosen], self.last[chosen]

    def feed(self, policy: Policy, ids: Tensor, real: Tensor) -> Tensor:
        """Append [B, T] ids, of which `real` are no padding, and return their states [B, T, D]."""
        before = self.mask.sum(dim=1, keepdim=True)
        self.mask = torch.cat([self.mask, real.long()], dim=1)
        positions = (before + real.long().cumsum(dim=1) - 1).clamp(min=0)
        how: dict[str, Any] = {"attention_mask": self.mask}
        if self.fork is not None:
            how = {"attention_mask": NO_MASK.to(ids.device), "layout": self.fork}
        out = policy.network.base_model(input_ids=ids, position_ids=positions, cache=self.cache, use_cache=True, **how)
        states: Tensor = out.last_hidden_state
        return states


@dataclass(frozen=True, slots=True)
class AnswerIds:
    """Ids of one answer, the stop token left out, whether it ended by itself, and the stop token if it had one."""

    ids: list[int]
    finished: bool
    end: tuple[int, ...] = ()


def generate(
    policy: Policy, prompts: Sequence[list[int]], *, sampling: Sampling, template: Template
) -> list[AnswerIds]:
    """An answer to each prompt, in the order given; the same answers whatever is asked beside them."""
    answers: dict[int, AnswerIds] = {}
    for group in groups(policy, prompts, ROWS):
        drawn = _drawn(policy, [prompts[i] for i in group], sampling=sampling, template=template)
        answers |= dict(zip(group, drawn, strict=True))
    return [answers[i] for i in range(len(prompts))]


def generate_within(
    policy: Policy, prompts: Sequence[list[int]], longest: Sequence[int], *, sampling: Sampling, template: Template
) -> list[AnswerIds]:
    """As `generate`, each answer at most as long as its own prompt leaves room for; none, and cut, where that is 0."""
    found, by_length = [AnswerIds([], False)] * len(prompts), defaultdict[int, list[int]](list)
    for i, most in enumerate(longest):
        if most > 0:
            by_length[most].append(i)
    for most, some in by_length.items():
        wish, asked = replace(sampling, max_new_tokens=most), [prompts[i] for i in some]
        for i, drawn in zip(some, generate(policy, asked, sampling=wish, template=template), strict=True):
            found[i] = drawn
    return found


def sample(
    policy: Policy, prompts: Sequence[list[int]], *, count: int, sampling: Sampling, template: Template
) -> list[list[AnswerIds]]:
    """`count` answers to each prompt, each by a chance of its own; a prompt's keys and values are made once."""
    answers: dict[int, list[AnswerIds]] = {}
    for group in groups(policy, prompts, max(1, SAMPLED // count), copies=count):
        some = [prompts[i] for i in group]
        drawn = _drawn(policy, some, sampling=sampling, template=template, copies=count)
        answers |= {row: drawn[place * count : (place + 1) * count] for place, row in enumerate(group)}
    return [answers[i] for i in range(len(prompts))]


def _drawn(
    policy: Policy, prompts: Sequence[list[int]], *, sampling: Sampling, template: Template, copies: int = 1
) -> list[AnswerIds]:
    """The answers to prompts that run together."""
    ids: list[list[int]] = [[] for _ in range(len(prompts) * copies)]
    ends: dict[int, tuple[int, ...]] = {}
    with policy.mixing():
        for row, token, ended in _steps(policy, prompts, sampling=sampling, template=template, copies=copies):
            stops = token in template.stop_ids
            if not stops:
                ids[row].append(token)
            if ended:
                ends[row] = (token,) if stops else ()
    return [AnswerIds(said, row in ends, ends.get(row, ())) for row, said in enumerate(ids)]


def groups(policy: Policy, prompts: Sequence[list[int]], size: int, copies: int = 1) -> Iterator[list[int]]:
    """Prompts that are answered together, at most `size`, fewer where they are long; the longest first."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    # Padding would stand between virtual tokens and a row's own, as in `_prefill`, so here nothing is padded.
    even = policy.virtual is not None and counts_places(policy.network.config)
    lengths = [max(REMEMBERED // size, len(prompt) * copies) for prompt in prompts]
    for _, alike in groupby(order, key=lambda i: len(prompts[i]) if even else 0):
        yield from cut(list(alike), lengths, REMEMBERED)


def stream(policy: Policy, prompt: list[int], *, sampling: Sampling, template: Template) -> Iterator[str]:
    """One answer in pieces of whole characters that join to exactly what `before_stop` leaves of it, stripped.

    What may become a stop string, and space that may be the answer's last, is held back until that is known.
    """
    ids: list[int] = []
    said = ""
    for _, token, _ in _steps(policy, [prompt], sampling=sampling, template=template):
        if token in template.stop_ids:
            break
        ids.append(token)
        text = template.decode(ids)
        if text.endswith("\ufffd"):  # the bytes of a character that is not whole yet
            continue
        ready = before_stop(decided(text, sampling.stop), sampling.stop).strip()
        if len(ready) > len(said):
            yield ready[len(said) :]
            said = ready
    if rest := before_stop(template.decode(ids), sampling.stop).strip()[len(said) :]:
        yield rest


def decided(text: str, stops: Sequence[str]) -> str:
    """The text without an end that may be the beginning of a stop string."""
    begun = [size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size])]
    return text[: len(text) - max(begun, default=0)]


def before_stop(text: str, stops: Sequence[str]) -> str:
    """The text up to the first stop string."""
    found = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    return text[: min(found)] if found else text


@torch.inference_mode()
def _steps(
    policy: Policy, prompts: Sequence[list[int]], *, sampling: Sampling, template: Template, copies: int = 1
) -> Iterator[tuple[int, int, bool]]:
    """(row, id, whether the row ends with it) as they are drawn; `copies` rows for each prompt."""
    rows = list(range(len(prompts) * copies))
    said: list[list[int]] = [[] for _ in rows]
    chance = [chance_of(sampling.seed, prompt, copy) for prompt in prompts for copy in range(copies)]
    state = _prefill(policy, prompts)
    if copies > 1:
        state.spread(copies, policy)
    for step in range(sampling.max_new_tokens):
        drawn = choose(_logits(policy, state.last), [chance[row] for row in rows], sampling)
        going = []
        for place, (row, token) in enumerate(zip(rows, drawn.tolist(), strict=True)):
            said[row].append(token)
            ended = token in template.stop_ids or (
                bool(sampling.stop) and any(stop in template.decode(said[row]) for stop in sampling.stop)
            )
            yield row, token, ended
            if not ended:
                going.append(place)
        if not going or step + 1 == sampling.max_new_tokens:
            return
        if len(going) < len(rows):
            state.keep(going)
            rows, drawn = [rows[place] for place in going], drawn[going]
        state.last = state.feed(policy, drawn[:, None], torch.ones_like(drawn[:, None], dtype=torch.bool))[:, -1]


def _logits(policy: Policy, last: Tensor) -> Tensor:
    """[B, V] in full precision: what half of it loses in the products before is less than what it would round here."""
    with torch.autocast(last.device.type, enabled=False):
        return policy.words.logits(last.to(policy.network.dtype)).float()


def _prefill(policy: Policy, prompts: Sequence[list[int]]) -> _Open:
    """Run the prompts, what they share once, padding on the left so that all end at the same place."""
    # Padding between the shared ids and a row's own would shift what counts places.
    uneven = counts_places(policy.network.config) and len(set(map(len, prompts))) > 1
    shared = 0 if uneven else common(prompts)
    width = max(map(len, prompts)) - shared
    ids = torch.zeros(len(prompts), width, dtype=torch.int64)
    real = torch.zeros(len(prompts), width, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) + shared :] = torch.tensor(prompt[shared:])
        real[row, width - len(prompt) + shared :] = True
    device = policy.device
    cache = policy.prefill(torch.tensor(prompts[0][:shared], dtype=torch.int64, device=device), rows=len(prompts))
    seen = torch.ones(len(prompts), cache.get_seq_length(), dtype=torch.int64, device=device)
    state = _Open(cache, seen, torch.empty(0))
    state.last = state.feed(policy, ids.to(device), real.to(device))[:, -1]
    return state


def common(prompts: Sequence[list[int]]) -> int:
    """Leading ids that all prompts share, at least one id left to each; 0 for a single prompt."""
    if len(prompts) < 2:
        return 0
    limit = min(map(len, prompts)) - 1
    first = prompts[0]
    for position in range(limit):
        if any(prompt[position] != first[position] for prompt in prompts):
            return position
    return limit


# Below this the likeliest id has all the mass, and a division by it may leave what a float holds.
COLDEST = 1e-5


def choose(logits: Tensor, chance: Sequence[torch.Generator], sampling: Sampling) -> Tensor:
    """[B, V] -> [B]: the likeliest id, or one drawn from the smallest set that holds top_p of the mass."""
    if sampling.temperature < COLDEST:
        return logits.argmax(dim=1)
    probabilities = (logits / sampling.temperature).softmax(dim=1)
    if sampling.top_p < 1:
        ordered, index = probabilities.sort(dim=1, descending=True)
        ordered[ordered.cumsum(dim=1) - ordered > sampling.top_p] = 0
        probabilities = torch.zeros_like(probabilities).scatter_(1, index, ordered)
    # One number per row and the place it falls on: torch.multinomial draws one for every word.
    bounds = probabilities.cumsum(dim=1)
    places = torch.stack([torch.rand(1, generator=one) for one in chance]).to(bounds.device) * bounds[:, -1:]
    return torch.searchsorted(bounds, places, right=True)[:, 0].clamp(max=logits.shape[1] - 1)


def chance_of(seed: int, prompt: list[int], copy: int = 0) -> torch.Generator:
    """Chance that depends on the seed, the prompt and which of its answers it is, not on the company they keep."""
    digest = hashlib.sha256((f"{seed}/{prompt}/{copy}" if copy else f"{seed}/{prompt}").encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


@torch.inference_mode()
def option_scores(policy: Policy, prompts: Sequence[list[int]], options: Sequence[Sequence[list[int]]]) -> Tensor:
    """[B, O]: log-probability of each of a prompt's O options after it; what they share runs once a pass."""
    shared = common(prompts)
    # What is shared runs once, but every prompt's keys are gathered from its first id on: so at most SCORED a pass.
    least = TOKENS_PER_PASS // SCORED
    lengths = [max(least, len(one) - shared + sum(map(len, own))) for one, own in zip(prompts, options, strict=True)]
    order = sorted(range(len(prompts)), key=lambda i: -lengths[i])
    scores = torch.zeros(len(prompts), len(options[0]))
    for group in cut(order, lengths, TOKENS_PER_PASS):
        rows = [Tokens.of(prompts[i], option) for i in group for option in options[i]]
        found = policy.logprobs(pack(rows).to(policy.device))
        scores[group] = found.float().cpu().view(len(group), -1)
    return scores
