"""Encoded examples to one pack of tokens.

Letters: E examples, B rows, N packed tokens, M learned ids, L tokens of the longest row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tunesmith.data.template import Encoded, Tokens
from tunesmith.model.attention import Layout, Segment, lay_out
from tunesmith.model.rollout import Rollout

# A segment more costs every layer an attention of its own: measured, it pays from about this many tokens on
# (bench/NOTES.md).
WORTH_SHARING = 8


# What runs at once where nothing else says how much.
TOKENS_PER_PASS = 4096


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one micro-batch as a pack: tokens that rows share are there once, and nothing is padded.

    A row's last learned id is only a target: nothing follows from its state, so it is not among the tokens.
    """

    ids: Tensor  # [N] int64
    positions: Tensor  # [N] int64, place of a token in its row
    layout: Layout  # which token sees which
    paths: Tensor  # [B, L] int64 index into the N tokens of each row's own, -1 behind its end
    before: Tensor  # [M] int64 index into the N tokens of the one before each learned id; of a hidden one, itself
    targets: Tensor  # [M] int64, the learned ids
    owners: Tensor  # [M] int64, the row of each learned id
    tokens: int  # of all rows as a user counts them: each row whole
    labels: Tensor | None = None  # [E, K] float, what is said of each example
    reference: Tensor | None = None  # [B] float, log p of each row's learned ids before anything moved
    each: int = 1  # rows of an example: the two answers of a pair follow each other
    places: tuple[str, ...] = ()  # where the examples stand in their file
    turn: int = 0  # the step that they are of
    rollout: Rollout | None = None  # what is known of answers that were drawn
    task: str = ""  # whose rows these are, where one model learns several tasks
    scale: float = 1.0  # what the loss is taken times, so that each task of a step counts by its weight

    @property
    def rows(self) -> int:
        """Number of rows B."""
        return len(self.paths)

    @property
    def examples(self) -> int:
        """Number of examples E."""
        return self.rows // self.each

    @property
    def computed(self) -> int:
        """Tokens that pass through the network."""
        return len(self.ids)

    @property
    def ends(self) -> Tensor:
        """[B] int64 index of each row's last token among the N."""
        last: Tensor = (self.paths >= 0).sum(dim=1, keepdim=True) - 1
        return self.paths.gather(1, last)[:, 0]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return replace(
            self,
            ids=self.ids.to(device),
            positions=self.positions.to(device),
            layout=self.layout.to(device),
            paths=self.paths.to(device),
            before=self.before.to(device),
            targets=self.targets.to(device),
            owners=self.owners.to(device),
            labels=None if self.labels is None else self.labels.to(device),
            reference=None if self.reference is None else self.reference.to(device),
        )


def cut(rows: Sequence[int], lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Numbers of rows, longest first, cut so that rows x longest stays within `tokens`; a row alone may exceed it."""
    batches: list[list[int]] = []
    for row in rows:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def collate(rows: Sequence[Encoded], *, share: bool = True) -> Batch:
    """A batch of examples of equally many sequences; `share` lets what they begin with run once, where that pays."""
    batch = pack([one for row in rows for one in row.sequences], share=share, labels=[row.label for row in rows])
    reference = torch.tensor([known for row in rows for known in row.reference]) if rows[0].reference else None
    places = tuple(row.where for row in rows)
    batch = replace(batch, reference=reference, each=len(rows[0].sequences), places=places)
    hidden = [(number, place, told) for number, row in enumerate(rows) for place, told in row.hidden]
    if not hidden:
        return batch
    owners, spots, targets = torch.tensor(hidden).unbind(dim=1)
    return replace(batch, before=batch.paths[owners, spots], targets=targets, owners=owners)


def pack(sequences: Sequence[Tokens], *, share: bool = True, labels: Sequence[tuple[float, ...]] = ((),)) -> Batch:
    """A batch of sequences, each a row of its own."""
    rows = [_Row.of(tokens) for tokens in sequences]
    segments, chains = _cut(rows) if share else _apart(rows)
    layout, begins = lay_out(segments)
    paths = [[i for link in chain for i in range(begins[link], begins[link] + segments[link].size)] for chain in chains]
    ids, positions = [0] * sum(s.size for s in segments), [0] * sum(s.size for s in segments)
    for path, row in zip(paths, rows, strict=True):
        for place, (index, token) in enumerate(zip(path, row.ids, strict=True)):
            ids[index], positions[index] = token, place
    learned = [(row, i) for row, one in enumerate(sequences) for i, learn in enumerate(one.learn) if learn and i]
    longest = max(map(len, paths))
    return Batch(
        ids=torch.tensor(ids),
        positions=torch.tensor(positions),
        layout=layout,
        paths=torch.tensor([path + [-1] * (longest - len(path)) for path in paths]),
        before=torch.tensor([paths[row][i - 1] for row, i in learned], dtype=torch.int64),
        targets=torch.tensor([sequences[row].ids[i] for row, i in learned], dtype=torch.int64),
        owners=torch.tensor([row for row, _ in learned], dtype=torch.int64),
        tokens=sum(len(one.ids) for one in sequences),
        labels=torch.tensor(labels) if labels[0] else None,
    )


def crossed(batch: Batch, before: Batch, *, longest: int) -> Batch:
    """Each row's beginning with the learned ids of the example before, of the first with those of the last in `before`.

    Those ids must be the last of their rows; they are cut where they would make a row longer than `longest`.
    """
    rows = _parted(batch)
    answers = [answer for _, answer in (*_parted(before)[-batch.each :], *rows)]
    mixed = [Tokens.of(begin, answers[row][: max(1, longest - len(begin))]) for row, (begin, _) in enumerate(rows)]
    return pack(mixed).to(batch.ids.device)


def halved(batch: Batch) -> list[Batch]:
    """The same examples as two batches, one where there is only one; learned ids must be the last of their rows.

    What is known of the answers goes with them; its figures, which are sums, with the first.
    """
    if batch.examples < 2:
        return [batch]
    middle, rows, halves = batch.examples // 2, _parted(batch), list[Batch]()
    for start, end in ((0, middle), (middle, batch.examples)):
        first, last = start * batch.each, end * batch.each
        half = pack([Tokens.of(*row) for row in rows[first:last]]).to(batch.ids.device)
        known, chosen = batch.rollout, (batch.owners >= first) & (batch.owners < last)
        halves.append(
            replace(
                half,
                labels=None if batch.labels is None else batch.labels[start:end],
                reference=None if batch.reference is None else batch.reference[first:last],
                each=batch.each,
                places=batch.places[start:end],
                turn=batch.turn,
                rollout=None if known is None else known.of(chosen, {} if start else known.figures),
                task=batch.task,
                scale=batch.scale,
            )
        )
    return halves


def _parted(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """Each row as its beginning and its learned ids, which are its last ones."""
    ids, answers = batch.ids.tolist(), [list[int]() for _ in batch.paths]
    for owner, target in zip(batch.owners.tolist(), batch.targets.tolist(), strict=True):
        answers[owner].append(target)
    runs = [[ids[i] for i in path if i >= 0] for path in batch.paths.tolist()]
    return [(run[: len(run) + 1 - len(answer)], answer) for run, answer in zip(runs, answers, strict=True)]


@dataclass(frozen=True, slots=True)
class _Row:
    """The ids of a row that have to run, and how many of the first may be other rows' too: none that is learned."""

    ids: list[int]
    free: int

    @classmethod
    def of(cls, tokens: Tokens) -> _Row:
        learned = [i for i, learn in enumerate(tokens.learn) if learn and i]
        if not learned:
            return cls(tokens.ids, len(tokens.ids))
        return cls(tokens.ids[: learned[-1]], learned[0])

    def alike(self, other: _Row, start: int) -> int:
        """Position up to which two rows that are equal before `start` may run as one."""
        limit = min(len(self.ids), self.free, len(other.ids), other.free)
        return next((i for i in range(start, limit) if self.ids[i] != other.ids[i]), max(start, limit))


def _apart(rows: Sequence[_Row]) -> tuple[list[Segment], list[tuple[int, ...]]]:
    """Every row as a segment of its own."""
    return [Segment(len(row.ids), -1, 0) for row in rows], [(number,) for number in range(len(rows))]


def _cut(rows: Sequence[_Row]) -> tuple[list[Segment], list[tuple[int, ...]]]:
    """Segments, parents before children, and for each row the segments it goes through."""
    segments: list[Segment] = []
    chains: list[tuple[int, ...]] = [()] * len(rows)
    open_groups: list[tuple[list[int], int, tuple[int, ...]]] = [
        (sorted(range(len(rows)), key=lambda i: rows[i].ids), 0, ())
    ]
    while open_groups:
        members, start, chain = open_groups.pop()
        for group, end in _groups(rows, members, start):
            through = chain
            if end > start:
                segments.append(Segment(end - start, chain[-1] if chain else -1, start))
                through = (*chain, len(segments) - 1)
            if len(group) > 1:
                open_groups.append((group, end, through))
            else:
                chains[group[0]] = through
    return segments, chains


def _groups(rows: Sequence[_Row], members: Sequence[int], start: int) -> Iterator[tuple[list[int], int]]:
    """Neighbours in sorted order that go on alike for long enough to run it once, and where they part; or one row."""
    group: list[int] = []
    end = start
    for number in members:
        alike = min(end, rows[group[-1]].alike(rows[number], start)) if group else start
        if alike - start >= WORTH_SHARING:
            group, end = [*group, number], alike
            continue
        if group:
            yield group, end
        group, end = [number], len(rows[number].ids)
    yield group, end
