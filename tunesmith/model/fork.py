"""Several answers to each prompt, side by side, that read the prompt's keys and values where they lie, once for all.

Letters: P prompts, C most answers of one of them, B answers that go on, S columns of the prompts, T tokens of an answer
so far, H heads, G key heads, R = H / G, W width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Keys and values of what stands before rows, layer by layer.
Past = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Fork:
    """The prompts of a batch and which of them each answer follows."""

    past: Past  # keys and values [P, G, S, W] of every layer, in full precision
    hidden: Tensor  # [P, 1, 1, S]: what is added to a score, 0 or minus infinity on padding
    owners: Tensor  # [B] int64 index among the prompts
    rows: Tensor  # [P, C] int64 index among the answers; a prompt with fewer than C repeats any
    places: Tensor  # [B] int64 index into [P * C], where each answer is found again

    @classmethod
    def of(cls, past: Past, mask: Tensor, *, copies: int) -> Fork:
        """So many answers to each prompt, given the mask [P, S] of what is no padding."""
        hidden = torch.zeros(mask.shape, device=mask.device).masked_fill_(mask == 0, -torch.inf)
        full = [(keys.float(), values.float()) for keys, values in past]
        owners = torch.arange(len(mask), device=mask.device).repeat_interleave(copies)
        return cls(full, hidden[:, None, None], owners, *_gathered(owners, len(mask)))

    def keep(self, chosen: Tensor) -> Fork:
        """Only these answers go on."""
        owners = self.owners[chosen]
        return Fork(self.past, self.hidden, owners, *_gathered(owners, len(self.hidden)))

    def attend(self, layer: int, states: Sequence[Tensor], scale: float | None) -> Tensor:
        """[B, 1, H, W]: what query [B, H, 1, W] reads of its prompt and of its answer's key and value [B, G, T, W]."""
        query, key, value = (one.float() for one in states)
        heads, width = key.shape[1], query.shape[-1]
        far_keys, far_values = self.past[layer]
        with torch.autocast(query.device.type, enabled=False):
            asking = query.reshape(len(query), heads, -1, width) * (width**-0.5 if scale is None else scale)
            queries = asking.shape[2]
            far = self._alone(self._side_by_side(asking) @ far_keys.mT + self.hidden, queries)
            scores = torch.cat([far, asking @ key.mT], dim=-1).softmax(dim=-1)
            far, near = scores.split([far.shape[-1], key.shape[2]], dim=-1)
            read = self._alone(self._side_by_side(far) @ far_values, queries) + near @ value
        out: Tensor = read.reshape(len(query), 1, -1, width)
        return out.to(states[0].dtype)

    def _side_by_side(self, each: Tensor) -> Tensor:
        """[B, G, R, X] -> [P, G, C * R, X]: the answers to one prompt in one product."""
        grouped: Tensor = each[self.rows].transpose(1, 2).flatten(2, 3)
        return grouped

    def _alone(self, grouped: Tensor, queries: int) -> Tensor:
        """[P, G, C * R, X] -> [B, G, R, X]."""
        apart = grouped.unflatten(2, (-1, queries)).transpose(1, 2)
        found: Tensor = apart.flatten(0, 1).index_select(0, self.places)
        return found


def _gathered(owners: Tensor, prompts: int) -> tuple[Tensor, Tensor]:
    """`rows` and `places` of a fork."""
    members: list[list[int]] = [[] for _ in range(prompts)]
    places = []
    for row, owner in enumerate(owners.tolist()):
        members[owner].append(row)
        places.append((owner, len(members[owner]) - 1))
    most = max(map(len, members))
    rows = torch.tensor([[*own, *[0] * (most - len(own))] for own in members], device=owners.device)
    return rows, torch.tensor([owner * most + place for owner, place in places], device=owners.device)
