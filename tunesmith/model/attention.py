"""Many rows in one line of tokens: what rows share runs once, nothing is padded, no row sees another.

Every layer but attention treats tokens one by one, so only attention has to know which token belongs
where. Rows are cut into segments: what several rows begin with is one segment, and their own tokens are
segments after it, to any depth (instruction, then a prompt, then its two answers). A token attends to its
own segment and to the segments before it on the way to the root, exactly as if its row stood alone.

Letters: N packed tokens, H heads, G key heads, W width of a head, S segments of a level, T tokens of the
longest of them, K tokens of the longest way from the root, V virtual tokens that stand before every row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tunesmith.model.families import slides
from tunesmith.model.fork import Fork, Past
from tunesmith.model.ragged import Ragged

NAME = "tunesmith"
# What some families add to attention: they keep their own.
NOT_KNOWN = ("softcap", "s_aux", "position_bias")
# Largest distance between states of packed and lone rows, as a share of their size; and what half precision rounds.
SAME, SAME_IN_HALF = 0.001, 0.02
# A mask of four dimensions is taken as it is, so the model builds none of its own over all N x N pairs.
NO_MASK = torch.zeros(1, 1, 1, 1)


@dataclass(frozen=True, slots=True)
class Level:
    """Segments at one depth. Their tokens follow each other among the packed ones, `size` of them."""

    size: int
    alone: bool  # nothing stands before these segments: queries and keys are the same tokens
    queries: Tensor  # [S, T] int64 index among the level's own tokens; padding repeats a segment's first
    places: Tensor  # [size] int64 index into [S * T], where each token is found again
    keys: Tensor  # [S, K] int64 index into the N tokens
    query_positions: Tensor  # [S, T] int64
    key_positions: Tensor  # [S, K] int64, -1 on padding

    @property
    def even(self) -> bool:
        """Whether all segments are of one length, so that nothing is padded."""
        return self.queries.numel() == self.size

    def to(self, device: torch.device | str) -> Level:
        """The same level on another device."""
        return replace(
            self,
            queries=self.queries.to(device),
            places=self.places.to(device),
            keys=self.keys.to(device),
            query_positions=self.query_positions.to(device),
            key_positions=self.key_positions.to(device),
        )

    def behind(self, virtual: int) -> Level:
        """The same level with so many keys before those of the N tokens, which every token sees, at the positions
        before its own."""
        index = torch.arange(virtual, device=self.keys.device).expand(len(self.keys), virtual)
        moved = torch.where(self.key_positions >= 0, self.key_positions + virtual, -1)
        return replace(
            self,
            alone=False,
            keys=torch.cat([index, self.keys + virtual], dim=1),
            query_positions=self.query_positions + virtual,
            key_positions=torch.cat([index, moved], dim=1),
        )

    def mask(self, *, causal: bool, window: int | None) -> Tensor | None:
        """[S, 1, T, K] bool, True where a query may look; None where the causal flag or nothing says it all."""
        if self.alone and window is None and (causal or self.even):
            return None
        behind = self.query_positions[:, :, None] - self.key_positions[:, None, :]
        seen = (self.key_positions >= 0)[:, None, :].expand_as(behind)
        if causal:
            seen = seen & (behind >= 0)
        if window is not None:
            seen = seen & (behind.abs() < window)
        return seen[:, None]


@dataclass(frozen=True, slots=True)
class Layout:
    """The levels of one pack, first to last."""

    levels: tuple[Level, ...]
    windows: set[int | None] | None = None  # is told the window of every layer, where somebody asks

    def to(self, device: torch.device | str) -> Layout:
        """The same layout on another device."""
        return Layout(tuple(level.to(device) for level in self.levels))

    def behind(self, virtual: int) -> Layout:
        """The same layout with so many virtual tokens before every row."""
        return Layout(tuple(level.behind(virtual) for level in self.levels))


def attend(module: Any, *states: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """[1, N, H, W]: what each packed token reads; without a layout, transformers' own attention.

    `states` as transformers hands them over: query [1, H, N, W], key and value [1, G, N, W], and the mask.
    """
    query, key, value, attention_mask = states
    layout: Layout | Ragged | Fork | None = kwargs.pop("layout", None)
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if odd := [word for word in NOT_KNOWN if kwargs.get(word) is not None]:
        raise ValueError(f"attention with {odd[0]} is not known here")
    if isinstance(layout, Ragged):
        window, scale = kwargs.get("sliding_window"), kwargs.get("scaling")
        return layout.attend(query, key, value, window=window, scale=scale), None
    if isinstance(layout, Fork):
        return layout.attend(module.layer_idx, (query, key, value), kwargs.get("scaling")), None
    asking, keys, values = (one[0].transpose(0, 1) for one in (query, key, value))
    causal = kwargs.get("is_causal")
    causal = module.is_causal if causal is None else causal
    if layout.windows is not None:
        layout.windows.add(kwargs.get("sliding_window"))
    start, parts = 0, []
    for level in layout.levels:
        mask = level.mask(causal=causal, window=kwargs.get("sliding_window"))
        own = asking[start : start + level.size]
        read = F.scaled_dot_product_attention(
            _taken(own, level.queries, whole=level.even),
            _taken(keys, level.keys, whole=level.alone and level.even),
            _taken(values, level.keys, whole=level.alone and level.even),
            attn_mask=mask,
            dropout_p=kwargs.get("dropout", 0.0),
            is_causal=causal and mask is None,
            scale=kwargs.get("scaling"),
            enable_gqa=query.shape[1] != key.shape[1],
        )
        flat = read.transpose(1, 2).reshape(-1, *own.shape[1:])
        parts.append(flat if level.even else flat.index_select(0, level.places))
        start += level.size
    return torch.cat(parts)[None] if len(parts) > 1 else parts[0][None], None


def _taken(tokens: Tensor, index: Tensor, *, whole: bool) -> Tensor:
    """[S, H, T, W] from [N, H, W]; `whole` when the index only cuts the first tokens into equal pieces."""
    chosen = tokens[: index.numel()] if whole else tokens.index_select(0, index.flatten())
    return chosen.reshape(*index.shape, *tokens.shape[1:]).transpose(1, 2)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens that several rows may share: how many, after which segment, from which position."""

    size: int
    parent: int  # index of the segment before it, -1 at the root
    position: int


def lay_out(segments: Sequence[Segment]) -> tuple[Layout, list[int]]:
    """The layout of segments, parents before children, and where each segment's tokens begin among the packed ones."""
    depths: list[int] = []
    for segment in segments:
        depths.append(0 if segment.parent < 0 else depths[segment.parent] + 1)
    begins, start = [0] * len(segments), 0
    members: list[list[int]] = [[i for i, d in enumerate(depths) if d == depth] for depth in range(max(depths) + 1)]
    for numbers in members:
        for number in numbers:
            begins[number] = start
            start += segments[number].size
    ways = _Ways(segments, begins)
    return Layout(tuple(_level(numbers, segments, begins, ways.of) for numbers in members)), begins


@dataclass(frozen=True, slots=True)
class _Ways:
    """Indices and positions of all keys that a segment's tokens may see."""

    segments: Sequence[Segment]
    begins: Sequence[int]

    def of(self, number: int) -> tuple[list[int], list[int]]:
        """From the root down to the segment's own tokens."""
        chain = []
        while number >= 0:
            chain.append(number)
            number = self.segments[number].parent
        index: list[int] = []
        positions: list[int] = []
        for link in reversed(chain):
            size, begin = self.segments[link].size, self.begins[link]
            index += range(begin, begin + size)
            positions += range(self.segments[link].position, self.segments[link].position + size)
        return index, positions


def _level(
    numbers: Sequence[int],
    segments: Sequence[Segment],
    begins: Sequence[int],
    way: Callable[[int], tuple[list[int], list[int]]],
) -> Level:
    """One level; its segments lie next to each other, in this order."""
    sizes = [segments[n].size for n in numbers]
    widest, first = max(sizes), begins[numbers[0]]
    queries = [[begins[n] - first + (t if t < segments[n].size else 0) for t in range(widest)] for n in numbers]
    positions = [[segments[n].position + (t if t < segments[n].size else 0) for t in range(widest)] for n in numbers]
    places = [row * widest + t for row, size in enumerate(sizes) for t in range(size)]
    ways = [way(n) for n in numbers]
    longest = max(len(index) for index, _ in ways)
    return Level(
        size=sum(sizes),
        alone=longest == widest,
        queries=torch.tensor(queries),
        places=torch.tensor(places),
        keys=torch.tensor([index + [0] * (longest - len(index)) for index, _ in ways]),
        query_positions=torch.tensor(positions),
        key_positions=torch.tensor([known + [-1] * (longest - len(known)) for _, known in ways]),
    )


def run(network: Any, ids: Tensor, positions: Tensor, layout: Layout, *, past: Past = ()) -> Tensor:
    """[N, D]: last hidden states of packed tokens, given ids [N], positions [N], and what stands before all of them."""
    before: dict[str, Any] = {}
    if past:
        virtual = past[0][0].shape[2]
        positions, layout = positions + virtual, layout.behind(virtual)
        before = {"cache": DynamicCache(past)}
    out = network.base_model(
        input_ids=ids[None],
        position_ids=positions[None],
        attention_mask=NO_MASK.to(ids.device),
        use_cache=False,
        layout=layout,
        **before,
    )
    states: Tensor = out.last_hidden_state[0]
    return states


def install(network: Any, *, causal: bool) -> bool:
    """Whether this network's attention can be handed a layout; it can from now on, or is left as it was.

    Nobody's list of families: two short rows are run both ways, and the states have to be the same.
    """
    before = network.config._attn_implementation
    if before == NAME:
        return True
    network.set_attn_implementation(NAME)
    if _same_states(network, causal=causal):
        return True
    network.set_attn_implementation(before)
    return False


def same_by(network: Any) -> float:
    """How far states that should be the same may lie apart, as a share of their size, in a network's own numbers."""
    return SAME if network.dtype == torch.float32 else SAME_IN_HALF


@torch.no_grad()
def _same_states(network: Any, *, causal: bool) -> bool:
    """Whether two rows that share their beginning have the states they have alone, and windows are told."""
    shared, own = (4, 3) if causal else (0, 7)
    segments = [Segment(shared, -1, 0)] * bool(shared)
    segments += [Segment(own + row, len(segments) - 1, shared) for row in range(2)]
    layout, _ = lay_out(segments)
    rows = [list(range(1, shared + 1)) + list(range(10, 10 + own + row)) for row in range(2)]
    places = [list(range(len(row))) for row in rows]
    ids = torch.tensor(rows[0] + rows[1][shared:], device=network.device)
    positions = torch.tensor(places[0] + places[1][shared:], device=network.device)
    windows: set[int | None] = set()
    try:
        packed = run(network, ids, positions, replace(layout.to(network.device), windows=windows)).float()
    except (TypeError, ValueError, RuntimeError):  # an architecture that takes no positions, or no such words
        return False
    if slides(network.config) and windows == {None}:
        return False  # its windows are in its masks alone, and two short rows fit into any
    for row, states in ((rows[0], packed[: shared + own]), (rows[1], packed[-own - 1 :])):
        alone = network.base_model(input_ids=torch.tensor([row], device=network.device)).last_hidden_state[0].float()
        alone = alone[-len(states) :]
        if (states - alone).norm() > same_by(network) * alone.norm():
            return False
    return True
