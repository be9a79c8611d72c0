"""Generation with a decoder: greedy or sampled completions, streaming, and scores of fixed options.

Prompts run in groups of similar length. What they share is computed once, and a row that has ended leaves the batch.

Letters: B unfinished rows, S tokens so far, T new tokens, D hidden width, V vocabulary, O options of a prompt.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import Cache

from tunesmith.data.tokenization.chat_template import Template, Tokens
from tunesmith.models.attention.network_cache import RowState, forward_cached, new_cache, select_rows, shares_prompts
from tunesmith.models.attention.packed import NO_MASK
from tunesmith.models.attention.shared_prefix import SharedPrefixAttention
from tunesmith.models.batch import TOKENS_PER_PASS, pack, split_by_tokens
from tunesmith.models.families import slides
from tunesmith.models.generation.sampling import Sampling
from tunesmith.models.generation.thoughts import ThoughtSplitter
from tunesmith.models.policy import Policy
from tunesmith.models.world import current_world
from tunesmith.progress import measuring, track

# Rows decoded together, and the prompt tokens whose keys and values stay in memory until all of them have ended.
ROWS, CACHED_TOKENS = 64, 16_384
# Padding that a further pass over prompts of similar length has to save: tokens that take as long as its start.
PART_TOKENS = 128
# Prompts whose options are scored in one pass.
SCORED_PROMPTS = 32
# Completions decoded together when each prompt gets several: the weights are read once for all of them.
SAMPLED_ROWS = 64


@dataclass(slots=True)
class _DecodingState:
    """The unfinished rows: their cache, which of its columns are tokens, and the last state of each row."""

    cache: Cache | None  # None before the first pass of a network that makes its own
    mask: Tensor  # [B, S] int64, 0 on padding
    last: Tensor  # [B, D]
    # The prompts, if several completions attend to one copy of each; the cache then holds only what follows them.
    shared: SharedPrefixAttention | None = None

    def spread(self, copies: int, policy: Policy) -> None:
        """Repeat each row `copies` times, adjacent; prompts are copied only where they cannot be shared."""
        assert self.cache is not None, "the prompts have run"
        if policy.packs and shares_prompts(policy.network):
            layers: list[Any] = self.cache.layers
            self.shared = SharedPrefixAttention.of(
                [(layer.keys, layer.values) for layer in layers], self.mask, copies=copies
            )
            self.cache = new_cache(policy.network)
        else:
            select_rows(self.cache, torch.arange(len(self.mask), device=self.mask.device).repeat_interleave(copies))
        self.mask = self.mask.repeat_interleave(copies, dim=0)
        self.last = self.last.repeat_interleave(copies, dim=0)

    def keep(self, rows: list[int]) -> None:
        """Drop all other rows."""
        chosen = torch.tensor(rows, device=self.mask.device)
        if self.cache is not None:
            select_rows(self.cache, chosen)
        if self.shared is not None:
            self.shared = self.shared.keep(chosen)
        self.mask = self.mask[chosen]
        self.last = self.last[chosen]

    def feed(self, policy: Policy, ids: Tensor, real: Tensor) -> Tensor:
        """Append ids [B, T], with `real` False on padding, and return their states [B, T, D]."""
        if ids.shape[1] > 1 and self.mask.shape[1] and not policy.rules.continues:
            columns = zip(ids.split(1, dim=1), real.split(1, dim=1), strict=True)
            return torch.cat([self.feed(policy, *column) for column in columns], dim=1)
        length = self.mask.sum(dim=1, keepdim=True)
        self.mask = torch.cat([self.mask, real.long()], dim=1)
        positions = (length + real.long().cumsum(dim=1) - 1).clamp(min=0)
        options: dict[str, Any] = {"attention_mask": self.mask}
        if self.shared is not None:
            options = {"attention_mask": NO_MASK.to(ids.device), "layout": self.shared}
        states, self.cache = forward_cached(
            policy.network, self.cache, input_ids=ids, position_ids=positions, **options
        )
        return states


@dataclass(frozen=True, slots=True)
class AnswerIds:
    """The token ids of one completion."""

    ids: list[int]  # without the stop token
    finished: bool  # ended by itself, not by the token limit
    end: tuple[int, ...] = ()  # the stop token, if it ended with one
    logprobs: tuple[float, ...] = ()  # of `ids` and `end` where they were sampled, nats; empty if not recorded


def generate(
    policy: Policy, prompts: Sequence[list[int]], *, sampling: Sampling, template: Template
) -> list[AnswerIds]:
    """Generate a completion for each prompt.

    Args:
        policy: a decoder.
        prompts: token ids of each prompt.
        sampling: decoding settings.
        template: supplies the stop tokens and decodes for stop strings.

    Returns:
        Completions in the order of the prompts. A completion does not depend on the other prompts of the call.
    """
    completions: dict[int, AnswerIds] = {}
    divided = groups(policy, prompts, ROWS)
    for group in track(divided, "generating", unit="rows", total=len(prompts), size=len):
        generated = _complete(policy, [prompts[i] for i in group], sampling=sampling, template=template)
        completions |= dict(zip(group, generated, strict=True))
    return [completions[i] for i in range(len(prompts))]


def generate_within(
    policy: Policy, prompts: Sequence[list[int]], longest: Sequence[int], *, sampling: Sampling, template: Template
) -> list[AnswerIds]:
    """Generate as `generate` does, but at most `longest` tokens of each completion; other arguments as in `generate`.

    With 0 tokens, a completion is empty and unfinished. Of several processes, each generates a share of them.
    """
    world = current_world()
    if world.size > 1:

        def share(mine: list[int]) -> list[Any]:
            own, limits = [prompts[i] for i in mine], [longest[i] for i in mine]
            return list(map(astuple, generate_within(policy, own, limits, sampling=sampling, template=template)))

        costs = [len(prompt) + limit for prompt, limit in zip(prompts, longest, strict=True)]
        found = world.map(range(len(prompts)), share, costs=costs)
        return [AnswerIds(ids, finished, tuple(end), tuple(logs)) for ids, finished, end, logs in found]
    completions = [AnswerIds([], False)] * len(prompts)
    by_limit = defaultdict[int, list[int]](list)
    for i, limit in enumerate(longest):
        if limit > 0:
            by_limit[limit].append(i)
    grouped = track(by_limit.items(), "generating", unit="rows", size=lambda group: len(group[1]))
    for limit, members in grouped:
        limited = replace(sampling, max_new_tokens=limit)
        generated = generate(policy, [prompts[i] for i in members], sampling=limited, template=template)
        for i, completion in zip(members, generated, strict=True):
            completions[i] = completion
    return completions


def sample(
    policy: Policy, prompts: Sequence[list[int]], *, count: int, sampling: Sampling, template: Template
) -> list[list[AnswerIds]]:
    """Sample `count` completions for each prompt, each from its own random generator; arguments as in `generate`.

    Keys and values of a prompt are computed once for all its completions.
    """
    completions: dict[int, list[AnswerIds]] = {}
    divided = groups(policy, prompts, max(1, SAMPLED_ROWS // count), copies=count)
    for group in track(divided, "sampling", unit="prompts", total=len(prompts), size=len):
        members = [prompts[i] for i in group]
        generated = _complete(policy, members, sampling=sampling, template=template, copies=count)
        completions |= {row: generated[i * count : (i + 1) * count] for i, row in enumerate(group)}
    return [completions[i] for i in range(len(prompts))]


def _complete(
    policy: Policy, prompts: Sequence[list[int]], *, sampling: Sampling, template: Template, copies: int = 1
) -> list[AnswerIds]:
    """Generate `copies` completions for each of the prompts of one group."""
    ids: list[list[int]] = [[] for _ in range(len(prompts) * copies)]
    ends: dict[int, tuple[int, ...]] = {}
    done = 0.0  # a row that generates counts by its share of the token limit
    with policy.autocast(), measuring("generating", len(ids), unit="rows") as meter:
        for row, token, ended in _steps(policy, prompts, sampling=sampling, template=template, copies=copies):
            done += 1 / sampling.max_new_tokens
            meter.update(done)
            stops = token in template.stop_ids
            if not stops:
                ids[row].append(token)
            if ended:
                done += 1 - (len(ids[row]) + stops) / sampling.max_new_tokens
                ends[row] = (token,) if stops else ()
    return [AnswerIds(completion, row in ends, ends.get(row, ())) for row, completion in enumerate(ids)]


def groups(policy: Policy, prompts: Sequence[list[int]], size: int, copies: int = 1) -> Iterator[list[int]]:
    """Group the prompts that run together, longest first.

    Args:
        policy: the decoder they run on.
        prompts: token ids of each prompt.
        size: largest number of prompts in a group; fewer where they are long.
        copies: completions per prompt.

    Yields:
        Indices of the prompts of one group.
    """
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    # Where padding would change a row, only prompts of equal length form a group. With virtual tokens in front, padding
    # is inside a row (see `_prefill`).
    even = not (policy.rules.pads_left if policy.virtual is None else policy.rules.pads_inside)
    lengths = [max(CACHED_TOKENS // size, len(prompt) * copies) for prompt in prompts]
    for _, members in groupby(order, key=lambda i: len(prompts[i]) if even else 0):
        yield from split_by_tokens(list(members), lengths, CACHED_TOKENS)


@dataclass(frozen=True, slots=True)
class Piece:
    """New text of a completion: of its answer, of the thoughts before it, or of both."""

    text: str
    thoughts: str = ""


def stream_pieces(
    policy: Policy, prompt: list[int], *, sampling: Sampling, splitter: ThoughtSplitter
) -> Iterator[Piece]:
    """Generate one completion and yield its text while it is decoded.

    Text that may become a stop string or a mark of thoughts, and white space that may be the last of the completion, is
    held back until that is decided.

    Args:
        policy: a decoder.
        prompt: token ids.
        sampling: decoding settings.
        splitter: decodes the ids and splits off the thoughts; its template supplies the stop tokens.

    Yields:
        Pieces of whole characters. Joined, they equal the text up to the first stop string, each part stripped.
    """
    template = splitter.template
    ids: list[int] = []
    sent = Piece("")
    for _, token, _ in _steps(policy, [prompt], sampling=sampling, template=template):
        if token in template.stop_ids:
            break
        ids.append(token)
        text = splitter.decode(ids)
        if text.endswith("\ufffd"):  # the last character is incomplete: a token may hold a part of its bytes
            continue
        thoughts, answer = splitter.ready(before_stop(decided(text, sampling.stop), sampling.stop))
        ready = Piece(answer.strip(), thoughts.strip())
        if len(ready.text) > len(sent.text) or len(ready.thoughts) > len(sent.thoughts):
            yield Piece(ready.text[len(sent.text) :], ready.thoughts[len(sent.thoughts) :])
            sent = Piece(max(sent.text, ready.text, key=len), max(sent.thoughts, ready.thoughts, key=len))
    thoughts, answer = splitter.split(before_stop(splitter.decode(ids), sampling.stop))
    rest = Piece(answer.strip()[len(sent.text) :], thoughts.strip()[len(sent.thoughts) :])
    if rest.text or rest.thoughts:
        yield rest


def decided(text: str, stops: Sequence[str]) -> str:
    """Return the text without an end that may be the beginning of one of the stop strings."""
    partial = [size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size])]
    return text[: len(text) - max(partial, default=0)]


def before_stop(text: str, stops: Sequence[str]) -> str:
    """Return the text up to the first of the stop strings."""
    positions = [position for position in (text.find(stop) for stop in stops) if position >= 0]
    return text[: min(positions)] if positions else text


@torch.inference_mode()
def _steps(
    policy: Policy, prompts: Sequence[list[int]], *, sampling: Sampling, template: Template, copies: int = 1
) -> Iterator[tuple[int, int, bool]]:
    """Yield (row, token id, whether the row ends with it) as tokens are generated; `copies` rows per prompt."""
    rows = list(range(len(prompts) * copies))
    ids: list[list[int]] = [[] for _ in rows]
    generators = [chance_of(sampling.seed, prompt, copy) for prompt in prompts for copy in range(copies)]
    state = _prefill(policy, prompts)
    if copies > 1:
        state.spread(copies, policy)
    for step in range(sampling.max_new_tokens):
        # Logits in full precision: rounding them to half would lose more than the half-precision products before do.
        with torch.autocast(state.last.device.type, enabled=False):
            logits = policy.words.logits(state.last.to(policy.network.dtype)).float()
        tokens = choose(logits, [generators[row] for row in rows], sampling)
        unfinished = []
        for i, (row, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
            ids[row].append(token)
            ended = token in template.stop_ids or (
                bool(sampling.stop) and any(stop in template.decode(ids[row]) for stop in sampling.stop)
            )
            yield row, token, ended
            if not ended:
                unfinished.append(i)
        if not unfinished or step + 1 == sampling.max_new_tokens:
            return
        if len(unfinished) < len(rows):
            state.keep(unfinished)
            rows = [rows[i] for i in unfinished]
            tokens = tokens[unfinished]
        state.last = state.feed(policy, tokens[:, None], torch.ones_like(tokens[:, None], dtype=torch.bool))[:, -1]


def _prefill(policy: Policy, prompts: Sequence[list[int]]) -> _DecodingState:
    """Run the prompts, in parts of similar length where their caches can be joined, so that all end in one column."""
    shared = _shared(policy, prompts)
    own = [len(prompt) - shared for prompt in prompts]
    parts = _similar(own, PART_TOKENS if policy.device.type == "cpu" else TOKENS_PER_PASS)
    if len(parts) == 1 or not policy.packs or slides(policy.network.config):
        return _prefill_part(policy, prompts)
    cache = _prefix(policy, prompts[0][:shared], rows=1) if shared else None
    prefix = None if cache is None else RowState(cache)
    states = [_prefill_part(policy, [prompts[i] for i in part], shared, prefix) for part in parts]
    order = torch.tensor([i for part in parts for i in part], device=policy.device).argsort()
    width = max(state.mask.shape[1] for state in states)

    def joined(tensors: list[Tensor], columns: int) -> Tensor:
        """Join tensors [B, ..., S, ...] of all parts, padded in front of dimension `columns`, in the given order."""
        padded = [
            F.pad(each, [0, 0] * (each.dim() - 1 - columns) + [width - each.shape[columns], 0]) for each in tensors
        ]
        return torch.cat(padded)[order]

    whole = states[0]
    caches: list[list[Any]] = [state.cache.layers for state in states if state.cache is not None]
    for layers in zip(*caches, strict=True):
        layers[0].keys = joined([layer.keys for layer in layers], 2)
        layers[0].values = joined([layer.values for layer in layers], 2)
        for layer in layers[1:]:  # its memory is needed
            layer.keys = layer.values = None
    whole.mask = joined([state.mask for state in states], 1)
    whole.last = torch.cat([state.last for state in states])[order]
    return whole


def _similar(lengths: Sequence[int], part: int) -> list[list[int]]:
    """Divide rows into parts so that their tokens with padding, and `part` tokens for each part, are fewest."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    best = [(0, 0)]  # tokens for the first rows, and where their last part begins
    for end in range(1, len(order) + 1):
        best.append(min((best[i][0] + part + (end - i) * lengths[order[i]], i) for i in range(end)))
    parts = []
    while order:
        start = best[len(order)][1]
        parts.append(order[start:])
        order = order[:start]
    return parts


def _shared(policy: Policy, prompts: Sequence[list[int]]) -> int:
    """Return the length of a prefix that the prompts share and that may run once."""
    # Rows of unequal length share a prefix only where padding may follow it.
    uneven = not policy.rules.pads_inside and len(set(map(len, prompts))) > 1
    return common(prompts) if policy.rules.continues and not uneven else 0


def _prefix(policy: Policy, ids: list[int], *, rows: int) -> Cache | None:
    return policy.prefill(torch.tensor(ids, dtype=torch.int64, device=policy.device), rows=rows)


def _prefill_part(
    policy: Policy, prompts: Sequence[list[int]], shared: int = 0, prefix: RowState | None = None
) -> _DecodingState:
    """Run the prompts after their `shared` prefix, padded on the left so that all end in the same column.

    Without the state of a `prefix`, that which these prompts share runs first.
    """
    device = policy.device
    if prefix is None:
        shared = _shared(policy, prompts)
        cache = _prefix(policy, prompts[0][:shared], rows=len(prompts))
    else:
        cache = prefix.fresh()
        select_rows(cache, torch.zeros(len(prompts), dtype=torch.int64, device=device))
    width = max(map(len, prompts)) - shared
    ids = torch.zeros(len(prompts), width, dtype=torch.int64)
    real = torch.zeros(len(prompts), width, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) + shared :] = torch.tensor(prompt[shared:])
        real[row, width - len(prompt) + shared :] = True
    mask = torch.ones(len(prompts), policy.virtual_tokens + shared, dtype=torch.int64, device=device)
    state = _DecodingState(cache, mask, torch.empty(0))
    state.last = state.feed(policy, ids.to(device), real.to(device))[:, -1]
    return state


def common(prompts: Sequence[list[int]]) -> int:
    """Count the leading ids that all prompts share, at least one less than each has; 0 for a single prompt."""
    if len(prompts) < 2:
        return 0
    limit = min(map(len, prompts)) - 1
    first = prompts[0]
    for position in range(limit):
        if any(prompt[position] != first[position] for prompt in prompts):
            return position
    return limit


# Below this temperature the most likely token has all the probability, and dividing by it may overflow a float.
MIN_TEMPERATURE = 1e-5


def choose(logits: Tensor, chance: Sequence[torch.Generator], sampling: Sampling) -> Tensor:
    """Choose the next token of each row from logits [B, V]. Returns [B] int64.

    Args:
        logits: one row per completion, float32.
        chance: the random generator of each row.
        sampling: temperature 0 takes the most likely token; otherwise it is sampled from the smallest set of tokens
            whose probabilities sum to `top_p`.
    """
    if sampling.temperature < MIN_TEMPERATURE:
        return logits.argmax(dim=1)
    probabilities = (logits / sampling.temperature).softmax(dim=1)
    if sampling.top_p < 1:
        # Drop a token if those before it already have the mass: the first one always stays.
        ordered, index = probabilities.sort(dim=1, descending=True)
        ordered[ordered.cumsum(dim=1) - ordered > sampling.top_p] = 0
        probabilities = torch.zeros_like(probabilities).scatter_(1, index, ordered)
    # Inverse transform sampling needs one random value per row; torch.multinomial generates one per vocabulary entry.
    bounds = probabilities.cumsum(dim=1)
    points = torch.stack([torch.rand(1, generator=generator) for generator in chance])
    points = points.to(bounds.device) * bounds[:, -1:]
    return torch.searchsorted(bounds, points, right=True)[:, 0].clamp(max=logits.shape[1] - 1)


def chance_of(seed: int, prompt: list[int], copy: int = 0) -> torch.Generator:
    """Return the random generator of one completion.

    It depends on these arguments only, not on the batch, so a completion is the same in any company.

    Args:
        seed: seed of the sampling settings.
        prompt: token ids.
        copy: index of the completion among those of its prompt.
    """
    return torch.Generator().manual_seed(seed_of(seed, prompt, copy))


def seed_of(seed: int, prompt: list[int], copy: int = 0) -> int:
    """Return the seed of the generator that `chance_of` returns, below 2**56.

    Args:
        seed: of all answers.
        prompt: token ids.
        copy: number of the answer, of several to one prompt.
    """
    digest = hashlib.sha256((f"{seed}/{prompt}/{copy}" if copy else f"{seed}/{prompt}").encode()).digest()
    return int.from_bytes(digest[:7], "big")


@torch.inference_mode()
def option_scores(policy: Policy, prompts: Sequence[list[int]], options: Sequence[Sequence[list[int]]]) -> Tensor:
    """Compute the log-probability of each of a prompt's options as its completion.

    Args:
        policy: a decoder.
        prompts: token ids of each prompt.
        options: token ids of the O options of each prompt.

    Returns:
        Log-probabilities [B, O] in nats, summed over the tokens of an option.
    """
    world = current_world()
    if world.size > 1:

        def share(mine: list[int]) -> list[Any]:
            own: list[Any] = option_scores(policy, [prompts[i] for i in mine], [options[i] for i in mine]).tolist()
            return own

        costs = [len(prompt) + sum(map(len, own)) for prompt, own in zip(prompts, options, strict=True)]
        return torch.tensor(world.map(range(len(prompts)), share, costs=costs))
    if not policy.packs:
        return _cached_option_scores(policy, prompts, options)
    shared = common(prompts)
    # The shared prefix runs once, but attention gathers its keys for every prompt: hence the limit per pass.
    least = TOKENS_PER_PASS // SCORED_PROMPTS
    lengths = [
        max(least, len(prompt) - shared + sum(map(len, own))) for prompt, own in zip(prompts, options, strict=True)
    ]
    order = sorted(range(len(prompts)), key=lambda i: -lengths[i])
    scores = torch.zeros(len(prompts), len(options[0]))
    divided = split_by_tokens(order, lengths, TOKENS_PER_PASS)
    for group in track(divided, "scoring options", unit="rows", size=len):
        rows = [Tokens.of(prompts[i], option) for i in group for option in options[i]]
        batch = pack(rows).to(policy.device)
        # The first tokens of all options of a prompt follow one state, whose logits are computed once.
        sources, index = batch.prev_index.unique(return_inverse=True)
        each = policy.words.logprobs_at(policy.states(batch)[sources], index, batch.targets)
        scores[group] = each.new_zeros(batch.rows).index_add(0, batch.row_ids, each).cpu().view(len(group), -1)
    return scores


def _cached_option_scores(
    policy: Policy, prompts: Sequence[list[int]], options: Sequence[Sequence[list[int]]]
) -> Tensor:
    """Compute `option_scores` where rows are not packed: a prompt runs once, and its options continue copies of it."""
    copies = len(options[0])
    scores = torch.zeros(len(prompts), copies)
    divided = groups(policy, prompts, max(1, ROWS // copies), copies=copies)
    for group in track(divided, "scoring options", unit="rows", size=len):
        rows = [torch.tensor(option, device=policy.device) for i in group for option in options[i]]
        targets = pad_sequence(rows, batch_first=True, padding_value=-1)  # [B, T]
        real = targets >= 0
        with policy.autocast():
            state = _prefill(policy, [prompts[i] for i in group])
            state.spread(copies, policy)
            states = state.last[:, None]
            if targets.shape[1] > 1:  # the last id of an option is only a target; padding after its end changes nothing
                fed = targets[:, :-1].clamp(min=0)
                states = torch.cat([states, state.feed(policy, fed, real[:, 1:])], dim=1)
        logprobs = policy.words.logprobs(states[real].to(policy.network.dtype), targets[real])
        summed = torch.zeros(len(rows), device=policy.device)
        summed.index_add_(0, real.nonzero()[:, 0], logprobs.float())
        scores[group] = summed.cpu().view(len(group), copies)
    return scores
