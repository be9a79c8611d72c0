"""Attention of several completions per prompt to one shared copy of the prompt's keys and values.

Copies of the prompt's keys and values, one per completion, would take C times the memory.

Letters: P prompts, C completions of the prompt that has most, B unfinished completions, S columns of the prompts, T
tokens of a completion so far, H query heads, G key heads, R = H / G, W head width, X any width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Keys and values of the tokens in front of the rows, layer by layer.
Past = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class SharedPrefixAttention:
    """The prompts of a batch, and the prompt that each completion continues."""

    past: Past  # keys and values [P, G, S, W] of every layer, float32
    padding_bias: Tensor  # [P, 1, 1, S], added to the scores: 0, or minus infinity on padding
    prompt_index: Tensor  # [B] int64 index of each completion's prompt
    rows: Tensor  # [P, C] int64 index of each prompt's completions; a prompt with fewer than C repeats any
    flat_index: Tensor  # [B] int64 index of each completion in the flattened [P * C] output

    @classmethod
    def of(cls, past: Past, mask: Tensor, *, copies: int) -> SharedPrefixAttention:
        """Return the attention of `copies` completions per prompt; the mask [P, S] of the prompts is 0 on padding."""
        bias = torch.zeros(mask.shape, device=mask.device).masked_fill_(mask == 0, -torch.inf)
        full = [(keys.float(), values.float()) for keys, values in past]
        prompt_index = torch.arange(len(mask), device=mask.device).repeat_interleave(copies)
        return cls(full, bias[:, None, None], prompt_index, *_group_by_prompt(prompt_index, len(mask)))

    def keep(self, chosen: Tensor) -> SharedPrefixAttention:
        """Return the attention of only these completions, given their index [B']."""
        prompt_index = self.prompt_index[chosen]
        index = _group_by_prompt(prompt_index, len(self.padding_bias))
        return SharedPrefixAttention(self.past, self.padding_bias, prompt_index, *index)

    def attend(self, layer: int, states: Sequence[Tensor], *, scale: float | None, cap: float | None) -> Tensor:
        """Compute attention [B, 1, H, W] of each completion's last token to its prompt and its own tokens.

        `states` are query [B, H, 1, W], and key and value [B, G, T, W] of the completions; see `capped_attention`.
        """
        query, key, value = (state.float() for state in states)
        heads = key.shape[1]
        width = query.shape[-1]
        prompt_keys, prompt_values = self.past[layer]
        with torch.autocast(query.device.type, enabled=False):
            scaled = query.reshape(len(query), heads, -1, width) * (width**-0.5 if scale is None else scale)
            queries = scaled.shape[2]
            # One softmax over the scores of prompt and completion; only the products are separate.
            far = self._group(scaled) @ prompt_keys.mT
            near = scaled @ key.mT
            if cap is not None:
                far, near = (cap * torch.tanh(scores / cap) for scores in (far, near))
            far = self._ungroup(far + self.padding_bias, queries)
            weights = torch.cat([far, near], dim=-1).softmax(dim=-1)
            far, near = weights.split([far.shape[-1], key.shape[2]], dim=-1)
            read = self._ungroup(self._group(far) @ prompt_values, queries) + near @ value
        out: Tensor = read.reshape(len(query), 1, -1, width)
        return out.to(states[0].dtype)

    def _group(self, each: Tensor) -> Tensor:
        """[B, G, R, X] -> [P, G, C * R, X]: all completions of a prompt in one product."""
        grouped: Tensor = each[self.rows].transpose(1, 2).flatten(2, 3)
        return grouped

    def _ungroup(self, grouped: Tensor, queries: int) -> Tensor:
        """[P, G, C * R, X] -> [B, G, R, X]."""
        each = grouped.unflatten(2, (-1, queries)).transpose(1, 2)
        rows: Tensor = each.flatten(0, 1).index_select(0, self.flat_index)
        return rows


def _group_by_prompt(prompt_index: Tensor, prompts: int) -> tuple[Tensor, Tensor]:
    """Return `rows` [P, C] and `flat_index` [B] of `SharedPrefixAttention`."""
    members: list[list[int]] = [[] for _ in range(prompts)]
    slots = []
    for row, prompt in enumerate(prompt_index.tolist()):
        members[prompt].append(row)
        slots.append((prompt, len(members[prompt]) - 1))
    most = max(map(len, members))
    device = prompt_index.device
    rows = torch.tensor([[*own, *[0] * (most - len(own))] for own in members], device=device)
    return rows, torch.tensor([prompt * most + slot for prompt, slot in slots], device=device)
