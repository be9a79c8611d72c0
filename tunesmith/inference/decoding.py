"""Answers over one base, written together: rows join when they come, each step adds a token to all, and rows leave.

Letters: B rows at work, T tokens of the longest question, D hidden, V words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor

from tunesmith.inference.beginnings import WORTH, Beginnings, alike
from tunesmith.inference.row import End, LiveAnswer
from tunesmith.inference.shelf import Ground, ServedModel
from tunesmith.model.batch import cut
from tunesmith.model.mixed import Mixed
from tunesmith.model.slab import Slab

# A question of at most this part of the one that came first is short, and short ones may take this part of the tokens
# that are read between two steps more.
SHORT = 4
# Rows times the longest of them may be so many times the tokens of a pass.
WIDER = 2


class Decoding:
    """The rows over one base. Row i lies in slot i of the slab, so that a step runs over the first slots alone."""

    def __init__(self, ground: Ground, beginnings: Beginnings) -> None:
        self.ground, self.rows = ground, list[LiveAnswer]()
        self.tokens_reused = 0
        self._beginnings = beginnings
        self._slab = Slab(ground.base.network.config)
        self._mixed: Mixed | None = None
        self._inside: dict[int, ServedModel] = {}
        self._made_for: dict[int, ServedModel] = {}

    @torch.inference_mode()
    def join(self, rows: Sequence[LiveAnswer], *, tokens: int) -> list[LiveAnswer]:
        """Read the questions of as many rows as fit into so many tokens; those that have to wait, in the same order.

        The row that came first is always read, others of its run with it, longest first. Where it is long, short ones
        are read beside it, so that they do not wait for every long one that came before.
        """
        first = rows[0]
        self._share([row for row in rows if row.run is first.run])
        left = {row: len(row.prompt) - self._beginnings.find(row.run.number, row.prompt)[0] for row in rows}
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
        """A token more for every row; how many were drawn. Rows that end leave."""
        if not self.rows:
            return 0
        network = self._network()
        logits = self._logits(network)
        drawn = [row.draw(logits[i]) for i, row in enumerate(self.rows)]
        going = [not row.take(token) for row, token in zip(self.rows, drawn, strict=True)]
        if not all(going):
            drawn = self._leave(going, drawn)
        if self.rows:
            network = self._network()
            starts = [row.columns - 1 for row in self.rows]
            states = self._slab.feed(network, [[one] for one in drawn], slots=range(len(drawn)), starts=starts)
            for row, own in zip(self.rows, states, strict=True):
                row.last = own[-1]
        else:
            self._slab.clear()
        return len(going)

    @torch.inference_mode()
    def drop(self, row: LiveAnswer, end: End, why: str = "") -> None:
        """Let a row go before its end."""
        row.leave(end, why)
        self._leave([other is not row for other in self.rows], list(range(len(self.rows))))
        if not self.rows:
            self._slab.clear()

    def forget(self) -> None:
        """Let go of the runs that are mixed: the next step mixes those that are left."""
        if self._mixed is not None:
            self._mixed.take_apart()
        self._mixed, self._inside, self._made_for = None, {}, {}

    def _leave(self, going: Sequence[bool], drawn: list[int]) -> list[int]:
        """Close the gaps with rows from the end; the tokens of the rows that stay, in their new order."""
        kept = list(zip(self.rows, drawn, going, strict=True))
        place = 0
        while place < len(kept):
            if kept[place][2]:
                place += 1
                continue
            last = kept.pop()
            if place < len(kept):
                self._slab.move(len(kept), place, last[0].columns)
                kept[place] = last
        self.rows = [row for row, _, _ in kept]
        return [token for _, token, _ in kept]

    def _share(self, rows: Sequence[LiveAnswer]) -> None:
        """Run once what all of several new questions begin with, where more of it is new than is worth finding."""
        run, ids = rows[0].run, rows[0].prompt
        shared = min((alike(ids, row.prompt) for row in rows[1:]), default=0)
        known = max((self._beginnings.find(run.number, row.prompt)[0] for row in rows), default=0)
        if shared - known < WORTH:
            return
        self._fill(run, [ids[:shared]], range(len(self.rows), len(self.rows) + 1))
        self._beginnings.keep(run.number, ids[:shared], self._slab.take(len(self.rows), run.virtual + shared))

    def _read(self, rows: Sequence[LiveAnswer]) -> None:
        """Read the questions of rows under one run into the slots behind those at work."""
        run, slots = rows[0].run, range(len(self.rows), len(self.rows) + len(rows))
        states = self._fill(run, [row.prompt for row in rows], slots)
        for slot, row, last in zip(slots, rows, states, strict=True):
            row.last = last
            self._beginnings.keep(run.number, row.prompt, self._slab.take(slot, run.virtual + len(row.prompt)))
        self.rows += rows

    def _fill(self, run: ServedModel, prompts: Sequence[list[int]], slots: range) -> list[Tensor]:
        """The state [D] of each prompt's last id; keys and values of all its ids into its slot."""
        sizes = []
        for slot, prompt in zip(slots, prompts, strict=True):
            size, past = self._beginnings.find(run.number, prompt, virtual=run.virtual)
            if past or run.past:
                self._slab.put(slot, past or run.past)
            sizes.append(size)
        self.tokens_reused += sum(sizes)
        rest = [prompt[size:] for prompt, size in zip(prompts, sizes, strict=True)]
        starts = [run.virtual + size for size in sizes]
        states = self._slab.feed(run.model.policy.network, rest, slots=slots, starts=starts)
        return [own[-1] for own in states]

    def _network(self) -> Any:
        """The network of the one run that all rows are under, or all of them as one."""
        runs = {row.run.number: row.run for row in self.rows}
        if len(runs) == 1:
            return next(iter(runs.values())).model.policy.network
        mixed = self._mixed_of(runs)
        places = sorted(range(len(self.rows)), key=lambda i: self.rows[i].run.number)
        groups = groupby(places, key=lambda i: self.rows[i].run.number)
        return mixed.by([(number, torch.tensor(list(own))) for number, own in groups])

    def _mixed_of(self, runs: dict[int, ServedModel]) -> Mixed:
        """One network of these runs; kept as long as no run came, went, or is asked after it went."""
        if self._mixed is None or self._made_for is not self.ground.runs or not runs.keys() <= self._inside.keys():
            self._made_for = self.ground.runs
            self._inside = {**self._made_for, **runs}
            inside = {number: run.model.policy.network for number, run in self._inside.items()}
            self._mixed = None  # its memory is not needed beside that of the next
            self._mixed = Mixed(self.ground.base.network, inside)
        return self._mixed

    def _logits(self, network: Any) -> Tensor:
        """[B, V] of what comes next."""
        words = self.rows[0].run.model.policy.words
        return words.over(network).logits(torch.stack([row.last for row in self.rows])).float()


def _fitting(lengths: Sequence[int], tokens: int, *, packs: bool) -> int:
    """How many rows, longest first, run in one pass of so many tokens: one at least; unless packed, padding counts."""
    if packs:
        # Attention is padded all the same: a long question with many short ones would take its square for each.
        most = WIDER * tokens // lengths[0]
        return max(1, sum(total <= tokens for total in [*accumulate(lengths)][:most]))
    return len(cut(range(len(lengths)), lengths, tokens)[0])


def _beginning(rows: Sequence[LiveAnswer], left: Mapping[LiveAnswer, int], tokens: int) -> list[LiveAnswer]:
    """The first of the rows, shortest first, that are under the run of the very first and fit into so many tokens."""
    under_it = [row for row in rows if row.run is rows[0].run]
    return [row for count, row in enumerate(under_it, 1) if count * left[row] <= tokens]
