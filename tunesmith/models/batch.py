"""Encoded examples packed into one sequence of tokens, without padding and with shared prefixes stored once.

Two rows that begin with the same prompt `a b c`, one with the completion `d e`, the other with `f` (learned tokens in
parentheses; real prefixes are shared from 8 tokens on):

    row 0:  a b c (d e)             row 1:  a b c (f)

    token ids      [N]     a b c d      the prefix once; e and f are only targets, no prediction follows them
    positions      [N]     0 1 2 3      position of each token in its row
    layout                              d attends to a b c d
    row index      [B, L]  0 1 2 3      the packed tokens of row 0
                           0 1 2 -1     those of row 1, padded with -1
    previous index [M]     2 3 2        the states of c, d and c predict the learned ids
    targets        [M]     d e f        the learned ids
    row ids        [M]     0 0 1        the row of each learned id

The loss mask is therefore a list of M positions instead of a mask over all tokens: the output layer runs only on them.

Letters: E examples, B rows, N packed tokens, M learned ids, L tokens of the longest row, K label values of an example.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tunesmith.data.tokenization.chat_template import Encoded, Tokens
from tunesmith.models.attention.flex import Segment
from tunesmith.models.attention.packed import Layout, lay_out

# By name, a sum and the count it is a sum over: metrics that the training log lists next to the loss. A sum may be a
# tensor until the step is over, as reading one makes the process wait for a GPU.
StepMetrics = Mapping[str, tuple[float | Tensor, float]]


@dataclass(frozen=True, slots=True)
class Rollout:
    """Advantages, log-probabilities and values of the M tokens of sampled completions, each [M]."""

    advantages: Tensor
    old: Tensor | None = None  # log p at sampling time, nats; None if the weights are still those, so it is log p now
    reference: Tensor | None = None  # log p under the reference model, nats
    values: Tensor | None = None  # predictions of the value head
    returns: Tensor | None = None  # targets of the value head
    sampled: Tensor | None = None  # log p in the engine that sampled them, nats; None for this process
    metrics: StepMetrics = field(default_factory=dict)

    def of(self, chosen: Tensor, metrics: StepMetrics) -> Rollout:
        """Return the record of some of the tokens, chosen by a mask [M].

        Metrics are sums, so only one part of a batch may carry them.
        """
        old, reference, values, returns, sampled = (
            None if part is None else part[chosen]
            for part in (self.old, self.reference, self.values, self.returns, self.sampled)
        )
        return Rollout(self.advantages[chosen], old, reference, values, returns, sampled, metrics)


def sum_metrics(metrics: Sequence[StepMetrics]) -> dict[str, tuple[float, float]]:
    """Add up the sums and the counts of each metric over several batches; a batch may lack some of the names."""
    sums = {}
    for name in dict.fromkeys(name for batch in metrics for name in batch):
        totals, counts = zip(*(batch[name] for batch in metrics if name in batch), strict=True)
        sums[name] = (sum(map(float, totals)), sum(counts))
    return sums


def mean_metrics(metrics: Sequence[StepMetrics]) -> dict[str, float]:
    """Compute the mean of each metric over several batches: the total of the sums over the total of the counts."""
    return {name: total / max(count, 1e-9) for name, (total, count) in sum_metrics(metrics).items()}


class StepVectors:
    """The vectors of the B texts of a micro-batch, for a loss that compares all texts of a step.

    Args:
        compute: returns them, [B, D].
        gradient: of the loss of the step by them, [B, D]; None without one.
        total: loss of the examples of the micro-batch; None if it is the whole step.
    """

    def __init__(
        self, compute: Callable[[], Tensor], *, gradient: Tensor | None = None, total: Tensor | None = None
    ) -> None:
        self._compute = compute
        self.gradient = gradient
        self.total = total

    @cached_property
    def values(self) -> Tensor:
        """The vectors, computed once and without gradient."""
        with torch.no_grad():
            return self._compute()

    def compared(self, gradient: Tensor | None, total: Tensor) -> StepVectors:
        """Return the same vectors after the comparison with those of the step."""
        return StepVectors(self._compute, gradient=gradient, total=total)


# Shortest prefix that is shared, in tokens. Every further segment costs each layer another attention call; measured,
# sharing saves time from about this length on (bench/NOTES.md).
MIN_SHARED_TOKENS = 8
# Tokens of one forward pass where the caller sets no limit.
TOKENS_PER_PASS = 4096
# The same on a GPU, where launching the kernels of a small model takes longer than 4,096 tokens (not run on a GPU yet).
GPU_SCORED_TOKENS = 16_384


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of one micro-batch, packed as the module docstring shows.

    A row's last learned id is only a target, so it is not among the N tokens unless the rows were packed whole.
    """

    ids: Tensor  # [N] int64
    positions: Tensor  # [N] int64, position of each token in its row
    layout: Layout  # which token attends to which
    row_index: Tensor  # [B, L] int64 index of each row's tokens among the N, -1 after its end
    prev_index: Tensor  # [M] int64 index of the token whose state predicts each learned id: the previous or masked one
    targets: Tensor  # [M] int64, the learned ids
    row_ids: Tensor  # [M] int64, the row of each learned id
    tokens: int  # tokens of all rows in full, as a user counts them
    weights: Tensor | None = None  # [M] float, factor of the loss of each learned id; None: 1 for all
    types: Tensor | None = None  # [N] int64, 1 for tokens of the second of two texts; None: not distinguished
    labels: Tensor | None = None  # [E, K] float, the label of each example
    reference: Tensor | None = None  # [B] float, log p of each row's learned ids under the reference model, nats
    group_size: int = 1  # rows per example: the two completions of a pair are adjacent
    locations: tuple[str, ...] = ()  # [E] location of each example, `file:line`
    step: int = 0  # the optimizer step that the rows belong to
    rollout: Rollout | None = None  # records of sampled completions
    step_vectors: StepVectors | None = None  # for a loss that compares all texts of a step
    mismatched: tuple[Tokens, ...] = ()  # [B] each row's prompt with the completion of another example, for KTO
    task: str = ""  # name of the task, in multitask runs
    loss_weight: float = 1.0  # factor of the loss: the weight of the task within a step
    counts: bool = True  # False: a copy that only keeps the processes of a sharded network in step

    @property
    def units(self) -> float:
        """Sum of the weights of the learned ids: their number M if no weight is set."""
        return len(self.targets) if self.weights is None else float(self.weights.sum())

    @property
    def rows(self) -> int:
        """Number of rows B."""
        return len(self.row_index)

    @property
    def examples(self) -> int:
        """Number of examples E."""
        return self.rows // self.group_size

    @property
    def forward_tokens(self) -> int:
        """Number of tokens N that pass through the network."""
        return len(self.ids)

    @property
    def last_index(self) -> Tensor:
        """Index of each row's last token among the N, [B] int64."""
        last: Tensor = (self.row_index >= 0).sum(dim=1, keepdim=True) - 1
        return self.row_index.gather(1, last)[:, 0]

    def to(self, device: torch.device | str) -> Batch:
        """Return the same batch on another device."""
        away = torch.device(device).type == "cuda"
        return self._each(lambda tensor: tensor.to(device, non_blocking=away), layout=self.layout.to(device))

    def pinned(self) -> Batch:
        """Return the same batch in memory from which a GPU, if there is one, copies while it computes."""
        return self._each(Tensor.pin_memory) if torch.cuda.is_available() else self

    def _each(self, change: Callable[[Tensor], Tensor], **changed: Any) -> Batch:
        parts = ((part.name, getattr(self, part.name)) for part in fields(self))
        changed |= {name: change(part) for name, part in parts if isinstance(part, Tensor)}
        return replace(self, **changed)


def scored_tokens(device: torch.device) -> int:
    """Return the tokens of one forward pass without gradient on a device."""
    return GPU_SCORED_TOKENS if device.type == "cuda" else TOKENS_PER_PASS


def split_by_tokens(rows: Sequence[int], lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Split rows into batches by their padded size.

    Args:
        rows: index of each row, longest row first.
        lengths: length of every row in tokens, by index.
        tokens: largest product of a batch's rows and its longest row. A row alone may exceed it.

    Returns:
        The index lists of the batches, in order.
    """
    batches: list[list[int]] = []
    for row in rows:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def collate(rows: Sequence[Encoded], *, share: bool = True, whole: bool = False) -> Batch:
    """Pack encoded examples into a batch.

    Args:
        rows: examples with the same number of sequences each (two for a preference pair).
        share: store prefixes that rows have in common once, where that saves time.
        whole: run the tokens after which nothing is learned, too, as `pack` does.
    """
    sequences = [tokens for row in rows for tokens in row.sequences]
    batch = pack(sequences, share=share, whole=whole, labels=[row.label for row in rows])
    reference = torch.tensor([value for row in rows for value in row.reference]) if rows[0].reference else None
    locations = tuple(row.where for row in rows)
    batch = replace(batch, reference=reference, group_size=len(rows[0].sequences), locations=locations)
    # Masked-LM rows: each hidden token is predicted from the state at its own position.
    hidden = [(row, position, token) for row, example in enumerate(rows) for position, token in example.hidden]
    if not hidden:
        return batch
    row_ids, positions, targets = torch.tensor(hidden).unbind(dim=1)
    return replace(batch, prev_index=batch.row_index[row_ids, positions], targets=targets, row_ids=row_ids)


def pack(
    sequences: Sequence[Tokens],
    *,
    share: bool = True,
    whole: bool = False,
    labels: Sequence[tuple[float, ...]] = ((),),
) -> Batch:
    """Pack sequences into a batch, each as a separate row.

    Args:
        sequences: token ids, and which of them are learned.
        share: store prefixes that rows have in common once, where that saves time.
        whole: run the tokens after which nothing is learned, too: the load-balancing loss of a mixture of experts is
            computed from every token of a row.
        labels: the K label values of each example; empty tuples for none.
    """
    rows = [_Row.of(tokens, whole=whole) for tokens in sequences]
    if share:
        segments, last = _share_prefixes(rows)
    else:
        segments = [Segment(len(row.ids), -1, 0) for row in rows]
        last = list(range(len(rows)))
    layout = lay_out(segments)
    ids, positions = np.empty((2, sum(segment.size for segment in segments)), dtype=np.int64)
    row_index = np.full((len(rows), max(len(row.ids) for row in rows)), -1)
    types = np.zeros_like(ids) if any(tokens.second for tokens in sequences) else None
    for number, (row, segment) in enumerate(zip(rows, last, strict=True)):
        index, position = layout.paths[segment]
        row_index[number, : len(index)] = index
        ids[index] = row.ids
        positions[index] = position
        if types is not None and (second := sequences[number].second):
            types[index] = position >= second
    learned = np.concatenate([row.learned for row in rows])
    row_ids = np.repeat(np.arange(len(rows)), [len(row.learned) for row in rows])
    pairs = list(zip(row_ids.tolist(), learned.tolist(), strict=True))
    weighted = any(tokens.weights for tokens in sequences)
    weights = [sequences[row].weights[i] if sequences[row].weights else 1.0 for row, i in pairs if weighted]
    return Batch(
        ids=torch.from_numpy(ids),
        positions=torch.from_numpy(positions),
        layout=layout,
        row_index=torch.from_numpy(row_index),
        prev_index=torch.from_numpy(row_index[row_ids, learned - 1]),
        targets=torch.tensor([sequences[row].ids[i] for row, i in pairs], dtype=torch.int64),
        row_ids=torch.from_numpy(row_ids),
        tokens=sum(len(tokens.ids) for tokens in sequences),
        weights=torch.tensor(weights) if weighted else None,
        types=None if types is None else torch.from_numpy(types),
        labels=torch.tensor(labels) if labels[0] else None,
    )


def mismatched(rows: Sequence[Encoded]) -> list[tuple[Tokens, ...]]:
    """Pair each prompt of a step with the completion of the previous example, as the KL estimate of KTO needs.

    The last one precedes the first. Sequences are truncated to the longest row of the step; learned ids are the last
    ones of a row.
    """
    split = [[_prompt_and_learned(tokens) for tokens in row.sequences] for row in rows]
    longest = 1 + max(len(_Row.of(tokens, whole=False).ids) for row in rows for tokens in row.sequences)
    return [
        tuple(
            Tokens.of(prompt, completion[: max(1, longest - len(prompt))])
            for (prompt, _), (_, completion) in zip(own, other, strict=True)
        )
        for own, other in zip(split, (split[-1], *split[:-1]), strict=True)
    ]


def _prompt_and_learned(tokens: Tokens) -> tuple[list[int], list[int]]:
    """Return the ids before the first learned one, and the learned ids."""
    learned = [i for i, learn in enumerate(tokens.learn) if learn and i]
    return tokens.ids[: learned[0]] if learned else tokens.ids, [tokens.ids[i] for i in learned]


def halve(batch: Batch) -> list[Batch]:
    """Split a batch into two with half the examples each, for a retry after running out of memory.

    Returns:
        Two batches, or the batch itself if it has only one example. Rollout records are split with the rows; the
        metrics of a rollout are sums, so all of them go to the first half.
    """
    if batch.examples < 2:
        return [batch]
    middle = batch.examples // 2
    rows = _split_rows(batch)
    halves = []
    for start, end in ((0, middle), (middle, batch.examples)):
        first = start * batch.group_size
        last = end * batch.group_size
        half = pack([Tokens.of(*row) for row in rows[first:last]]).to(batch.ids.device)
        rollout = batch.rollout
        chosen = (batch.row_ids >= first) & (batch.row_ids < last)
        halves.append(
            replace(
                half,
                labels=None if batch.labels is None else batch.labels[start:end],
                reference=None if batch.reference is None else batch.reference[first:last],
                group_size=batch.group_size,
                locations=batch.locations[start:end],
                step=batch.step,
                rollout=None if rollout is None else rollout.of(chosen, {} if start else rollout.metrics),
                task=batch.task,
                loss_weight=batch.loss_weight,
            )
        )
    return halves


def _split_rows(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """Return each row as its prompt and its learned ids, which are its last ones."""
    ids = batch.ids.tolist()
    paths = [[i for i in path if i >= 0] for path in batch.row_index.tolist()]
    completions = [list[int]() for _ in paths]
    ends = [len(path) for path in paths]  # of the prompt
    for row, previous, target in zip(
        batch.row_ids.tolist(), batch.prev_index.tolist(), batch.targets.tolist(), strict=True
    ):
        if not completions[row]:
            ends[row] = paths[row].index(previous) + 1
        completions[row].append(target)
    prompts = [[ids[i] for i in path[:end]] for path, end in zip(paths, ends, strict=True)]
    return list(zip(prompts, completions, strict=True))


@dataclass(frozen=True, slots=True)
class _Row:
    """The ids of a row that have to run, and how many of the first ones may be shared: only unlearned ones."""

    ids: NDArray[np.int64]
    learned: NDArray[np.int64]  # index of each learned id in the row
    free: int

    @classmethod
    def of(cls, tokens: Tokens, *, whole: bool) -> _Row:
        ids = np.array(tokens.ids, dtype=np.int64)
        # The first id of a row has no previous state that could predict it.
        learned = np.flatnonzero(np.frombuffer(bytes(tokens.learn), dtype=np.bool_)[1:]) + 1
        if not len(learned):
            return cls(ids, learned, len(ids))
        return cls(ids if whole else ids[: learned[-1]], learned, int(learned[0]))

    def common_end(self, other: _Row, start: int) -> int:
        """Return the position up to which two rows that are equal before `start` may run as one."""
        limit = min(len(self.ids), self.free, len(other.ids), other.free)
        differs = self.ids[start:limit] != other.ids[start:limit]
        return start + int(differs.argmax()) if differs.any() else max(start, limit)


def _share_prefixes(rows: Sequence[_Row]) -> tuple[list[Segment], list[int]]:
    """Return segments, parents before children, and the last segment of each row."""
    segments: list[Segment] = []
    last = [-1] * len(rows)
    # In sorted order, rows with a common prefix are neighbours.
    groups = [(sorted(range(len(rows)), key=lambda i: rows[i].ids.tolist()), 0, -1)]
    while groups:
        members, start, parent = groups.pop()
        for group, end in _neighbours(rows, members, start):
            segment = parent
            if end > start:
                segment = len(segments)
                segments.append(Segment(end - start, parent, start))
            if len(group) > 1:
                groups.append((group, end, segment))
            else:
                last[group[0]] = segment
    return segments, last


def _neighbours(rows: Sequence[_Row], members: Sequence[int], start: int) -> Iterator[tuple[list[int], int]]:
    """Yield neighbours whose common prefix is long enough to share, with its end; or a single row with its own end."""
    group: list[int] = []
    end = start
    for number in members:
        common = min(end, rows[group[-1]].common_end(rows[number], start)) if group else start
        if common - start >= MIN_SHARED_TOKENS:
            group = [*group, number]
            end = common
            continue
        if group:
            yield group, end
        group = [number]
        end = len(rows[number].ids)
    yield group, end
