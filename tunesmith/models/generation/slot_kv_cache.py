"""A KV cache with slots, for continuous batching: rows join and leave without copying the others' keys and values.

Each row has a slot, with its first token in column 0, so that a token's column is its position and nothing is padded on
the left. Columns after a row's end are never attended to.

    slot 0   a b c d e .      row 0, 5 tokens
    slot 1   f g . . . .      row 1, 2 tokens; its next token goes to column 2
    slot 2   . . . . . .      free

Letters: R slots, C columns, B rows of a pass, T tokens per row of a pass, N tokens of all its rows, S columns attended
to, P columns of a prefix, G key heads, W head width, D hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from tunesmith.errors import out_of_memory
from tunesmith.models.attention.packed import NAME, NO_MASK, TOLERANCE, RaggedAttention, states_alone
from tunesmith.models.attention.shared_prefix import Past
from tunesmith.models.families import scales_by_column
from tunesmith.models.sharded import run_body

COLUMN_STEP = 64  # columns are added in multiples of this
FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True, slots=True)
class _Target:
    """The cells that the tokens of a pass are written to: slots `first` to `end`, with `width` columns attended to."""

    first: int
    end: int
    width: int
    slots: Tensor  # [B, 1] int64, or [1, N] where rows are concatenated
    columns: Tensor  # [B, T] or [1, N]


class _Layer(CacheLayerMixin):
    """Keys and values [R, C, G, W] of one layer."""

    def __init__(self, cache: SlotKVCache) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers does not annotate it
        self.cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: memory is allocated in `reserve`, when the size is known."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write states [B, G, T, W] or [1, G, N, W], and return the rows up to the last column, [B, G, S, W]."""
        target = self.cache.target
        self.keys = self._write(self.keys, key_states, target)
        self.values = self._write(self.values, value_states, target)
        rows = slice(target.first, target.end)
        return self.keys[rows, : target.width].transpose(1, 2), self.values[rows, : target.width].transpose(1, 2)

    def _write(self, block: Tensor | None, states: Tensor, target: _Target) -> Tensor:
        """Return the block, enlarged if needed, with the states written into it."""
        block = self.reserve(block, states, rows=target.end, columns=target.width)
        block[target.slots, target.columns] = states.transpose(1, 2)
        return block

    def reserve(self, block: Tensor | None, like: Tensor, *, rows: int, columns: int) -> Tensor:
        """Return the block, or a larger copy with at least this many rows and columns.

        New cells are zeros: the mask multiplies them by 0, and NaN * 0 is NaN.
        """
        # Growing by a half in columns and doubling in rows keeps copies rare when rows grow token by token.
        have_rows, have_columns = (0, 0) if block is None else block.shape[:2]
        if rows <= have_rows and columns <= have_columns:
            assert block is not None
            return block
        wide = have_columns
        if columns > have_columns:
            wide = max(columns + COLUMN_STEP, have_columns * 3 // 2) // COLUMN_STEP * COLUMN_STEP
        high = have_rows if rows <= have_rows else max(rows, 2 * have_rows)
        larger = like.new_zeros(high, max(wide, columns), like.shape[1], like.shape[3])
        if block is not None:
            larger[:have_rows, :have_columns] = block
        return larger

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of columns attended to, and the first of them."""
        return self.cache.target.width, 0

    def get_seq_length(self) -> int:
        """Return the number of columns attended to."""
        return self.cache.target.width

    def get_max_length(self) -> int:
        """Return -1, for no maximum."""
        return -1


class SlotKVCache(Cache):
    """The slots of one network. Run the network through `feed` only.

        cache = SlotKVCache(network.config)
        states = cache.feed(network, [prompt], slots=range(0, 1), starts=[0])
        states = cache.feed(network, [[token]], slots=range(0, 1), starts=[len(prompt)])

    Args:
        config: the network's configuration.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(layers=[_Layer(self) for _ in range(config.num_hidden_layers)])
        self.target = _Target(0, 1, 0, torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64))
        kinds = getattr(config, "layer_types", None) or [SLIDING if getattr(config, "sliding_window", None) else FULL]
        self.kinds = sorted(set(kinds))
        self.window = int(getattr(config, "sliding_window", None) or 0)

    def feed(
        self, network: Any, rows: Sequence[Sequence[int]], *, slots: range, starts: Sequence[int]
    ) -> Sequence[Tensor]:
        """Run new tokens of several rows and write their keys and values.

        Args:
            network: the model this cache was made for.
            rows: new token ids of each row, at least one each.
            slots: the slot of each row.
            starts: column of each row's first new token.

        Returns:
            For each row the states of its new tokens, [T, D].
        """
        sizes = [len(row) for row in rows]
        device = network.device
        longest = max(sizes)
        if longest != min(sizes) and network.config._attn_implementation == NAME:
            return self._in_line(network, rows, slots=slots, starts=starts)
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
        columns = torch.tensor(starts, device=device)[:, None] + torch.arange(longest, device=device)  # [B, T]
        slot_column = torch.tensor(slots, device=device)[:, None]
        self.target = _Target(slots.start, slots.stop, max(starts) + longest, slot_column, columns)
        states = self._states(network, ids, attention_mask=self._masks(columns, network.dtype))
        return [states[i, :size] for i, size in enumerate(sizes)]

    def _in_line(
        self, network: Any, rows: Sequence[Sequence[int]], *, slots: range, starts: Sequence[int]
    ) -> Sequence[Tensor]:
        """Run rows of unequal length concatenated to one of N tokens instead of padded."""
        sizes = [len(row) for row in rows]
        device = network.device
        ids = torch.tensor([[token for row in rows for token in row]], device=device)
        columns = [start + i for start, size in zip(starts, sizes, strict=True) for i in range(size)]
        owners = [slot for slot, size in zip(slots, sizes, strict=True) for _ in range(size)]
        cells = torch.tensor([owners, columns], device=device)[:, None]  # [2, 1, N]
        self.target = _Target(slots.start, slots.stop, max(columns) + 1, cells[0], cells[1])
        ragged = RaggedAttention.of(sizes, starts, device=device)
        states = self._states(network, ids, attention_mask=NO_MASK.to(device), layout=ragged)
        parts: Sequence[Tensor] = torch.split(states[0], sizes)
        return parts

    def _states(self, network: Any, ids: Tensor, **options: Any) -> Tensor:
        """Run ids at the target's columns and return their states [B, T, D]."""
        out = run_body(network, input_ids=ids, position_ids=self.target.columns, cache=self, use_cache=True, **options)
        states: Tensor = out.last_hidden_state
        return states

    def put(self, slot: int, past: Past) -> None:
        """Write a prefix, keys and values [1, G, P, W] of every layer, to the first columns of a slot."""
        layers: list[Any] = self.layers
        for layer, (keys, values) in zip(layers, past, strict=True):
            width = keys.shape[2]
            layer.keys = layer.reserve(layer.keys, keys, rows=slot + 1, columns=width)
            layer.values = layer.reserve(layer.values, values, rows=slot + 1, columns=width)
            layer.keys[slot, :width] = keys[0].transpose(0, 1)
            layer.values[slot, :width] = values[0].transpose(0, 1)

    def take(self, slot: int, size: int) -> Past:
        """Copy the first `size` columns of a slot, [1, G, P, W] for every layer."""
        layers: list[Any] = self.layers
        return [
            (keys[slot, :size].transpose(0, 1)[None].clone(), values[slot, :size].transpose(0, 1)[None].clone())
            for keys, values in ((layer.keys, layer.values) for layer in layers)
        ]

    def move(self, slot: int, to: int, size: int) -> None:
        """Copy the first `size` columns of a slot to another slot, over the row that was there."""
        layers: list[Any] = self.layers
        for layer in layers:
            layer.keys[to, :size] = layer.keys[slot, :size]
            layer.values[to, :size] = layer.values[slot, :size]

    def clear(self) -> None:
        """Free the memory."""
        layers: list[Any] = self.layers
        for layer in layers:
            layer.keys = layer.values = None

    def _masks(self, columns: Tensor, dtype: torch.dtype) -> Any:
        """Return the additive mask [B, 1, T, S]; a dictionary by layer type if the network has several."""
        distance = columns[:, :, None] - torch.arange(self.target.width, device=columns.device)
        masks = {}
        for kind in self.kinds:
            visible = distance >= 0
            if kind == SLIDING:
                visible = visible & (distance < self.window)
            mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
            masks[kind] = mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]
        return masks if len(masks) > 1 else masks[self.kinds[0]]


@torch.no_grad()
def fits(network: Any) -> bool:
    """Return whether a decoder works with slots: two rows fed piece by piece must have the states they have alone."""
    # The first counts every row's window from the longest row of the batch.
    if network.config.model_type == "gpt_neo" or scales_by_column(network.config):
        return False
    cache = SlotKVCache(network.config)
    if not set(cache.kinds) <= {FULL, SLIDING}:
        return False
    rows = [list(range(1, 6)), list(range(6, 11))]
    try:
        first = cache.feed(network, [row[:3] for row in rows], slots=range(2), starts=(0, 0))
        # The second row continues from its third token, and further than the first row, as one that joined later.
        last = cache.feed(network, [rows[0][3:5], rows[1][2:]], slots=range(2), starts=(3, 2))
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError) as error:  # a state without keys
        if out_of_memory(error):
            raise
        return False
    for row, start, head, tail in zip(rows, (3, 2), first, last, strict=True):
        alone = states_alone(network, row, use_cache=False)
        for expected, actual in ((alone[:2], head[:2]), (alone[start:], tail)):
            if not (expected - actual.float()).norm() <= TOLERANCE * expected.norm():  # NaN fails, too
                return False
    return True
