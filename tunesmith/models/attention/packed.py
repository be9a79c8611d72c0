"""Attention of packed rows: all rows in one sequence, padded only inside attention.

`Layout` is for rows that share prefixes, in training and scoring. `RaggedAttention` is for rows whose keys and values
are in a slot cache, in continuous batching. transformers calls `attend` for both.

Letters: N tokens of all rows, B rows, T tokens of the longest row or segment, S cache columns attended to or segments
of a level, K keys of a segment, H query heads, G key heads, W head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tunesmith.models.attention.flex import Segment, SegmentMask, flex_attend
from tunesmith.models.attention.shared_prefix import Past, SharedPrefixAttention
from tunesmith.models.attention.short_rows import MAX_CAUSAL_SCORES, MAX_SCORES, short_attention
from tunesmith.models.families import slides
from tunesmith.models.once_per_shape import once_per_shape
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

    def attend(self, states: Sequence[Tensor], *, window: int | None, scale: float | None, cap: float | None) -> Tensor:
        """Compute attention [1, N, H, W] of tokens [1, H, N, W] to their rows' keys and values [B, G, S, W]."""
        query, key, value = states
        visible = self.distance >= 0
        if window is not None:
            visible = visible & (self.distance < window)
        rows = query[0].transpose(0, 1)[self.queries].transpose(1, 2)  # [B, H, T, W]
        if cap is not None:
            out = capped_attention((rows, key, value), visible[:, None], scale=scale, cap=cap)
        else:
            out = F.scaled_dot_product_attention(
                rows, key, value, attn_mask=visible[:, None], scale=scale, enable_gqa=query.shape[1] != key.shape[1]
            ).transpose(1, 2)
        return out.flatten(0, 1).index_select(0, self.flat_index)[None]


# The name under which transformers finds `attend`.
NAME = "tunesmith"
# Tokens: causal segments for torch's flash kernel are padded to a multiple of this. In bfloat16 it takes up to twice as
# long with odd lengths (bench/NOTES.md, long rows).
MULTIPLE = 16
# Behind a shared prefix, causal segments of at least this many tokens run as whole rows if they have at most this many
# times as many keys: computing the prefix's queries again takes less time than the scores that a mask hides and a
# causal flag skips (bench/NOTES.md, long rows).
WHOLE_FROM = 448
WHOLE_SHARE = 1.3
# Additions to attention scores that some families need and `attend` does not implement; they keep their own attention.
UNSUPPORTED = ("s_aux", "position_bias")
# Devices on which one FlexAttention call computes all levels, capped scores too. It has no backward pass on CPU.
FUSED = {"cuda"}
# Largest relative distance between the states of packed and lone rows: float32, and half precision with its rounding.
TOLERANCE, HALF_TOLERANCE = 0.001, 0.02
# transformers passes a 4-D mask through unchanged. Without one the model would build a mask over all N x N pairs.
NO_MASK = torch.zeros(1, 1, 1, 1)


@dataclass(frozen=True, slots=True)
class Level:
    """Segments of one depth; their `size` tokens are contiguous among the packed ones, from `start`."""

    start: int
    size: int
    is_root: bool  # no segment comes before these: queries and keys are the same tokens
    queries: Tensor  # [S, T] int64 index among the level's own tokens; padding repeats a segment's first
    flat_index: Tensor  # [size] int64 index of each token in the flattened [S * T] output
    keys: Tensor  # [S, K] int64 index into the N tokens
    query_positions: Tensor  # [S, T] int64
    key_positions: Tensor  # [S, K] int64, -1 on padding
    extents: NDArray[np.int64]  # [S, 2] most queries and keys of this segment and all later ones
    # [size] int64 index of each token in the flattened [S * K] keys, if whole rows are faster.
    key_index: Tensor | None = None
    # Added to the scores of short rows, by (causal, window): the same in all layers.
    biases: dict[tuple[bool, int | None], Tensor | None] = field(default_factory=dict, init=False)

    @property
    def even(self) -> bool:
        """True if all segments have the same length, so that nothing is padded."""
        return self.queries.numel() == self.size

    def after_virtual(self, virtual: int) -> Level:
        """Return the level with `virtual` more keys, which every token attends to, in front of the N tokens."""
        index = torch.arange(virtual, device=self.keys.device).expand(len(self.keys), virtual)
        shifted = torch.where(self.key_positions >= 0, self.key_positions + virtual, -1)
        return replace(
            self,
            is_root=False,
            key_index=None,
            keys=torch.cat([index, self.keys + virtual], dim=1),
            query_positions=self.query_positions + virtual,
            key_positions=torch.cat([index, shifted], dim=1),
            extents=self.extents + (0, virtual),
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

    def bias(self, *, causal: bool, window: int | None) -> Tensor | None:
        """Return [S, T, K] or [1, T, K] float32, minus infinity where a query does not attend; None if all attend."""
        if (causal, window) not in self.biases:
            visible = self.mask(causal=causal, window=window)
            if visible is None and causal:
                tokens = self.queries.shape[1]
                visible = torch.ones(1, 1, tokens, tokens, dtype=torch.bool).tril()
            bias = None if visible is None else torch.zeros(visible.shape).masked_fill_(~visible, -torch.inf)[:, 0]
            self.biases[causal, window] = bias
        return self.biases[causal, window]

    def attend(
        self, states: Sequence[Tensor], *, causal: bool, window: int | None, scale: float | None, dropout: float
    ) -> Tensor:
        """Compute attention [size, H, W] of the level's tokens.

        Args:
            states: queries [N, H, W], keys and values [N, G, W] of all tokens.
            causal: tokens attend to no later one.
            window: tokens attend to fewer positions than this back.
            scale: factor of the scores; None for W ** -0.5.
            dropout: probability that a weight is dropped.
        """
        queries, keys, values = states
        grouped = queries.shape[1] != keys.shape[1]
        if self.key_index is not None and causal and window is None:
            query, key, value = (_gather(state, self.keys, whole=False) for state in states)
            out = F.scaled_dot_product_attention(
                query, key, value, dropout_p=dropout, is_causal=True, scale=scale, enable_gqa=grouped
            )
            return out.transpose(1, 2).flatten(0, 1).index_select(0, self.key_index)
        own = queries[self.start : self.start + self.size]
        whole = self.is_root and self.even
        gathered = (
            _gather(own, self.queries, whole=self.even),
            _gather(keys, self.keys, whole=whole),
            _gather(values, self.keys, whole=whole),
        )
        visible = self.mask(causal=causal, window=window)
        limit = MAX_CAUSAL_SCORES if causal and visible is None else MAX_SCORES
        short = self.queries.shape[1] * self.keys.shape[1] <= limit or dropout
        if short and own.device.type == "cpu" and own.dtype != torch.float64:
            bias = self.bias(causal=causal, window=window)
            out = short_attention(gathered, bias, scale=scale, extents=self.extents, dropout=dropout)
        else:
            out = F.scaled_dot_product_attention(
                *gathered,
                attn_mask=visible,
                dropout_p=dropout,
                is_causal=causal and visible is None,
                scale=scale,
                enable_gqa=grouped,
            )
        flat = out.transpose(1, 2).reshape(-1, *own.shape[1:])
        return flat if self.even else flat.index_select(0, self.flat_index)


@dataclass(frozen=True)
class Layout:
    """The segments of one pack. The index tensors for attention are made when a device first needs them."""

    segments: Sequence[Segment]  # parents before children
    members: Sequence[Sequence[int]]  # index of the segments of each level, root first; they are packed in this order
    starts: NDArray[np.int64]  # packed index of each segment's first token
    paths: Sequence[NDArray[np.int64]]  # [2, K] of each segment: packed index and position of all that it attends to
    device: torch.device = torch.device("cpu")
    windows: set[int | None] | None = None  # if given, `attend` adds each layer's window to it
    virtual: int = 0  # virtual tokens in front of every row
    own: Layout | None = None  # the same layout without them

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """The levels, root first, each as long as its longest segment."""
        if self.own is not None:
            return tuple(level.after_virtual(self.virtual) for level in self.own.levels)
        return tuple(_level(members, self) for members in self.members)

    @cached_property
    def causal_levels(self) -> tuple[Level, ...]:
        """The levels for causal attention, with long segments as torch's flash kernel is fastest."""
        if self.own is not None:
            return tuple(level.after_virtual(self.virtual) for level in self.own.causal_levels)
        return tuple(_level(members, self, multiple=MULTIPLE) for members in self.members)

    @cached_property
    def mask(self) -> SegmentMask:
        """All levels as one mask, for FlexAttention."""
        return SegmentMask.of(self.segments, self.starts, virtual=self.virtual, device=self.device)

    def to(self, device: torch.device | str) -> Layout:
        """Return the same layout on another device."""
        moved = replace(self, device=torch.device(device))
        if moved.device.type in FUSED:
            _ = moved.mask  # copied with the rest of the batch instead of within the step
        return self if moved.device == self.device else moved

    def after_virtual(self, virtual: int) -> Layout:
        """Return the layout with `virtual` virtual tokens in front of every row."""
        return replace(self, virtual=virtual, own=self)


def attend(module: Any, *states: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """Compute attention over packed tokens [1, N, H, W]; without a layout, call transformers' own attention.

    An attention layer calls it with query [1, H, N, W], key and value [1, G, N, W], the mask, and its options, with the
    `layout` that the caller of the network passes.

    Raises:
        ValueError: if the layer changes its scores in a way not implemented here.
    """
    query, key, value, attention_mask = states
    layout: Layout | RaggedAttention | SharedPrefixAttention | None = kwargs.pop("layout", None)
    scale, cap = kwargs.get("scaling"), kwargs.get("softcap")
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    if layout is None:
        if cap is not None:
            return capped_attention((query, key, value), attention_mask, scale=scale, cap=cap, causal=causal), None
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if unsupported := [option for option in UNSUPPORTED if kwargs.get(option) is not None]:
        raise ValueError(f"packed attention does not support {unsupported[0]}")
    window = kwargs.get("sliding_window")
    if isinstance(layout, RaggedAttention):
        return layout.attend((query, key, value), window=window, scale=scale, cap=cap), None
    if isinstance(layout, SharedPrefixAttention):
        return layout.attend(module.layer_idx, (query, key, value), scale=scale, cap=cap), None
    if layout.windows is not None:
        layout.windows.add(window)
    # FlexAttention has no dropout.
    if query.device.type in FUSED and not kwargs.get("dropout"):
        mask = layout.mask.blocks(causal=causal, window=window)
        return flex_attend((query, key, value), mask, scale=scale, cap=cap), None
    if cap is not None:
        raise ValueError("packed attention does not support softcap")
    options = {"causal": causal, "window": window, "scale": scale, "dropout": kwargs.get("dropout", 0.0)}
    packed = [state[0].transpose(0, 1) for state in (query, key, value)]
    # Levels are packed one after another, so the outputs of all levels, concatenated, are in the order of the tokens.
    outputs = [level.attend(packed, **options) for level in (layout.causal_levels if causal else layout.levels)]
    return torch.cat(outputs)[None] if len(outputs) > 1 else outputs[0][None], None


def capped_attention(
    states: Sequence[Tensor], mask: Tensor | None, *, scale: float | None, cap: float, causal: bool = False
) -> Tensor:
    """Compute attention [B, T, H, W] with scores capped to cap * tanh(score / cap), which SDPA does not do.

    Args:
        states: query [B, H, T, W], key and value [B, G, S, W].
        mask: bool, True where a query attends, or float, added to the scores; broadcast to [B, H, T, S].
        scale: factor of the scores; None for W ** -0.5.
        cap: the scores' limit.
        causal: without a mask, the T queries are the last of the S tokens, and attend to no later one.
    """
    query, key, value = states
    key, value = (state.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for state in (key, value))
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = cap * torch.tanh(scores / cap)
    if mask is None and causal:
        mask = scores.new_ones(scores.shape[2:], dtype=torch.bool).tril(scores.shape[3] - scores.shape[2])
    if mask is not None:  # by the least number: minus infinity gives NaN for a row of padding alone
        least = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~mask, least) if mask.dtype == torch.bool else scores + mask
    return (scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype) @ value).transpose(1, 2)


def _gather(tokens: Tensor, index: Tensor, *, whole: bool) -> Tensor:
    """Return [S, H, T, W] from [N, H, W]; `whole` if the index only cuts the first tokens into equal pieces."""
    chosen = tokens[: index.numel()] if whole else tokens.index_select(0, index.flatten())
    return chosen.reshape(*index.shape, *tokens.shape[1:]).transpose(1, 2)


AttentionInterface.register(NAME, attend)


AttentionMaskInterface.register(NAME, sdpa_mask)


def lay_out(segments: Sequence[Segment]) -> Layout:
    """Return the layout of segments, parents before children."""
    depths: list[int] = []  # parents come first, so their depth is known
    for segment in segments:
        depths.append(0 if segment.parent < 0 else depths[segment.parent] + 1)
    members = [[i for i, d in enumerate(depths) if d == depth] for depth in range(max(depths) + 1)]
    order = [i for level in members for i in level]
    starts = np.zeros(len(segments), dtype=np.int64)
    starts[order] = np.cumsum([0, *(segments[i].size for i in order[:-1])])
    paths: list[NDArray[np.int64]] = []
    for segment, start in zip(segments, starts, strict=True):
        own = np.arange(segment.size) + np.array([[start], [segment.position]])
        paths.append(own if segment.parent < 0 else np.concatenate([paths[segment.parent], own], axis=1))
    return Layout(segments, members, starts, paths)


def _level(members: Sequence[int], layout: Layout, *, multiple: int = 0) -> Level:
    """Return the level of these segments, which are packed next to each other in this order.

    With a `multiple`, segments that are too long for `short_attention` are padded to one, and run as whole rows if that
    is faster. Without causal attention neither pays: padding then needs a mask, which equal rows do without.
    """
    starts = layout.starts[members][:, None]
    sizes, positions = np.array([(layout.segments[i].size, layout.segments[i].position) for i in members]).T[..., None]
    longest, width = int(sizes.max()), max(layout.paths[i].shape[1] for i in members)
    is_root = width == longest
    if multiple and longest * width > (MAX_CAUSAL_SCORES if is_root else MAX_SCORES):
        longest, width = (-(-length // multiple) * multiple for length in (longest, width))
    step = np.arange(longest)
    inside = step < sizes  # [S, T]
    offset = np.where(inside, step, 0)
    keys = np.zeros((2, len(members), width), dtype=np.int64)
    keys[1] = -1
    for row, i in enumerate(members):
        keys[:, row, : layout.paths[i].shape[1]] = layout.paths[i]
    ends = np.array([layout.paths[i].shape[1] for i in members])[:, None]
    extents = np.maximum.accumulate(np.hstack([sizes, ends])[::-1])[::-1]
    indices = (starts - starts[0] + offset, np.flatnonzero(inside), keys[0], positions + offset, keys[1])
    queries, flat_index, key_index, query_positions, key_positions = (
        torch.from_numpy(index).to(layout.device) for index in indices
    )
    level = Level(
        start=int(starts[0, 0]),
        size=int(sizes.sum()),
        is_root=is_root,
        queries=queries,
        flat_index=flat_index,
        keys=key_index,
        query_positions=query_positions,
        key_positions=key_positions,
        extents=extents,
    )
    if not multiple or is_root or longest < WHOLE_FROM or width > WHOLE_SHARE * longest:
        return level
    places = np.arange(len(members))[:, None] * width + ends - sizes + step  # [S, T] among the keys
    return replace(level, key_index=torch.from_numpy(places[inside]).to(layout.device))


def run(
    network: Any, ids: Tensor, positions: Tensor, layout: Layout, *, past: Past = (), types: Tensor | None = None
) -> Tensor:
    """Run a network in which `install` succeeded over packed tokens and return their last hidden states [N, D].

    `positions` [N] are those of the tokens in their rows, `types` [N] say which of two texts they are of. `past` holds
    keys and values, per layer, of virtual tokens in front of every row.
    """
    cache: dict[str, Any] = {} if types is None else {"token_type_ids": types[None]}
    if past:
        virtual = past[0][0].shape[2]
        positions = positions + virtual
        layout = layout.after_virtual(virtual)
        cache["cache"] = DynamicCache(past)
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

    In `float32` it depends on what is compared. In half precision, and where layers round their inputs to 8 bits,
    rounding decides: a last bit that differs may move an input by a whole step.
    """
    schemes = (getattr(layer, "quantization_scheme", None) for layer in network.modules())  # of compressed-tensors
    rounds = any(getattr(scheme, "input_activations", None) is not None for scheme in schemes)
    return float32 if network.dtype == torch.float32 and not rounds else HALF_TOLERANCE


@torch.no_grad()
def states_alone(network: Any, row: Sequence[int], **options: Any) -> Tensor:
    """Compute the last hidden states [T, D] of one row by transformers, in float32."""
    out = run_body(network, input_ids=torch.tensor([list(row)], device=network.device), **options)
    states: Tensor = out.last_hidden_state[0].float()
    return states


@once_per_shape
@torch.no_grad()
def _same_states(network: Any, *, causal: bool) -> bool:
    """Return whether two packed rows with a common prefix have the states they have alone, and windows are passed."""
    # Only causal rows can share a prefix: an encoder's prefix attends to what follows it.
    shared, own = (4, 3) if causal else (0, 7)
    segments = [Segment(shared, -1, 0)] * bool(shared)
    segments += [Segment(own + row, len(segments) - 1, shared) for row in range(2)]
    layout = lay_out(segments)
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
        alone = states_alone(network, row)[-len(states) :]
        if not (states - alone).norm() <= state_tolerance(network) * alone.norm():  # NaN fails, too
            return False
    return True
