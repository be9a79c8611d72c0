"""A model seen through one technique. Letters: B rows, T tokens, P prefix tokens, D hidden, N learned positions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from tunesmith.model.batch import Batch
from tunesmith.model.head import LanguageHead


@dataclass(slots=True)
class Policy:
    """Ids in, values for exactly those ids out, whichever technique moves the numbers.

    `network` is the model with whatever the technique put into it; `head` is the objective's own
    output layer, if it has one; `reference` is a context in which `network` answers as it did
    before the technique touched it.
    """

    network: Any
    family: str
    language_head: LanguageHead | None
    reference: Callable[[], AbstractContextManager[Any]]
    head: nn.Module | None = None
    adapter: Any = None  # PEFT's own wrapper, where a technique has one: it knows how to save itself
    mixed: torch.dtype | None = None  # multiply in this type while the numbers stay what they are

    @classmethod
    def over(cls, network: Any, *, family: str, reference: Callable[[], AbstractContextManager[Any]]) -> Policy:
        """A policy without a head of an objective's own."""
        language = LanguageHead.of(network) if family == "decoder" else None
        return cls(network, family, language, reference)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        device: torch.device = next(self.network.parameters()).device
        return device

    @property
    def hidden(self) -> int:
        """Width D of the states."""
        return int(self.network.config.hidden_size)

    def states(self, batch: Batch) -> Tensor:
        """[B, T, D]: last hidden states of the rows; what they share runs once, with gradient."""
        if self.mixed is None:
            return self._states(batch)
        with torch.autocast(self.device.type, dtype=self.mixed):
            return self._states(batch).float()

    def _states(self, batch: Batch) -> Tensor:
        if self.family == "encoder":
            out = self.network.base_model(input_ids=batch.ids, attention_mask=batch.real.long())
            return out.last_hidden_state  # type: ignore[no-any-return]
        # Rows are padded on the right and attention is causal, so no real token sees padding: no mask is needed.
        if batch.prefix is None:
            out = self.network.base_model(input_ids=batch.ids, use_cache=False)
            return out.last_hidden_state  # type: ignore[no-any-return]
        cache = self.prefill(batch.prefix, rows=len(batch.ids))
        out = self.network.base_model(input_ids=batch.ids, cache=cache, use_cache=True)
        return out.last_hidden_state  # type: ignore[no-any-return]

    def prefill(self, prefix: Tensor, *, rows: int) -> DynamicCache:
        """Keys and values of [P] shared ids, computed once and handed to every row."""
        cache = DynamicCache(config=self.network.config)
        self.network.base_model(input_ids=prefix[None], cache=cache, use_cache=True)
        cache.batch_repeat_interleave(rows)
        return cache

    def learned(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """[N, D] states and [N] targets: each learned id with the state of the token before it."""
        states = self.states(batch)
        return states[:, :-1][batch.learn[:, 1:]], batch.ids[:, 1:][batch.learn[:, 1:]]

    def sum_nll(self, batch: Batch) -> Tensor:
        """The sum of -log p over the learned ids of a batch."""
        states, targets = self.learned(batch)
        return self.words.sum_nll(states, targets)

    @property
    def words(self) -> LanguageHead:
        """The language head; only decoders have one."""
        assert self.language_head is not None, "the recipe refuses word losses on encoders"
        return self.language_head

    def pooled(self, batch: Batch) -> Tensor:
        """[B, D]: the state at each row's last real token (decoder) or the mean over real tokens (encoder)."""
        states = self.states(batch)
        if self.family == "decoder":
            return states[torch.arange(len(states)), batch.real.sum(dim=1) - 1]
        weight = batch.real[..., None].to(states.dtype)
        return (states * weight).sum(dim=1) / weight.sum(dim=1)

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and numbers that the optimizer may move, the objective's head last."""
        for name, value in self.network.named_parameters():
            if value.requires_grad:
                yield name, value
        if self.head is not None:
            for name, value in self.head.named_parameters():
                yield f"head.{name}", value

    def train(self, mode: bool = True) -> None:
        """Training mode (dropout on) or evaluation mode, for network and head."""
        self.network.train(mode)
        if self.head is not None:
            self.head.train(mode)
