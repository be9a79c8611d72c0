"""A model seen through one technique. Letters: B rows, N packed tokens, M learned ids, P prefix ids, D hidden."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from tunesmith.model import attention, thin
from tunesmith.model.batch import Batch
from tunesmith.model.fork import Past
from tunesmith.model.head import LanguageHead
from tunesmith.model.virtual import Virtual


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
    start: Policy | None = None  # a network of its own that answers as before, where a technique keeps one
    adapter: Any = None  # PEFT's own wrapper, where a technique has one: it knows how to save itself
    packs: bool = True  # the network's attention can be told who sees whom; else rows run padded
    mixed: torch.dtype | None = None  # multiply in this type while the numbers stay what they are
    virtual: Virtual | None = None  # tokens before every row; no answer is given for them
    weights: bool = True  # what moves are weights: they decay, and a head may take their rate

    @classmethod
    def over(
        cls, network: Any, *, family: str, reference: Callable[[], AbstractContextManager[Any]] = nullcontext
    ) -> Policy:
        """A policy without a head of an objective's own."""
        thin.install(network)
        language = LanguageHead.of(network) if family == "decoder" else None
        return cls(network, family, language, reference, packs=attention.install(network, causal=family == "decoder"))

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        device: torch.device = next(self.network.parameters()).device
        return device

    @property
    def hidden(self) -> int:
        """Width D of the states."""
        if self.language_head is not None:  # a few networks give out narrower states than they compute with
            weight: Any = self.language_head.layer.weight
            return int(weight.shape[-1])
        return int(self.network.config.hidden_size)

    def states(self, batch: Batch) -> Tensor:
        """[N, D]: last hidden state of every packed token."""
        if self.mixed is None:
            return self._states(batch)
        with self.mixing():
            return self._states(batch).float()

    def mixing(self) -> AbstractContextManager[Any]:
        """A context in which products are made in the type to multiply in."""
        return nullcontext() if self.mixed is None else torch.autocast(self.device.type, dtype=self.mixed)

    @contextmanager
    def unmixed(self) -> Iterator[None]:
        """A context in which products are made in the numbers' own type, as the report makes them."""
        mixed, self.mixed = self.mixed, None
        try:
            yield
        finally:
            self.mixed = mixed

    def _states(self, batch: Batch) -> Tensor:
        if self.packs and (self.virtual is None or self.virtual.is_past):
            return attention.run(self.network, batch.ids, batch.positions, batch.layout, past=self._past())
        real = batch.paths >= 0
        ids = batch.ids[batch.paths.clamp(min=0)]
        padding = self.network.config.pad_token_id
        if padding is not None and padding >= 0:  # some networks look at what stands beside, masked or not
            ids = ids.masked_fill(~real, padding)
        given = {"input_ids": ids, "attention_mask": real.long()}
        if self.virtual is not None:
            given = self.virtual.before(self.network, ids, real)
        out = self.network.base_model(**given).last_hidden_state[:, -ids.shape[1] :]
        # A shared token has come out once per row, each time the same: any of them will do.
        owner = torch.empty_like(batch.ids)
        owner[batch.paths[real]] = torch.arange(real.numel(), device=real.device).view_as(real)[real]
        states: Tensor = out.flatten(0, 1).index_select(0, owner)
        return states

    def _past(self) -> Past:
        return () if self.virtual is None else self.virtual.past(self.network)

    def prefill(self, prefix: Tensor, *, rows: int) -> DynamicCache:
        """Keys and values of what stands before every row, virtual tokens and [P] shared ids, computed once."""
        past = self._past()
        cache = DynamicCache(past) if past else DynamicCache(config=self.network.config)
        if len(prefix):
            self.network.base_model(input_ids=prefix[None], cache=cache, use_cache=True)
        cache.batch_repeat_interleave(rows)
        return cache

    @contextmanager
    def without_virtual(self) -> Iterator[None]:
        """A context in which no virtual tokens stand before the rows."""
        virtual, self.virtual = self.virtual, None
        try:
            yield
        finally:
            self.virtual = virtual

    @contextmanager
    def answered_by(self, other: Policy) -> Iterator[None]:
        """A context in which another policy's network stands in for this one's."""
        mine = self.network, self.language_head
        self.network, self.language_head = other.network, other.language_head
        try:
            yield
        finally:
            self.network, self.language_head = mine

    def learned(self, batch: Batch) -> Tensor:
        """[M, D]: the state before each learned id."""
        return self.states(batch).index_select(0, batch.before)

    def sum_nll(self, batch: Batch) -> Tensor:
        """The sum of -log p over the learned ids of a batch."""
        return self.words.sum_nll(self.learned(batch), batch.targets)

    def logprobs(self, batch: Batch) -> Tensor:
        """[B]: log p of each row's learned ids together."""
        each = self.words.logprobs(self.learned(batch), batch.targets)
        return each.new_zeros(batch.rows).index_add(0, batch.owners, each)

    @torch.no_grad()
    def reference_logprobs(self, batch: Batch) -> Tensor:
        """[B]: the same before the technique touched anything, without gradient."""
        with self.reference():
            return self.logprobs(batch)

    @property
    def words(self) -> LanguageHead:
        """The language head; only decoders have one."""
        assert self.language_head is not None, "the recipe refuses word losses on encoders"
        return self.language_head

    def pooled(self, batch: Batch) -> Tensor:
        """[B, D]: the state at each row's last token (decoder) or the mean over its tokens (encoder)."""
        states = self.states(batch)
        if self.family == "decoder":
            return states.index_select(0, batch.ends)
        real = batch.paths >= 0
        rows = states.index_select(0, batch.paths.clamp(min=0).flatten()).view(*real.shape, -1)
        return (rows * real[..., None]).sum(dim=1) / real.sum(dim=1, keepdim=True)

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and numbers that the optimizer may move, the objective's head last."""
        for name, value in self.network.named_parameters():
            if value.requires_grad:
                yield name, value
        if self.virtual is not None:
            for name, value in self.virtual.module.named_parameters():
                yield f"virtual.{name}", value
        if self.head is not None:
            for name, value in self.head.named_parameters():
                yield f"head.{name}", value

    def train(self, mode: bool = True) -> None:
        """Training mode (dropout on) or evaluation mode, for all that has numbers."""
        self.network.train(mode)
        if self.virtual is not None:
            self.virtual.module.train(mode)
        if self.head is not None:
            self.head.train(mode)
