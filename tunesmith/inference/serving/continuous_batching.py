"""Continuous batching over one base model: requests join and leave a running batch between decoding steps.

Shapes: B active rows, T tokens of the longest prompt, D hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor

from tunesmith.inference.serving.live_answer import ActiveRequest, End
from tunesmith.inference.serving.prefix_cache import WORTH, PrefixCache, alike
from tunesmith.inference.serving.registry import ServedModel, SharedBase
from tunesmith.models.batch import split_by_tokens
from tunesmith.models.generation.row_caches import RowCaches
from tunesmith.models.generation.slot_kv_cache import SlotKVCache
from tunesmith.models.kernels.multi_lora import MultiLora

# A prompt is short if it has at most 1/SHORT of the tokens of the oldest one. Short prompts may add 1/SHORT to the
# prompt tokens processed between two steps.
SHORT = 4
# Greatest padded size of a packed pass, as a multiple of its tokens.
WIDER = 2


class ContinuousBatch:
    """The active rows over one base. Row i uses slot i of the KV cache, so a step runs over the first slots alone.

    A base whose states do not fit into slots has a cache for each row, and its rows run one after another.
    """

    def __init__(self, shared_base: SharedBase, prefix_cache: PrefixCache) -> None:
        self.shared_base = shared_base
        self.rows = list[ActiveRequest]()
        self.tokens_reused = 0
        self._prefix_cache = prefix_cache
        # Both have the same interface, but rows and states of one do not fit the other.
        self._kv_cache: Any = RowCaches(continues=shared_base.continues)
        if shared_base.slots:
            self._kv_cache = SlotKVCache(shared_base.base.network.config)
        self._mixed: MultiLora | None = None
        self._inside: dict[int, ServedModel] = {}
        self._made_for: dict[int, ServedModel] = {}

    @torch.inference_mode()
    def join(self, rows: Sequence[ActiveRequest], *, tokens: int) -> list[ActiveRequest]:
        """Run the prompts of as many rows as fit into a token budget.

        The oldest row always runs, together with others of its run, longest first. If it is long, some short ones also
        run, so that they do not wait for every earlier long one.

        Args:
            rows: the waiting rows, oldest first.
            tokens: the budget.

        Returns:
            The rows that must wait, in the same order.
        """
        first = rows[0]
        self._share([row for row in rows if row.run is first.run])
        left = {row: len(row.prompt) - self._prefix_cache.find(row.run.number, row.prompt)[0] for row in rows}
        by_length = sorted(rows, key=lambda row: left[row])
        others = [row for row in reversed(by_length) if row is not first and row.run is first.run]
        order = [first, *(row for row in others if left[row] <= left[first])]
        chosen = order[: _fitting([left[row] for row in order], tokens, packs=first.run.model.policy.packs)]
        self._read(chosen)
        waits = [row for row in by_length if row not in chosen and left[row] * SHORT <= left[first]]
        if short := _beginning(waits, left, tokens // SHORT):
            self._read(short)
        return [row for row in rows if row not in (*chosen, *short)]

    @torch.inference_mode()
    def step(self) -> int:
        """Generate one token for every row, remove finished rows, and return the number of tokens."""
        if not self.rows:
            return 0
        tokens = [0] * len(self.rows)
        for network, indices in self._passes():
            for i, logits in zip(indices, self._logits(network, [self.rows[i] for i in indices]), strict=True):
                tokens[i] = self.rows[i].draw(logits)
        active = [not row.take(token) for row, token in zip(self.rows, tokens, strict=True)]
        if not all(active):
            tokens = self._leave(active, tokens)
        for network, indices in self._passes():
            starts = [self.rows[i].columns - 1 for i in indices]
            states = self._kv_cache.feed(network, [[tokens[i]] for i in indices], slots=indices, starts=starts)
            for i, own in zip(indices, states, strict=True):
                self.rows[i].last = own[-1]
        if not self.rows:
            self._kv_cache.clear()
        return len(active)

    @torch.inference_mode()
    def drop(self, row: ActiveRequest, end: End, why: str = "") -> None:
        """Remove a row before its end."""
        row.leave(end, why)
        self._leave([other is not row for other in self.rows], list(range(len(self.rows))))
        if not self.rows:
            self._kv_cache.clear()

    def forget(self) -> None:
        """Release the combined network; the next step combines the remaining runs."""
        if self._mixed is not None:
            self._mixed.take_apart()
        self._mixed = None
        self._inside = {}
        self._made_for = {}

    def _leave(self, active: Sequence[bool], tokens: list[int]) -> list[int]:
        """Fill the gaps of finished rows with rows from the end; return the tokens in the new order."""
        entries = list(zip(self.rows, tokens, active, strict=True))
        slot = 0
        while slot < len(entries):
            if entries[slot][2]:
                slot += 1
                continue
            last = entries.pop()
            if slot < len(entries):
                self._kv_cache.move(len(entries), slot, last[0].columns)
                entries[slot] = last
        self.rows = [row for row, _, _ in entries]
        return [token for _, token, _ in entries]

    def _share(self, rows: Sequence[ActiveRequest]) -> None:
        """Run the common prefix of several new prompts once if enough of it is not cached yet."""
        run, ids = rows[0].run, rows[0].prompt
        shared = min((alike(ids, row.prompt) for row in rows[1:]), default=0)
        known = max((self._prefix_cache.find(run.number, row.prompt)[0] for row in rows), default=0)
        if shared - known < WORTH:
            return
        self._fill(run, [ids[:shared]], range(len(self.rows), len(self.rows) + 1))
        self._prefix_cache.keep(run.number, ids[:shared], self._kv_cache.take(len(self.rows), run.virtual + shared))

    def _read(self, rows: Sequence[ActiveRequest]) -> None:
        """Run the prompts of rows of one run into the slots after the active ones."""
        run = rows[0].run
        slots = range(len(self.rows), len(self.rows) + len(rows))
        states = self._fill(run, [row.prompt for row in rows], slots)
        for slot, row, last in zip(slots, rows, states, strict=True):
            row.last = last
            self._prefix_cache.keep(run.number, row.prompt, self._kv_cache.take(slot, run.virtual + len(row.prompt)))
        self.rows += rows

    def _fill(self, run: ServedModel, prompts: Sequence[list[int]], slots: range) -> list[Tensor]:
        """Write keys and values of each prompt into its slot and return the state [D] of its last token."""
        sizes = []
        for slot, prompt in zip(slots, prompts, strict=True):
            size, past = self._prefix_cache.find(run.number, prompt, virtual=run.virtual)
            if past or run.past:
                self._kv_cache.put(slot, past or run.past)
            sizes.append(size)
        self.tokens_reused += sum(sizes)
        rest = [prompt[size:] for prompt, size in zip(prompts, sizes, strict=True)]
        starts = [run.virtual + size for size in sizes]
        states = self._kv_cache.feed(run.model.policy.network, rest, slots=slots, starts=starts)
        return [own[-1] for own in states]

    def _passes(self) -> Iterator[tuple[Any, Sequence[int]]]:
        """Yield each network that has to run, and the rows that run in it: one for all of them where they fit slots."""
        if not self.rows:
            return
        if self.shared_base.slots:
            yield self._network(), range(len(self.rows))
            return
        for _, own in groupby(self._by_run(), key=lambda i: self.rows[i].run.number):
            indices = list(own)
            yield self.rows[indices[0]].run.model.policy.network, indices

    def _by_run(self) -> list[int]:
        """Return the indices of the rows, those of a run next to each other."""
        return sorted(range(len(self.rows)), key=lambda i: self.rows[i].run.number)

    def _network(self) -> Any:
        """Return the network of the only active run, or a combined network of several runs."""
        runs = {row.run.number: row.run for row in self.rows}
        if len(runs) == 1:
            return next(iter(runs.values())).model.policy.network
        # The combined network is reused until runs are loaded or unloaded, or an unloaded run is still active.
        if self._mixed is None or self._made_for is not self.shared_base.runs or not runs.keys() <= self._inside.keys():
            self._made_for = self.shared_base.runs
            self._inside = {**self._made_for, **runs}
            inside = {number: run.model.policy.network for number, run in self._inside.items()}
            self._mixed = None  # frees its memory before the next one is built
            self._mixed = MultiLora(self.shared_base.base.network, inside)
        groups = groupby(self._by_run(), key=lambda i: self.rows[i].run.number)
        rows = [(number, torch.tensor(list(own))) for number, own in groups]
        return self._mixed.by(rows, count=len(self.rows))

    def _logits(self, network: Any, rows: Sequence[ActiveRequest]) -> Tensor:
        """Return the next-token logits [B, V] of rows in a network."""
        words = rows[0].run.model.policy.words
        return words.over(network).logits(torch.stack([row.last for row in rows])).float()


def _fitting(lengths: Sequence[int], tokens: int, *, packs: bool) -> int:
    """Return how many rows, longest first, fit into one pass, at least one; padding counts unless packed."""
    if packs:
        # Attention is padded even when packed: each short prompt next to a long one would cost its square.
        most = WIDER * tokens // lengths[0]
        return max(1, sum(total <= tokens for total in [*accumulate(lengths)][:most]))
    return len(split_by_tokens(range(len(lengths)), lengths, tokens)[0])


def _beginning(rows: Sequence[ActiveRequest], left: Mapping[ActiveRequest, int], tokens: int) -> list[ActiveRequest]:
    """Return the rows of the run of the first row, shortest first, that fit into the token budget."""
    same_run = [row for row in rows if row.run is rows[0].run]
    return [row for count, row in enumerate(same_run, 1) if count * left[row] <= tokens]
