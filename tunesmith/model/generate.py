"""Answers from a decoder. Letters: B rows still open, S tokens seen so far, D hidden, V words, O options.

Prompts are grouped by length, what they share is computed once, and a finished row leaves the batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from tunesmith.data.template import Template
from tunesmith.model.policy import Policy
from tunesmith.model.sampling import Sampling

ROWS = 32


@dataclass(slots=True)
class _Open:
    """Rows that are being answered: their cache, what of it is real, and the last state of each."""

    cache: DynamicCache
    mask: Tensor  # [B, S] int64
    last: Tensor  # [B, D]

    def keep(self, rows: list[int]) -> None:
        """Drop all other rows."""
        chosen = torch.tensor(rows, device=self.mask.device)
        self.cache.batch_select_indices(chosen)
        self.mask, self.last = self.mask[chosen], self.last[chosen]

    def feed(self, policy: Policy, ids: Tensor, real: Tensor) -> Tensor:
        """Append [B, T] ids, of which `real` are no padding, and return their states [B, T, D]."""
        before = self.mask.sum(dim=1, keepdim=True)
        self.mask = torch.cat([self.mask, real.long()], dim=1)
        positions = (before + real.long().cumsum(dim=1) - 1).clamp(min=0)
        out = policy.network.base_model(
            input_ids=ids, attention_mask=self.mask, position_ids=positions, cache=self.cache, use_cache=True
        )
        states: Tensor = out.last_hidden_state
        return states


@dataclass(frozen=True, slots=True)
class Drawn:
    """Ids of one answer, the stop token left out, and whether it ended by itself."""

    ids: list[int]
    finished: bool


def generate(policy: Policy, prompts: Sequence[list[int]], *, sampling: Sampling, template: Template) -> list[Drawn]:
    """An answer to each prompt, in the order given; the same answers whatever is asked beside them."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    answers: dict[int, Drawn] = {}
    for start in range(0, len(order), ROWS):
        group = order[start : start + ROWS]
        ids: dict[int, list[int]] = {row: [] for row in group}
        open_rows = set(group)
        for place, token in _steps(policy, [prompts[i] for i in group], sampling=sampling, template=template):
            row = group[place]
            if token is None:
                open_rows.discard(row)
            else:
                ids[row].append(token)
        answers |= {row: Drawn(ids[row], row not in open_rows) for row in group}
    return [answers[i] for i in range(len(prompts))]


def stream(policy: Policy, prompt: list[int], *, sampling: Sampling, template: Template) -> Iterator[str]:
    """One answer in pieces of whole characters that join to exactly what `before_stop` leaves of it, stripped.

    What may become a stop string, and space that may be the answer's last, is held back until that is known.
    """
    ids: list[int] = []
    said = ""
    for _, token in _steps(policy, [prompt], sampling=sampling, template=template):
        if token is None:
            break
        ids.append(token)
        text = template.decode(ids)
        if text.endswith("\ufffd"):  # the bytes of a character that is not whole yet
            continue
        ready = before_stop(_decided(text, sampling.stop), sampling.stop).strip()
        if len(ready) > len(said):
            yield ready[len(said) :]
            said = ready
    if rest := before_stop(template.decode(ids), sampling.stop).strip()[len(said) :]:
        yield rest


def _decided(text: str, stops: Sequence[str]) -> str:
    """The text without an end that may be the beginning of a stop string."""
    begun = [size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size])]
    return text[: len(text) - max(begun, default=0)]


def before_stop(text: str, stops: Sequence[str]) -> str:
    """The text up to the first stop string."""
    found = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    return text[: min(found)] if found else text


@torch.inference_mode()
def _steps(
    policy: Policy, prompts: Sequence[list[int]], *, sampling: Sampling, template: Template
) -> Iterator[tuple[int, int | None]]:
    """(row, id) as they are drawn; (row, None) when a row ends by itself."""
    rows = list(range(len(prompts)))
    said: list[list[int]] = [[] for _ in prompts]
    chance = [_generator(sampling.seed, prompt) for prompt in prompts]
    state = _prefill(policy, prompts)
    for step in range(sampling.max_new_tokens):
        drawn = _choose(policy.words.logits(state.last).float(), [chance[row] for row in rows], sampling)
        going = []
        for place, (row, token) in enumerate(zip(rows, drawn.tolist(), strict=True)):
            if token in template.stop_ids:
                yield row, None
                continue
            said[row].append(token)
            yield row, token
            if sampling.stop and any(stop in template.decode(said[row]) for stop in sampling.stop):
                yield row, None
                continue
            going.append(place)
        if not going or step + 1 == sampling.max_new_tokens:
            return
        if len(going) < len(rows):
            state.keep(going)
            rows, drawn = [rows[place] for place in going], drawn[going]
        state.last = state.feed(policy, drawn[:, None], torch.ones_like(drawn[:, None], dtype=torch.bool))[:, -1]


def _prefill(policy: Policy, prompts: Sequence[list[int]]) -> _Open:
    """Run the prompts, what they share once, padding on the left so that all end at the same place."""
    cache = DynamicCache(config=policy.network.config)
    # A sliding window counts places in the cache: padding between the shared ids and a row's own would shift it.
    sliding = any(cache.is_sliding) and len(set(map(len, prompts))) > 1
    shared = 0 if sliding else _common(prompts)
    width = max(map(len, prompts)) - shared
    ids = torch.zeros(len(prompts), width, dtype=torch.int64)
    real = torch.zeros(len(prompts), width, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) + shared :] = torch.tensor(prompt[shared:])
        real[row, width - len(prompt) + shared :] = True
    device = policy.device
    if shared:
        cache = policy.prefill(torch.tensor(prompts[0][:shared], device=device), rows=len(prompts))
    state = _Open(cache, torch.ones(len(prompts), shared, dtype=torch.int64, device=device), torch.empty(0))
    state.last = state.feed(policy, ids.to(device), real.to(device))[:, -1]
    return state


def _common(prompts: Sequence[list[int]]) -> int:
    """Leading ids that all prompts share, at least one id left to each; 0 for a single prompt."""
    if len(prompts) < 2:
        return 0
    limit = min(map(len, prompts)) - 1
    first = prompts[0]
    for position in range(limit):
        if any(prompt[position] != first[position] for prompt in prompts):
            return position
    return limit


def _choose(logits: Tensor, chance: Sequence[torch.Generator], sampling: Sampling) -> Tensor:
    """[B, V] -> [B]: the likeliest id, or one drawn from the smallest set that holds top_p of the mass."""
    if sampling.temperature <= 0:
        return logits.argmax(dim=1)
    probabilities = (logits / sampling.temperature).softmax(dim=1)
    if sampling.top_p < 1:
        ordered, index = probabilities.sort(dim=1, descending=True)
        ordered[ordered.cumsum(dim=1) - ordered > sampling.top_p] = 0
        probabilities = torch.zeros_like(probabilities).scatter_(1, index, ordered)
    draws = [torch.multinomial(row.cpu(), 1, generator=g) for row, g in zip(probabilities, chance, strict=True)]
    return torch.cat(draws).to(logits.device)


def _generator(seed: int, prompt: list[int]) -> torch.Generator:
    """Chance that depends on the seed and the prompt, not on the company the prompt keeps."""
    digest = hashlib.sha256(f"{seed}/{prompt}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


@torch.inference_mode()
def option_scores(policy: Policy, prompts: Sequence[list[int]], options: Sequence[Sequence[list[int]]]) -> Tensor:
    """[B, O]: log-probability of each of a prompt's O options after it; each prompt runs once."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    scores = torch.zeros(len(prompts), len(options[0]))
    for start in range(0, len(order), ROWS):
        group = order[start : start + ROWS]
        found = _score_group(policy, [prompts[i] for i in group], [options[i] for i in group])
        scores[group] = found.float().cpu()
    return scores


def _score_group(policy: Policy, prompts: Sequence[list[int]], options: Sequence[Sequence[list[int]]]) -> Tensor:
    """[B, O] for prompts of one batch: first ids from the prompts' last states, later ids from one more pass."""
    state = _prefill(policy, prompts)
    shape = (len(prompts), len(options[0]))
    flat = [option for row in options for option in row]
    ids, real = _padded(flat, policy.device)
    first = policy.words.logits(state.last).float().log_softmax(dim=1).gather(1, ids[:, 0].view(shape))
    if ids.shape[1] == 1:
        return first
    state.cache.batch_repeat_interleave(shape[1])
    state.mask = state.mask.repeat_interleave(shape[1], dim=0)
    states = state.feed(policy, ids[:, :-1], real[:, :-1])
    later = real[:, 1:]
    totals = torch.zeros(later.shape, device=policy.device)
    totals[later] = policy.words.logprobs(states[later], ids[:, 1:][later])
    return first + totals.sum(dim=1).view(shape)


def _padded(rows: Sequence[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """[N, T] ids padded on the right, and which of them are real."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    real = torch.zeros_like(ids, dtype=torch.bool)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
        real[place, : len(row)] = True
    return ids.to(device), real.to(device)
