"""Attention of packed rows: all rows in one sequence, padded only inside attention.

`Layout` is for rows that share prefixes, in training and scoring. `RaggedAttention` is for rows whose keys and values
are in a slot cache, in continuous batching. transformers calls `attend` for both.

Letters: N tokens of all rows, B rows, T tokens of the longest row or segment, S cache columns attended to or segments
of a level, K keys of a segment, H query heads, G key heads, W head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tunesmith.models.attention.shared_prefix import Past, SharedPrefixAttention
from tunesmith.models.families import slides
from tunesmith.models.sharded import run_body


@dataclass(frozen=True, slots=True)
class RaggedAttention:
    """Index of N concatenated tokens among B rows padded to T, and the S columns each attends to."""

    queries: Tensor  # [B, T] int64 index among the N tokens; padding repeats a row's first
    flat_index: Tensor  # [N] int64 index into [B * T]
    distance: Tensor  # [B, T, S] int64, columns between a token and each column; negative for later tokens

    @classmethod
    def of(cls, sizes: Sequence[int], starts: Sequence[int], *, device: torch.device) -> RaggedAttention:
        """Return the index of rows with these `sizes` in tokens, whose first tokens are in these columns."""
        longest = max(sizes)
        width = max(start + size for start, size in zip(starts, sizes, strict=True))
        step = torch.arange(longest)
        own = torch.tensor(sizes)[:, None]
        inside = torch.where(step < own, step, 0)  # [B, T]
        first = torch.tensor(sizes).cumsum(0)[:, None] - own
        columns = torch.tensor(starts)[:, None] + inside
        return cls(
            (first + inside).to(device),
            torch.nonzero((step < own).flatten())[:, 0].to(device),
            (columns[:, :, None] - torch.arange(width)).to(device),
        )

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, window: int | None, scale: float | None) -> Tensor:
        """Compute attention [1, N, H, W] of tokens [1, H, N, W] to their rows' keys and values [B, G, S, W]."""
        visible = self.distance >= 0
        if window is not None:
            visible = visible & (self.distance < window)
        rows = query[0].transpose(0, 1)[self.queries].transpose(1, 2)  # [B, H, T, W]
        out = F.scaled_dot_product_attention(
            rows, key, value, attn_mask=visible[:, None], scale=scale, enable_gqa=query.shape[1] != key.shape[1]
        )
        return out.transpose(1, 2).flatten(0, 1).index_select(0, self.flat_index)[None]


# The name under which transformers finds `attend`.
NAME = "tunesmith"
# Additions to attention scores that some families need and `attend` does not implement; they keep their own attention.
UNSUPPORTED = ("softcap", "s_aux", "position_bias")
# Largest relative distance between the states of packed and lone rows: float32, and half precision with its rounding.
TOLERANCE, HALF_TOLERANCE = 0.001, 0.02
# transformers passes a 4-D mask through unchanged. Without one the model would build a mask over all N x N pairs.
NO_MASK = torch.zeros(1, 1, 1, 1)


@dataclass(frozen=True, slots=True)
class Level:
    """Segments of one depth; their `size` tokens are contiguous among the packed ones."""

    size: int
    is_root: bool  # no segment comes before these: queries and keys are the same tokens
    queries: Tensor  # [S, T] int64 index among the level's own tokens; padding repeats a segment's first
    flat_index: Tensor  # [size] int64 index of each token in the flattened [S * T] output
    keys: Tensor  # [S, K] int64 index into the N tokens
    query_positions: Tensor  # [S, T] int64
    key_positions: Tensor  # [S, K] int64, -1 on padding

    @property
    def even(self) -> bool:
        """True if all segments have the same length, so that nothing is padded."""
        return self.queries.numel() == self.size

    def to(self, device: torch.device | str) -> Level:
        """Return the same level on another device."""
        return replace(
            self,
            queries=self.queries.to(device),
            flat_index=self.flat_index.to(device),
            keys=self.keys.to(device),
            query_positions=self.query_positions.to(device),
            key_positions=self.key_positions.to(device),
        )

    def after_virtual(self, virtual: int) -> Level:
        """Return the level with `virtual` more keys in front of the N tokens, at the positions before theirs.

        Every token attends to them.
        """
        index = torch.arange(virtual, device=self.keys.device).expand(len(self.keys), virtual)
        shifted = torch.where(self.key_positions >= 0, self.key_positions + virtual, -1)
        return replace(
            self,
            is_root=False,
            keys=torch.cat([index, self.keys + virtual], dim=1),
            query_positions=self.query_positions + virtual,
            key_positions=torch.cat([index, shifted], dim=1),
        )

    def mask(self, *, causal: bool, window: int | None) -> Tensor | None:
        """Return [S, 1, T, K] bool, True where a query attends; None if the causal flag alone, or no mask, does."""
        # Without a mask tensor, PyTorch may choose its flash kernel.
        if self.is_root and window is None and (causal or self.even):
            return None
        distance = self.query_positions[:, :, None] - self.key_positions[:, None, :]
        visible = (self.key_positions >= 0)[:, None, :].expand_as(distance)
        if causal:
            visible = visible & (distance >= 0)
        if window is not None:
            visible = visible & (distance.abs() < window)
        return visible[:, None]


@dataclass(frozen=True, slots=True)
class Layout:
    """The levels of one pack, root first."""

    levels: tuple[Level, ...]
    windows: set[int | None] | None = None  # if given, `attend` adds each layer's window to it

    def to(self, device: torch.device | str) -> Layout:
        """Return the same layout on another device."""
        return Layout(tuple(level.to(device) for level in self.levels))

    def after_virtual(self, virtual: int) -> Layout:
        """Return the layout with `virtual` virtual tokens in front of every row."""
        return Layout(tuple(level.after_virtual(virtual) for level in self.levels))


def attend(module: Any, *states: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """Compute attention over packed tokens [1, N, H, W]; without a layout, call transformers' own attention.

    Args:
        module: the attention layer that calls.
        states: as transformers passes them: query [1, H, N, W], key and value [1, G, N, W], and the mask.
        kwargs: transformers' options, and `layout`, which the caller of the network passes through.

    Raises:
        ValueError: if the layer changes its scores in a way not implemented here.
    """
    query, key, value, attention_mask = states
    layout: Layout | RaggedAttention | SharedPrefixAttention | None = kwargs.pop("layout", None)
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if unsupported := [option for option in UNSUPPORTED if kwargs.get(option) is not None]:
        raise ValueError(f"packed attention does not support {unsupported[0]}")
    if isinstance(layout, RaggedAttention):
        window, scale = kwargs.get("sliding_window"), kwargs.get("scaling")
        return layout.attend(query, key, value, window=window, scale=scale), None
    if isinstance(layout, SharedPrefixAttention):
        return layout.attend(module.layer_idx, (query, key, value), kwargs.get("scaling")), None
    queries, keys, values = (state[0].transpose(0, 1) for state in (query, key, value))
    causal = kwargs.get("is_causal")
    causal = module.is_causal if causal is None else causal
    if layout.windows is not None:
        layout.windows.add(kwargs.get("sliding_window"))
    # Levels are packed one after another, so the outputs of all levels, concatenated, are in the order of the tokens.
    start = 0
    outputs = []
    for level in layout.levels:
        mask = level.mask(causal=causal, window=kwargs.get("sliding_window"))
        own = queries[start : start + level.size]
        out = F.scaled_dot_product_attention(
            _gather(own, level.queries, whole=level.even),
            _gather(keys, level.keys, whole=level.is_root and level.even),
            _gather(values, level.keys, whole=level.is_root and level.even),
            attn_mask=mask,
            dropout_p=kwargs.get("dropout", 0.0),
            is_causal=causal and mask is None,
            scale=kwargs.get("scaling"),
            enable_gqa=query.shape[1] != key.shape[1],
        )
        flat = out.transpose(1, 2).reshape(-1, *own.shape[1:])
        outputs.append(flat if level.even else flat.index_select(0, level.flat_index))
        start += level.size
    return torch.cat(outputs)[None] if len(outputs) > 1 else outputs[0][None], None


def _gather(tokens: Tensor, index: Tensor, *, whole: bool) -> Tensor:
    """Return [S, H, T, W] from [N, H, W]; `whole` if the index only cuts the first tokens into equal pieces."""
    chosen = tokens[: index.numel()] if whole else tokens.index_select(0, index.flatten())
    return chosen.reshape(*index.shape, *tokens.shape[1:]).transpose(1, 2)


AttentionInterface.register(NAME, attend)


AttentionMaskInterface.register(NAME, sdpa_mask)


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens that several rows may share."""

    size: int  # tokens
    parent: int  # index of the segment before it, -1 at the root
    position: int  # position of its first token in the row


def lay_out(segments: Sequence[Segment]) -> tuple[Layout, list[int]]:
    """Return the layout of segments (parents before children), and the packed index of each segment's first token."""
    depths: list[int] = []  # parents come first, so their depth is known
    for segment in segments:
        depths.append(0 if segment.parent < 0 else depths[segment.parent] + 1)
    levels = [[i for i, d in enumerate(depths) if d == depth] for depth in range(max(depths) + 1)]
    starts = [0] * len(segments)
    start = 0
    for members in levels:
        for index in members:
            starts[index] = start
            start += segments[index].size
    return Layout(tuple(_level(members, segments, starts) for members in levels)), starts


def _level(members: Sequence[int], segments: Sequence[Segment], starts: Sequence[int]) -> Level:
    """Return the level of these segments, which are packed next to each other in this order."""
    sizes = [segments[i].size for i in members]
    widest = max(sizes)
    first = starts[members[0]]
    queries = [[starts[i] - first + (t if t < segments[i].size else 0) for t in range(widest)] for i in members]
    positions = [[segments[i].position + (t if t < segments[i].size else 0) for t in range(widest)] for i in members]
    flat_index = [row * widest + t for row, size in enumerate(sizes) for t in range(size)]
    keys = [_visible_keys(i, segments, starts) for i in members]
    longest = max(len(index) for index, _ in keys)
    return Level(
        size=sum(sizes),
        is_root=longest == widest,
        queries=torch.tensor(queries),
        flat_index=torch.tensor(flat_index),
        keys=torch.tensor([index + [0] * (longest - len(index)) for index, _ in keys]),
        query_positions=torch.tensor(positions),
        key_positions=torch.tensor([known + [-1] * (longest - len(known)) for _, known in keys]),
    )


def _visible_keys(number: int, segments: Sequence[Segment], starts: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return packed index and position of every token from the root to the end of a segment."""
    path = []
    while number >= 0:
        path.append(number)
        number = segments[number].parent
    index: list[int] = []
    positions: list[int] = []
    for i in reversed(path):
        size = segments[i].size
        index += range(starts[i], starts[i] + size)
        positions += range(segments[i].position, segments[i].position + size)
    return index, positions


def run(network: Any, ids: Tensor, positions: Tensor, layout: Layout, *, past: Past = ()) -> Tensor:
    """Run a network over packed tokens and return their last hidden states [N, D].

    Args:
        network: a transformers model in which `install` succeeded.
        ids: token ids, [N] int64.
        positions: position of each token in its row, [N] int64.
        layout: which token attends to which.
        past: keys and values of virtual tokens in front of every row, per layer.
    """
    cache: dict[str, Any] = {}
    if past:
        virtual = past[0][0].shape[2]
        positions = positions + virtual
        layout = layout.after_virtual(virtual)
        cache = {"cache": DynamicCache(past)}
    out = run_body(
        network,
        input_ids=ids[None],
        position_ids=positions[None],
        attention_mask=NO_MASK.to(ids.device),
        use_cache=False,
        layout=layout,
        **cache,
    )
    states: Tensor = out.last_hidden_state[0]
    return states


def install(network: Any, *, causal: bool) -> bool:
    """Install packed attention in a network and return whether it works there; if not, leave the network unchanged.

    Decided by measurement instead of a list of families: two short rows run packed and alone, and their states have
    to agree.
    """
    original = network.config._attn_implementation
    if original == NAME:
        return True
    network.set_attn_implementation(NAME)
    if _same_states(network, causal=causal):
        return True
    network.set_attn_implementation(original)
    return False


def state_tolerance(network: Any, *, float32: float = TOLERANCE) -> float:
    """Return the largest relative distance between states or logits that should be equal, in the network's own dtype.

    Args:
        network: a transformers model.
        float32: the distance in float32, which depends on what is compared; in half precision, rounding decides.
    """
    return float32 if network.dtype == torch.float32 else HALF_TOLERANCE


@torch.no_grad()
def _same_states(network: Any, *, causal: bool) -> bool:
    """Return whether two packed rows with a common prefix have the states they have alone, and windows are passed."""
    # Only causal rows can share a prefix: an encoder's prefix attends to what follows it.
    shared, own = (4, 3) if causal else (0, 7)
    segments = [Segment(shared, -1, 0)] * bool(shared)
    segments += [Segment(own + row, len(segments) - 1, shared) for row in range(2)]
    layout, _ = lay_out(segments)
    rows = [list(range(1, shared + 1)) + list(range(10, 10 + own + row)) for row in range(2)]
    row_positions = [list(range(len(row))) for row in rows]
    ids = torch.tensor(rows[0] + rows[1][shared:], device=network.device)
    positions = torch.tensor(row_positions[0] + row_positions[1][shared:], device=network.device)
    windows: set[int | None] = set()
    try:
        packed = run(network, ids, positions, replace(layout.to(network.device), windows=windows)).float()
    except (TypeError, ValueError, RuntimeError):  # the architecture takes no position_ids, or rejects the options
        return False
    if slides(network.config) and windows == {None}:
        return False  # its windows exist only in its masks, and two short rows fit into any window
    for row, states in ((rows[0], packed[: shared + own]), (rows[1], packed[-own - 1 :])):
        alone = run_body(network, input_ids=torch.tensor([row], device=network.device)).last_hidden_state[0].float()
        alone = alone[-len(states) :]
        if not (states - alone).norm() <= state_tolerance(network) * alone.norm():  # NaN fails, too
            return False
    return True
