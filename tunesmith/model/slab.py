"""Keys and values of rows that come and go, in one block of memory that no row's leaving makes us copy.

Each row lies in a slot of its own, its first token in column 0, so a token's column is its position and nothing is
padded in front. What lies behind a row's end is never looked at.

Letters: R slots, C columns, B rows at work, T tokens given, S columns looked at, P columns of a beginning, G key heads,
W width of a head, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from tunesmith.model.attention import NAME, NO_MASK, SAME
from tunesmith.model.fork import Past
from tunesmith.model.ragged import Ragged

STEP = 64  # columns grow by at least so many
FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the tokens of a pass go: slots `first` to `end`, `width` columns of them looked at."""

    first: int
    end: int
    width: int
    slots: Tensor  # [B, 1] int64, or [1, N] where rows lie in one line
    columns: Tensor  # [B, T] or [1, N]


class _Layer(CacheLayerMixin):
    """Keys and values [R, C, G, W] of one layer."""

    def __init__(self, slab: Slab) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers annotates it not
        self.slab = slab

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: room is made when it is known how much."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """[B, G, T, W] of the rows at work in, or [1, G, N, W]; theirs up to the last column, [B, G, S, W], out."""
        at = self.slab.at
        self.keys = self._written(self.keys, key_states, at)
        self.values = self._written(self.values, value_states, at)
        rows = slice(at.first, at.end)
        return self.keys[rows, : at.width].transpose(1, 2), self.values[rows, : at.width].transpose(1, 2)

    def _written(self, held: Tensor | None, given: Tensor, at: _Place) -> Tensor:
        """The block with what was given in it, larger where it was too small."""
        block = self.room(held, given, rows=at.end, columns=at.width)
        block[at.slots, at.columns] = given.transpose(1, 2)
        return block

    def room(self, held: Tensor | None, like: Tensor, *, rows: int, columns: int) -> Tensor:
        """The block, or one that has that many rows and columns with the same in it; zeros, since NaN * 0 is NaN."""
        have = (0, 0) if held is None else held.shape[:2]
        if rows <= have[0] and columns <= have[1]:
            assert held is not None
            return held
        wide = have[1] if columns <= have[1] else max(columns + STEP, have[1] * 3 // 2) // STEP * STEP
        high = have[0] if rows <= have[0] else max(rows, 2 * have[0])
        block = like.new_zeros(high, max(wide, columns), like.shape[1], like.shape[3])
        if held is not None:
            block[: have[0], : have[1]] = held
        return block

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns looked at, from the first on."""
        return self.slab.at.width, 0

    def get_seq_length(self) -> int:
        """Columns looked at."""
        return self.slab.at.width

    def get_max_length(self) -> int:
        """No maximum."""
        return -1


class Slab(Cache):
    """The slots of one network; `feed` is the only way to run it."""

    def __init__(self, config: Any) -> None:
        super().__init__(layers=[_Layer(self) for _ in range(config.num_hidden_layers)])
        self.at = _Place(0, 1, 0, torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64))
        kinds = getattr(config, "layer_types", None) or [SLIDING if getattr(config, "sliding_window", None) else FULL]
        self.kinds = sorted(set(kinds))
        self.window = int(getattr(config, "sliding_window", None) or 0)

    def feed(
        self, network: Any, rows: Sequence[Sequence[int]], *, slots: range, starts: Sequence[int]
    ) -> Sequence[Tensor]:
        """[T, D] for each row: states of its ids, put into its slot from this column on."""
        sizes, device = [len(row) for row in rows], network.device
        even = max(sizes) == min(sizes)
        if not even and network.config._attn_implementation == NAME:
            return self._in_line(network, rows, slots=slots, starts=starts)
        longest = max(sizes)
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
        columns = torch.tensor(starts, device=device)[:, None] + torch.arange(longest, device=device)  # [B, T]
        behind = torch.tensor(slots, device=device)[:, None]
        self.at = _Place(slots.start, slots.stop, max(starts) + longest, behind, columns)
        states = self._states(network, ids, attention_mask=self._masks(columns, network.dtype))
        return [states[i, :size] for i, size in enumerate(sizes)]

    def _in_line(
        self, network: Any, rows: Sequence[Sequence[int]], *, slots: range, starts: Sequence[int]
    ) -> Sequence[Tensor]:
        """The same without padding: rows of unequal length one behind the other."""
        sizes, device = [len(row) for row in rows], network.device
        ids = torch.tensor([[token for row in rows for token in row]], device=device)
        columns = [start + i for start, size in zip(starts, sizes, strict=True) for i in range(size)]
        owners = [slot for slot, size in zip(slots, sizes, strict=True) for _ in range(size)]
        line = torch.tensor([owners, columns], device=device)[:, None]  # [2, 1, N]
        self.at = _Place(slots.start, slots.stop, max(columns) + 1, line[0], line[1])
        ragged = Ragged.of(sizes, starts, device=device)
        states = self._states(network, ids, attention_mask=NO_MASK.to(device), layout=ragged)
        parts: Sequence[Tensor] = torch.split(states[0], sizes)
        return parts

    def _states(self, network: Any, ids: Tensor, **how: Any) -> Tensor:
        """[B, T, D] of ids at the place that is set."""
        out = network.base_model(input_ids=ids, position_ids=self.at.columns, cache=self, use_cache=True, **how)
        states: Tensor = out.last_hidden_state
        return states

    def put(self, slot: int, past: Past) -> None:
        """Begin a slot with keys and values [1, G, P, W] of every layer."""
        layers: list[Any] = self.layers
        for layer, (keys, values) in zip(layers, past, strict=True):
            width = keys.shape[2]
            layer.keys = layer.room(layer.keys, keys, rows=slot + 1, columns=width)
            layer.values = layer.room(layer.values, values, rows=slot + 1, columns=width)
            layer.keys[slot, :width] = keys[0].transpose(0, 1)
            layer.values[slot, :width] = values[0].transpose(0, 1)

    def take(self, slot: int, size: int) -> Past:
        """A copy of the first columns of a slot, [1, G, P, W] in every layer."""
        layers: list[Any] = self.layers
        return [
            (keys[slot, :size].transpose(0, 1)[None].clone(), values[slot, :size].transpose(0, 1)[None].clone())
            for keys, values in ((layer.keys, layer.values) for layer in layers)
        ]

    def move(self, slot: int, to: int, size: int) -> None:
        """Put the first columns of a slot where another row was."""
        layers: list[Any] = self.layers
        for layer in layers:
            layer.keys[to, :size] = layer.keys[slot, :size]
            layer.values[to, :size] = layer.values[slot, :size]

    def clear(self) -> None:
        """Let the memory go."""
        layers: list[Any] = self.layers
        for layer in layers:
            layer.keys = layer.values = None

    def _masks(self, columns: Tensor, dtype: torch.dtype) -> Any:
        """What each token sees, [B, 1, T, S] as numbers to add; by kind of layer where a network has several."""
        behind = columns[:, :, None] - torch.arange(self.at.width, device=columns.device)
        made = {}
        for kind in self.kinds:
            seen = behind >= 0
            if kind == SLIDING:
                seen = seen & (behind < self.window)
            mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            made[kind] = mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]
        return made if len(made) > 1 else made[self.kinds[0]]


@torch.no_grad()
def fits(network: Any) -> bool:
    """Whether this decoder's rows can lie in a slab: two rows fed piece by piece have the states they have alone."""
    if network.config.model_type == "gpt_neo":  # it counts the window of each row from the longest beside it
        return False
    slab = Slab(network.config)
    if not set(slab.kinds) <= {FULL, SLIDING}:
        return False
    rows = [list(range(1, 6)), list(range(6, 11))]
    try:
        first = slab.feed(network, [row[:3] for row in rows], slots=range(2), starts=(0, 0))
        # The second row goes on from its second token, as a row does that joins later, and further than the first.
        last = slab.feed(network, [rows[0][3:5], rows[1][2:]], slots=range(2), starts=(3, 2))
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError):  # a state that is no keys
        return False
    for row, begin, head, tail in zip(rows, (3, 2), first, last, strict=True):
        ids = torch.tensor([row], device=network.device)
        alone = network.base_model(input_ids=ids, use_cache=False).last_hidden_state[0].float()
        for wanted, found in ((alone[:2], head[:2]), (alone[begin:], tail)):
            if (wanted - found.float()).norm() > SAME * wanted.norm():
                return False
    return True
