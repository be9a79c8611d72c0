"""A model as one technique presents it: token ids in, hidden states or log-probabilities out.

Letters: B rows, N packed tokens, M learned ids, L tokens of the longest row, P prefix ids, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import Cache

from tunesmith.errors import out_of_memory
from tunesmith.models.attention import packed as attention
from tunesmith.models.attention.network_cache import (
    RowRules,
    caches_keys_only,
    expose_decoder,
    new_cache,
    read_prefix,
    select_rows,
)
from tunesmith.models.attention.shared_prefix import Past
from tunesmith.models.attention.soft_prompt import Virtual
from tunesmith.models.batch import Batch
from tunesmith.models.families import scales_by_column
from tunesmith.models.kept_answers import KeptAnswers, recall, refuse_unknown
from tunesmith.models.kernels import dropout
from tunesmith.models.kernels import lean_layers as lean
from tunesmith.models.kernels import skinny_linear as thin
from tunesmith.models.lm_head import LanguageHead
from tunesmith.models.mixtures import RouterLoss
from tunesmith.models.once_per_shape import bits_of
from tunesmith.models.sharded import is_shard, reshard, run_body, whole_weights


@dataclass(slots=True)
class Policy:
    """A network under one technique: ids in, states of exactly those ids out, whichever parameters are trained.

    Objectives, generation and evaluation use only this class, so none of them knows adapters or virtual tokens:

        policy = Policy.over(network, family="decoder")
        states = policy.states(batch)  # [N, D]
        with policy.reference():
            base = policy.logprobs(batch)  # [B], of the base model
    """

    network: Any  # the transformers model, with whatever the technique put into it
    family: str  # decoder or encoder
    language_head: LanguageHead | None  # the output layer of a decoder
    reference: Callable[[], AbstractContextManager[Any]]  # a context in which `network` computes as the base model
    head: nn.Module | None = None  # the objective's own output layer
    start: Policy | None = None  # a separate copy of the base model, if the technique keeps one
    adapter: Any = None  # PEFT's wrapper, which writes the adapter files
    packs: bool = True  # packed attention works in this network; otherwise rows run padded
    rules: RowRules = RowRules()  # what rows of a decoder may do together where they are not packed
    autocast_dtype: torch.dtype | None = None  # autocast dtype of matrix products; parameters keep their own dtype
    # Autocast dtype in which a run evaluates base and tuned model; None, also for a model that is loaded: none.
    scoring_dtype: torch.dtype | None = None
    virtual: Virtual | None = None  # tokens in front of every row; no states are returned for them
    router_loss: RouterLoss | None = None  # in training: records what balances the routers of a mixture of experts
    whole_weights: Mapping[str, Tensor] | None = None  # of a sharded network, in the first process
    kept: KeptAnswers | None = None  # of the base model, which then are not computed again
    weights: bool = True  # the trainable parameters are weights: they decay, and a head may use their learning rate

    @classmethod
    def over(
        cls, network: Any, *, family: str, reference: Callable[[], AbstractContextManager[Any]] = nullcontext
    ) -> Policy:
        """Return a policy over a network, with packed attention installed where it works.

        Args:
            network: a transformers model.
            family: decoder or encoder.
            reference: a context in which the network computes as the base model; by default it is the base model.

        Raises:
            ModelError: if a decoder changes its logits in an unknown way.
        """
        thin.install(network)
        dropout.install(network)
        if family != "decoder":
            return cls(network, family, None, reference, packs=attention.install(network, causal=False))
        lean.install(network)
        expose_decoder(network)
        language_head = LanguageHead.of(network)
        # Only attention can keep packed rows apart: a convolution or a recurrent state continues from row to row.
        separable = caches_keys_only(network) and not scales_by_column(network.config)
        packs = separable and attention.install(network, causal=True)
        return cls(network, family, language_head, reference, packs=packs, rules=RowRules.of(network, packs=packs))

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        device: torch.device = next(self.network.parameters()).device
        return device

    @property
    def hidden(self) -> int:
        """Width D of the states."""
        if self.language_head is not None:  # a few networks return narrower states than they compute with
            weight: Any = self.language_head.layer.weight
            return int(weight.shape[-1])
        return int(self.network.config.hidden_size)

    def states(self, batch: Batch) -> Tensor:
        """Compute the last hidden state of every packed token, [N, D] float32, whatever dtype the network has."""
        with nullcontext() if self.router_loss is None else self.router_loss.record(batch), self.autocast():
            return self._states(batch).float()

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context in which matrix products use the autocast dtype, if there is one."""
        dtype = self.autocast_dtype
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype=dtype)

    @contextmanager
    def _with(self, **values: Any) -> Iterator[None]:
        """Enter a context in which some attributes have other values."""
        own = {name: getattr(self, name) for name in values}
        for name, value in values.items():
            setattr(self, name, value)
        try:
            yield
        finally:
            for name, value in own.items():
                setattr(self, name, value)

    def full_precision(self) -> AbstractContextManager[None]:
        """Return a context in which matrix products use the parameters' own dtype, as answers do."""
        return self._with(autocast_dtype=None)

    def scoring(self) -> AbstractContextManager[None]:
        """Return a context in which matrix products use `scoring_dtype`, for what it changes negligibly."""
        return self._with(autocast_dtype=self.scoring_dtype)

    def recall(self, key: Sequence[object], rows: Sequence[object], compute: Callable[[list[int]], Any]) -> list[Any]:
        """Return the answer to each row as `kept_answers.recall` does; any but an untouched base computes all."""
        bare = self.head is None and self.virtual is None and self.adapter is None
        if not bare or self.kept is None or not self.kept.belong_to(self.network):
            refuse_unknown(key[0])
            return list(compute(list(range(len(rows)))))
        key = [*key, self.kept.digest, *bits_of(self.device), str(self.autocast_dtype), self.packs]
        return recall(key, rows, compute)

    def recall_tensor(
        self, key: Sequence[object], rows: Sequence[object], compute: Callable[[list[int]], Tensor]
    ) -> Tensor:
        """Return float32 answers [N, ...] on the CPU as `recall` does; `compute` returns them in one tensor."""
        return torch.from_numpy(np.stack(self.recall(key, rows, lambda chosen: compute(chosen).numpy())))

    def _states(self, batch: Batch) -> Tensor:
        if self.packs and (self.virtual is None or self.virtual.is_past):
            return attention.run(
                self.network, batch.ids, batch.positions, batch.layout, past=self._past(), types=batch.types
            )
        real = batch.row_index >= 0
        ids = batch.ids[batch.row_index.clamp(min=0)]
        if self.rules.pads_right:
            out = self._padded(ids, real, None if batch.types is None else batch.types[batch.row_index.clamp(min=0)])
        else:
            rows = [self._padded(row[own][None], own[own][None])[0] for row, own in zip(ids, real, strict=True)]
            out = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        # A shared token is computed once per row that has it, with the same result: take any of them.
        source = torch.empty_like(batch.ids)
        source[batch.row_index[real]] = torch.arange(real.numel(), device=real.device).view_as(real)[real]
        states: Tensor = out.flatten(0, 1).index_select(0, source)
        return states

    def _padded(self, ids: Tensor, real: Tensor, types: Tensor | None = None) -> Tensor:
        """Compute the states [B, L, D] of rows of ids [B, L], padded on the right where `real` is False.

        `types` [B, L] says which of two texts an id is of.
        """
        padding = self.network.config.pad_token_id
        if padding is not None and padding >= 0:  # some networks read the ids at padded positions, masked or not
            ids = ids.masked_fill(~real, padding)
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": real.long()}
        if self.virtual is not None:
            inputs = self.virtual.before(self.network, ids, real)
        if types is not None:
            width = inputs["inputs_embeds"].shape[1] if "inputs_embeds" in inputs else ids.shape[1]
            inputs["token_type_ids"] = nn.functional.pad(types, (width - ids.shape[1], 0))
        if self.family == "decoder" and "cache" not in inputs:  # nothing follows these rows
            inputs["use_cache"] = False
        states: Tensor = run_body(self.network, **inputs).last_hidden_state[:, -ids.shape[1] :]
        return states

    def _past(self) -> Past:
        return () if self.virtual is None else self.virtual.past(self.network)

    def prefill(self, prefix: Tensor, *, rows: int) -> Cache | None:
        """Run the virtual tokens and a prefix [P] that all rows share, and return the cache with a copy for each row.

        It is None if the prefix is empty and the network makes its own cache in the first pass.
        """
        virtual = self.virtual
        if virtual is not None and virtual.is_past:
            cache: Cache | None = DynamicCache(virtual.past(self.network))
        else:
            cache = new_cache(self.network)
            if virtual is not None:
                cache = read_prefix(self.network, cache, 0, inputs_embeds=virtual.embeddings(self.network.dtype))
        if len(prefix):
            cache = read_prefix(self.network, cache, self.virtual_tokens, input_ids=prefix[None])
        if cache is not None and self.virtual_tokens + len(prefix):
            select_rows(cache, torch.zeros(rows, dtype=torch.int64, device=self.device))
        return cache

    @property
    def virtual_tokens(self) -> int:
        """Number of virtual tokens in front of every row."""
        return 0 if self.virtual is None else self.virtual.size

    def without_virtual(self) -> AbstractContextManager[None]:
        """Return a context without virtual tokens in front of the rows."""
        return self._with(virtual=None)

    def answered_by(self, other: Policy) -> AbstractContextManager[None]:
        """Return a context in which another policy's network replaces this one's."""
        return self._with(network=other.network, language_head=other.language_head)

    def learned(self, batch: Batch) -> Tensor:
        """Compute the states that predict the learned ids, [M, D]."""
        return self.states(batch).index_select(0, batch.prev_index)

    def sum_nll(self, batch: Batch) -> Tensor:
        """Compute the sum of -log p over the learned ids of a batch, each times its weight, a scalar in nats."""
        states = self.learned(batch)
        if batch.weights is None:
            return self.words.sum_nll(states, batch.targets)
        return -(self.words.logprobs(states, batch.targets) * batch.weights).sum()

    def logprobs(self, batch: Batch) -> Tensor:
        """Compute log p of each row's learned ids together, [B], nats."""
        each = self.words.logprobs(self.learned(batch), batch.targets)
        return each.new_zeros(batch.rows).index_add(0, batch.row_ids, each)

    @torch.no_grad()
    def reference_logprobs(self, batch: Batch) -> Tensor:
        """Compute the same log-probabilities under the reference model, [B], without gradient."""
        with self.reference():
            return self.logprobs(batch)

    @property
    def words(self) -> LanguageHead:
        """The language head; only decoders have one."""
        head = self.language_head
        assert head is not None, "the recipe refuses word losses on encoders"
        # On a CPU the float32 weights of the head stay in float32 products: bfloat16 is not always faster there.
        if self.autocast_dtype is None or self.device.type == "cpu":
            return head
        return replace(head, products=self.autocast_dtype)

    def pooled(self, batch: Batch) -> Tensor:
        """Compute one state per row, [B, D]: of the last token (decoder), or the mean over the tokens (encoder)."""
        states = self.states(batch)
        if self.family == "decoder":
            return states.index_select(0, batch.last_index)
        real = batch.row_index >= 0
        rows = states.index_select(0, batch.row_index.clamp(min=0).flatten()).view(*real.shape, -1)
        return (rows * real[..., None]).sum(dim=1) / real.sum(dim=1, keepdim=True)

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield name and parameter of everything the optimizer updates, the objective's head last."""
        reshard(self.network)
        for name, value in self.network.named_parameters():
            if value.requires_grad:
                yield name, value
        if self.virtual is not None:
            for name, value in self.virtual.module.named_parameters():
                yield f"virtual.{name}", value
        if self.head is not None:
            for name, value in self.head.named_parameters():
                yield f"head.{name}", value

    def gather_weights(self) -> None:
        """Keep all weights of a sharded network that is trained in the memory of the first process, to save them."""
        if any(is_shard(value) for _, value in self.trainable()):
            self.whole_weights = whole_weights(self.network)

    def train(self, mode: bool = True) -> None:
        """Switch network, virtual tokens and head to training mode (dropout on) or evaluation mode."""
        self.network.train(mode)
        if self.virtual is not None:
            self.virtual.module.train(mode)
        if self.head is not None:
            self.head.train(mode)


@torch.no_grad()
def runs_in_half(network: Any, dtype: torch.dtype) -> bool:
    """Return whether a network runs with matrix products in this dtype.

    The first DeBERTa does not: it masks scores with a value out of the range of half precision.
    """
    ids = torch.zeros(1, 2, dtype=torch.long, device=network.device)
    try:
        with torch.autocast(network.device.type, dtype=dtype):
            run_body(network, input_ids=ids, attention_mask=torch.ones_like(ids))
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        return False
    return True
