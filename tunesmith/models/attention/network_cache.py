"""The cache that a network itself makes, and what its rows may do together.

A cache of keys and values has one column per token, so rows in it can be padded, copied and shortened. Other networks
keep states that stand for everything before: a convolution its last inputs, a linear attention or state space layer one
matrix. Such a state changes with every token, padding included. Which rows may run together is therefore measured.

Letters: B rows, T tokens of a pass, S columns of the cache, D hidden width. In all functions, `network` is a model of
transformers with a language model head.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, LinearAttentionCacheLayerMixin

from tunesmith.errors import briefly, out_of_memory
from tunesmith.models.attention.packed import NO_MASK, state_tolerance, states_alone
from tunesmith.models.attention.shared_prefix import SharedPrefixAttention
from tunesmith.models.families import counts_places, scales_by_column, slides
from tunesmith.models.once_per_shape import once_per_shape
from tunesmith.models.sharded import run_body

# Largest relative distance between states that should be equal, in float32. A rule allows less: `NOISE` times the
# distance of rows of equal length, but at least the minimum of float32 or of half precision. In bfloat16, rounding
# costs up to 1 %, and a state that is lost 2 % (Falcon-Mamba) to 40 % (Jamba) of tiny random networks.
TOLERANCE = 1e-4
MINIMUM, HALF_MINIMUM = 1e-5, 0.004
NOISE = 3
# What a library raises when a network has no cache, or one that cannot be used in the way that is tried.
UNUSABLE = (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError, AssertionError)
# Ids of the measurements: a shared prefix, two rows of unequal length after it, and the id that follows each row.
PREFIX, ROWS, NEXT = (1, 2, 3, 4), ((5, 6, 7, 8, 9, 10, 11), (12, 13, 14, 15)), (3, 5)


class NoCacheError(ValueError):
    """A network has no cache of its tokens that rows could continue."""


@dataclass(frozen=True, slots=True)
class RowRules:
    """Rules for rows that run together in one network, measured when it is wrapped."""

    keys_only: bool = True  # the cache holds keys and values of tokens, and nothing else
    pads_right: bool = True  # without a cache, rows of unequal length may be padded to the longest
    pads_left: bool = True  # with a cache, they may be padded on the left
    pads_inside: bool = True  # padding may be between a cached prefix and the rest of a row
    continues: bool = True  # several tokens at once may follow cached ones; otherwise they follow one by one

    @classmethod
    def of(cls, network: Any, *, packs: bool) -> RowRules:
        """Measure the rules of a decoder; where it `packs`, padding does not change what its rows attend to."""
        inside = not (counts_places(network.config) or scales_by_column(network.config))
        if packs:
            return cls(pads_inside=inside)
        if network not in _MEASURED:  # each measurement reads all weights, and a network is wrapped several times
            _MEASURED[network] = cls._measured(network, inside=inside)
        return _MEASURED[network]

    @classmethod
    def _measured(cls, network: Any, *, inside: bool) -> RowRules:
        """Measure the rules where rows are not packed; without `inside`, padding inside a row is ruled out already."""
        keys_only = caches_keys_only(network)
        minimum = MINIMUM if network.dtype == torch.float32 else HALF_MINIMUM
        noise = NOISE * _distance(_padded_left, network, even=True)
        limit = min(state_tolerance(network, float32=TOLERANCE), max(minimum, noise))
        return cls(
            keys_only=keys_only,
            pads_right=_distance(_padded_right, network) <= limit,
            pads_left=not scales_by_column(network.config) and _distance(_padded_left, network) <= limit,
            # Any other state changes by padding, even if by little in a network with small weights.
            pads_inside=inside and keys_only and _distance(_padded_left, network, PREFIX) <= limit,
            continues=_distance(_padded_left, network, PREFIX, even=True) <= limit,
        )


_MEASURED: WeakKeyDictionary[Any, RowRules] = WeakKeyDictionary()
_SHARES: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class RowState:
    """The whole cache of one row. It cannot be shortened: it stands for all tokens that were read."""

    cache: Cache

    @classmethod
    def of(cls, cache: Cache) -> RowState:
        """Return a copy of the cache of one row as its state."""
        return cls(copy.deepcopy(cache))

    def fresh(self) -> Cache:
        """Return a copy of the cache, to be continued."""
        return copy.deepcopy(self.cache)

    @property
    def bytes(self) -> int:
        """Memory of the state."""
        return sum(part.numel() * part.element_size() for part in tensors_of(self.cache))


def expose_decoder(network: Any) -> None:
    """Let `network.base_model` be the decoder below the output layer, also where its class names another attribute."""
    inner = [name for name, module in network.named_children() if isinstance(module, PreTrainedModel)]
    if network.base_model is network and inner:
        network.base_model_prefix = inner[0]


def new_cache(network: Any) -> Cache | None:
    """Return an empty cache as transformers' `generate` makes it; None if the network's first pass makes its own."""
    return DynamicCache(config=network.config) if network._supports_default_dynamic_cache() else None


def forward_cached(network: Any, cache: Cache | None, **inputs: Any) -> tuple[Tensor, Cache]:
    """Run a network over new tokens and return their states [B, T, D] and the cache, which now contains them.

    Without a cache of the tokens before, the network makes one. An `attention_mask` covers the tokens before as well.

    Raises:
        NoCacheError: if the network makes no cache, ignores the given one, or reads the mask in another way.
    """
    mask = inputs.get("attention_mask")
    if mask is not None and mask.ndim == 2 and cache is not None and not has_columns(cache):
        inputs["attention_mask"] = mask[:, -inputs["position_ids"].shape[1] :]
    out = run_body(network, **inputs, cache=cache, use_cache=True)
    made: Cache | None = getattr(out, "cache", None)
    # A network that changes the given cache need not return it. One that is still empty was ignored.
    if made is None and cache is not None and any(part.numel() for part in tensors_of(cache)):
        made = cache
    if made is None or out.last_hidden_state.shape[1] != inputs["position_ids"].shape[1]:
        raise NoCacheError("the network makes or fills no cache, or multiplies its states by the whole mask")
    return out.last_hidden_state, made


def has_columns(cache: Cache) -> bool:
    """Return whether a cache has a column for each of its tokens; masks of other caches cover only new tokens."""
    return any(getattr(layer, "keys", None) is not None for layer in cache.layers)


def read_prefix(network: Any, cache: Cache | None, start: int, **inputs: Tensor) -> Cache:
    """Run `input_ids` [1, T] or `inputs_embeds` [1, T, D] of one row after `start` tokens, and return the cache."""
    (given,) = inputs.values()
    positions = torch.arange(start, start + given.shape[1], device=given.device)[None]
    return forward_cached(network, cache, position_ids=positions, **inputs)[1]


def select_rows(cache: Cache, index: Tensor) -> None:
    """Replace the rows of a cache by those of this index [B'] int64, which may drop, repeat or reorder them."""
    # Only `reorder_cache` reaches states without columns; a cache class of one family overrides only the other.
    if type(cache).batch_select_indices is Cache.batch_select_indices:
        cache.reorder_cache(index)  # type: ignore[arg-type]  # annotated as a LongTensor
    else:
        cache.batch_select_indices(index)


def tensors_of(value: object) -> Iterator[Tensor]:
    """Yield every state tensor of a cache; a scalar, such as the size of a window, is none."""
    if isinstance(value, Tensor):
        if value.dim():
            yield value
        return
    if isinstance(value, dict):
        value = list(value.values())
    elif isinstance(value, Cache | CacheLayerMixin | LinearAttentionCacheLayerMixin):
        value = list(vars(value).values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from tensors_of(part)


@once_per_shape
@torch.no_grad()
def caches_keys_only(network: Any) -> bool:
    """Return whether a decoder's cache holds keys and values, and nothing else; measured on one token."""
    try:
        cache = read_prefix(network, new_cache(network), 0, input_ids=_ids(network, PREFIX[:1]))
    except UNUSABLE as error:
        if out_of_memory(error):  # no property of the network
            raise
        return False
    layers: list[Any] = cache.layers
    keys = {id(part) for layer in layers for part in (getattr(layer, "keys", None), getattr(layer, "values", None))}
    return all(id(part) in keys for part in tensors_of(cache))


@torch.no_grad()
def cached_values(network: Any) -> tuple[int, int]:
    """Return the number of values that the cache gains with each token, and of those it has per row in any case."""
    sizes = []
    for tokens in (2, 3):
        cache = read_prefix(network, new_cache(network), 0, input_ids=_ids(network, PREFIX[:tokens]))
        sizes.append(sum(part.numel() for part in tensors_of(cache)))
    growth = sizes[1] - sizes[0]
    return growth, sizes[0] - 2 * growth


@once_per_shape
def generates(network: Any) -> bool:
    """Return whether a decoder continues from its own cache exactly as from the tokens themselves; measured.

    Two rows of equal length change places before their last token. Where the cache holds keys and values only, several
    tokens at once also have to continue it.
    """
    limit = state_tolerance(network, float32=TOLERANCE)
    changes_places = _distance(_padded_left, network, even=True) <= limit  # false for NaN
    return changes_places and (
        not caches_keys_only(network) or _distance(_padded_left, network, PREFIX, even=True) <= limit
    )


@torch.no_grad()
def cache_failure(network: Any) -> str:
    """Return what transformers raises when a decoder reads a few tokens into its cache; empty if it raises nothing."""
    try:
        read_prefix(network, new_cache(network), 0, input_ids=_ids(network, PREFIX))
    except NoCacheError:
        return ""
    except UNUSABLE as error:
        return briefly(error)
    return ""


def shares_prompts(network: Any) -> bool:
    """Return whether several completions may attend to one copy of their prompt's keys and values.

    They may not where a layer attends to other keys or values than it caches, as those of JetMoE and DiffLlama. It is
    measured when first asked, so that a network that never samples several completions runs no pass for it.
    """
    if network not in _SHARES:
        with torch.autocast(network.device.type, enabled=False):
            _SHARES[network] = not slides(network.config) and _one_copy_suffices(network)
    return _SHARES[network]


@once_per_shape
def _one_copy_suffices(network: Any) -> bool:
    """Return whether completions that attend to one copy of their prompt have the states of rows alone; measured."""
    return _distance(_after_one_copy, network) <= state_tolerance(network, float32=TOLERANCE)


@torch.no_grad()
def _distance(measure: Any, network: Any, *given: Any, **options: Any) -> float:
    """Return the largest relative distance between states of rows together and alone; infinite if they fail.

    NaN if any state is, which no limit allows.
    """
    try:
        pairs: Sequence[tuple[Tensor, Tensor]] = measure(network, *given, **options)
    except UNUSABLE as error:
        if out_of_memory(error):
            raise
        return math.inf
    # By torch, because Python's `max` passes over NaN, which a row of padding alone may give.
    return float(torch.stack([(found - alone).norm() / alone.norm() for found, alone in pairs]).max())


def _padded_right(network: Any) -> list[tuple[Tensor, Tensor]]:
    """Return the states of two rows padded on the right, and of each alone."""
    width = max(map(len, ROWS))
    ids = torch.cat([_ids(network, (*row, *[0] * (width - len(row)))) for row in ROWS])
    real = torch.cat([_ids(network, (*[1] * len(row), *[0] * (width - len(row)))) for row in ROWS])
    out = run_body(network, input_ids=ids, attention_mask=real, use_cache=False).last_hidden_state.float()
    return [(out[i, : len(row)], states_alone(network, row, use_cache=False)) for i, row in enumerate(ROWS)]


def _padded_left(network: Any, prefix: Sequence[int] = (), *, even: bool = False) -> list[tuple[Tensor, Tensor]]:
    """Return the last two states of two rows that run together after a prefix, and of each alone."""
    rows = [row[: len(ROWS[1])] for row in ROWS] if even else ROWS
    width = max(map(len, rows))
    cache = new_cache(network)
    if prefix:
        cache = read_prefix(network, cache, 0, input_ids=_ids(network, prefix))
        select_rows(cache, torch.zeros(2, dtype=torch.int64, device=network.device))
    ids = torch.cat([_ids(network, (*[0] * (width - len(row)), *row)) for row in rows])
    real = torch.cat([_ids(network, (*[1] * len(prefix), *[0] * (width - len(row)), *[1] * len(row))) for row in rows])
    positions = (real.cumsum(dim=1) - 1).clamp(min=0)
    states, cache = forward_cached(
        network, cache, input_ids=ids, attention_mask=real, position_ids=positions[:, -width:]
    )
    swapped = torch.tensor([1, 0], device=network.device)
    select_rows(cache, swapped)
    after, _ = forward_cached(
        network,
        cache,
        input_ids=_ids(network, NEXT[::-1]).T,
        attention_mask=torch.cat([real[swapped], real.new_ones(2, 1)], dim=1),
        position_ids=positions[swapped, -1:] + 1,
    )
    found = torch.stack([states[:, -1], after[swapped, -1]], dim=1).float()
    whole = ((*prefix, *row, last) for row, last in zip(rows, NEXT, strict=True))
    alone = [states_alone(network, row, use_cache=False)[-2:] for row in whole]
    return list(zip(found, alone, strict=True))


def _after_one_copy(network: Any) -> list[tuple[Tensor, Tensor]]:
    """Return the last state of two rows that attend to one copy of a prefix, and of each alone."""
    layers: list[Any] = read_prefix(network, new_cache(network), 0, input_ids=_ids(network, PREFIX)).layers
    mask = torch.ones(1, len(PREFIX), dtype=torch.int64, device=network.device)
    states, _ = forward_cached(
        network,
        new_cache(network),
        input_ids=_ids(network, NEXT).T,
        attention_mask=NO_MASK.to(network.device),
        position_ids=mask.sum(dim=1, keepdim=True).expand(len(NEXT), 1),
        layout=SharedPrefixAttention.of([(layer.keys, layer.values) for layer in layers], mask, copies=len(NEXT)),
    )
    alone = [states_alone(network, (*PREFIX, last), use_cache=False)[-1] for last in NEXT]
    return list(zip(states[:, -1].float(), alone, strict=True))


def _ids(network: Any, ids: Sequence[int]) -> Tensor:
    """Return ids as a tensor [1, T] on the network's device."""
    return torch.tensor([list(ids)], device=network.device)
